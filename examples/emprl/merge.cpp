// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/gemm_cpu.hpp"

// `emprl merge`: a LoRA put into the weights, as a model folder that needs no adapter.

#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "commands.hpp"
#include "emprl/train/metrics_log.hpp"
#include "emprl/train/model_folder.hpp"
#include "lines.hpp"

namespace emprl::program {

namespace {

struct MergeOptions {
  fs::path model, adapter, out;
};

void merge(Common const& common, MergeOptions const& options) {
  expect_there(options.model, "--model");
  expect_there(options.adapter, "--adapter");
  auto generator = train::load_generator<float>(options.model, options.adapter);
  for (std::string const& sentence : generator.warnings) warn(sentence);
  if (generator.lora().size() == 0) {
    throw ConfigError(
        "--adapter: " + options.adapter.string() +
        " holds prefixes, which no weights can stand for; only a LoRA can be merged.");
  }
  prepare_output(options.out);
  std::size_t const products = generator.lora_shape().modules.size();
  Cpu dev(common.thread_count());
  train::merge_lora(dev, generator);
  // A value head that was trained with the adapter lies beside it, and belongs to the result.
  if (auto const head = options.adapter / "value_head.safetensors"; fs::exists(head)) {
    generator.value_head = train::ValueHeadParameters<float>(generator.config().d_model);
    train::read_parameters(io::SafeTensorsFile(head), generator.value_head);
  }
  std::error_code ignored;
  if (generator.value_head.size() == 0) fs::remove(options.out / "value_head.safetensors", ignored);
  train::save_generator(options.out, generator);
  write_configuration(options.out, common);
  train::MetricsLog log(options.out);
  log.resume("merge", -1);
  log.write("merge", 0, {{"products", static_cast<double>(products)}});
  write_standard_output("merge: " + std::to_string(products) +
                        " products were added to their weights; written to " +
                        options.out.string() + "\n");
}

}  // namespace

void add_merge(CLI::App& app, Common& common) {
  auto* const command = app.add_subcommand("merge", "Put a LoRA into the weights of its model.");
  auto const options = std::make_shared<MergeOptions>();
  command->add_option("--model", options->model, "the T5 folder that the adapter belongs to")
      ->required()
      ->type_name("DIR");
  command->add_option("--adapter", options->adapter, "a folder of a LoRA, emprl's or PEFT's")
      ->required()
      ->type_name("DIR");
  command->add_option("--out", options->out, "the folder that receives the model")
      ->required()
      ->type_name("DIR");
  add_common(*command, common, true, Devices::cpu);
  command->footer(
      "The merged model gives what model and adapter give together, but for rounding,\n"
      "and is as fast as the model alone.\n\n"
      "Example:\n"
      "  emprl merge --model t5-base --adapter runs/lora --out runs/merged");
  command->callback([options, &common] { merge(common, *options); });
}

}  // namespace emprl::program
