// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/gemm_cpu.hpp"

// Where a command computes: the CPU's engine, and the way to the GPU's.

#include <memory>
#include <string>

#include "emprl/core/error.hpp"
#include "emprl/train/cpu_engine.hpp"
#include "engine.hpp"

namespace emprl::program {

std::unique_ptr<train::Engine> open_engine(Common const& common) {
  train::Precision const precision = train::precision_of(common.precision);
  auto const determinism = common.deterministic ? train::Determinism::on : train::Determinism::off;
  if (common.device == "cpu") {
    expects<ConfigError>(precision == train::Precision::float32,
                         "--precision bf16 is for --device cuda; the CPU computes in float32.");
    return std::make_unique<train::CpuEngine>(common.thread_count(), determinism);
  }
  if (common.device != "cuda") throw ConfigError("--device " + common.device + " is no device.");
  try {
    return open_cuda(precision, determinism);
  } catch (CudaError const& error) {
    throw Error("--device cuda: " + std::string(error.what()) + "; --device cpu needs no GPU.");
  }
}

}  // namespace emprl::program
