// SPDX-License-Identifier: Apache-2.0
#pragma once

// The divergence of distributions on the GPU: a block a row, sums in double.

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
    token_divergence_kernel(TensorView<float, 1, Cuda> kl, TensorView<float const, 2, Cuda> x,
                            TensorView<float const, 1, Cuda> x_lse,
                            TensorView<float const, 2, Cuda> y,
                            TensorView<float const, 1, Cuda> y_lse) {
  EMPRL_SHARED(double, scratch, cuda::warp_size);
  index_t const n = cuda::block_index().x;
  float const* const a = x.row(n);
  float const* const b = y.row(n);
  auto const a_lse = static_cast<double>(x_lse(n));
  auto const b_lse = static_cast<double>(y_lse(n));
  DivergenceSums sums;
  for (index_t v = cuda::thread_rank(); v < x.extent(1); v += token_divergence_threads) {
    sums.add(static_cast<double>(a[v]) - a_lse, static_cast<double>(b[v]) - b_lse);
  }
  sums.weight = cuda::block_sum(sums.weight, scratch);
  sums.other = cuda::block_sum(sums.other, scratch);
  sums.terms = cuda::block_sum(sums.terms, scratch);
  if (cuda::thread_rank() == 0) kl(n) = static_cast<float>(sums.divergence());
}

}  // namespace detail

/// As the op of the same name on the CPU; the same bits in every run. Logits are float in every
/// precision of the models that they come from.
/// @param dev  work is ordered on dev.stream, no synchronisation
/// @throws ShapeError if extents disagree, or rows are without columns
/// @throws CudaError
inline void token_divergence(Cuda& dev, TensorView<float, 1, Cuda> kl, In<float, 2, Cuda> x,
                             In<float, 1, Cuda> x_lse, In<float, 2, Cuda> y,
                             In<float, 1, Cuda> y_lse) {
  index_t const n = kl.extent(0);
  expects(x.extents() == y.extents() && x.extent(0) == n && x_lse.extent(0) == n &&
              y_lse.extent(0) == n && (n == 0 || x.extent(1) > 0),
          detail::token_divergence_shapes);
  if (n == 0) return;
  cuda::launch<detail::token_divergence_kernel>(
      dev.stream, {.grid = {cuda::blocks_for(n, 1)}, .block = {detail::token_divergence_threads}},
      kl, x, x_lse, y, y_lse);
}

}  // namespace emprl
