// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where a command computes: --device and --precision.

#include <memory>

#include "commands.hpp"
#include "emprl/train/engine.hpp"

namespace emprl::program {

/// Whether this build can compute on a GPU.
bool has_cuda();

/// The engine that the options ask for.
/// @throws ConfigError for a device or a precision that is none, or that do not go together, and
/// for cuda in a build without it; Error with the driver's words if there is no GPU
std::unique_ptr<train::Engine> open_engine(Common const& common);

#if defined(EMPRL_PROGRAM_CUDA)
/// The first GPU. In engine.cu, which nvcc compiles. @throws CudaError
std::unique_ptr<train::Engine> open_cuda(train::Precision precision);
#endif

}  // namespace emprl::program
