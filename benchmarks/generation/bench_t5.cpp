// SPDX-License-Identifier: Apache-2.0

// T5 alone on the CPU: the forward pass, a training step, greedy decoding.
//   bench_t5 [--model DIR --input FILE] [--preset NAME] [--threads N] [--repetitions N] [--json
//   FILE]
//
// With --model and --input (JSON lines with "input" and "labels", token ids) it does the work that
// benchmarks/peers/t5_cpu.py gives to transformers too, and its JSON holds the results by which the
// two are held against each other. Without them weights and ids are random.
//   forward   log-probabilities of the labels of the first --batch rows
//   training  the same rows: loss, every gradient, norm, clipping, AdamW
//   greedy    --tokens tokens for every row, with a cache; no row ends earlier

#include "emprl/ops/gemm_cpu.hpp"
//
#include "emprl/train/model_folder.hpp"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "emprl/core/rng.hpp"
#include "emprl/gen/generate.hpp"
#include "emprl/io/json_lines.hpp"
#include "emprl/optim/adamw.hpp"
#include "emprl/train/sequence_loss.hpp"
#include "emprl/train/t5_adaptors.hpp"
#include "support/program.hpp"
#include "support/timing.hpp"

namespace emprl::bench {
namespace {

struct Options {
  std::filesystem::path model, input;
  std::string preset = "small";
  int threads = 0;
  int repetitions = 5;
  index_t batch = 8;
  index_t tokens = 20;
  std::uint64_t seed = 42;
  std::string json;
};

struct Rows {
  Ragged contexts, responses;
};

std::vector<std::int32_t> ids_of(io::Json const& line, char const* name, std::string const& where) {
  auto const it = line.find(name);
  if (it == line.end() || !it->is_array() || it->empty())
    throw IoError(where + ": \"" + name + "\" must be a list of token ids.");
  std::vector<std::int32_t> ids;
  for (auto const& id : *it) {
    if (!id.is_number_integer()) throw IoError(where + ": an id is no whole number.");
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

Rows read_rows(std::filesystem::path const& file) {
  io::JsonLinesReader reader(file);
  Rows rows;
  for (io::JsonLine line; reader.next(line);) {
    rows.contexts.push_back(ids_of(line.value, "input", reader.where()));
    rows.responses.push_back(ids_of(line.value, "labels", reader.where()));
  }
  return rows;
}

/// 32 contexts of 40 to 80 ids and responses of 8 to 24, `</s>` the last of each.
Rows random_rows(index_t vocabulary, std::uint64_t seed) {
  RandomSequence random(seed, Stream::corpus);
  auto const row = [&](index_t low, index_t high) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(low + random.below(high - low + 1)));
    for (auto& id : ids) id = static_cast<std::int32_t>(3 + random.below(vocabulary - 3));
    ids.back() = t5::end_id;
    return ids;
  };
  Rows rows;
  for (int i = 0; i < 32; ++i) {
    rows.contexts.push_back(row(40, 80));
    rows.responses.push_back(row(8, 24));
  }
  return rows;
}

train::T5Weights<float, Cpu> load(Options const& options) {
  if (options.model.empty()) {
    train::T5Weights<float, Cpu> t5(t5::Config::preset(options.preset));
    t5::initialise(t5.weights, t5.config(), options.seed);
    return t5;
  }
  io::HuggingFaceFolder const folder{options.model};
  train::T5Weights<float, Cpu> t5(
      train::config_from_json(io::read_config(folder), folder.config().string()));
  train::read_parameters(io::SafeTensorsFile(io::find_weights(folder)), t5.weights);
  return t5;
}

/// Seconds of some repetitions after one that is not counted.
std::vector<double> seconds_of(int repetitions, std::function<void()> const& work) {
  std::vector<double> seconds;
  for (int i = -1; i < repetitions; ++i) {
    double const begin = now();
    work();
    if (i >= 0) seconds.push_back(now() - begin);
  }
  return seconds;
}

int benchmark(Options const& options) {
  expects<ConfigError>(options.model.empty() == options.input.empty(),
                       "--model and --input go together: ids belong to a vocabulary");
  int const threads = options.threads > 0
                          ? options.threads
                          : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  io::Json const machine = describe_machine(threads);
  Cpu dev(threads);
  train::T5Weights<float, Cpu> t5 = load(options);
  Rows const rows = options.input.empty() ? random_rows(t5.config().vocab_size, options.seed)
                                          : read_rows(options.input);
  std::vector<index_t> first;
  for (index_t i = 0; i < std::min(options.batch, rows.contexts.rows()); ++i) first.push_back(i);
  Ragged const contexts = gather_rows(rows.contexts.view(), first);
  Ragged const responses = gather_rows(rows.responses.view(), first);

  std::vector<float> logp(responses.ids.size());
  auto const forward = seconds_of(options.repetitions, [&] {
    train::token_logprobs(dev, t5, contexts.view(), responses.view(), std::span<float>(logp));
  });
  double loss = 0;
  for (float const x : logp) loss -= static_cast<double>(x) / static_cast<double>(logp.size());

  gen::SamplingConfig greedy;
  greedy.greedy = true;
  greedy.min_new_tokens = greedy.max_new_tokens = options.tokens;
  train::T5Decoder<float> decoder(dev, t5);
  Ragged answers;
  auto const decoding = seconds_of(options.repetitions, [&] {
    answers = gen::generate(decoder, rows.contexts.view(), greedy, options.seed, 0);
  });

  // Training comes last, as it changes the weights.
  t5::Parameters<float, Cpu> const gradients(t5.config());
  optim::AdamW<float> optimizer(optim::AdamWConfig{}, t5.weights.span(), gradients.span());
  std::vector<double> losses;
  auto const training = seconds_of(options.repetitions, [&] {
    optimizer.zero_gradients();
    losses.push_back(train::sequence_loss(dev, t5, contexts.view(), responses.view(),
                                          gradients.views(), t5::Prefixes<float, Cpu>{}, {}));
    optimizer.step(dev, 1e-4);
  });

  print_machine(machine);
  std::vector<std::vector<std::string>> table{{"work", "ms", "quartiles", "tokens/s"}};
  io::Json results = io::Json::object();
  auto const add = [&](char const* name, std::vector<double> const& seconds, double tokens) {
    Spread const s = spread_of(seconds);
    table.push_back({name, fmt::format("{:.1f}", 1e3 * s.median),
                     fmt::format("[{:.1f}, {:.1f}]", 1e3 * s.low, 1e3 * s.high),
                     fmt::format("{:.0f}", tokens / s.median)});
    results[name] = {{"seconds", seconds}, {"median", s.median}, {"tokens", tokens}};
  };
  double const seen = static_cast<double>(contexts.tokens() + responses.tokens());
  add("forward", forward, seen);
  add("training", training, seen);
  add("greedy", decoding, static_cast<double>(answers.tokens()));
  print_table(table);

  io::Json tokens = io::Json::array();
  for (index_t i = 0; i < answers.rows(); ++i) tokens.push_back(answers.row(i));
  io::Json const report{{"machine", machine},
                        {"batch", contexts.rows()},
                        {"rows", rows.contexts.rows()},
                        {"tokens", options.tokens},
                        {"parameters", t5.weights.size()},
                        {"results", results},
                        {"loss", loss},
                        {"losses", losses},
                        {"greedy", tokens},
                        {"peak_memory_mib", peak_memory()}};
  if (!options.json.empty()) io::write_json_file(options.json, report);
  return 0;
}

}  // namespace
}  // namespace emprl::bench

