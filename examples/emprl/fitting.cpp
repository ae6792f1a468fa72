// SPDX-License-Identifier: Apache-2.0

// What the commands of supervised training share.

#include "fitting.hpp"

#include <fmt/core.h>

#include "emprl/io/json.hpp"

namespace emprl::program {

void add_learning_options(CLI::App& command, double& learning_rate, std::string& schedule,
                          index_t& warmup, double& dropout) {
  command.add_option("--lr", learning_rate, "Peak learning rate")->capture_default_str();
  command.add_option("--schedule", schedule, "constant, linear, inverse_sqrt or cosine")
      ->capture_default_str();
  command.add_option("--warmup", warmup, "Steps of warm-up")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--dropout", dropout, "Dropout")
      ->check(CLI::Range(0.0, 0.9))
      ->capture_default_str();
}

void write_training(fs::path const& folder, train::FitResult const& result) {
  io::Json epochs = io::Json::array();
  for (train::EpochResult const& e : result.epochs) {
    epochs.push_back({{"train_loss", e.train_loss}, {"valid_loss", e.valid_loss}});
  }
  io::write_json_file(folder / "training.json", {{"best_epoch", result.best_epoch + 1},
                                                 {"best_validation_loss", result.best_loss},
                                                 {"steps", result.steps},
                                                 {"tokens", result.tokens},
                                                 {"seconds", result.seconds},
                                                 {"epochs", epochs}});
}

void print_speed(train::FitResult const& result) {
  if (result.tokens == 0) return;
  fmt::print("{} tokens of inputs and targets in {:.1f} s of training steps: {:.0f} tokens/s\n",
             result.tokens, result.seconds, result.tokens_per_second());
}

}  // namespace emprl::program
