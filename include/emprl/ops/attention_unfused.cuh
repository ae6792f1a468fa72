// SPDX-License-Identifier: Apache-2.0
#pragma once

// Attention on the GPU for heads of any width, the empathy identifier's one head of d_model columns
// for example: scores, softmax and mixture are passes of their own, and the scores of all queries
// lie in memory, in float. Ragged rows, causal or not, a scale, dropout on the probabilities;
// neither a bias nor prefix keys. ops/attention.cuh, whose kernels keep no scores, hands over here
// what it has no kernels for.
//
// Sums are taken in float and in one order: the same bits in every run. Products are tiles of 16 by
// 16: this is one small layer beside twelve encoder layers, and cuBLASLt would look for an
// algorithm anew for every length of a row.

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "emprl/core/half.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/cuda/context.cuh"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/launch.cuh"
#include "emprl/cuda/reduce.hpp"
#include "emprl/cuda/shared.hpp"
#include "emprl/ops/attention.hpp"
#include "emprl/ops/dropout.cuh"

namespace emprl {

namespace detail {

/// Rows and columns of a tile; one thread for each of its elements.
inline constexpr int unfused_tile = 16;
/// One word more than a row has: a column's words then lie in different banks.
inline constexpr int unfused_pitch = unfused_tile + 1;
inline constexpr int unfused_threads = unfused_tile * unfused_tile;
/// Queries of a block of the softmax, a warp each.
inline constexpr int unfused_warps = 8;

/// What all passes know of the batch. Scores are (H, Nq, longest row of keys).
struct UnfusedShape {
  index_t const* q_offsets;
  index_t const* k_offsets;
  int heads;
  int width;  // of a head
  bool causal;
  float scale;
};

/// The ragged row and the head of a block: they share the grid's z axis.
struct UnfusedRow {
  int head;
  index_t first_query;
  index_t first_key;
  index_t queries;
  index_t keys;
};

EMPRL_DEVICE UnfusedRow unfused_row(UnfusedShape const& shape) {
  int const z = cuda::block_index().z;
  int const b = z / shape.heads;
  index_t const q = shape.q_offsets[b];
  index_t const k = shape.k_offsets[b];
  return {z % shape.heads, q, k, shape.q_offsets[b + 1] - q, shape.k_offsets[b + 1] - k};
}

/// s[h,i,j] = factor a[i] . b[j] for queries i and keys j of a row.
/// PRECOND: blocks of (16, 16) threads; grid (keys / 16, queries / 16, rows * heads), rounded up
template <CudaElement T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(unfused_threads)
    unfused_scores_kernel(TensorView<float, 3, Cuda> s, TensorView<T const, 2, Cuda> a,
                          TensorView<T const, 2, Cuda> b, float factor, UnfusedShape shape) {
  EMPRL_SHARED(float, a_tile, unfused_tile* unfused_pitch);
  EMPRL_SHARED(float, b_tile, unfused_tile* unfused_pitch);
  UnfusedRow const row = unfused_row(shape);
  int const tx = cuda::thread_index().x;
  int const ty = cuda::thread_index().y;
  index_t const i0 = index_t{cuda::block_index().y} * unfused_tile;
  index_t const j0 = index_t{cuda::block_index().x} * unfused_tile;
  if (i0 >= row.queries || j0 >= row.keys) return;
  index_t const first = index_t{row.head} * shape.width;
  float sum = 0;
  for (int d0 = 0; d0 < shape.width; d0 += unfused_tile) {
    bool const column = d0 + tx < shape.width;
    int const at = ty * unfused_pitch + tx;
    a_tile[at] = column && i0 + ty < row.queries
                     ? static_cast<float>(a.row(row.first_query + i0 + ty)[first + d0 + tx])
                     : 0.0f;
    b_tile[at] = column && j0 + ty < row.keys
                     ? static_cast<float>(b.row(row.first_key + j0 + ty)[first + d0 + tx])
                     : 0.0f;
    cuda::sync_threads();
    EMPRL_UNROLL
    for (int d = 0; d < unfused_tile; ++d) {
      float const x = a_tile[ty * unfused_pitch + d];
      float const y = b_tile[tx * unfused_pitch + d];
      sum += x * y;
    }
    cuda::sync_threads();
  }
  if (i0 + ty < row.queries && j0 + tx < row.keys) {
    s(row.head, row.first_query + i0 + ty, j0 + tx) = factor * sum;
  }
}

/// y[i] = sum_j s[h,i,j] x[j] over the keys of a row for its queries; Transposed: y[j] = sum_i
/// s[h,i,j] x[i] over the queries for the keys.
/// PRECOND: blocks of (16, 16) threads; grid (width / 16, queries or keys / 16, rows * heads),
/// rounded up
template <bool Transposed, CudaElement T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(unfused_threads)
    unfused_mix_kernel(TensorView<T, 2, Cuda> y, TensorView<float const, 3, Cuda> s,
                       TensorView<T const, 2, Cuda> x, UnfusedShape shape) {
  EMPRL_SHARED(float, s_tile, unfused_tile* unfused_pitch);
  EMPRL_SHARED(float, x_tile, unfused_tile* unfused_pitch);
  UnfusedRow const row = unfused_row(shape);
  int const tx = cuda::thread_index().x;
  int const ty = cuda::thread_index().y;
  index_t const rows = Transposed ? row.keys : row.queries;
  index_t const terms = Transposed ? row.queries : row.keys;
  index_t const first_row = Transposed ? row.first_key : row.first_query;
  index_t const first_term = Transposed ? row.first_query : row.first_key;
  index_t const i0 = index_t{cuda::block_index().y} * unfused_tile;
  int const d = cuda::block_index().x * unfused_tile + tx;
  if (i0 >= rows) return;
  index_t const column = index_t{row.head} * shape.width + d;
  float sum = 0;
  for (index_t j0 = 0; j0 < terms; j0 += unfused_tile) {
    // Neighbouring threads read neighbouring keys' scores, whichever way the tile is used.
    index_t const query = Transposed ? j0 + ty : i0 + ty;
    index_t const key = Transposed ? i0 + tx : j0 + tx;
    s_tile[ty * unfused_pitch + tx] =
        query < row.queries && key < row.keys ? s(row.head, row.first_query + query, key) : 0.0f;
    x_tile[ty * unfused_pitch + tx] = j0 + ty < terms && d < shape.width
                                          ? static_cast<float>(x.row(first_term + j0 + ty)[column])
                                          : 0.0f;
    cuda::sync_threads();
    EMPRL_UNROLL
    for (int j = 0; j < unfused_tile; ++j) {
      float const p = s_tile[Transposed ? j * unfused_pitch + ty : ty * unfused_pitch + j];
      float const value = x_tile[j * unfused_pitch + tx];
      sum += p * value;
    }
    cuda::sync_threads();
  }
  if (i0 + ty < rows && d < shape.width) y.row(first_row + i0 + ty)[column] = T(sum);
}

/// The factor of dropout_factors for one column of a row.
EMPRL_DEVICE float unfused_dropout_factor(DropoutDraw const& draw, std::uint32_t row,
                                          index_t column) {
  auto const lane = static_cast<std::uint32_t>(column % dropout_lanes);
  auto const group = static_cast<std::uint32_t>(column / dropout_group);
  auto const bits = draw.words(row, group * static_cast<std::uint32_t>(dropout_lanes) + lane);
  auto const i = static_cast<int>(column % dropout_group / dropout_lanes);
  std::uint32_t const word = bits[static_cast<std::size_t>(i / 2)];
  std::uint32_t const decision = i % 2 == 0 ? word & 0xffffu : word >> 16;
  return decision < draw.threshold ? 0.0f : draw.keep;
}

/// A query of a warp of the softmax, and how many keys it sees; none of them beyond the row's end.
struct UnfusedQuery {
  index_t packed;  // its packed row, -1 beyond the end
  index_t visible;
};

EMPRL_DEVICE UnfusedQuery unfused_query(UnfusedShape const& shape, UnfusedRow const& row) {
  index_t const i = index_t{cuda::block_index().x} * unfused_warps + cuda::warp_index();
  if (i >= row.queries) return {-1, 0};
  index_t const visible = shape.causal && i + 1 < row.keys ? i + 1 : row.keys;
  return {row.first_query + i, visible};
}

/// s = softmax(s) times dropout's factors, zeros where a query does not look; lse of the scores.
/// PRECOND: blocks of 8 warps, a query each; grid (queries / 8, 1, rows * heads), rounded up
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(cuda::warp_size* unfused_warps)
    unfused_softmax_kernel(TensorView<float, 3, Cuda> s, float* lse, index_t lse_pitch,
                           DropoutDraw draw, UnfusedShape shape) {
  UnfusedRow const row = unfused_row(shape);
  UnfusedQuery const query = unfused_query(shape, row);
  if (query.packed < 0) return;
  float* const scores = &s(row.head, query.packed, 0);
  int const lane = cuda::lane_index();
  float most = -std::numeric_limits<float>::infinity();
  for (index_t j = lane; j < query.visible; j += cuda::warp_size) {
    most = scores[j] > most ? scores[j] : most;
  }
  most = cuda::warp_max(most);
  float sum = 0;
  for (index_t j = lane; j < query.visible; j += cuda::warp_size) sum += std::exp(scores[j] - most);
  sum = cuda::warp_sum(sum);
  if (lane == 0 && lse != nullptr) {
    lse[row.head * lse_pitch + query.packed] =
        query.visible == 0 ? -std::numeric_limits<float>::infinity() : most + std::log(sum);
  }
  auto const drawn = static_cast<std::uint32_t>(query.packed * shape.heads + row.head);
  for (index_t j = lane; j < row.keys; j += cuda::warp_size) {
    float p = 0;
    if (j < query.visible) {
      p = std::exp(scores[j] - most) / sum;
      if (draw.threshold > 0) p *= unfused_dropout_factor(draw, drawn, j);
    }
    scores[j] = p;
  }
}

/// With p from the scores and lse, f dropout's factors:
///   s = f p,   dp = scale p (f dp - sum_k p_k f_k dp_k)
/// The sum is do . o; taken so, a query that sees one key has dp itself, and a gradient of zero.
/// PRECOND: as unfused_softmax_kernel
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(cuda::warp_size* unfused_warps)
    unfused_softmax_backward_kernel(TensorView<float, 3, Cuda> s, TensorView<float, 3, Cuda> dp,
                                    float const* lse, index_t lse_pitch, DropoutDraw draw,
                                    UnfusedShape shape) {
  UnfusedRow const row = unfused_row(shape);
  UnfusedQuery const query = unfused_query(shape, row);
  if (query.packed < 0) return;
  float* const scores = &s(row.head, query.packed, 0);
  float* const gradients = &dp(row.head, query.packed, 0);
  int const lane = cuda::lane_index();
  float const log_sum = lse[row.head * lse_pitch + query.packed];
  auto const drawn = static_cast<std::uint32_t>(query.packed * shape.heads + row.head);
  float delta = 0;
  for (index_t j = lane; j < query.visible; j += cuda::warp_size) {
    float const factor = draw.threshold > 0 ? unfused_dropout_factor(draw, drawn, j) : 1.0f;
    float const p = std::exp(scores[j] - log_sum);
    float const gradient = factor * gradients[j];
    delta += p * gradient;
    // Each lane comes back to its own keys alone.
    gradients[j] = gradient;
  }
  delta = cuda::warp_sum(delta);
  for (index_t j = lane; j < row.keys; j += cuda::warp_size) {
    float mixed = 0;
    float gradient = 0;
    if (j < query.visible) {
      float const factor = draw.threshold > 0 ? unfused_dropout_factor(draw, drawn, j) : 1.0f;
      float const p = std::exp(scores[j] - log_sum);
      mixed = factor * p;
      gradient = shape.scale * p * (gradients[j] - delta);
    }
    scores[j] = mixed;
    gradients[j] = gradient;
  }
}

/// The grids of the passes and the memory of the scores.
template <CudaElement T>
struct UnfusedPlan {
  UnfusedShape shape;
  index_t queries, keys;  // of the longest rows
  int blocks;             // rows * heads