int main(int argc, char** argv) {
  using namespace emprl::bench;
  Options o;
  CLI::App app{"The forward pass, a training step and greedy decoding of a T5 on the CPU.",
               "bench_t5"};
  app.add_option("--model", o.model, "A T5 folder; its tokenizer is not needed");
  app.add_option("--input", o.input, "JSON lines with \"input\" and \"labels\", token ids");
  app.add_option("--preset", o.preset, "Without --model: tiny, small (T5-small) or base")
      ->check(CLI::IsMember({"tiny", "small", "base"}))
      ->capture_default_str();
  app.add_option("--threads", o.threads, "Threads; 0: one for each processor")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--repetitions", o.repetitions, "Measurements, after one that is not counted")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--batch", o.batch, "Rows of the forward pass and of a training step")
      ->check(CLI::Range(emprl::index_t{1}, emprl::index_t{4096}))
      ->capture_default_str();
  app.add_option("--tokens", o.tokens, "Tokens that are decoded for each row")
      ->check(CLI::Range(emprl::index_t{1}, emprl::index_t{4096}))
      ->capture_default_str();
  app.add_option("--seed", o.seed, "Where random numbers start")->capture_default_str();
  app.add_option("--json", o.json, "Write everything to this file too");
  return run(app, argc, argv, [&] { return benchmark(o); });
}
