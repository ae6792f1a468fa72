// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rows written to chosen places of a larger matrix, on the GPU.

#include <cstdint>

#include "emprl/cuda/context.cuh"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/launch.cuh"
#include "emprl/cuda/pack.hpp"
#include "emprl/ops/scatter_rows.hpp"

namespace emprl {

namespace detail {

inline constexpr int scatter_rows_threads = 128;

/// PRECOND: a block a row of x; rows are `packs` packs of Width elements, aligned to them
template <int Width, Element T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(scatter_rows_threads)
    scatter_rows_kernel(TensorView<T, 2, Cuda> y, TensorView<T const, 2, Cuda> x, index_t const* at,
                        int packs) {
  index_t const i = cuda::block_index().x;
  T const* const from = x.row(i);
  T* const to = y.row(at[i]);
  for (int c = cuda::thread_rank(); c < packs; c += scatter_rows_threads) {
    cuda::store_pack(to + c * Width, cuda::load_pack<Width>(from + c * Width));
  }
}

}  // namespace detail

/// y[at[n],:] = x[n,:]; the other rows stay. Nothing can check the places: they lie in device
/// memory.
/// @param y (R, C)      @param x (N, C)      @param at (N), each below R and none twice
/// @throws ShapeError if extents disagree
/// @throws CudaError
template <Element T>
void scatter_rows(Cuda& dev, Out<T, 2, Cuda> y, In<T, 2, Cuda> x,
                  TensorView<index_t const, 1, Cuda> at) {
  expects(y.extent(1) == x.extent(1) && at.extent(0) == x.extent(0),
          "scatter_rows: one place for each row, rows as wide as the matrix");
  if (x.empty()) return;
  constexpr int wide = 16 / static_cast<int>(sizeof(T));
  auto const aligned = [](auto view) {
    return reinterpret_cast<std::uintptr_t>(view.data()) % 16 == 0 && view.stride(0) % wide == 0;
  };
  cuda::LaunchShape const shape{.grid = {cuda::blocks_for(x.extent(0), 1)},
                                .block = {detail::scatter_rows_threads}};
  TensorView<T const, 2, Cuda> const from = x;
  if (x.extent(1) % wide == 0 && aligned(x) && aligned(y)) {
    cuda::launch<detail::scatter_rows_kernel<wide, T>>(dev.stream, shape, y, from, at.data(),
                                                       static_cast<int>(x.extent(1) / wide));
  } else {
    cuda::launch<detail::scatter_rows_kernel<1, T>>(dev.stream, shape, y, from, at.data(),
                                                    static_cast<int>(x.extent(1)));
  }
}

}  // namespace emprl
