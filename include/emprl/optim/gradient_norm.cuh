// SPDX-License-Identifier: Apache-2.0
#pragma once

// The squared norm of gradients on the GPU. Sums are in double, so that gradients of any size have
// a norm, and are made in an order that the number of elements alone decides.

#include <algorithm>
#include <cstdint>

#include "emprl/cuda/context.cuh"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/launch.cuh"
#include "emprl/cuda/pack.hpp"
#include "emprl/cuda/reduce.hpp"
#include "emprl/cuda/shared.hpp"
#include "emprl/optim/gradient_norm.hpp"

namespace emprl::optim {

namespace detail {

inline constexpr int norm_threads = 256;
/// Partial sums at most; one block adds them up.
inline constexpr index_t norm_blocks = 1024;
/// Elements that a thread takes before a further block is worth its start.
inline constexpr index_t norm_elements = 16;

/// partial[b] = the sum of squares of what block b reads: packs of Width, and element by element
/// what remains of n.
/// PRECOND: x begins at a multiple of a pack
template <int Width>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(norm_threads)
    squared_norm_kernel(double* partial, float const* x, index_t n) {
  EMPRL_SHARED(double, scratch, cuda::warp_size);
  index_t const packs = n / Width;
  double sum = 0.0;
  for (index_t i = cuda::global_thread_x(); i < packs; i += cuda::global_size_x()) {
    auto const pack = cuda::load_pack<Width>(x + i * Width);
    EMPRL_UNROLL
    for (int j = 0; j < Width; ++j) {
      double const v = static_cast<double>(pack.x[j]);
      sum += v * v;
    }
  }
  index_t const rest = packs * Width + cuda::global_thread_x();
  if (rest < n) {
    double const v = static_cast<double>(x[rest]);
    sum += v * v;
  }
  sum = cuda::block_sum(sum, scratch);
  if (cuda::thread_rank() == 0) partial[cuda::block_index().x] = sum;
}

/// sum[0] += the sum of `count` numbers.
/// PRECOND: one block
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(norm_threads)
    sum_partials_kernel(double* sum, double const* partial, index_t count) {
  EMPRL_SHARED(double, scratch, cuda::warp_size);
  double total = 0.0;
  for (index_t i = cuda::thread_rank(); i < count; i += norm_threads) total += partial[i];
  total = cuda::block_sum(total, scratch);
  if (cuda::thread_rank() == 0) sum[0] += total;
}

}  // namespace detail

/// sum(0) += sum_i x_i^2, in double, the same bits in every run.
/// @param dev  work is ordered on dev.stream, no synchronisation; working memory from dev.scratch
/// @param sum  (1), accumulated      @param x (n), dense
/// @throws ShapeError if extents disagree
inline void add_squared_norm(Cuda& dev, TensorView<double, 1, Cuda> sum,
                             TensorView<float const, 1, Cuda> x) {
  expects(sum.extent(0) == 1 && (x.empty() || x.is_contiguous()),
          "add_squared_norm: the sum is one number, and the elements lie without gaps");
  index_t const n = x.extent(0);
  index_t const per_block = detail::norm_threads * detail::norm_elements;
  index_t const blocks =
      std::clamp<index_t>((n + per_block - 1) / per_block, 1, detail::norm_blocks);
  ArenaScope scope(dev.scratch);
  auto const partial = dev.scratch.allocate<double, 1>({blocks});
  cuda::LaunchShape const shape{.grid = {static_cast<int>(blocks)},
                                .block = {detail::norm_threads}};
  if (reinterpret_cast<std::uintptr_t>(x.data()) % 16 == 0) {
    cuda::launch<detail::squared_norm_kernel<4>>(dev.stream, shape, partial.data(), x.data(), n);
  } else {
    cuda::launch<detail::squared_norm_kernel<1>>(dev.stream, shape, partial.data(), x.data(), n);
  }
  cuda::launch<detail::sum_partials_kernel>(
      dev.stream, {.grid = {1}, .block = {detail::norm_threads}}, sum.data(),
      static_cast<double const*>(partial.data()), blocks);
}

}  // namespace emprl::optim
