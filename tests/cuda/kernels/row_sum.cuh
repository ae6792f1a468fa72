// SPDX-License-Identifier: Apache-2.0
#pragma once

// Sums of rows: a block a row, shuffles within warps, shared memory between them.

#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/reduce.hpp"
#include "emprl/cuda/shared.hpp"

namespace kernels {

namespace cuda = emprl::cuda;
using emprl::index_t;

/// y[n] = sum_c x[n,c];   x (rows, columns)
/// PRECOND: a block a row, whole warps
EMPRL_KERNEL row_sum_kernel(float* y, float const* x, index_t columns) {
  EMPRL_SHARED(float, scratch, cuda::warp_size);
  float const* const row = x + cuda::block_index().x * columns;
  float sum = 0;
  for (index_t c = cuda::thread_rank(); c < columns; c += cuda::block_size().x) sum += row[c];
  sum = cuda::block_sum(sum, scratch);
  if (cuda::thread_rank() == 0) y[cuda::block_index().x] = sum;
}

/// low[n], high[n] = the smallest and the largest of row n: two reductions that share one scratch.
EMPRL_KERNEL row_range_kernel(float* low, float* high, float const* x, index_t columns) {
  EMPRL_SHARED(float, scratch, cuda::warp_size);
  float const* const row = x + cuda::block_index().x * columns;
  float most = cuda::Maximum::identity<float>();
  float least = most;
  for (index_t c = cuda::thread_rank(); c < columns; c += cuda::block_size().x) {
    most = cuda::Maximum{}(most, row[c]);
    least = cuda::Maximum{}(least, -row[c]);
  }
  most = cuda::block_max(most, scratch);
  least = cuda::block_max(least, scratch);
  if (cuda::thread_rank() == 0) {
    low[cuda::block_index().x] = -least;
    high[cuda::block_index().x] = most;
  }
}

}  // namespace kernels
