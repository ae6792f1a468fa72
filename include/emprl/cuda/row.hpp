// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rows of a matrix as a block reads them: 16 bytes a load where the row's alignment allows it. A
// row of an odd number of columns begins anywhere, so the elements before the first multiple of 16
// bytes and those behind the last are taken one by one. This is for kernels that give a whole block
// to one long row, the logits of a vocabulary; kernels that spread threads over a matrix, and
// choose on the host between packs and single elements, share ops/row_packs.cuh.

#include <cstdint>

#include "emprl/core/half.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/pack.hpp"
#include "emprl/cuda/reduce.hpp"
#include "emprl/math/softmax_sums.hpp"

namespace emprl::cuda {

/// N neighbouring elements of a row in float.
template <int N>
struct Floats {
  static constexpr int size = N;
  float x[N];
};

template <CudaElement T, int N>
EMPRL_DEVICE Floats<N> to_floats(Pack<T, N> const& pack) {
  Floats<N> y;
  EMPRL_UNROLL
  for (int i = 0; i < N; ++i) y.x[i] = static_cast<float>(pack.x[i]);
  return y;
}

template <CudaElement T, int N>
EMPRL_DEVICE Pack<T, N> to_pack(Floats<N> const& x) {
  Pack<T, N> pack;
  EMPRL_UNROLL
  for (int i = 0; i < N; ++i) pack.x[i] = T(x.x[i]);
  return pack;
}

/// Elements in front of the first multiple of 16 bytes, and the whole vectors that follow.
struct RowParts {
  int head;
  int packs;
};

template <CudaElement T>
EMPRL_DEVICE RowParts row_parts(T const* row, int n) {
  constexpr int bytes = 16;
  int const past = static_cast<int>(reinterpret_cast<std::uintptr_t>(row) % bytes);
  int const head = (bytes - past) % bytes / static_cast<int>(sizeof(T));
  if (head >= n) return {n, 0};
  return {head, (n - head) / pack_elements<T>};
}

/// Calls f(i, x) for the elements of the row that fall to this thread, with x the Floats from
/// element i on; i ascends. Four loads are under way at a time.
template <CudaElement T, class F>
EMPRL_DEVICE void for_each_in_row(T const* row, int n, F f) {
  constexpr int width = pack_elements<T>;
  constexpr int together = 4;
  RowParts const parts = row_parts(row, n);
  int const rank = thread_rank();
  int const threads = block_size().x;
  for (int i = rank; i < parts.head; i += threads) f(i, Floats<1>{{static_cast<float>(row[i])}});
  for (int first = rank; first < parts.packs; first += together * threads) {
    Pack<T, width> packs[together];
    EMPRL_UNROLL
    for (int u = 0; u < together; ++u) {
      int const p = first + u * threads;
      packs[u] = load_pack<width>(row + parts.head + (p < parts.packs ? p : first) * width);
    }
    EMPRL_UNROLL
    for (int u = 0; u < together; ++u) {
      int const p = first + u * threads;
      if (p < parts.packs) f(parts.head + p * width, to_floats(packs[u]));
    }
  }
  for (int i = parts.head + parts.packs * width + rank; i < n; i += threads) {
    f(i, Floats<1>{{static_cast<float>(row[i])}});
  }
}

/// row[i] = f(i, row[i]) for the elements that fall to this thread.
template <CudaElement T, class F>
EMPRL_DEVICE void transform_row(T* row, int n, F f) {
  constexpr int width = pack_elements<T>;
  for_each_in_row(row, n, [&](int i, auto x) {
    EMPRL_UNROLL
    for (int l = 0; l < x.size; ++l) x.x[l] = f(i + l, x.x[l]);
    if constexpr (x.size == width) {
      store_pack(row + i, to_pack<T>(x));
    } else {
      row[i] = T(x.x[0]);
    }
  });
}

/// The sums of all threads of the block; every thread gets the same bits.
/// @param scratch  32 elements, which may be used again at once
EMPRL_DEVICE SoftmaxSums block_softmax_sums(SoftmaxSums mine, Shared<float> scratch) {
  mine.rescale(block_max(mine.most, scratch));
  mine.sum = block_sum(mine.sum, scratch);
  mine.dot = block_sum(mine.dot, scratch);
  return mine;
}

}  // namespace emprl::cuda
