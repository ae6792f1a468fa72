// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where a command computes, and how: --device, --precision and --deterministic.

#include <memory>

#include "commands.hpp"
#include "cuda.hpp"

namespace emprl::program {

/// The engine that the options ask for.
/// @throws ConfigError for a device or a precision that is none, or that do not go together, and
/// for cuda in a build without it; Error that says what is missing if there is no GPU
std::unique_ptr<train::Engine> open_engine(Common const& common);

}  // namespace emprl::program
