// SPDX-License-Identifier: Apache-2.0

// The least that links with the program's half for a GPU: opens an engine in each format. Where
// there is no GPU it prints the driver's words, as the program does.

#include <cstdio>
#include <exception>
#include <memory>

#include "emprl/train/engine.hpp"

namespace emprl::program {
std::unique_ptr<train::Engine> open_cuda(train::Precision precision);
}

int main() {
  using namespace emprl;
  try {
    for (train::Precision const precision : {train::Precision::float32, train::Precision::bf16}) {
      auto const engine = program::open_cuda(precision);
      if (engine->precision() != precision || engine->device() == nullptr) return 1;
    }
  } catch (CudaError const& error) {
    static_cast<void>(std::printf("Skipped: %s\n", error.what()));
  } catch (std::exception const& error) {
    static_cast<void>(std::printf("%s\n", error.what()));
    return 1;
  }
}
