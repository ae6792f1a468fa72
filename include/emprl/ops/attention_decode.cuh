// SPDX-License-Identifier: Apache-2.0
#pragma once

// Attention of one new token a row against cached keys and values, on the GPU.
//
// A block is one row and head. It reads every key and value once, so the time is that of the
// memory: all that counts is how many bytes are under way. A key's Dh elements are loaded by
// Dh / (elements in 16 bytes) lanes, 16 bytes each, so that a warp looks at several keys at once,
// and at four times as many before it needs the first. Each group of lanes keeps an online softmax
// of its keys; the groups of a warp are joined by shuffles, the warps through shared memory, in a
// fixed order.

#include <cmath>
#include <limits>
#include <string>

#include "emprl/core/scalar.hpp"
#include "emprl/cuda/context.cuh"
#include "emprl/cuda/row.hpp"
#include "emprl/ops/attention_decode.hpp"
#include "emprl/ops/head_width.cuh"
#include "emprl/ops/row_packs.cuh"

namespace emprl {

namespace detail {

inline constexpr int decode_warps = 4;
inline constexpr int decode_threads = decode_warps * cuda::warp_size;

/// What the kernel knows. Pitches are elements from row to row.
template <CudaElement T>
struct DecodeArguments {
  T* o = nullptr;
  T const* q = nullptr;
  T const* k = nullptr;
  T const* v = nullptr;
  /// The new keys and where they go; null if nothing is appended.
  T const* new_k = nullptr;
  T const* new_v = nullptr;
  T* grown_k = nullptr;
  T* grown_v = nullptr;
  T const* prefix_k = nullptr;
  T const* prefix_v = nullptr;
  index_t o_pitch = 0, q_pitch = 0, k_pitch = 0, v_pitch = 0;
  index_t new_k_pitch = 0, new_v_pitch = 0, prefix_k_pitch = 0, prefix_v_pitch = 0;
  index_t const* begin = nullptr;
  index_t const* length = nullptr;
  float const* bias = nullptr;
  index_t bias_pitch = 0;
  index_t bias_columns = 0;
  DecodeBias columns = DecodeBias::position;
  int heads = 1;
  int prefix = 0;
};

/// PRECOND: a block a (row, head), decode_threads of it; all rows and pitches are multiples of 16
/// bytes; ranges lie in the cache and are no longer than the bias
template <CudaElement T, int Dh>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(decode_threads) attention_decode_kernel(DecodeArguments<T> in) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  constexpr int width = cuda::pack_elements<T>;
  constexpr int lanes = Dh / width;
  constexpr int groups = cuda::warp_size / lanes;
  constexpr int together = 4;
  EMPRL_SHARED(float, partial, decode_warps* Dh);
  EMPRL_SHARED(float, state, 2 * decode_warps);

  index_t const a = cuda::block_index().x / in.heads;
  int const h = cuda::block_index().x % in.heads;
  // Keys and values that nobody appends to are there before the launch in front has ended, and so
  // are the ranges.
  cuda::begin_next();
  if (in.new_k == nullptr) {
    for (index_t j = cuda::thread_rank(); j < in.length[a]; j += decode_threads) {
      cuda::prefetch_line(in.k + (in.begin[a] + j) * in.k_pitch + h * Dh);
      cuda::prefetch_line(in.v + (in.begin[a] + j) * in.v_pitch + h * Dh);
    }
  }
  cuda::wait_for_previous();
  int const warp = cuda::warp_index();
  int const lane = cuda::lane_index();
  int const group = lane / lanes;
  int const d = h * Dh + lane % lanes * width;
  index_t const begin = in.begin[a];
  index_t const own = in.length[a] > 0 ? in.length[a] : 0;
  index_t const keys = in.prefix + own;
  index_t const appended = in.new_k != nullptr && own > 0 ? keys - 1 : -1;
  float const* bias = in.bias;
  if (bias != nullptr) {
    bias += h * in.bias_pitch;
    if (in.columns == DecodeBias::distance) bias += in.bias_columns - own;
  }

