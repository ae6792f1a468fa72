// SPDX-License-Identifier: Apache-2.0

// In place of engine.cu, in a build without CUDA.

#include <memory>

#include "cuda.hpp"
#include "emprl/core/error.hpp"

namespace emprl::program {

bool has_cuda() {
  return false;
}

std::unique_ptr<train::Engine> open_cuda(train::Precision, train::Determinism) {
  throw ConfigError("--device cuda: this build has no CUDA.");
}

}  // namespace emprl::program
