// SPDX-License-Identifier: Apache-2.0

// All of the program that nvcc compiles: the GPU's engine in both formats. Text, JSON, files and
// options stay on the other side of train/engine.hpp.

#include <memory>

#include "cuda.hpp"
#include "emprl/train/cuda_engine.cuh"

namespace emprl::program {

bool has_cuda() {
  return true;
}

std::unique_ptr<train::Engine> open_cuda(train::Precision precision,
                                         train::Determinism determinism) {
  if (precision == train::Precision::bf16) {
    return std::make_unique<train::CudaEngine<Bf16>>(determinism);
  }
  return std::make_unique<train::CudaEngine<float>>(determinism);
}

}  // namespace emprl::program
