// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rows of a table chosen by token ids, on the GPU.
//
// The gradient adds up the rows of dy that share an id. Float atomics would add them in another
// order in each run, so the tokens are put in the order of their ids first, equal ids in the order
// of their positions: token n goes to place
//   #{m : ids[m] < ids[n]} + #{m < n : ids[m] = ids[n]},
// which a warp counts for each n. N^2 comparisons of integers are little beside the matrix products
// of the same pass (41 million of 6400 tokens), and need neither a table of V counters nor several
// passes. Then each run of equal ids is one block's: eight warps sum a share of it each, and the
// shares are added in their order. The same tokens give the same bits.

#include <cstdint>
#include <limits>

#include "emprl/core/scalar.hpp"
#include "emprl/cuda/context.cuh"
#include "emprl/cuda/row.hpp"
#include "emprl/ops/embedding.hpp"
#include "emprl/ops/row_packs.cuh"

namespace emprl {

namespace detail {

inline constexpr int embedding_warps = 8;
inline constexpr int embedding_threads = embedding_warps * cuda::warp_size;

/// PRECOND: a warp a token; with N > 1 table and y aligned to N elements in every row, N divides
/// columns
template <int N, CudaElement T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(embedding_threads)
    embedding_forward_kernel(T* y, index_t y_pitch, T const* table, index_t table_pitch,
                             index_t rows, std::int32_t const* ids, index_t tokens, int columns) {
  index_t const n = index_t{cuda::block_index().x} * embedding_warps + cuda::warp_index();
  if (n >= tokens) return;
  std::int32_t const id = ids[n];
  T* const to = y + n * y_pitch;
  if (id < 0 || id >= rows) {
    for (int c = cuda::lane_index(); c < columns; c += cuda::warp_size) {
      to[c] = T(std::numeric_limits<float>::quiet_NaN());
    }
    return;
  }
  T const* const from = table + id * table_pitch;
  for (int c = cuda::lane_index() * N; c < columns; c += cuda::warp_size * N) {
    cuda::store_pack(to + c, cuda::load_pack<N>(from + c));
  }
}

/// order = the tokens by id; run[p] = how many tokens share the id of the one at place p if that is
/// the first of them, else 0.
/// PRECOND: a warp a token
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(embedding_threads)
    embedding_order_kernel(std::int32_t* order, std::int32_t* run, std::int32_t const* ids,
                           int tokens) {
  int const n = cuda::block_index().x * embedding_warps + cuda::warp_index();
  if (n >= tokens) return;
  std::int32_t const id = ids[n];
  int smaller = 0;
  int before = 0;
  int equal = 0;
  for (int m = cuda::lane_index(); m < tokens; m += cuda::warp_size) {
    std::int32_t const other = ids[m];
    smaller += other < id ? 1 : 0;
    equal += other == id ? 1 : 0;
    before += other == id && m < n ? 1 : 0;
  }
  smaller = cuda::warp_sum(smaller);
  before = cuda::warp_sum(before);
  equal = cuda::warp_sum(equal);
  if (cuda::lane_index() != 0) return;
  order[smaller + before] = n;
  run[smaller + before] = before == 0 ? equal : 0;
}

/// dtable[id] += the sum of a run's rows of dy.
/// PRECOND: grid (places, columns / (32 N) rounded up); with N > 1 alignment as in the forward pass
template <int N, CudaElement G, CudaElement T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(embedding_threads)
    embedding_backward_kernel(G* dtable, index_t dtable_pitch, index_t rows, T const* dy,
                              index_t dy_pitch, std::int32_t const* ids, std::int32_t const* order,
                              std::int32_t const* run, int columns) {
  constexpr int tile = cuda::warp_size * N;
  constexpr int together = 4;
  EMPRL_SHARED(float, shares, embedding_warps* tile);
  int const first = cuda::block_index().x;
  int const length = run[first];
  if (length == 0) return;
  std::int32_t const id = ids[order[first]];
  if (id < 0 || id >= rows) return;
  int const lane = cuda::lane_index();
  int const warp = cuda::warp_index();
  int const column = cuda::block_index().y * tile + lane * N;
  int const share = (length + embedding_warps - 1) / embedding_warps;
  int const begin = warp * share;
  int const end = begin + share < length ? begin + share : length;
  cuda::Floats<N> sum = {};
  if (column < columns) {
    for (int i = begin; i < end; i += together) {
      cuda::Pack<T, N> packs[together];
      EMPRL_UNROLL
      for (int u = 0; u < together; ++u) {
        int const place = first + (i + u < end ? i + u : i);
        packs[u] = cuda::load_pack<N>(dy + order[place] * dy_pitch + column);
      }
      EMPRL_UNROLL
      for (int u = 0; u < together; ++u) {
        if (i + u >= end) break;
        auto const x = cuda::to_floats(packs[u]);
        EMPRL_UNROLL
        for (int l = 0; l < N; ++l) sum.x[l] += x.x[l];
      }
    }
  }
  // Element l of all lanes side by side: the lanes of a store lie in different banks.
  EMPRL_UNROLL
  for (int l = 0; l < N; ++l) shares[warp * tile + l * cuda::warp_size + lane] = sum.x[l];
  cuda::sync_threads();
  if (warp != 0 || column >= columns) return;
  G* const to = dtable + id * dtable_pitch + column;
  cuda::Floats<N> total = cuda::to_floats(cuda::load_pack<N>(to));
  EMPRL_UNROLL
  for (int l = 0; l < N; ++l) {
    float all = 0.0f;
    for (int w = 0; w < embedding_warps; ++w) {
      float const part = shares[w * tile + l * cuda::warp_size + lane];
      all += part;
    }
    total.x[l] += all;
  }
  cuda::store_pack(to, cuda::to_pack<G>(total));
}

template <CudaElement G, CudaElement T>
void embedding_backward_cuda(Cuda& dev, TensorView<G, 2, Cuda> dtable,
                             TensorView<T const, 2, Cuda> dy,
                             TensorView<std::int32_t const, 1, Cuda> ids) {
  expects(dy.extent(0) == ids.extent(0) && dy.extent(1) == dtable.extent(1),
          "embedding: one row of gradient for each id, as wide as the table");
  index_t const tokens = ids.extent(0);
  expects(tokens <= std::numeric_limits<std::int32_t>::max() &&
              dy.extent(1) <= std::numeric_limits<std::int32_t>::max(),
          "embedding: more tokens or columns than 32 bits count");
  if (tokens == 0 || dy.extent(1) == 0) return;
  ArenaScope scope(dev.scratch);
  auto order = dev.scratch.template allocate<std::int32_t, 1>({tokens});
  auto run = dev.scratch.template allocate<std::int32_t, 1>({tokens});
  cuda::launch<embedding_order_kernel>(
      dev.stream,
      {.grid = {cuda::blocks_for(tokens, embedding_warps)}, .block = {embedding_threads}},
      order.data(), run.data(), ids.data(), static_cast<int>(tokens));
  auto const run_kernel = [&]<int N>(std::integral_constant<int, N>) {
    cuda::launch<embedding_backward_kernel<N, G, T>>(
        dev.stream,
        {.grid = {static_cast<int>(tokens), cuda::blocks_for(dy.extent(1), cuda::warp_size * N)},
         .block = {embedding_threads}},
        dtable.data(), dtable.stride(0), dtable.extent(0), dy.data(), dy.stride(0), ids.data(),
        order.data(), run.data(), static_cast<int>(dy.extent(1)));
  };
  if (in_packs(dtable) && in_packs(dy)) {
    run_kernel(std::integral_constant<int, 4>{});
  } else {
    run_kernel(std::integral_constant<int, 1>{});
  }
}

}  // namespace detail

/// As the op of the same name on the CPU. The row of an id that the table does not have becomes
/// NaN, since a kernel cannot throw.
/// @param dev  work is ordered on dev.stream, no synchronisation
/// @throws ShapeError if extents disagree
template <CudaElement T>
void embedding_forward(Cuda& dev, Out<T, 2, Cuda> y, In<T, 2, Cuda> table,
                       TensorView<std::int32_t const, 1, Cuda> ids) {
  expects(y.extent(0) == ids.extent(0) && y.extent(1) == table.extent(1),
          "embedding: one row of output for each id, as wide as the table");
  expects(y.extent(1) <= std::numeric_limits<std::int32_t>::max(),
          "embedding: more columns than 32 bits count");
  index_t const tokens = ids.extent(0);
  if (tokens == 0) return;
  auto const run_kernel = [&]<int N>(std::integral_constant<int, N>) {
    cuda::launch<detail::embedding_forward_kernel<N, T>>(
        dev.stream,
        {.grid = {cuda::blocks_for(tokens, detail::embedding_warps)},
         .block = {detail::embedding_threads}},
        y.data(), y.stride(0), table.data(), table.stride(0), table.extent(0), ids.data(), tokens,
        static_cast<int>(y.extent(1)));
  };
  if (detail::in_packs(y) && detail::in_packs(table)) {
    run_kernel(std::integral_constant<int, cuda::pack_elements<T>>{});
  } else {
    run_kernel(std::integral_constant<int, 1>{});
  }
}

/// As the op of the same name on the CPU: dtable[ids[n],:] += dy[n,:]. The rows of an id are summed
/// in float and added to the table once; ids that the table does not have are passed over. The same
/// input gives the same bits.
/// @param dev  work is ordered on dev.stream, no synchronisation; 8 N bytes of dev.scratch
/// @throws ShapeError if extents disagree
template <CudaElement T>
void embedding_backward(Cuda& dev, Out<T, 2, Cuda> dtable, In<T, 2, Cuda> dy,
                        TensorView<std::int32_t const, 1, Cuda> ids) {
  detail::embedding_backward_cuda<T, T>(dev, dtable, dy, ids);
}

/// The same with the gradient of the table in float and that of the activations in Bf16.
inline void embedding_backward(Cuda& dev, TensorView<float, 2, Cuda> dtable,
                               TensorView<Bf16 const, 2, Cuda> dy,
                               TensorView<std::int32_t const, 1, Cuda> ids) {
  detail::embedding_backward_cuda<float, Bf16>(dev, dtable, dy, ids);
}

}  // namespace emprl