  explicit UnfusedPlan(AttentionInputs<T, Cuda> const& in)
      : shape{in.q_offsets.data(),        in.k_offsets.data(),
              static_cast<int>(in.heads), static_cast<int>(in.q.extent(1) / in.heads),
              in.mask == Mask::causal,    in.scale},
        queries(in.longest_queries > 0 ? in.longest_queries : in.q.extent(0)),
        keys(in.longest_keys > 0 ? in.longest_keys : in.k.extent(0)),
        blocks(static_cast<int>((in.q_offsets.extent(0) - 1) * in.heads)) {
    expects<ConfigError>(in.bias.empty() && in.prefix_k.empty(),
                         "attention on the GPU has kernels for heads of 32, 64 and 128 columns; of "
                         "another width, " +
                             std::to_string(shape.width) +
                             ", it takes neither a relative bias nor prefix keys");
    expects<ConfigError>(
        (in.q_offsets.extent(0) - 1) * in.heads <= 65535,
        "attention on the GPU takes at most 65535 rows times heads of such a width at a time");
  }

  TensorView<float, 3, Cuda> scores(Cuda& dev, index_t packed) const {
    return dev.scratch.template allocate<float, 3>({shape.heads, packed, keys});
  }
  static cuda::LaunchShape tiles(index_t x, index_t y, int z) {
    return {.grid = {cuda::blocks_for(x, unfused_tile), cuda::blocks_for(y, unfused_tile), z},
            .block = {unfused_tile, unfused_tile}};
  }
  cuda::LaunchShape of_scores() const { return tiles(keys, queries, blocks); }
  cuda::LaunchShape of_queries() const { return tiles(shape.width, queries, blocks); }
  cuda::LaunchShape of_keys() const { return tiles(shape.width, keys, blocks); }
  cuda::LaunchShape of_softmax() const {
    return {.grid = {cuda::blocks_for(queries, unfused_warps), 1, blocks},
            .block = {cuda::warp_size * unfused_warps}};
  }
};

}  // namespace detail

/// As attention_forward of ops/attention.cuh, for heads of any width and rows of any alignment.
/// Takes H Nq longest_keys floats of dev.scratch.
/// @param o   (Nq, H*Dh), written
/// @param lse (H, Nq) float, written; empty if no backward pass follows
/// @throws ShapeError if extents disagree
/// @throws ConfigError if there is a bias or a prefix, or rows times heads are more than 65535
/// @throws CudaError if a launch fails
template <CudaElement T>
void attention_unfused_forward(Cuda& dev, Out<T, 2, Cuda> o, OptionalOut<float, 2, Cuda> lse,
                               std::type_identity_t<AttentionInputs<T, Cuda>> const& in) {
  detail::check_attention_shapes(in);
  expects(o.extents() == in.q.extents() &&
              (lse.empty() || (lse.extent(0) == in.heads && lse.extent(1) == in.q.extent(0))),
          "attention: o must have the shape of q, lse one row a head and one column a query");
  detail::UnfusedPlan<T> const plan(in);
  if (plan.blocks == 0 || plan.queries == 0) return;
  ArenaScope scope(dev.scratch);
  auto const s = plan.scores(dev, in.q.extent(0));
  if (plan.keys > 0) {
    cuda::launch<detail::unfused_scores_kernel<T>>(dev.stream, plan.of_scores(), s, in.q, in.k,
                                                   in.scale, plan.shape);
  }
  cuda::launch<detail::unfused_softmax_kernel>(dev.stream, plan.of_softmax(), s, data_or_null(lse),
                                               lse.stride(0), detail::DropoutDraw(in.dropout),
                                               plan.shape);
  cuda::launch<detail::unfused_mix_kernel<false, T>>(
      dev.stream, plan.of_queries(), o, TensorView<float const, 3, Cuda>(s), in.v, plan.shape);
}

/// As attention_backward of ops/attention.cuh, for heads of any width and rows of any alignment.
/// Takes 2 H Nq longest_keys floats of dev.scratch. The output of the forward pass is not read.
/// @param out  dq, dk, dv =      @param lse as written by attention_unfused_forward
/// @param d_o (Nq, H*Dh)
/// @throws ShapeError, ConfigError and CudaError as attention_unfused_forward does
template <CudaElement T>
void attention_unfused_backward(Cuda& dev, AttentionGradients<T, Cuda> const& out,
                                std::type_identity_t<AttentionInputs<T, Cuda>> const& in,
                                In<float, 2, Cuda> lse, In<T, 2, Cuda> d_o) {
  detail::check_attention_shapes(in);
  expects(d_o.extents() == in.q.extents() && out.dq.extents() == in.q.extents() &&
              out.dk.extents() == in.k.extents() && out.dv.extents() == in.v.extents() &&
              (in.q.empty() || (lse.extent(0) == in.heads && lse.extent(1) == in.q.extent(0))),
          "attention: gradients must have the shapes of what they are gradients of");
  detail::UnfusedPlan<T> const plan(in);
  if (plan.blocks == 0) return;
  ArenaScope scope(dev.scratch);
  auto const s = plan.scores(dev, in.q.extent(0));
  auto const dp = plan.scores(dev, in.q.extent(0));
  if (plan.queries > 0) {
    if (plan.keys > 0) {
      cuda::launch<detail::unfused_scores_kernel<T>>(dev.stream, plan.of_scores(), s, in.q, in.k,
                                                     in.scale, plan.shape);
      cuda::launch<detail::unfused_scores_kernel<T>>(dev.stream, plan.of_scores(), dp, d_o, in.v,
                                                     1.0f, plan.shape);
    }
    cuda::launch<detail::unfused_softmax_backward_kernel>(
        dev.stream, plan.of_softmax(), s, dp, lse.data(), lse.stride(0),
        detail::DropoutDraw(in.dropout), plan.shape);
    cuda::launch<detail::unfused_mix_kernel<false, T>>(dev.stream, plan.of_queries(), out.dq,
                                                       TensorView<float const, 3, Cuda>(dp), in.k,
                                                       plan.shape);
  }
  if (plan.keys > 0) {
    cuda::launch<detail::unfused_mix_kernel<true, T>>(
        dev.stream, plan.of_keys(), out.dk, TensorView<float const, 3, Cuda>(dp), in.q, plan.shape);
    cuda::launch<detail::unfused_mix_kernel<true, T>>(
        dev.stream, plan.of_keys(), out.dv, TensorView<float const, 3, Cuda>(s), d_o, plan.shape);
  }
}

}  // namespace emprl
