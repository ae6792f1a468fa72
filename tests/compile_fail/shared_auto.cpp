// SPDX-License-Identifier: Apache-2.0
// An element of shared memory that is kept with `auto` would be read where it is used, not where it
// stands: it does not compile without nvcc, and the error names the element.
// expect: SharedElement
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/shared.hpp"

EMPRL_KERNEL neighbour_kernel(float* y) {
  EMPRL_SHARED(float, tile, 32);
#ifdef EMPRL_COMPILE_FAIL
  auto const x = tile[0];
#else
  float const x = tile[0];
#endif
  y[0] = x + 1.0f;
}
