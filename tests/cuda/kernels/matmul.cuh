// SPDX-License-Identifier: Apache-2.0
#pragma once

// A matrix product on tensor cores: cp.async into two buffers, ldmatrix, mma.sync. It is here to
// test what it is made of; the library leaves matrix products to cuBLASLt.

#include "emprl/cuda/async_copy.hpp"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/mma.hpp"
#include "emprl/cuda/shared.hpp"

namespace kernels {

namespace cuda = emprl::cuda;
using emprl::index_t;

/// The tile of a block: 64 x 64 of C in steps of 32 along k, by four warps of 16 x 64.
struct MatmulTile {
  static constexpr int rows = 64;
  static constexpr int columns = 64;
  static constexpr int depth = 32;
  static constexpr int threads = 128;
  /// Eight elements more than a row has: the eight rows that ldmatrix reads at a time then lie in
  /// different banks.
  static constexpr int pitch = depth + 8;
  static constexpr int a_elements = rows * pitch;
  static constexpr int b_elements = columns * pitch;
};

/// Starts to copy rows [first, first + Rows) and 32 columns from `k` on; zeros outside.
template <int Rows, class T>
EMPRL_DEVICE void copy_tile(cuda::Shared<T> tile, T const* from, int first, int rows, int k,
                            int depth, int pitch) {
  constexpr int chunks = MatmulTile::depth / 8;
  EMPRL_UNROLL
  for (int i = cuda::thread_rank(); i < Rows * chunks; i += MatmulTile::threads) {
    int const row = i / chunks;
    int const column = i % chunks * 8;
    int const left = first + row < rows ? depth - (k + column) : 0;
    int const elements = left < 0 ? 0 : (left > 8 ? 8 : left);
    // The address of a chunk outside is not read; that of its row's beginning is a valid one.
    T const* const chunk = elements > 0 ? from + index_t{first + row} * pitch + k + column : from;
    cuda::copy_async<16>(tile.at(row * MatmulTile::pitch + column), chunk,
                         elements * static_cast<int>(sizeof(T)));
  }
}

/// C (m, n) = A (m, k) B^T, B (n, k); float accumulators.
/// @param pitch  elements from row to row of A and B, a multiple of 8; what lies between is not
/// read PRECOND: 128 threads; grid (n / 64, m / 64), rounded up; A and B aligned to 16 bytes
template <class T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(MatmulTile::threads)
    matmul_kernel(float* c, T const* a, T const* b, int m, int n, int k, int pitch) {
  using Tile = MatmulTile;
  cuda::DynamicShared memory;
  cuda::Shared<T> const a_buffers = memory.take<T>(2 * Tile::a_elements);
  cuda::Shared<T> const b_buffers = memory.take<T>(2 * Tile::b_elements);
  int const row = cuda::block_index().y * Tile::rows;
  int const column = cuda::block_index().x * Tile::columns;
  int const lane = cuda::lane_index();
  int const warp_row = cuda::warp_index() * 16;

  auto const copy = [&](int step) {
    copy_tile<Tile::rows>(a_buffers.part(step % 2 * Tile::a_elements, Tile::a_elements), a, row, m,
                          step * Tile::depth, k, pitch);
    copy_tile<Tile::columns>(b_buffers.part(step % 2 * Tile::b_elements, Tile::b_elements), b,
                             column, n, step * Tile::depth, k, pitch);
  };

  float sum[Tile::columns / 8][4] = {};
  int const steps = (k + Tile::depth - 1) / Tile::depth;
  copy(0);
  cuda::commit_copies();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) copy(step + 1);
    cuda::commit_copies();
    cuda::wait_copies<1>();
    cuda::sync_threads();
    auto const a_tile = a_buffers.part(step % 2 * Tile::a_elements, Tile::a_elements);
    auto const b_tile = b_buffers.part(step % 2 * Tile::b_elements, Tile::b_elements);
    EMPRL_UNROLL
    for (int kk = 0; kk < Tile::depth; kk += 16) {
      // Lanes 0-15 name rows of the left half, 16-31 of the right.
      std::uint32_t left[4];
      cuda::load_matrix(left, a_tile.at((warp_row + lane % 16) * Tile::pitch + kk + lane / 16 * 8));
      EMPRL_UNROLL
      for (int j = 0; j < Tile::columns / 16; ++j) {
        // Two 16 x 8 operands at once: registers 0 and 1 are columns 0-7, 2 and 3 columns 8-15.
        std::uint32_t right[4];
        cuda::load_matrix(right, b_tile.at((j * 16 + lane / 16 * 8 + lane % 8) * Tile::pitch + kk +
                                           lane / 8 % 2 * 8));
        cuda::mma_m16n8k16<T>(sum[2 * j], left, right[0], right[1]);
        cuda::mma_m16n8k16<T>(sum[2 * j + 1], left, right[2], right[3]);
      }
    }
    cuda::sync_threads();
  }

  EMPRL_UNROLL
  for (int j = 0; j < Tile::columns / 8; ++j) {
    EMPRL_UNROLL
    for (int i = 0; i < 4; ++i) {
      int const r = row + warp_row + cuda::accumulator_row(lane, i);
      int const s = column + j * 8 + cuda::accumulator_column(lane, i);
      if (r < m && s < n) c[index_t{r} * n + s] = sum[j][i];
    }
  }
}

/// Bytes of dynamic shared memory that matmul_kernel takes.
template <class T>
constexpr std::size_t matmul_shared_bytes() {
  return cuda::shared_bytes<T>(2 * MatmulTile::a_elements) +
         cuda::shared_bytes<T>(2 * MatmulTile::b_elements);
}

}  // namespace kernels
