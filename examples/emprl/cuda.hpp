// SPDX-License-Identifier: Apache-2.0
#pragma once

// The program's half for a GPU, as the other half sees it. engine.cu has it where nvcc is;
// no_cuda.cpp stands in for it elsewhere. All other files are the same, compiled once, whichever is
// linked with them. Neither JSON nor CLI11 is reached from here: nvcc reads this.

#include <memory>

#include "emprl/train/engine.hpp"

namespace emprl::program {

/// Whether this build can compute on a GPU.
bool has_cuda();

/// The first GPU, as an engine that computes in that format, by fixed algorithms or by those that
/// are found to be the fastest.
/// @throws CudaError with what is missing if there is no GPU; ConfigError in a build without CUDA
std::unique_ptr<train::Engine> open_cuda(train::Precision precision,
                                         train::Determinism determinism);

}  // namespace emprl::program
