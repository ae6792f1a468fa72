// SPDX-License-Identifier: Apache-2.0
#pragma once

// A histogram: atomic sums in shared memory, then in global memory.

#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/shared.hpp"

namespace kernels {

namespace cuda = emprl::cuda;
using emprl::index_t;

/// counts[b] += the number of i with x[i] = b
/// PRECOND: 0 <= x[i] < bins; dynamic shared memory for `bins` int
EMPRL_KERNEL histogram_kernel(int* counts, int const* x, index_t n, int bins) {
  cuda::DynamicShared memory;
  cuda::Shared<int> const mine = memory.take<int>(bins);
  for (int b = cuda::thread_rank(); b < bins; b += cuda::block_size().x) mine[b] = 0;
  cuda::sync_threads();
  for (index_t i = cuda::global_thread_x(); i < n; i += cuda::global_size_x()) {
    cuda::atomic_add(mine.at(x[i]), 1);
  }
  cuda::sync_threads();
  for (int b = cuda::thread_rank(); b < bins; b += cuda::block_size().x) {
    int const count = mine[b];
    if (count != 0) cuda::atomic_add(counts + b, count);
  }
}

}  // namespace kernels
