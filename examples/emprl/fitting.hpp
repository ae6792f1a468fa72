// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the commands of supervised training share: pretrain and finetune.

#include <string>

#include "commands.hpp"
#include "emprl/train/fit.hpp"

namespace emprl::program {

/// --lr, --schedule, --warmup and --dropout.
void add_learning_options(CLI::App& command, double& learning_rate, std::string& schedule,
                          index_t& warmup, double& dropout);

/// Writes FOLDER/training.json: the losses between validations, the best of them, steps, and the
/// tokens and seconds of the steps since the process began.
void write_training(fs::path const& folder, train::FitResult const& result);

/// One line with the steps' tokens, seconds and tokens a second; nothing if none were made, as by a
/// run that was found complete.
void print_speed(train::FitResult const& result);

}  // namespace emprl::program
