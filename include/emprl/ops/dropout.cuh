// SPDX-License-Identifier: Apache-2.0
#pragma once

// Dropout on the GPU, with the masks of the CPU: a decision is a function of its address. A thread
// draws one Philox block for the eight elements that dropout.hpp gives it, 16 columns apart, so
// that 16 neighbouring threads touch 16 neighbouring elements.

#include <cstdint>

#include "emprl/ops/dropout.hpp"
#include "emprl/ops/row_packs.cuh"

namespace emprl {

namespace detail {

/// What the kernel needs of a key.
struct DropoutDraw {
  std::uint32_t purpose, step, threshold;
  std::uint64_t seed;
  float keep;
};

/// Columns that 16 threads share, and how many of them lie between two of one thread.
inline constexpr int dropout_group = 128;
inline constexpr int dropout_lanes = 16;

/// PRECOND: along x a thread for each of 16 lanes of each group of columns
template <RowElement T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(row_threads)
    dropout_apply_kernel(TensorView<T, 2, Cuda> x, DropoutDraw draw) {
  index_t const unit = cuda::global_thread_x();
  index_t const first = unit / dropout_lanes * dropout_group + unit % dropout_lanes;
  if (first >= x.extent(1)) return;
  index_t const step = row_step();
  for (index_t row = first_row(); row < x.extent(0); row += step) {
    auto const bits = philox(
        {draw.purpose, draw.step, static_cast<std::uint32_t>(row),
         static_cast<std::uint32_t>(unit)},
        {static_cast<std::uint32_t>(draw.seed), static_cast<std::uint32_t>(draw.seed >> 32)});
    T* const elements = x.row(row) + first;
    EMPRL_UNROLL
    for (int i = 0; i < 8; ++i) {
      if (first + i * dropout_lanes < x.extent(1)) {
        std::uint32_t const word = bits[static_cast<std::size_t>(i / 2)];
        std::uint32_t const decision = i % 2 == 0 ? word & 0xffffu : word >> 16;
        T& element = elements[i * dropout_lanes];
        float const factor = decision < draw.threshold ? 0.0f : draw.keep;
        element = static_cast<T>(static_cast<float>(element) * factor);
      }
    }
  }
}

}  // namespace detail

/// x[n,c] *= factor[n,c], the factors of dropout_factors; forward and backward are the same
/// operation.     x (N, C)
template <RowElement T>
void dropout_apply(Cuda& dev, Out<T, 2, Cuda> x, DropoutKey const& key) {
  if (!key.active() || x.empty()) return;
  index_t const groups = (x.extent(1) + detail::dropout_group - 1) / detail::dropout_group;
  cuda::launch<detail::dropout_apply_kernel<T>>(
      dev.stream, detail::matrix_shape(x.extent(0), groups * detail::dropout_lanes), x,
      detail::DropoutDraw{key.purpose(), key.step, key.threshold(), key.seed,
                          static_cast<float>(key.keep())});
}

}  // namespace emprl
