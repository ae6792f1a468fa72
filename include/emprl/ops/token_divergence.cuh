// SPDX-License-Identifier: Apache-2.0
#pragma once

// The divergence of distributions on the GPU: a block a row, sums in double.

#include <cmath>

#include "emprl/cuda/context.cuh"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/launch.cuh"
#include "emprl/cuda/reduce.hpp"
#include "emprl/cuda/shared.hpp"
#include "emprl/ops/token_divergence.hpp"

namespace emprl {

namespace detail {

inline constexpr int token_divergence_threads = 256;

/// PRECOND: a block a row, token_divergence_threads of it
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(token_divergence_threads)
    token_divergence_kernel(float* kl, TensorView<float const, 2, Cuda> x, float const* x_lse,
                            TensorView<float const, 2, Cuda> y, float const* y_lse) {
  EMPRL_SHARED(double, scratch, cuda::warp_size);
  index_t const n = cuda::block_index().x;
  float const* const a = x.row(n);
  float const* const b = y.row(n);
  auto const a_lse = static_cast<double>(x_lse[n]);
  auto const b_lse = static_cast<double>(y_lse[n]);
  double sum = 0.0;
  for (index_t v = cuda::thread_rank(); v < x.extent(1); v += token_divergence_threads) {
    double const p = static_cast<double>(a[v]) - a_lse;
    double const q = static_cast<double>(b[v]) - b_lse;
    sum += std::exp(p) * (p - q);
  }
  sum = cuda::block_sum(sum, scratch);
  if (cuda::thread_rank() == 0) kl[n] = static_cast<float>(sum);
}

}  // namespace detail

/// As the op of the same name on the CPU.
/// @param dev  work is ordered on dev.stream, no synchronisation
/// @throws ShapeError if extents disagree
/// @throws CudaError
inline void token_divergence(Cuda& dev, TensorView<float, 1, Cuda> kl, In<float, 2, Cuda> x,
                             In<float, 1, Cuda> x_lse, In<float, 2, Cuda> y,
                             In<float, 1, Cuda> y_lse) {
  index_t const n = kl.extent(0);
  expects(x.extents() == y.extents() && x.extent(0) == n && x_lse.extent(0) == n &&
              y_lse.extent(0) == n,
          "token_divergence: one number for each row of two matrices of the same extents");
  if (n == 0) return;
  cuda::launch<detail::token_divergence_kernel>(
      dev.stream, {.grid = {cuda::blocks_for(n, 1)}, .block = {detail::token_divergence_threads}},
      kl.data(), x, x_lse.data(), y, y_lse.data());
}

}  // namespace emprl
