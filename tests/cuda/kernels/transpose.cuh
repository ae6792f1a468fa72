// SPDX-License-Identifier: Apache-2.0
#pragma once

// Transposition through a shared tile, so that both sides are read and written along rows.

#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/shared.hpp"

namespace kernels {

namespace cuda = emprl::cuda;
using emprl::index_t;

inline constexpr int transpose_tile = 32;

/// y (columns, rows) = x^T, x (rows, columns)
/// PRECOND: block (32, 8); grid (columns, rows), each divided by 32 and rounded up
template <class T>
EMPRL_KERNEL transpose_kernel(T* y, T const* x, int rows, int columns) {
  // One column more than the tile has: the 32 elements of a column then lie in 32 banks.
  constexpr int pitch = transpose_tile + 1;
  EMPRL_SHARED(T, tile, transpose_tile * pitch);
  cuda::Dim3 const thread = cuda::thread_index();
  int const column = cuda::block_index().x * transpose_tile;
  int const row = cuda::block_index().y * transpose_tile;
  for (int i = thread.y; i < transpose_tile; i += 8) {
    if (row + i < rows && column + thread.x < columns) {
      tile[i * pitch + thread.x] = x[index_t{row + i} * columns + column + thread.x];
    }
  }
  cuda::sync_threads();
  for (int i = thread.y; i < transpose_tile; i += 8) {
    if (column + i < columns && row + thread.x < rows) {
      y[index_t{column + i} * rows + row + thread.x] = tile[thread.x * pitch + i];
    }
  }
}

}  // namespace kernels
