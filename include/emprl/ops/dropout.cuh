// SPDX-License-Identifier: Apache-2.0
#pragma once

// Dropout on the GPU, with the masks of the CPU: a decision is a function of its address. A thread
// draws one Philox block for the eight elements that dropout.hpp gives it, 16 columns apart, so
// that 16 neighbouring threads touch 16 neighbouring elements.

#include <array>
#include <cstdint>

#include "emprl/core/scalar.hpp"
#include "emprl/ops/dropout.hpp"
#include "emprl/ops/row_packs.cuh"

namespace emprl {

namespace detail {

/// What kernels need of a key. An inactive one keeps everything.
struct DropoutDraw {
  std::uint32_t threshold = 0;
  float keep = 1;
  std::uint32_t purpose = 0;
  std::uint32_t step = 0;
  std::uint64_t seed = 0;

  DropoutDraw() = default;
  explicit DropoutDraw(DropoutKey const& key)
      : threshold(key.threshold()),
        keep(static_cast<float>(key.keep())),
        purpose(key.purpose()),
        step(key.step),
        seed(key.seed) {}

  /// The four words of a block of decisions, see dropout_factors.
  EMPRL_HD std::array<std::uint32_t, 4> words(std::uint32_t row, std::uint32_t block) const {
    return philox({purpose, step, row, block},
                  {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  }
};

/// PRECOND: along x a thread for each of 16 lanes of each group of columns
template <CudaElement T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(row_threads)
    dropout_apply_kernel(TensorView<T, 2, Cuda> x, DropoutDraw draw) {
  index_t const unit = cuda::global_thread_x();
  index_t const first = unit / dropout_lanes * dropout_group + unit % dropout_lanes;
  if (first >= x.extent(1)) return;
  index_t const step = row_step();
  for (index_t row = first_row(); row < x.extent(0); row += step) {
    auto const bits = draw.words(static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(unit));
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
template <CudaElement T>
void dropout_apply(Cuda& dev, Out<T, 2, Cuda> x, DropoutKey const& key) {
  if (!key.active() || x.empty()) return;
  index_t const groups = (x.extent(1) + detail::dropout_group - 1) / detail::dropout_group;
  cuda::launch<detail::dropout_apply_kernel<T>>(
      dev.stream, detail::matrix_shape(x.extent(0), groups * detail::dropout_lanes), x,
      detail::DropoutDraw(key));
}

}  // namespace emprl