  auto const q = cuda::to_floats(cuda::load_pack<width>(in.q + a * in.q_pitch + d));
  float most = -infinity;
  float sum = 0.0f;
  float mixed[width] = {};
  for (index_t first = warp * groups * together; first < keys;
       first += decode_warps * groups * together) {
    cuda::Pack<T, width> k[together];
    cuda::Pack<T, width> v[together];
    EMPRL_UNROLL
    for (int u = 0; u < together; ++u) {
      // Behind the last key the last one is loaded again; its score is then -inf.
      index_t const wanted = first + u * groups + group;
      index_t const j = wanted < keys ? wanted : keys - 1;
      T const* from_k;
      T const* from_v;
      if (j < in.prefix) {
        from_k = in.prefix_k + j * in.prefix_k_pitch;
        from_v = in.prefix_v + j * in.prefix_v_pitch;
      } else if (j == appended) {
        from_k = in.new_k + a * in.new_k_pitch;
        from_v = in.new_v + a * in.new_v_pitch;
      } else {
        from_k = in.k + (begin + j - in.prefix) * in.k_pitch;
        from_v = in.v + (begin + j - in.prefix) * in.v_pitch;
      }
      k[u] = cuda::load_pack<width>(from_k + d);
      v[u] = cuda::load_pack<width>(from_v + d);
    }
    float score[together];
    float largest = most;
    EMPRL_UNROLL
    for (int u = 0; u < together; ++u) {
      index_t const j = first + u * groups + group;
      auto const key = cuda::to_floats(k[u]);
      float s = 0.0f;
      EMPRL_UNROLL
      for (int i = 0; i < width; ++i) s += q.x[i] * key.x[i];
      EMPRL_UNROLL
      for (int bits = lanes / 2; bits > 0; bits /= 2) s += cuda::shuffle_xor(s, bits);
      if (bias != nullptr && j >= in.prefix && j < keys) s += bias[j - in.prefix];
      score[u] = j < keys ? s : -infinity;
      largest = score[u] > largest ? score[u] : largest;
      if (j == appended) {
        cuda::store_pack(in.grown_k + (begin + j - in.prefix) * in.k_pitch + d, k[u]);
        cuda::store_pack(in.grown_v + (begin + j - in.prefix) * in.v_pitch + d, v[u]);
      }
    }
    // Before the first key of a group both are -inf, and their difference would be NaN.
    float const shift = largest == -infinity ? 0.0f : largest;
    float const factor = std::exp(most - shift);
    most = largest;
    sum *= factor;
    EMPRL_UNROLL
    for (int i = 0; i < width; ++i) mixed[i] *= factor;
    EMPRL_UNROLL
    for (int u = 0; u < together; ++u) {
      float const p = std::exp(score[u] - shift);
      auto const value = cuda::to_floats(v[u]);
      sum += p;
      EMPRL_UNROLL
      for (int i = 0; i < width; ++i) mixed[i] += p * value.x[i];
    }
  }

  EMPRL_UNROLL
  for (int bits = lanes; bits < cuda::warp_size; bits *= 2) {
    float const other_most = cuda::shuffle_xor(most, bits);
    float const largest = other_most > most ? other_most : most;
    float const shift = largest == -infinity ? 0.0f : largest;
    float const mine = std::exp(most - shift);
    float const theirs = std::exp(other_most - shift);
    most = largest;
    sum = sum * mine + cuda::shuffle_xor(sum, bits) * theirs;
    EMPRL_UNROLL
    for (int i = 0; i < width; ++i) {
      mixed[i] = mixed[i] * mine + cuda::shuffle_xor(mixed[i], bits) * theirs;
    }
  }
  if (lane < lanes) {
    EMPRL_UNROLL
    for (int i = 0; i < width; ++i) partial[warp * Dh + lane * width + i] = mixed[i];
  }
  if (lane == 0) {
    state[2 * warp] = most;
    state[2 * warp + 1] = sum;
  }
  cuda::sync_threads();
  int const column = cuda::thread_rank();
  if (column >= Dh) return;
  float largest = -infinity;
  for (int w = 0; w < decode_warps; ++w) {
    float const other = state[2 * w];
    largest = other > largest ? other : largest;
  }
  float const shift = largest == -infinity ? 0.0f : largest;
  float total = 0.0f;
  float y = 0.0f;
  EMPRL_UNROLL
  for (int w = 0; w < decode_warps; ++w) {
    float const its_most = state[2 * w];
    float const its_sum = state[2 * w + 1];
    float const its_part = partial[w * Dh + column];
    float const factor = std::exp(its_most - shift);
    total += factor * its_sum;
    y += factor * its_part;
  }
  in.o[a * in.o_pitch + h * Dh + column] = T(keys == 0 ? 0.0f : y / total);
}

/// Fills in what both entries share, and launches. The cache is const here; a growing one is added
/// by the caller.
template <CudaElement T>
void launch_attention_decode(Cuda& dev, TensorView<T, 2, Cuda> o, In<T, 2, Cuda> q,
                             CachedKeys<T, Cuda> const& cache, index_t heads,
                             In<float, 2, Cuda> bias, In<T, 2, Cuda> prefix_k,
                             In<T, 2, Cuda> prefix_v, DecodeBias columns, DecodeArguments<T> in) {
  index_t const active = q.extent(0);
  expects(o.extents() == q.extents() && heads > 0 && q.extent(1) % heads == 0 &&
              cache.k.extent(1) == q.extent(1) && cache.v.extent(1) == q.extent(1) &&
              cache.begin.extent(0) == active && cache.length.extent(0) == active,
          "attention_decode: one cached range for each query row, keys as wide as queries");
  expects(cache.v.extent(0) == cache.k.extent(0) && (bias.empty() || bias.extent(0) == heads) &&
              prefix_k.extents() == prefix_v.extents() &&
              (prefix_k.empty() || prefix_k.extent(1) == q.extent(1)),
          "attention_decode: as many values as keys, the bias one row a head, a prefix as wide as "
          "queries");
  expects(begins_at_packs(q) && begins_at_packs(cache.k) && begins_at_packs(cache.v) &&
              begins_at_packs(prefix_k) && begins_at_packs(prefix_v),
          "attention_decode on the GPU: every row must begin at a multiple of 16 bytes");
  expects(heads <= std::numeric_limits<int>::max() &&
              prefix_k.extent(0) <= std::numeric_limits<int>::max(),
          "attention_decode: more heads or prefix keys than 32 bits count");
  in.o = o.data();
  in.o_pitch = o.stride(0);
  in.q = q.data();
  in.q_pitch = q.stride(0);
  in.k = cache.k.data();
  in.k_pitch = cache.k.stride(0);
  in.v = cache.v.data();
  in.v_pitch = cache.v.stride(0);
  in.begin = cache.begin.data();
  in.length = cache.length.data();
  if (!bias.empty()) {
    in.bias = bias.data();
    in.bias_pitch = bias.stride(0);
    in.bias_columns = bias.extent(1);
  }
  in.columns = columns;
  in.heads = static_cast<int>(heads);
  if (!prefix_k.empty()) {
    in.prefix = static_cast<int>(prefix_k.extent(0));
    in.prefix_k = prefix_k.data();
    in.prefix_k_pitch = prefix_k.stride(0);
    in.prefix_v = prefix_v.data();
    in.prefix_v_pitch = prefix_v.stride(0);
  }
  dispatch_head_width("attention_decode", q.extent(1) / heads,
                      [&]<int Dh>(std::integral_constant<int, Dh>) {
                        if (active == 0) return;
                        cuda::launch<attention_decode_kernel<T, Dh>>(
                            dev.stream,
                            {.grid = {cuda::blocks_for(active * heads, 1)},
                             .block = {decode_threads},
                             .overlaps = std::is_same_v<T, Bf16> && dev.overlaps()},
                            in);
                      });
}

}  // namespace detail

