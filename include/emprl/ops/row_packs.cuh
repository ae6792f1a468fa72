// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the kernels that spread their threads over a matrix share: whether its rows can be moved 16
// bytes at a time, which the host decides for all rows at once, and the shape of a grid. A block
// that walks along one row, which may begin anywhere, uses cuda/row.hpp.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "emprl/core/config.hpp"
#include "emprl/core/half.hpp"
#include "emprl/core/tensor.hpp"
#include "emprl/cuda/context.cuh"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/launch.cuh"
#include "emprl/cuda/pack.hpp"
#include "emprl/cuda/reduce.hpp"
#include "emprl/cuda/shared.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

namespace detail {

/// Whether every row of the view begins at a multiple of 16 bytes.
template <class T>
bool begins_at_packs(TensorView<T, 2, Cuda> const& x) {
  return x.empty() || (reinterpret_cast<std::uintptr_t>(x.data()) % 16 == 0 &&
                       (x.extent(0) <= 1 || x.stride(0) % cuda::pack_elements<T> == 0));
}

/// Whether every row is also a whole number of packs.
template <class T>
bool in_packs(TensorView<T, 2, Cuda> const& x) {
  return begins_at_packs(x) && x.extent(1) % cuda::pack_elements<T> == 0;
}
template <class T>
bool in_packs(TensorView<T, 1, Cuda> const& x) {
  return reinterpret_cast<std::uintptr_t>(x.data()) % 16 == 0 &&
         (x.extent(0) <= 1 || x.stride(0) == 1);
}

/// Calls f(std::integral_constant<int, Width>) with the widest pack that all views allow: 16 bytes,
/// or one element.
template <class T, class F, class... Views>
void with_pack_width(F f, Views const&... views) {
  if ((in_packs(views) && ...)) {
    f(std::integral_constant<int, cuda::pack_elements<T>>());
  } else {
    f(std::integral_constant<int, 1>());
  }
}

/// Threads of a block of the kernels below.
inline constexpr int row_threads = 256;

/// A grid whose threads cover `columns` along x and `rows` along y; y is cut off at what CUDA
/// allows, so that a kernel loops over rows.
inline cuda::LaunchShape matrix_shape(index_t rows, index_t columns) {
  int x = cuda::warp_size;
  while (x < row_threads && x < columns) x *= 2;
  int const y = row_threads / x;
  index_t const blocks_y = std::clamp<index_t>((rows + y - 1) / y, 1, 65535);
  return {.grid = {cuda::blocks_for(columns, x), static_cast<int>(blocks_y)}, .block = {x, y}};
}

/// The row at which this thread starts, and the rows between two of its own.
EMPRL_DEVICE index_t first_row() {
  return index_t{cuda::block_index().y} * cuda::block_size().y + cuda::thread_index().y;
}
EMPRL_DEVICE index_t row_step() {
  return index_t{cuda::grid_size().y} * cuda::block_size().y;
}

/// Rows that are added up side by side: few blocks do it, so that what one thread reads after the
/// other is latency.
inline constexpr int column_sum_lanes = 32;

/// y[c] += sum_b partial[b,c], in an order that the shapes fix.     partial (count, columns)
/// PRECOND: a block of (32, column_sum_lanes) threads for 32 columns
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(cuda::warp_size* column_sum_lanes)
    add_column_sums_kernel(float* y, float const* partial, index_t count, index_t columns) {
  EMPRL_SHARED(float, sums, column_sum_lanes* cuda::warp_size);
  int const lane = cuda::thread_index().x;
  int const group = cuda::thread_index().y;
  index_t const c = index_t{cuda::block_index().x} * cuda::warp_size + lane;
  float sum = 0.0f;
  if (c < columns) {
    for (index_t b = group; b < count; b += column_sum_lanes) sum += partial[b * columns + c];
  }
  sums[group * cuda::warp_size + lane] = sum;
  cuda::sync_threads();
  if (group != 0 || c >= columns) return;
  for (int g = 1; g < column_sum_lanes; ++g) {
    float const other = sums[g * cuda::warp_size + lane];
    sum += other;
  }
  y[c] += sum;
}

/// Launches it.
inline void add_column_sums(Cuda& dev, float* y, float const* partial, index_t count,
                            index_t columns) {
  cuda::launch<add_column_sums_kernel>(dev.stream,
                                       {.grid = {cuda::blocks_for(columns, cuda::warp_size)},
                                        .block = {cuda::warp_size, column_sum_lanes}},
                                       y, partial, count, columns);
}

}  // namespace detail

}  // namespace emprl
