// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/gemm_cpu.hpp"

// `emprl init`: a randomly initialised T5 folder.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "emprl/io/hugging_face.hpp"
#include "emprl/t5/parameters.hpp"
#include "emprl/train/metrics_log.hpp"
#include "emprl/train/model_folder.hpp"
#include "lines.hpp"

namespace emprl::program {

namespace {

/// @param fields receives all of --config, where it is given
t5::Config chosen_config(InitOptions const& options, index_t tokenizer_size, io::Json& fields) {
  if (options.preset.empty() == options.config.empty()) {
    throw ConfigError(
        "one of --preset (tiny, small, base) and --config (a config.json) is needed.");
  }
  if (!options.config.empty()) {
    expect_there(options.config, "--config");
    fields = io::read_json_file(options.config);
    return train::config_from_json(fields, options.config.string());
  }
  t5::Config config = t5::Config::preset(options.preset);
  // The embedding is most of a tiny model: it gets as many rows as the tokenizer has ids, in whole
  // blocks of eight.
  if (options.preset == "tiny") config.vocab_size = (tokenizer_size + 7) / 8 * 8;
  return config;
}

}  // namespace

void init_model(Common const& common, InitOptions const& options) {
  expect_there(options.tokenizer, "--tokenizer");
  std::vector<std::string> warnings;
  text::SentencePieceTokenizer tokenizer =
      train::read_tokenizer(io::HuggingFaceFolder{options.tokenizer}, warnings);
  for (std::string const& sentence : warnings) warn(sentence);
  io::Json fields;
  t5::Config const config = chosen_config(options, tokenizer.size(), fields);
  prepare_output(options.out);
  train::Generator<float> generator(nn::Unset{}, config, std::move(tokenizer));
  generator.origin = train::read_origin(options.tokenizer, std::move(fields));
  t5::initialise(generator.weights, config, common.seed);
  train::save_generator(options.out, generator);
  write_configuration(options.out, common);
  train::MetricsLog log(options.out);
  log.resume("init", -1);
  log.write("init", 0,
            {{"parameters", static_cast<double>(generator.weights.size())},
             {"vocabulary", static_cast<double>(config.vocab_size)}});
  write_standard_output("init: " + std::to_string(generator.weights.size()) +
                        " parameters, a vocabulary of " + std::to_string(config.vocab_size) +
                        "; written to " + options.out.string() + "\n");
}

void add_init(CLI::App& app, Common& common) {
  auto* const command = app.add_subcommand("init", "Write a randomly initialised T5 folder.");
  auto const options = std::make_shared<InitOptions>();
  auto* const preset =
      command->add_option("--preset", options->preset, "tiny, small or base")->type_name("NAME");
  auto* const config =
      command
          ->add_option("--config", options->config, "a config.json of Hugging Face's T5, instead")
          ->type_name("FILE");
  preset->excludes(config);
  command->add_option("--tokenizer", options->tokenizer, "a folder with spiece.model")
      ->required()
      ->type_name("DIR");
  command->add_option("--out", options->out, "the folder that receives the model")
      ->required()
      ->type_name("DIR");
  add_common(*command, common, false, Devices::cpu);
  command->footer(
      "The preset tiny takes its vocabulary from the tokenizer; small and base have the\n"
      "32128 ids of T5.\n\n"
      "Examples:\n"
      "  emprl init --preset tiny --tokenizer runs/tokenizer --out runs/model\n"
      "  emprl init --config config.json --tokenizer runs/tokenizer --out runs/model");
  command->callback([options, &common] { init_model(common, *options); });
}

}  // namespace emprl::program
