// SPDX-License-Identifier: Apache-2.0

// `emprl score`: log-probabilities of given responses.

#include <algorithm>
#include <cstddef>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "commands.hpp"
#include "decoding.hpp"
#include "emprl/text/batching.hpp"
#include "emprl/train/interrupt.hpp"
#include "emprl/train/progress.hpp"
#include "emprl/train/sequence_task.hpp"
#include "engine.hpp"
#include "lines.hpp"

namespace emprl::program {

namespace {

struct ScoreOptions {
  fs::path model, adapter, input, output;
  index_t batch = 32;
  text::TokenLimits limits;
  bool details = false;
};

void score_lines(Common const& common, ScoreOptions const& options) {
  expect_there(options.model, "--model");
  if (!options.adapter.empty()) expect_there(options.adapter, "--adapter");
  auto const engine = open_engine(common);
  std::vector<InputLine> lines = read_lines(options.input, "--input");
  for (InputLine const& line : lines) {
    text_of(line, "context");
    text_of(line, "response");
  }
  auto const generator = train::load_generator<float>(options.model, options.adapter);
  for (std::string const& sentence : generator.warnings) warn(sentence);

  auto const model = engine->load(generator);
  LineOutput output(options.output);
  train::InterruptGuard const guard;
  train::Progress progress("score", static_cast<index_t>(lines.size()), "responses");
  index_t cut = 0;
  for (std::size_t begin = 0; begin < lines.size();) {
    std::size_t const end = std::min(lines.size(), begin + static_cast<std::size_t>(options.batch));
    text::EncodedPairs pairs;
    for (std::size_t i = begin; i < end; ++i) {
      auto const& tokenizer = generator.tokenizer;
      std::string const& response = text_of(lines[i], "response");
      pairs.contexts.push_back(
          text::encode_with_end(tokenizer, text_of(lines[i], "context"), options.limits.context));
      pairs.responses.push_back(
          text::encode_with_end(tokenizer, response, options.limits.response));
      if (static_cast<index_t>(tokenizer.encode(response).size()) + 1 > options.limits.response)
        ++cut;
    }
    auto const tokens = static_cast<std::size_t>(pairs.responses.tokens());
    std::vector<float> logp(tokens), entropy(options.details ? tokens : 0);
    model->logprobs(pairs.contexts.view(), pairs.responses.view(), logp, entropy);
    for (std::size_t i = begin; i < end; ++i) {
      auto const row = static_cast<index_t>(i - begin);
      auto const ids = pairs.responses.row(row);
      auto const numbers = [&](std::vector<float> const& all) {
        auto const from = all.begin() + pairs.responses.offsets[i - begin];
        return std::vector<double>(from, from + static_cast<std::ptrdiff_t>(ids.size()));
      };
      std::vector<double> const its_logp = numbers(logp);
      lines[i].value["logprob"] = std::accumulate(its_logp.begin(), its_logp.end(), 0.0);
      lines[i].value["tokens"] = ids.size();
      if (options.details) {
        lines[i].value["details"] =
            token_details(generator.tokenizer, ids, its_logp, numbers(entropy));
      }
      output.write(lines[i].value);
    }
    begin = end;
    progress.advance(static_cast<index_t>(end));
    if (train::interrupted() && begin < lines.size()) {
      throw train::Interrupted(options.output == "-"
                                   ? "the scores so far are complete lines."
                                   : options.output.string() + " was not written; start again.");
    }
  }
  output.commit();
  progress.finish();
  if (cut > 0) {
    warn(std::to_string(cut) + " responses are longer than " +
         std::to_string(options.limits.response) +
         " tokens and were scored cut; --max-response sets the limit.");
  }
}

}  // namespace

void add_score(CLI::App& app, Common& common) {
  auto* const command = app.add_subcommand("score", "Log-probabilities of given responses.");
  auto const options = std::make_shared<ScoreOptions>();
  command->add_option("--model", options->model, "a T5 folder")->required()->type_name("DIR");
  command->add_option("--adapter", options->adapter, "a folder of an adapter: prefixes or a LoRA")
      ->type_name("DIR");
  command
      ->add_option("--input", options->input,
                   "JSON lines with \"context\" and \"response\"; - for standard input")
      ->required()
      ->type_name("FILE");
  command
      ->add_option("--output", options->output,
                   "receives the lines, \"logprob\" and \"tokens\" added; - for standard output")
      ->required()
      ->type_name("FILE");
  command->add_option("--batch", options->batch, "responses at a time")
      ->check(CLI::Range(index_t{1}, index_t{65'536}));
  command
      ->add_option("--max-context", options->limits.context,
                   "tokens of a context that are read, </s> included")
      ->check(CLI::Range(index_t{1}, index_t{65'536}));
  command
      ->add_option("--max-response", options->limits.response,
                   "tokens of a response that are scored, </s> included")
      ->check(CLI::Range(index_t{1}, index_t{65'536}));
  command->add_flag("--details", options->details,
                    "add \"details\": the tokens, their log-probabilities and entropies");
  add_common(*command, common);
  command->footer(
      "\"logprob\" is the natural logarithm of the probability of the response and </s>;\n"
      "\"tokens\" says how many tokens that are. \"details\" are \"ids\", \"tokens\" (pieces),\n"
      "\"logprobs\", and \"entropies\" (in nats) of the distributions that predict them.\n\n"
      "Examples:\n"
      "  emprl score --model runs/ed/generator --input pairs.jsonl --output out.jsonl\n"
      "  emprl score --model t5 --adapter adapter --input pairs.jsonl --output -");
  command->callback([options, &common] { score_lines(common, *options); });
}

}  // namespace emprl::program
