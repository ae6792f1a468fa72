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
  gen::SamplingConfig sampling = gen::SamplingConfig::emprl();
  index_t samples = 0;  // 0: one, as text and not as a list
  index_t batch = 32;
  index_t max_context = text::TokenLimits{}.context;
};

void generate_lines(Common const& common, GenerateOptions const& options) {
  if (options.sampling.greedy && options.samples > 1) {
    throw ConfigError("--samples " + std::to_string(options.samples) +
                      " contradicts --greedy, which has one answer; leave one of them out.");
  }
  expect_there(options.model, "--model");
  if (!options.adapter.empty()) expect_there(options.adapter, "--adapter");
  auto const engine = open_engine(common);
  std::vector<InputLine> lines = read_lines(options.input, "--input");
  for (InputLine const& line : lines) text_of(line, "context");
  auto const generator = train::load_generator<float>(options.model, options.adapter);
  for (std::string const& sentence : generator.warnings) warn(sentence);
  auto const sampling = train::barred_beyond_tokenizer(options.sampling, generator);

  auto const model = engine->load(generator);
  LineOutput output(options.output);
  train::InterruptGuard const guard;
  train::Progress progress("generate", static_cast<index_t>(lines.size()), "contexts");
  std::vector<std::uint32_t> row_ids;
  for (std::size_t begin = 0; begin < lines.size();) {
    std::size_t const end = std::min(lines.size(), begin + static_cast<std::size_t>(options.batch));
    Ragged contexts;
    row_ids.clear();
    for (std::size_t i = begin; i < end; ++i) {
      contexts.push_back(text::encode_with_end(generator.tokenizer, text_of(lines[i], "context"),
                                               options.max_context));
      row_ids.push_back(static_cast<std::uint32_t>(i));
    }
    // The line's number and the sample's number address the draws: neither the batches nor
    // --samples change a response.
    std::vector<io::Json> generated(end - begin, io::Json::array());
    for (index_t sample = 0; sample < std::max<index_t>(1, options.samples); ++sample) {
      Ragged const responses = model->generate(contexts.view(), sampling, common.seed,
                                               static_cast<std::uint32_t>(sample), row_ids);
      for (std::size_t i = begin; i < end; ++i) {
        generated[i - begin].push_back(
            generator.tokenizer.decode(responses.row(static_cast<index_t>(i - begin))));
      }
    }
    for (std::size_t i = begin; i < end; ++i) {
      io::Json& list = generated[i - begin];
      lines[i].value["generated"] = options.samples == 0 ? list[0] : list;
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
  command->add_option("--adapter", options->adapter, "a folder of trained prefixes")
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
  add_sampling_options(*command, options->sampling);
  command
      ->add_option("--samples", options->samples,
                   "responses for each context; \"generated\" is then a list")
      ->check(CLI::Range(index_t{1}, index_t{100'000}))
      ->default_str("");
  command->add_option("--batch", options->batch, "contexts at a time; no response depends on it")
      ->check(CLI::Range(index_t{1}, index_t{65'536}));
  command
      ->add_option("--max-context", options->max_context,
                   "tokens of a context that are read, </s> included")
      ->check(CLI::Range(index_t{1}, index_t{65'536}));
  add_common(*command, common);
  command->footer(
      "Unless told otherwise it samples as EmpRL does in training: temperature 0.9,\n"
      "top-k 20, 5 to 29 tokens.\n\n"
      "Examples:\n"
      "  emprl generate --model runs/ed/aligned --input in.jsonl --output out.jsonl\n"
      "  emprl generate --model t5 --input in.jsonl --output out.jsonl --greedy\n"
      "  emprl generate --model t5 --input in.jsonl --output out.jsonl --samples 4\n"
      "  echo '{\"context\": \"I passed my exam!\"}' |\n"
      "    emprl generate --model t5 --input - --output -");
  command->callback([options, &common] { generate_lines(common, *options); });
}

}  // namespace emprl::program
