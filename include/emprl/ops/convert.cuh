// SPDX-License-Identifier: Apache-2.0
#pragma once

// From one number format to another: the gradient of logits, which is made in float, into the 16
// bits that are multiplied.

#include <cstdint>

#include "emprl/core/half.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/cuda/context.cuh"
#include "emprl/cuda/launch.cuh"
#include "emprl/cuda/pack.hpp"
#include "emprl/ops/row_packs.cuh"
#include "emprl/ops/view.hpp"

namespace emprl {

namespace detail {

/// y = x, rounded. PRECOND: matrix_shape for columns / Width; rows aligned to packs of Width
template <int Width, CudaElement To, CudaElement From>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(row_threads)
    convert_kernel(TensorView<To, 2, Cuda> y, TensorView<From const, 2, Cuda> x) {
  index_t const j = cuda::global_thread_x() * Width;
  if (j >= y.extent(1)) return;
  for (index_t i = first_row(); i < y.extent(0); i += row_step()) {
    auto const from = cuda::load_pack<Width>(x.row(i) + j);
    cuda::Pack<To, Width> to;
    EMPRL_UNROLL
    for (int k = 0; k < Width; ++k) to.x[k] = To(static_cast<float>(from.x[k]));
    cuda::store_pack(y.row(i) + j, to);
  }
}

template <CudaElement To, CudaElement From>
void launch_convert(Cuda& dev, TensorView<To, 2, Cuda> y, TensorView<From const, 2, Cuda> x) {
  expects(y.extents() == x.extents(), "convert: the extents disagree");
  if (y.empty()) return;
  // Four elements: 16 bytes of float, 8 of Bf16.
  constexpr int wide = 4;
  auto const aligned = [](auto view) {
    return reinterpret_cast<std::uintptr_t>(view.data()) % (wide * sizeof(*view.data())) == 0 &&
           view.stride(0) % wide == 0;
  };
  if (y.extent(1) % wide == 0 && aligned(x) && aligned(y)) {
    cuda::launch<convert_kernel<wide, To, From>>(
        dev.stream, matrix_shape(y.extent(0), y.extent(1) / wide), y, x);
  } else {
    cuda::launch<convert_kernel<1, To, From>>(dev.stream, matrix_shape(y.extent(0), y.extent(1)), y,
                                              x);
  }
}

}  // namespace detail

/// y = x, to the nearest number of y's format.     y, x (N, C)
/// @throws ShapeError if the extents disagree
/// @throws CudaError
inline void convert(Cuda& dev, Out<Bf16, 2, Cuda> y, In<float, 2, Cuda> x) {
  detail::launch_convert<Bf16, float>(dev, y, x);
}
inline void convert(Cuda& dev, Out<float, 2, Cuda> y, In<Bf16, 2, Cuda> x) {
  detail::launch_convert<float, Bf16>(dev, y, x);
}

}  // namespace emprl
