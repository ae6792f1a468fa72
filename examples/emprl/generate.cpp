// SPDX-License-Identifier: Apache-2.0

// `emprl generate`: responses for contexts.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "decoding.hpp"
#include "emprl/text/batching.hpp"
#include "emprl/train/interrupt.hpp"
#include "emprl/train/model_folder.hpp"
#include "emprl/train/progress.hpp"
#include "engine.hpp"
#include "lines.hpp"

namespace emprl::program {

namespace {

struct GenerateOptions {
  fs::path model, adapter, input, output;
  DecodingOptions decoding;
  index_t samples = 0;  // 0: one, as text and not as a list
  index_t n_best = 0;   // likewise
  bool details = false;
  index_t batch = 32;
  index_t max_context = text::TokenLimits{}.context;
};

/// Where the draws of a line start: at its own "seed", or at --seed and the line's number.
/// @throws IoError if its seed is no number that --seed takes
gen::DrawSite site_of(InputLine const& line, std::size_t number, std::uint64_t seed) {
  auto const own = line.value.find("seed");
  if (own == line.value.end()) return {seed, 0, static_cast<std::uint32_t>(number)};
  if (!own->is_number_unsigned()) {
    throw IoError(line.where + ": \"seed\" must be a whole number from 0 on.");
  }
  return {own->get<std::uint64_t>(), 0, 0};
}

void generate_lines(Common const& common, GenerateOptions const& options) {
  bool const beams = options.decoding.beams > 0;
  if (beams && options.n_best > options.decoding.beams) {
    throw ConfigError("--n-best " + std::to_string(options.n_best) + " is more than --beams " +
                      std::to_string(options.decoding.beams) + "; give at least as many beams.");
  }
  if (options.decoding.sampling.greedy && options.samples > 1) {
    throw ConfigError("--samples " + std::to_string(options.samples) +
                      " contradicts --greedy, which has one answer; leave one of them out.");
  }
  expect_there(options.model, "--model");
  if (!options.adapter.empty()) expect_there(options.adapter, "--adapter");
  auto const engine = open_engine(common);
  std::vector<InputLine> lines = read_lines(options.input, "--input");
  std::vector<gen::DrawSite> line_sites;
  for (std::size_t i = 0; i < lines.size(); ++i) {
    text_of(lines[i], "context");
    line_sites.push_back(site_of(lines[i], i, common.seed));
  }
  auto const generator = train::load_generator<float>(options.model, options.adapter);
  for (std::string const& sentence : generator.warnings) warn(sentence);
  auto const sampling = train::barred_beyond_tokenizer(options.decoding.sampling, generator);

  auto const model = engine->load(generator);
  LineOutput output(options.output);
  train::InterruptGuard const guard;
  train::Progress progress("generate", static_cast<index_t>(lines.size()), "contexts");
  // A context's responses are decoded together as far as --batch holds them, and it is read once
  // for them.
  index_t const wanted = std::max<index_t>(1, beams ? options.n_best : options.samples);
  index_t const together = beams ? options.decoding.beams : std::min(wanted, options.batch);
  auto const at_once = static_cast<std::size_t>(std::max<index_t>(1, options.batch / together));
  bool const as_list = options.samples > 0 || options.n_best > 0;
  std::vector<gen::DrawSite> sites;
  for (std::size_t begin = 0; begin < lines.size();) {
    std::size_t const end = std::min(lines.size(), begin + at_once);
    Ragged contexts;
    for (std::size_t i = begin; i < end; ++i) {
      contexts.push_back(text::encode_with_end(generator.tokenizer, text_of(lines[i], "context"),
                                               options.max_context));
    }
    // The line's number (or seed) and the sample's number address the draws: neither the batches
    // nor --samples change a response.
    std::vector<io::Json> generated(end - begin, io::Json::array());
    std::vector<io::Json> details(end - begin, io::Json::array());
    for (index_t first = 0; first < wanted;) {
      index_t const many = beams ? wanted : std::min(together, wanted - first);
      sites.clear();
      for (std::size_t i = begin; i < end; ++i) {
        for (index_t sample = first; sample < first + many; ++sample) {
          sites.push_back(line_sites[i]);
          sites.back().step = static_cast<std::uint32_t>(sample);
        }
      }
      auto const found = decode(*model, contexts.view(), options.decoding, sampling, many,
                                std::span<gen::DrawSite const>(sites), options.details);
      for (std::size_t i = 0; i < found.size(); ++i) {
        for (Response const& response : found[i]) {
          generated[i].push_back(generator.tokenizer.decode(response.tokens));
          if (!options.details) continue;
          details[i].push_back(response_details(generator.tokenizer, response, sampling.greedy));
        }
      }
      first += many;
    }
    for (std::size_t i = begin; i < end; ++i) {
      io::Json const& texts = generated[i - begin];
      lines[i].value["generated"] = as_list ? texts : texts[0];
      if (options.details) {
        io::Json const& of = details[i - begin];
        lines[i].value["details"] = as_list ? of : of[0];
      }
      output.write(lines[i].value);
    }
    begin = end;
    progress.advance(static_cast<index_t>(end));
    if (train::interrupted() && begin < lines.size()) {
      throw train::Interrupted(options.output == "-"
                                   ? "the responses so far are complete lines."
                                   : options.output.string() + " was not written; start again.");
    }
  }
  output.commit();
  progress.finish();
}

}  // namespace

void add_generate(CLI::App& app, Common& common) {
  auto* const command = app.add_subcommand("generate", "Generate responses for contexts.");
  auto const options = std::make_shared<GenerateOptions>();
  command->add_option("--model", options->model, "a T5 folder")->required()->type_name("DIR");
  command->add_option("--adapter", options->adapter, "a folder of an adapter: prefixes or a LoRA")
      ->type_name("DIR");
  command
      ->add_option("--input", options->input, "JSON lines with \"context\"; - for standard input")
      ->required()
      ->type_name("FILE");
  command
      ->add_option("--output", options->output,
                   "receives the lines, \"generated\" added; - for standard output")
      ->required()
      ->type_name("FILE");
  add_decoding_options(*command, options->decoding);
  auto* const samples = command->add_option(
      "--samples", options->samples, "responses for each context; \"generated\" is then a list");
  samples->check(CLI::Range(index_t{1}, index_t{100'000}))->default_str("");
  auto* const beams = command->get_option("--beams");
  samples->excludes(beams);
  auto* const n_best = command->add_option("--n-best", options->n_best,
                                           "so many of the best responses that the beams found; "
                                           "\"generated\" is then a list, best first");
  n_best->check(CLI::Range(index_t{1}, index_t{1024}))->default_str("");
  only_with_beams(*command, *n_best);
  samples->excludes(n_best);
  command->add_flag("--details", options->details,
                    "add \"details\": tokens, their log-probabilities and entropies, and the score "
                    "with --beams");
  command
      ->add_option("--batch", options->batch,
                   "responses (or beams) at a time; no response depends on it")
      ->check(CLI::Range(index_t{1}, index_t{65'536}));
  command
      ->add_option("--max-context", options->max_context,
                   "tokens of a context that are read, </s> included")
      ->check(CLI::Range(index_t{1}, index_t{65'536}));
  add_common(*command, common);
  command->footer(
      "Unless told otherwise it samples as EmpRL does in training: temperature 0.9,\n"
      "top-k 20, 5 to 29 tokens. A line that has a whole number as \"seed\" is drawn\n"
      "from it alone, whatever other lines there are; the others from --seed and their\n"
      "place.\n\n"
      "\"details\" are \"ids\" and \"tokens\" (pieces), \"logprobs\" and \"entropies\" of the\n"
      "model's full softmax (natural logarithm, nats), \"logprob\" (the sum), when drawn\n"
      "\"drawn_logprobs\" of what was drawn from, with beams \"token_scores\" and \"score\".\n\n"
      "Examples:\n"
      "  emprl generate --model runs/ed/aligned --input in.jsonl --output out.jsonl\n"
      "  emprl generate --model t5 --input in.jsonl --output out.jsonl --greedy\n"
      "  emprl generate --model t5 --input in.jsonl --output out.jsonl --samples 4\n"
      "  emprl generate --model t5 --input in.jsonl --output out.jsonl --beams 4 \\\n"
      "    --length-penalty 0.6 --n-best 2 --no-repeat-ngram 3 --details\n"
      "  echo '{\"context\": \"I passed my exam!\"}' |\n"
      "    emprl generate --model t5 --input - --output -");
  command->callback([options, &common] { generate_lines(common, *options); });
}

}  // namespace emprl::program