/// As the op of the same name on the CPU; the bias is float whatever T is, and the sums are. Rows
/// of length 0 (finished ones) are cheap. Ranges lie in device memory and are not checked.
/// @param dev  work is ordered on dev.stream, no synchronisation
/// @throws ShapeError if extents disagree or a row does not begin at a multiple of 16 bytes,
///         ConfigError if heads are not 32, 64 or 128 wide
template <CudaElement T>
void attention_decode(Cuda& dev, Out<T, 2, Cuda> o, In<T, 2, Cuda> q,
                      std::type_identity_t<CachedKeys<T, Cuda>> const& cache, index_t heads,
                      In<float, 2, Cuda> bias, In<T, 2, Cuda> prefix_k, In<T, 2, Cuda> prefix_v,
                      DecodeBias columns = DecodeBias::position) {
  detail::launch_attention_decode<T>(dev, o, q, cache, heads, bias, prefix_k, prefix_v, columns,
                                     {});
}

/// As the op of the same name on the CPU: the new key and value are read where they are and written
/// to the cache by the same kernel.
/// @param dev  work is ordered on dev.stream, no synchronisation
/// @throws ShapeError, ConfigError as attention_decode
template <CudaElement T>
void attention_decode_append(Cuda& dev, Out<T, 2, Cuda> o, In<T, 2, Cuda> q, In<T, 2, Cuda> new_k,
                             In<T, 2, Cuda> new_v,
                             std::type_identity_t<GrowingKeys<T, Cuda>> const& cache, index_t heads,
                             In<float, 2, Cuda> bias, In<T, 2, Cuda> prefix_k,
                             In<T, 2, Cuda> prefix_v, DecodeBias columns = DecodeBias::position) {
  expects(new_k.extents() == q.extents() && new_v.extents() == q.extents(),
          "attention_decode_append: one new key and one new value for each query, as wide as it");
  expects(detail::begins_at_packs(new_k) && detail::begins_at_packs(new_v),
          "attention_decode_append on the GPU: every row must begin at a multiple of 16 bytes");
  detail::DecodeArguments<T> in;
  in.new_k = new_k.data();
  in.new_k_pitch = new_k.stride(0);
  in.new_v = new_v.data();
  in.new_v_pitch = new_v.stride(0);
  in.grown_k = cache.k.data();
  in.grown_v = cache.v.data();
  detail::launch_attention_decode<T>(dev, o, q, {cache.k, cache.v, cache.begin, cache.length},
                                     heads, bias, prefix_k, prefix_v, columns, in);
}

}  // namespace emprl
