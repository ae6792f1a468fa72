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

/// y = x factor, with Add of what is added.
/// PRECOND: along x a thread for each of 16 lanes of each group of columns
template <CudaElement T, bool Add>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(row_threads)
    dropout_kernel(TensorView<T, 2, Cuda> y, TensorView<T const, 2, Cuda> x,
                   TensorView<T const, 2, Cuda> added, DropoutDraw draw) {
  index_t const unit = cuda::global_thread_x();
  index_t const first = unit / dropout_lanes * dropout_group + unit % dropout_lanes;
  if (first >= y.extent(1)) return;
  index_t const step = row_step();
  for (index_t row = first_row(); row < y.extent(0); row += step) {
    auto const bits = draw.words(static_cast<std::uint32_t>(row), static_cast<std::uint32_t>(unit));
    // All loads before the first store: the compiler does not know that x and y are apart, or one.
    float value[8];
    float more[8] = {};
    EMPRL_UNROLL
    for (int i = 0; i < 8; ++i) {
      index_t const column = first + i * dropout_lanes;
      if (column < y.extent(1)) {
        value[i] = static_cast<float>(x.row(row)[column]);
        if constexpr (Add) more[i] = static_cast<float>(added.row(row)[column]);
      }
    }
    EMPRL_UNROLL
    for (int i = 0; i < 8; ++i) {
      index_t const column = first + i * dropout_lanes;
      if (column < y.extent(1)) {
        std::uint32_t const word = bits[static_cast<std::size_t>(i / 2)];
        std::uint32_t const decision = i % 2 == 0 ? word & 0xffffu : word >> 16;
        float const factor = decision < draw.threshold ? 0.0f : draw.keep;
        y.row(row)[column] = static_cast<T>(more[i] + value[i] * factor);
      }
    }
  }
}

template <bool Add, CudaElement T>
void launch_dropout(Cuda& dev, TensorView<T, 2, Cuda> y, TensorView<T const, 2, Cuda> x,
                    TensorView<T const, 2, Cuda> added, DropoutKey const& key) {
  if (y.empty()) return;
  index_t const groups = (y.extent(1) + dropout_group - 1) / dropout_group;
  cuda::launch<dropout_kernel<T, Add>>(
      dev.stream, matrix_shape(y.extent(0), groups * dropout_lanes), y, x, added, DropoutDraw(key));
}

}  // namespace detail

/// y[n,c] = x[n,c] factor[n,c], the factors of dropout_factors; forward and backward are the same
/// operation.
/// @param y (N, C), written, may be x      @param x (N, C)
/// @throws ShapeError if extents disagree
/// @throws CudaError
template <CudaElement T>
void dropout_forward(Cuda& dev, Out<T, 2, Cuda> y, In<T, 2, Cuda> x, DropoutKey const& key) {
  expects(x.extents() == y.extents(), "dropout: input and output must agree");
  detail::launch_dropout<false>(dev, y, x, {}, key);
}

/// y[n,c] = added[n,c] + x[n,c] factor[n,c], rounded once.
/// @param y (N, C), written, may be x or added      @param x, added (N, C)
/// @throws ShapeError if extents disagree
/// @throws CudaError
template <CudaElement T>
void dropout_add(Cuda& dev, Out<T, 2, Cuda> y, In<T, 2, Cuda> x, In<T, 2, Cuda> added,
                 DropoutKey const& key) {
  expects(x.extents() == y.extents() && added.extents() == y.extents(),
          "dropout: inputs and output must agree");
  detail::launch_dropout<true>(dev, y, x, added, key);
}

}  // namespace emprl
