// SPDX-License-Identifier: Apache-2.0
#pragma once

// Attention on the GPU: the overloads of ops/attention.hpp for Cuda, and their kernels.
//
// Tiles of 64 queries by 64 keys, by four warps; softmax goes along with them and no (Tq, Tk)
// matrix exists (Dao 2023, "FlashAttention-2"). Bf16 multiplies on tensor cores with float sums;
// float multiplies and adds in float, not in TF32. Head widths 32, 64 and 128; heads of another
// width, without bias and prefix, go the slower way of ops/attention_unfused.cuh.
//
// The backward pass walks over the tiles twice: with a block's queries resting and keys passing by,
// for dq and the bias, then with keys resting, for dk and dv. That is seven products of tiles where
// one walk would need five, but every sum has one owner and a fixed order: no atomic additions, the
// same bits in every run, and no round of probabilities through shared memory to transpose them.
//
// dbias: a tile's score gradients are summed along diagonals, a block's diagonals go to memory, and
// a second kernel adds up blocks in order. The same for the prefix's gradients over ragged rows.

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>

#include "emprl/core/half.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/cuda/async_copy.hpp"
#include "emprl/cuda/context.cuh"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/launch.cuh"
#include "emprl/cuda/mma.hpp"
#include "emprl/cuda/pack.hpp"
#include "emprl/cuda/shared.hpp"
#include "emprl/math/exp.hpp"
#include "emprl/ops/attention.hpp"
#include "emprl/ops/attention_unfused.cuh"
#include "emprl/ops/dropout.cuh"
#include "emprl/ops/head_width.cuh"
#include "emprl/ops/row_packs.cuh"

namespace emprl {

namespace detail {

/// Queries and keys of a tile, and the threads that share it: each warp holds 16 rows of scores.
inline constexpr int attention_tile = 64;
inline constexpr int attention_threads = 128;

/// Scores of a warp, 16 x 8N, as mma.hpp lays out accumulators: s[n] holds columns 8n .. 8n+7.
template <int N>
using AttentionScores = float[N][4];

/// Sums of a warp, 16 x Dh. Bf16: columns as in mma.hpp. Float: a lane's columns are 16m + 4t ..
/// 16m + 4t + 3, in c[2m] and c[2m+1], so that it reads and writes four at a time.
template <int Dh>
using AttentionSums = float[Dh / 8][4];

/// How tiles lie in shared memory.
template <class T, int Dh>
struct AttentionLayout {
  /// 16 bytes more than a row has: the eight rows that are read at a time then lie in different
  /// banks.
  static constexpr int pitch = Dh + cuda::pack_elements<T>;
  static constexpr int elements = attention_tile * pitch;
  /// Tiles that pass by have two buffers. In float, one: two would leave no multiprocessor room for
  /// a second block, which hides the copies as well.
  static constexpr int stages = sizeof(T) == 2 ? 2 : 1;
  /// In float, each warp's scores pass through shared memory to become rows of a factor.
  static constexpr int exchange_pitch = attention_tile + 4;
  static constexpr int exchange = sizeof(T) == 2 ? 4 : 4 * 16 * exchange_pitch;
  /// Distances between 64 queries and 64 keys, and one more.
  static constexpr int window = 2 * attention_tile;
  /// One word a query and key modulo 16, one bit for each of the eight such keys of two tiles.
  static constexpr int kept = attention_tile * 16;
  /// Score gradients on their way to the diagonals: eight rows a warp, columns -8 .. 63.
  static constexpr int skew_pitch = attention_tile + 8;
  static constexpr int skew = 4 * 8 * skew_pitch;
};

/// The inputs as kernels want them. Pitches count elements from row to row.
template <class T>
struct AttentionCall {
  T const* q;
  T const* k;
  T const* v;
  T const* prefix_k;
  T const* prefix_v;
  index_t q_pitch;
  index_t k_pitch;
  index_t v_pitch;
  index_t prefix_k_pitch;
  index_t prefix_v_pitch;
  index_t const* q_offsets;
  index_t const* k_offsets;
  float const* bias;  // null for none
  index_t bias_pitch;
  int bias_first;
  int bias_columns;
  int heads;
  int prefix;
  bool causal;
  float scale;
  DropoutDraw dropout;
};

/// One ragged row.
struct AttentionRow {
  index_t first_query;
  index_t first_key;
  int queries;
  int keys;  // the prefix included
};

template <class T>
EMPRL_DEVICE AttentionRow attention_row(AttentionCall<T> const& call, int b) {
  index_t const q = call.q_offsets[b];
  index_t const k = call.k_offsets[b];
  return {q, k, static_cast<int>(call.q_offsets[b + 1] - q),
          static_cast<int>(call.k_offsets[b + 1] - k) + call.prefix};
}

/// The tiles of keys that some query of [q0, q0 + 64) sees.
template <class T>
EMPRL_DEVICE int attention_key_tiles(AttentionCall<T> const& call, AttentionRow const& row,
                                     int q0) {
  int const reach = call.prefix + q0 + attention_tile;
  int const keys = call.causal && reach < row.keys ? reach : row.keys;
  return (keys + attention_tile - 1) / attention_tile;
}

/// Calls f(n, i, row, column) for each score s[n][i] of the calling lane.
template <int N = attention_tile / 8, class F>
EMPRL_DEVICE void each_score(F f) {
  int const lane = cuda::lane_index();
  EMPRL_UNROLL
  for (int n = 0; n < N; ++n) {
    EMPRL_UNROLL
    for (int i = 0; i < 4; ++i) {
      f(n, i, cuda::accumulator_row(lane, i), 8 * n + cuda::accumulator_column(lane, i));
    }
  }
}

/// e^(x - shift), x or -shift may be -inf. Float: as the CPU. Bf16: the instruction of the device,
/// whose error (2 units of float) is far below a rounding to Bf16.
template <class T>
EMPRL_DEVICE float shifted_exp(float x, float shift) {
  if constexpr (std::is_same_v<T, float>) {
    return exp_branchless(x - shift);
  } else {
    constexpr float log2_e = 1.44269504f;
    float const exponent = x * log2_e - shift * log2_e;
#if defined(__CUDACC__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(exponent));
    return y;
#else
    return std::exp2(exponent);
#endif
  }
}

/// Starts to copy 64 rows of Dh elements; from(r) is the address of row r, null for zeros.
template <int Dh, class T, class From>
EMPRL_DEVICE void copy_attention_rows(cuda::Shared<T> tile, T const* anywhere, From from) {
  constexpr int pack = cuda::pack_elements<T>;
  constexpr int packs = Dh / pack;
  for (int x = cuda::thread_rank(); x < attention_tile * packs; x += attention_threads) {
    int const r = x / packs;
    int const column = x % packs * pack;
    T const* const row = from(r);
    cuda::copy_async<16>(tile.at(r * AttentionLayout<T, Dh>::pitch + column),
                         row != nullptr ? row + column : anywhere, row != nullptr ? 16 : 0);
  }
}

/// Queries q0 .. q0 + 63 of one head; `x` is q or has its shape.
template <int Dh, class T>
EMPRL_DEVICE void copy_attention_queries(cuda::Shared<T> tile, T const* x, index_t pitch,
                                         AttentionRow const& row, int h, int q0) {
  T const* const first = x + (row.first_query + q0) * pitch + h * Dh;
  copy_attention_rows<Dh>(
      tile, x, [&](int r) { return q0 + r < row.queries ? first + r * pitch : nullptr; });
}

/// Keys (or values) k0 .. k0 + 63 of one head, the prefix first.
template <int Dh, class T>
EMPRL_DEVICE void copy_attention_keys(cuda::Shared<T> tile, T const* x, index_t pitch,
                                      T const* prefix, index_t prefix_pitch, int prefix_rows,
                                      AttentionRow const& row, int h, int k0) {
  copy_attention_rows<Dh>(tile, x, [&](int r) -> T const* {
    int const key = k0 + r;
    if (key >= row.keys) return nullptr;
    if (key < prefix_rows) return prefix + key * prefix_pitch + h * Dh;
    return x + (row.first_key + key - prefix_rows) * pitch + h * Dh;
  });
}

/// The biases of all distances in a tile: that of query q0 + i and key k0 + j at j - i + 63. Zeros
/// where the table has none: no visible key stands there.
template <class T>
EMPRL_DEVICE void copy_attention_bias(cuda::Shared<float> window, AttentionCall<T> const& call,
                                      int h, int q0, int k0) {
  int const x = cuda::thread_rank();
  int const column = k0 - call.prefix - q0 + x - (attention_tile - 1) - call.bias_first;
  bool const known = column >= 0 && column < call.bias_columns;
  cuda::copy_async<4>(window.at(x), call.bias + (known ? h * call.bias_pitch + column : 0),
                      known ? 4 : 0);
}

/// Which probabilities dropout keeps, by the draws of dropout_factors: bit r of word 16 i + l
/// stands for query q0 + i and key g + 16 r + l, g the multiple of dropout_group at or before k0. A
/// draw decides over such a group, which is two tiles of keys.
template <class T>
EMPRL_DEVICE void draw_attention_dropout(cuda::Shared<std::uint32_t> kept,
                                         AttentionCall<T> const& call, AttentionRow const& row,
                                         int h, int q0, int k0) {
  DropoutDraw const& dropout = call.dropout;
  static_assert(dropout_group == 2 * attention_tile && dropout_lanes == 16);
  for (int x = cuda::thread_rank(); x < attention_tile * 16; x += attention_threads) {
    auto const draw_row =
        static_cast<std::uint32_t>((row.first_query + q0 + x / 16) * call.heads + h);
    auto const words = dropout.words(
        draw_row,
        static_cast<std::uint32_t>(k0 / dropout_group * dropout_lanes + x % dropout_lanes));
    std::uint32_t bits = 0;
    EMPRL_UNROLL
    for (int w = 0; w < 4; ++w) {
      std::uint32_t const word = words[static_cast<std::size_t>(w)];
      if ((word & 0xffffu) >= dropout.threshold) bits |= 1u << 2 * w;
      if ((word >> 16) >= dropout.threshold) bits |= 2u << 2 * w;
    }
    kept[x] = bits;
  }
}

/// The dropout factor of query q0 + i and key k0 + j.
EMPRL_DEVICE float attention_dropout_factor(cuda::Shared<std::uint32_t> kept, int k0, int i, int j,
                                            float keep) {
  std::uint32_t const bits = kept[16 * i + j % 16];
  return (bits >> (k0 % dropout_group / 16) >> (j / 16) & 1u) != 0 ? keep : 0.0f;
}

/// c (16 x 8N) += A B^T over Dh columns: A rows a_row .. a_row + 15 of a tile, B rows b_row ..
/// b_row
/// + 8N - 1 of another. How an element is summed does not depend on its place.
template <int Dh, int N, class T>
EMPRL_DEVICE void multiply_rows(float (&c)[N][4], cuda::Shared<T> a, int a_row, cuda::Shared<T> b,
                                int b_row) {
  constexpr int pitch = AttentionLayout<T, Dh>::pitch;
  int const lane = cuda::lane_index();
  if constexpr (cuda::MmaHalf<T>) {
    EMPRL_UNROLL
    for (int k = 0; k < Dh; k += 16) {
      std::uint32_t left[4];
      cuda::load_matrix(left, a.at((a_row + lane % 16) * pitch + k + lane / 16 * 8));
      EMPRL_UNROLL
      for (int n = 0; n < N; n += 2) {
        std::uint32_t right[4];
        cuda::load_matrix(
            right, b.at((b_row + n * 8 + lane / 16 * 8 + lane % 8) * pitch + k + lane / 8 % 2 * 8));
        cuda::mma_m16n8k16<T>(c[n], left, right[0], right[1]);
        cuda::mma_m16n8k16<T>(c[n + 1], left, right[2], right[3]);
      }
    }
  } else {
    using Four = cuda::Pack<float, 4>;
    int const g = lane / 4;
    int const t = lane % 4;
    auto const a_packs = a.template as<Four>();
    auto const b_packs = b.template as<Four>();
    for (int k = 0; k < Dh; k += 4) {
      Four const upper = a_packs[((a_row + g) * pitch + k) / 4];
      Four const lower = a_packs[((a_row + g + 8) * pitch + k) / 4];
      EMPRL_UNROLL
      for (int n = 0; n < N; ++n) {
        EMPRL_UNROLL
        for (int j = 0; j < 2; ++j) {
          Four const right = b_packs[((b_row + 8 * n + 2 * t + j) * pitch + k) / 4];
          // Four columns by themselves, then to the others: half the error of one long sum. Without
          // it do . o is further from the do . v of a query's few keys than a plain program's
          // mean of them is, and gradients err up to 3.5 times as much as its.
          float above = 0.0f;
          float below = 0.0f;
          EMPRL_UNROLL
          for (int e = 0; e < 4; ++e) {
            above += upper.x[e] * right.x[e];
            below += lower.x[e] * right.x[e];
          }
          c[n][j] += above;
          c[n][2 + j] += below;
        }
      }
    }
  }
}

/// c (16 x Dh) += P B: P (16 x 8N) as scores lie, B rows b_row .. b_row + 8N - 1 of a tile.
template <int Dh, int N, class T>
EMPRL_DEVICE void multiply_columns(AttentionSums<Dh>& c, AttentionScores<N> const& p,
                                   cuda::Shared<T> b, int b_row,
                                   [[maybe_unused]] cuda::Shared<float> exchange) {
  using Layout = AttentionLayout<T, Dh>;
  int const lane = cuda::lane_index();
  if constexpr (cuda::MmaHalf<T>) {
    EMPRL_UNROLL
    for (int k = 0; k < N / 2; ++k) {
      std::uint32_t const left[4] = {cuda::pack_halves<T>(p[2 * k][0], p[2 * k][1]),
                                     cuda::pack_halves<T>(p[2 * k][2], p[2 * k][3]),
                                     cuda::pack_halves<T>(p[2 * k + 1][0], p[2 * k + 1][1]),
                                     cuda::pack_halves<T>(p[2 * k + 1][2], p[2 * k + 1][3])};
      EMPRL_UNROLL
      for (int n = 0; n < Dh / 8; n += 2) {
        std::uint32_t right[4];
        cuda::load_matrix_transposed(
            right, b.at((b_row + 16 * k + lane % 16) * Layout::pitch + 8 * n + lane / 16 * 8));
        cuda::mma_m16n8k16<T>(c[n], left, right[0], right[1]);
        cuda::mma_m16n8k16<T>(c[n + 1], left, right[2], right[3]);
      }
    }
  } else {
    using Two = cuda::Pack<float, 2>;
    using Four = cuda::Pack<float, 4>;
    constexpr int pitch = Layout::exchange_pitch;
    int const g = lane / 4;
    int const t = lane % 4;
    auto const mine = exchange.part(cuda::warp_index() * 16 * pitch, 16 * pitch);
    auto const pairs = mine.template as<Two>();
    cuda::sync_warp();  // the reads of the last call are over
    EMPRL_UNROLL
    for (int n = 0; n < N; ++n) {
      pairs[(g * pitch + 8 * n) / 2 + t] = Two{{p[n][0], p[n][1]}};
      pairs[((g + 8) * pitch + 8 * n) / 2 + t] = Two{{p[n][2], p[n][3]}};
    }
    cuda::sync_warp();
    auto const rows = mine.template as<Four>();
    auto const b_packs = b.template as<Four>();
    for (int k = 0; k < 8 * N; k += 4) {
      Four const upper = rows[(g * pitch + k) / 4];
      Four const lower = rows[((g + 8) * pitch + k) / 4];
      EMPRL_UNROLL
      for (int e = 0; e < 4; ++e) {
        EMPRL_UNROLL
        for (int m = 0; m < Dh / 16; ++m) {
          Four const right = b_packs[((b_row + k + e) * Layout::pitch + 16 * m) / 4 + t];
          EMPRL_UNROLL
          for (int f = 0; f < 4; ++f) {
            c[2 * m + f / 2][f % 2] += upper.x[e] * right.x[f];
            c[2 * m + f / 2][2 + f % 2] += lower.x[e] * right.x[f];
          }
        }
      }
    }
  }
}

/// Writes factor * (row of sums) in format U: of the lane's two rows the upper (0) or the lower
/// (1).
template <class T, int Dh, class U>
EMPRL_DEVICE void store_attention_row(U* to, AttentionSums<Dh> const& c, int which, float factor) {
  int const t = cuda::lane_index() % 4;
  auto const x = [&](int n, int j) { return U(factor * (which == 0 ? c[n][j] : c[n][2 + j])); };
  if constexpr (cuda::MmaHalf<T>) {
    EMPRL_UNROLL
    for (int n = 0; n < Dh / 8; ++n) {
      cuda::store_pack(to + 8 * n + 2 * t, cuda::Pack<U, 2>{{x(n, 0), x(n, 1)}});
    }
  } else {
    EMPRL_UNROLL
    for (int m = 0; m < Dh / 16; ++m) {
      cuda::store_pack(to + 16 * m + 4 * t, cuda::Pack<U, 4>{{x(2 * m, 0), x(2 * m, 1),
                                                              x(2 * m + 1, 0), x(2 * m + 1, 1)}});
    }
  }
}

/// Products q . k become scores: scale, bias, and -inf for what is not seen or not there. Rows of s
/// are queries, or keys with KeysInRows; column 0 is number `column` of the tile.
template <bool KeysInRows, int N, class T>
EMPRL_DEVICE void finish_scores(AttentionScores<N>& s, AttentionCall<T> const& call,
                                AttentionRow const& row, int q0, int k0, int column,
                                cuda::Shared<float> window) {
  int const warp_row = cuda::warp_index() * 16;
  auto const each = [&](auto f) {
    each_score<N>([&](int n, int i, int r, int c) {
      f(s[n][i], KeysInRows ? column + c : warp_row + r, KeysInRows ? warp_row + r : column + c);
    });
  };
  if (call.scale != 1.0f) each([&](float& x, int, int) { x *= call.scale; });
  if (call.bias != nullptr) {
    if (k0 >= call.prefix) {
      each([&](float& x, int i, int j) {
        float const bias = window[j - i + attention_tile - 1];
        x += bias;
      });
    } else {
      each([&](float& x, int i, int j) {
        float const bias = window[j - i + attention_tile - 1];
        if (k0 + j >= call.prefix) x += bias;
      });
    }
  }
  bool const inside = q0 + attention_tile <= row.queries && k0 + attention_tile <= row.keys &&
                      (!call.causal || k0 + attention_tile - 1 - call.prefix <= q0);
  if (inside) return;
  each([&](float& x, int i, int j) {
    bool const seen = q0 + i < row.queries && k0 + j < row.keys &&
                      (!call.causal || k0 + j - call.prefix <= q0 + i);
    if (!seen) x = -std::numeric_limits<float>::infinity();
  });
}

/// Calls compute(tile, stage) for tiles [begin, end), whose copies copy(tile, stage) starts while
/// the tile before is in use; after(tile) runs when all threads are done with a tile's buffers.
template <int Stages, class Copy, class Compute, class After>
EMPRL_DEVICE void each_attention_tile(int begin, int end, Copy copy, Compute compute, After after) {
  if constexpr (Stages == 2) {
    if (begin < end) copy(begin, 0);
    cuda::commit_copies();
  }
  for (int tile = begin; tile < end; ++tile) {
    int const stage = Stages == 2 ? (tile - begin) % 2 : 0;
    if constexpr (Stages == 2) {
      if (tile + 1 < end) copy(tile + 1, 1 - stage);
      cuda::commit_copies();
      cuda::wait_copies<1>();
    } else {
      copy(tile, 0);
      cuda::commit_copies();
      cuda::wait_copies<0>();
    }
    cuda::sync_threads();
    compute(tile, stage);
    cuda::sync_threads();
    after(tile);
  }
  // Without a tile nobody has waited for what rests in the block.
  cuda::commit_copies();
  cuda::wait_copies<0>();
}

/// o and lse of the queries of one tile, in one head of one row.
/// PRECOND: 128 threads; grid (tiles of queries, heads, rows); pointers and pitches at multiples of
/// 16 bytes
template <class T, int Dh, bool Dropout>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(attention_threads, 2)
    attention_forward_kernel(T* o, index_t o_pitch, float* lse, index_t lse_pitch,
                             AttentionCall<T> call) {
  using Layout = AttentionLayout<T, Dh>;
  constexpr int stages = Layout::stages;
  constexpr int elements = Layout::elements;
  int const h = cuda::block_index().y;
  AttentionRow const row = attention_row(call, cuda::block_index().z);
  // Causal: the last queries see the most keys and start first.
  int const query_tile =
      call.causal ? cuda::grid_size().x - 1 - cuda::block_index().x : cuda::block_index().x;
  int const q0 = query_tile * attention_tile;
  if (q0 >= row.queries) return;

  cuda::DynamicShared memory;
  auto const q = memory.take<T>(elements);
  auto const k = memory.take<T>(stages * elements);
  auto const v = memory.take<T>(stages * elements);
  auto const window = memory.take<float>(stages * Layout::window);
  auto const exchange = memory.take<float>(Layout::exchange);
  [[maybe_unused]] auto const kept =
      memory.take<std::uint32_t>(Dropout ? stages * Layout::kept : 4);
  auto const part = [&](auto x, int stage, int count) { return x.part(stage * count, count); };

  int const warp_row = cuda::warp_index() * 16;
  float out[Dh / 8][4] = {};
  float most[2] = {-std::numeric_limits<float>::infinity(),
                   -std::numeric_limits<float>::infinity()};
  float sum[2] = {};  // of the lane's own columns

  copy_attention_queries<Dh>(q, call.q, call.q_pitch, row, h, q0);
  auto const copy = [&](int tile, int stage) {
    int const k0 = tile * attention_tile;
    copy_attention_keys<Dh>(part(k, stage, elements), call.k, call.k_pitch, call.prefix_k,
                            call.prefix_k_pitch, call.prefix, row, h, k0);
    copy_attention_keys<Dh>(part(v, stage, elements), call.v, call.v_pitch, call.prefix_v,
                            call.prefix_v_pitch, call.prefix, row, h, k0);
    if (call.bias != nullptr) {
      copy_attention_bias(part(window, stage, Layout::window), call, h, q0, k0);
    }
    if constexpr (Dropout) {
      // Two tiles share their draws.
      if (tile % 2 == 0) {
        draw_attention_dropout(part(kept, tile / 2 % stages, Layout::kept), call, row, h, q0, k0);
      }
    }
  };
  auto const compute = [&](int tile, int stage) {
    if (q0 + warp_row >= row.queries) return;  // a warp behind the last query only copies
    float s[attention_tile / 8][4] = {};
    multiply_rows<Dh>(s, q, warp_row, part(k, stage, elements), 0);
    finish_scores<false>(s, call, row, q0, tile * attention_tile, 0,
                         part(window, stage, Layout::window));
    float shift[2];
    EMPRL_UNROLL
    for (int r = 0; r < 2; ++r) {
      float top = most[r];
      EMPRL_UNROLL
      for (auto const& columns : s) {
        top = top < columns[2 * r] ? columns[2 * r] : top;
        top = top < columns[2 * r + 1] ? columns[2 * r + 1] : top;
      }
      // The four lanes of a row.
      EMPRL_UNROLL
      for (int bits = 1; bits <= 2; bits *= 2) {
        float const other = cuda::shuffle_xor(top, bits);
        top = top < other ? other : top;
      }
      // A query that has seen nothing yet: any finite shift keeps -inf - -inf away.
      shift[r] = top == -std::numeric_limits<float>::infinity() ? 0.0f : top;
      float const shrink = shifted_exp<T>(most[r], shift[r]);
      most[r] = top;
      sum[r] *= shrink;
      EMPRL_UNROLL
      for (auto& columns : out) {
        columns[2 * r] *= shrink;
        columns[2 * r + 1] *= shrink;
      }
    }
    each_score([&](int n, int i, int, int) {
      s[n][i] = shifted_exp<T>(s[n][i], shift[i / 2]);
      sum[i / 2] += s[n][i];
    });
    if constexpr (Dropout) {
      auto const mask = part(kept, tile / 2 % stages, Layout::kept);
      each_score([&](int n, int i, int r, int c) {
        s[n][i] *= attention_dropout_factor(mask, tile * attention_tile, warp_row + r, c,
                                            call.dropout.keep);
      });
    }
    multiply_columns<Dh>(out, s, part(v, stage, elements), 0, exchange);
  };
  each_attention_tile<stages>(0, attention_key_tiles(call, row, q0), copy, compute, [](int) {});

  int const lane = cuda::lane_index();
  EMPRL_UNROLL
  for (int r = 0; r < 2; ++r) {
    float total = sum[r];
    total += cuda::shuffle_xor(total, 1);
    total += cuda::shuffle_xor(total, 2);
    int const query = q0 + warp_row + lane / 4 + 8 * r;
    if (query >= row.queries) continue;
    index_t const packed = row.first_query + query;
    bool const none = total == 0.0f;
    store_attention_row<T, Dh>(o + packed * o_pitch + h * Dh, out, r, none ? 0.0f : 1.0f / total);
    if (lse != nullptr && lane % 4 == 0) {
      lse[h * lse_pitch + packed] =
          none ? -std::numeric_limits<float>::infinity() : most[r] + std::log(total);
    }
  }
}

/// What the kernels of the backward pass read beside the inputs, and the sums that they hand on.
template <class T>
struct AttentionBackwardCall {
  T const* o;
  T const* d_o;
  index_t o_pitch;
  index_t d_o_pitch;
  float const* lse;  // (H, Nq)
  index_t lse_pitch;
  float* delta;  // (H, Nq): do . o, written with dq
  index_t delta_pitch;
  /// (B, H, tiles of queries, diagonals): sums of score gradients along each block's diagonals;
  /// diagonal x is distance x - prefix - q0 - 63. Null if dbias is not needed.
  float* diagonals;
  int query_tiles;
  int diagonal_count;
  /// (2, B, P, H*Dh): dk, then dv of the prefix, by ragged row. Null if not needed.
  float* prefix_gradients;
};

/// Blocks of the next kernel for a multiprocessor: three, whose tiles sm_90 has room for, where 168
/// registers a thread are enough.
template <class T, int Dh, bool Dropout>
inline constexpr int attention_query_blocks = sizeof(T) == 2 && Dh <= 64 && !Dropout ? 3 : 2;

/// dq = scale ds k and the diagonals of ds; delta. As attention_forward_kernel.
template <class T, int Dh, bool Dropout>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(attention_threads, attention_query_blocks<T, Dh, Dropout>)
    attention_backward_queries_kernel(T* dq, index_t dq_pitch, AttentionBackwardCall<T> back,
                                      AttentionCall<T> call) {
  using Layout = AttentionLayout<T, Dh>;
  constexpr int stages = Layout::stages;
  constexpr int elements = Layout::elements;
  int const h = cuda::block_index().y;
  int const b = cuda::block_index().z;
  AttentionRow const row = attention_row(call, b);
  int const query_tile =
      call.causal ? cuda::grid_size().x - 1 - cuda::block_index().x : cuda::block_index().x;
  int const q0 = query_tile * attention_tile;
  if (q0 >= row.queries) return;

  cuda::DynamicShared memory;
  auto const q = memory.take<T>(elements);
  auto const d_o = memory.take<T>(elements);
  auto const k = memory.take<T>(stages * elements);
  auto const v = memory.take<T>(stages * elements);
  auto const window = memory.take<float>(stages * Layout::window);
  auto const exchange = memory.take<float>(Layout::exchange);
  auto const skew = memory.take<float>(Layout::skew);
  auto const carry = memory.take<float>(2 * attention_tile);
  [[maybe_unused]] auto const kept =
      memory.take<std::uint32_t>(Dropout ? stages * Layout::kept : 4);
  auto const part = [&](auto x, int stage, int count) { return x.part(stage * count, count); };

  int const lane = cuda::lane_index();
  int const g = lane / 4;
  int const t = lane % 4;
  int const warp_row = cuda::warp_index() * 16;

  copy_attention_queries<Dh>(q, call.q, call.q_pitch, row, h, q0);
  copy_attention_queries<Dh>(d_o, back.d_o, back.d_o_pitch, row, h, q0);
  auto const o = part(k, 0, elements);  // before the first keys need the place
  copy_attention_queries<Dh>(o, back.o, back.o_pitch, row, h, q0);
  cuda::commit_copies();
  cuda::wait_copies<0>();
  cuda::sync_threads();

  // do . o is the diagonal of a product, summed as do . v is: a query that attends to one key alone
  // has delta == dp to the last bit, and its score no gradient.
  float delta[2];
  float shift[2];
  {
    float product[2][4] = {};
    multiply_rows<Dh>(product, d_o, warp_row, o, warp_row);
    int const owner = 4 * g + g / 2;
    delta[0] = cuda::shuffle(g % 2 == 0 ? product[0][0] : product[0][1], owner);
    delta[1] = cuda::shuffle(g % 2 == 0 ? product[1][2] : product[1][3], owner);
    EMPRL_UNROLL
    for (int r = 0; r < 2; ++r) {
      int const query = q0 + warp_row + g + 8 * r;
      // Outside, or without keys: probability 0.
      shift[r] = std::numeric_limits<float>::infinity();
      if (query >= row.queries) continue;
      index_t const packed = row.first_query + query;
      float const log_sum = back.lse[h * back.lse_pitch + packed];
      if (log_sum != -std::numeric_limits<float>::infinity()) shift[r] = log_sum;
      if (t == 0) back.delta[h * back.delta_pitch + packed] = delta[r];
    }
  }
  cuda::sync_threads();

  float sums[Dh / 8][4] = {};
  auto const copy = [&](int tile, int stage) {
    int const k0 = tile * attention_tile;
    copy_attention_keys<Dh>(part(k, stage, elements), call.k, call.k_pitch, call.prefix_k,
                            call.prefix_k_pitch, call.prefix, row, h, k0);
    copy_attention_keys<Dh>(part(v, stage, elements), call.v, call.v_pitch, call.prefix_v,
                            call.prefix_v_pitch, call.prefix, row, h, k0);
    if (call.bias != nullptr) {
      copy_attention_bias(part(window, stage, Layout::window), call, h, q0, k0);
    }
    if constexpr (Dropout) {
      // Two tiles share their draws.
      if (tile % 2 == 0) {
        draw_attention_dropout(part(kept, tile / 2 % stages, Layout::kept), call, row, h, q0, k0);
      }
    }
  };
  // Warps that have queries; those behind the last one only copy.
  int const last_rows = row.queries - q0;
  int const warps = last_rows < attention_tile ? (last_rows + 15) / 16 : attention_tile / 16;
  auto const compute = [&](int tile, int stage) {
    if (cuda::warp_index() >= warps) return;
    int const k0 = tile * attention_tile;
    float s[attention_tile / 8][4] = {};
    multiply_rows<Dh>(s, q, warp_row, part(k, stage, elements), 0);
    finish_scores<false>(s, call, row, q0, k0, 0, part(window, stage, Layout::window));
    float dp[attention_tile / 8][4] = {};
    multiply_rows<Dh>(dp, d_o, warp_row, part(v, stage, elements), 0);
    if constexpr (Dropout) {
      auto const mask = part(kept, tile / 2 % stages, Layout::kept);
      each_score([&](int n, int i, int r, int c) {
        dp[n][i] *= attention_dropout_factor(mask, k0, warp_row + r, c, call.dropout.keep);
      });
    }
    each_score([&](int n, int i, int, int) {
      s[n][i] = shifted_exp<T>(s[n][i], shift[i / 2]) * (dp[n][i] - delta[i / 2]);
    });
    if (back.diagonals != nullptr) {
      // The lower of a lane's rows stands eight below the upper: its column 8n + c lies on the
      // upper one's diagonal at 8(n - 1) + c. One sum of two for each diagonal, in the upper row.
      auto const pairs = skew.template as<cuda::Pack<float, 2>>();
      auto const own = [&](int n, int i) {
        bool const in_prefix = k0 + 8 * n + cuda::accumulator_column(lane, i) < call.prefix;
        return in_prefix ? 0.0f : s[n][i];
      };
      EMPRL_UNROLL
      for (int m = -1; m < attention_tile / 8; ++m) {
        cuda::Pack<float, 2> pair{{0.0f, 0.0f}};
        EMPRL_UNROLL
        for (int c = 0; c < 2; ++c) {
          if (m >= 0) pair.x[c] = own(m, c);
          if (m + 1 < attention_tile / 8) pair.x[c] += own(m + 1, 2 + c);
        }
        pairs[((warp_row / 2 + g) * Layout::skew_pitch + 8 * (m + 1)) / 2 + t] = pair;
      }
    }
    if (call.scale != 1.0f) {
      each_score([&](int n, int i, int, int) { s[n][i] *= call.scale; });
    }
    multiply_columns<Dh>(sums, s, part(k, stage, elements), 0, exchange);
  };
  int const tiles = attention_key_tiles(call, row, q0);
  float* const diagonals =
      back.diagonals == nullptr
          ? nullptr
          : back.diagonals + ((index_t{b} * call.heads + h) * back.query_tiles + query_tile) *
                                 back.diagonal_count;
  auto const after = [&](int tile) {
    if (diagonals == nullptr) return;
    // A thread a diagonal. The upper 63 go on in the next tile.
    int const d = cuda::thread_rank();
    float sum = 0;
    if (d < attention_tile && tile > 0) sum = carry[(tile + 1) % 2 * attention_tile + d];
    for (int w = 0; w < warps; ++w) {
      EMPRL_UNROLL
      for (int r = 0; r < 8; ++r) {
        // Row r of the eight of warp w is query 16 w + r.
        int const column = d - (attention_tile - 1) + 16 * w + r + 8;
        if (column >= 0 && column < Layout::skew_pitch) {
          float const x = skew[(8 * w + r) * Layout::skew_pitch + column];
          sum += x;
        }
      }
    }
    if (d < attention_tile || tile + 1 == tiles) {
      diagonals[tile * attention_tile + d] = sum;
    } else {
      carry[tile % 2 * attention_tile + d - attention_tile] = sum;
    }
  };
  each_attention_tile<stages>(0, tiles, copy, compute, after);

  EMPRL_UNROLL
  for (int r = 0; r < 2; ++r) {
    int const query = q0 + warp_row + g + 8 * r;
    if (query < row.queries) {
      store_attention_row<T, Dh>(dq + (row.first_query + query) * dq_pitch + h * Dh, sums, r, 1.0f);
    }
  }
}

/// dk = scale ds^T q and dv = (f p)^T do of the keys of one tile, in one head of one row.
/// PRECOND: 128 threads; grid (tiles of keys, heads, rows); delta is there
template <class T, int Dh, bool Dropout>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(attention_threads, 2)
    attention_backward_keys_kernel(T* dk, index_t dk_pitch, T* dv, index_t dv_pitch,
                                   AttentionBackwardCall<T> back, AttentionCall<T> call) {
  using Layout = AttentionLayout<T, Dh>;
  constexpr int stages = Layout::stages;
  constexpr int elements = Layout::elements;
  int const h = cuda::block_index().y;
  int const b = cuda::block_index().z;
  AttentionRow const row = attention_row(call, b);
  int const k0 = cuda::block_index().x * attention_tile;
  if (k0 >= row.keys) return;

  cuda::DynamicShared memory;
  auto const k = memory.take<T>(elements);
  auto const v = memory.take<T>(elements);
  auto const q = memory.take<T>(stages * elements);
  auto const d_o = memory.take<T>(stages * elements);
  auto const window = memory.take<float>(stages * Layout::window);
  auto const statistics = memory.take<float>(stages * 2 * attention_tile);  // lse, then delta
  auto const exchange = memory.take<float>(Layout::exchange);
  [[maybe_unused]] auto const kept =
      memory.take<std::uint32_t>(Dropout ? stages * Layout::kept : 4);
  auto const part = [&](auto x, int stage, int count) { return x.part(stage * count, count); };

  int const warp_row = cuda::warp_index() * 16;
  copy_attention_keys<Dh>(k, call.k, call.k_pitch, call.prefix_k, call.prefix_k_pitch, call.prefix,
                          row, h, k0);
  copy_attention_keys<Dh>(v, call.v, call.v_pitch, call.prefix_v, call.prefix_v_pitch, call.prefix,
                          row, h, k0);

  float dk_sums[Dh / 8][4] = {};
  float dv_sums[Dh / 8][4] = {};
  auto const copy = [&](int tile, int stage) {
    int const q0 = tile * attention_tile;
    copy_attention_queries<Dh>(part(q, stage, elements), call.q, call.q_pitch, row, h, q0);
    copy_attention_queries<Dh>(part(d_o, stage, elements), back.d_o, back.d_o_pitch, row, h, q0);
    // A thread a number. Queries outside have score -inf and need none.
    int const x = cuda::thread_rank();
    int const query = q0 + x % attention_tile;
    bool const there = query < row.queries;
    float const* const from =
        x < attention_tile ? back.lse + h * back.lse_pitch : back.delta + h * back.delta_pitch;
    cuda::copy_async<4>(part(statistics, stage, 2 * attention_tile).at(x),
                        there ? from + row.first_query + query : from, there ? 4 : 0);
    if (call.bias != nullptr) {
      copy_attention_bias(part(window, stage, Layout::window), call, h, q0, k0);
    }
    if constexpr (Dropout) {
      draw_attention_dropout(part(kept, stage, Layout::kept), call, row, h, q0, k0);
    }
  };
  // Wide heads leave registers for half a tile of scores.
  constexpr int columns = Dh == 128 ? attention_tile / 2 : attention_tile;
  constexpr int n_columns = columns / 8;
  auto const compute = [&](int tile, int stage) {
    if (k0 + warp_row >= row.keys) return;  // a warp behind the last key only copies
    auto const queries = part(q, stage, elements);
    auto const gradients = part(d_o, stage, elements);
    auto const numbers = part(statistics, stage, 2 * attention_tile);
    for (int column = 0; column < attention_tile; column += columns) {
      float p[n_columns][4] = {};
      multiply_rows<Dh>(p, k, warp_row, queries, column);
      finish_scores<true>(p, call, row, tile * attention_tile, k0, column,
                          part(window, stage, Layout::window));
      each_score<n_columns>([&](int n, int i, int, int c) {
        float const log_sum = numbers[column + c];
        p[n][i] = shifted_exp<T>(p[n][i], log_sum);
      });
      float ds[n_columns][4] = {};
      multiply_rows<Dh>(ds, v, warp_row, gradients, column);
      each_score<n_columns>([&](int n, int i, [[maybe_unused]] int r, int c) {
        float const delta = numbers[attention_tile + column + c];
        float factor = 1.0f;
        if constexpr (Dropout) {
          factor = attention_dropout_factor(part(kept, stage, Layout::kept), k0, column + c,
                                            warp_row + r, call.dropout.keep);
        }
        ds[n][i] = call.scale * p[n][i] * (factor * ds[n][i] - delta);
        p[n][i] *= factor;
      });
      multiply_columns<Dh>(dv_sums, p, gradients, column, exchange);
      multiply_columns<Dh>(dk_sums, ds, queries, column, exchange);
    }
  };
  // Causal: the first query that sees a key of its own is the one at the key's position.
  int const first_query = call.causal && k0 > call.prefix ? k0 - call.prefix : 0;
  each_attention_tile<stages>(first_query / attention_tile,
                              (row.queries + attention_tile - 1) / attention_tile, copy, compute,
                              [](int) {});

  index_t const width = index_t{call.heads} * Dh;
  EMPRL_UNROLL
  for (int r = 0; r < 2; ++r) {
    int const key = k0 + warp_row + cuda::lane_index() / 4 + 8 * r;
    if (key >= row.keys) continue;
    if (key >= call.prefix) {
      index_t const packed = row.first_key + key - call.prefix;
      store_attention_row<T, Dh>(dk + packed * dk_pitch + h * Dh, dk_sums, r, 1.0f);
      store_attention_row<T, Dh>(dv + packed * dv_pitch + h * Dh, dv_sums, r, 1.0f);
    } else if (back.prefix_gradients != nullptr) {
      index_t const rows = cuda::grid_size().z;
      index_t const at = (index_t{b} * call.prefix + key) * width + h * Dh;
      store_attention_row<T, Dh>(back.prefix_gradients + at, dk_sums, r, 1.0f);
      store_attention_row<T, Dh>(back.prefix_gradients + rows * call.prefix * width + at, dv_sums,
                                 r, 1.0f);
    }
  }
}

/// Ragged rows that are added up side by side: what one thread reads after the other is latency.
inline constexpr int attention_bias_lanes = 32;

/// dbias[h, r] += the sum of all blocks' diagonals of that distance, rows and tiles in a fixed
/// order.
/// PRECOND: block (32, attention_bias_lanes); grid (distances / 32, heads)
template <class T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(32 * attention_bias_lanes)
    attention_bias_gradient_kernel(float* dbias, index_t pitch, int rows,
                                   AttentionBackwardCall<T> back, AttentionCall<T> call) {
  EMPRL_SHARED(float, partial, attention_bias_lanes * 32);
  int const x = cuda::thread_index().x;
  int const y = cuda::thread_index().y;
  int const h = cuda::block_index().y;
  int const r = cuda::block_index().x * 32 + x;
  float sum = 0;
  for (int b = y; b < rows; b += attention_bias_lanes) {
    AttentionRow const row = attention_row(call, b);
    float const* from =
        back.diagonals + (index_t{b} * call.heads + h) * back.query_tiles * back.diagonal_count;
    for (int q0 = 0; q0 < row.queries; q0 += attention_tile, from += back.diagonal_count) {
      int const tiles = attention_key_tiles(call, row, q0);
      int const diagonal = r + call.bias_first + call.prefix + q0 + attention_tile - 1;
      if (tiles > 0 && diagonal >= 0 && diagonal < (tiles + 1) * attention_tile) {
        sum += from[diagonal];
      }
    }
  }
  partial[y * 32 + x] = sum;
  cuda::sync_threads();
  if (y != 0 || r >= call.bias_columns) return;
  float total = 0;
  for (int i = 0; i < attention_bias_lanes; ++i) {
    float const piece = partial[i * 32 + x];
    total += piece;
  }
  dbias[h * pitch + r] += total;
}

/// dprefix_k[j, c] += sum_b partial[0, b, j, c], dprefix_v likewise from partial[1].
/// PRECOND: grid (elements of the prefix / threads, 2)
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(256)
    attention_prefix_gradient_kernel(float* dprefix_k, index_t k_pitch, float* dprefix_v,
                                     index_t v_pitch, float const* partial, int rows, int prefix,
                                     int width) {
  index_t const i = cuda::global_thread_x();
  index_t const size = index_t{prefix} * width;
  if (i >= size) return;
  bool const values = cuda::block_index().y == 1;
  float const* const from = partial + (values ? rows * size : 0) + i;
  float sum = 0;
  for (int b = 0; b < rows; ++b) sum += from[b * size];
  float* const to = values ? dprefix_v + i / width * v_pitch : dprefix_k + i / width * k_pitch;
  to[i % width] += sum;
}

/// @throws ShapeError unless every row of x begins at a multiple of 16 bytes
template <class T>
void check_attention_alignment(TensorView<T, 2, Cuda> const& x) {
  expects(begins_at_packs(x), "attention: on the GPU rows must begin at multiples of 16 bytes");
}

/// Checks what the host can and puts the inputs together for kernels.
template <class T>
AttentionCall<T> attention_call(AttentionInputs<T, Cuda> const& in) {
  check_attention_shapes(in);
  check_bias_reach(in, in.longest_queries, in.longest_keys);
  check_attention_alignment(in.q);
  check_attention_alignment(in.k);
  check_attention_alignment(in.v);
  check_attention_alignment(in.prefix_k);
  check_attention_alignment(in.prefix_v);
  expects<ConfigError>(in.q_offsets.extent(0) - 1 <= 65535 && in.heads <= 65535,
                       "attention on the GPU takes at most 65535 rows and 65535 heads at a time");
  AttentionCall<T> call{};
  call.q = data_or_null(in.q);
  call.k = data_or_null(in.k);
  call.v = data_or_null(in.v);
  call.q_pitch = in.q.stride(0);
  call.k_pitch = in.k.stride(0);
  call.v_pitch = in.v.stride(0);
  call.q_offsets = in.q_offsets.data();
  call.k_offsets = in.k_offsets.data();
  call.heads = static_cast<int>(in.heads);
  call.causal = in.mask == Mask::causal;
  call.scale = in.scale;
  if (!in.bias.empty()) {
    call.bias = in.bias.data();
    call.bias_pitch = in.bias.stride(0);
    call.bias_first = static_cast<int>(in.bias_first);
    call.bias_columns = static_cast<int>(in.bias.extent(1));
  }
  if (!in.prefix_k.empty()) {
    call.prefix = static_cast<int>(in.prefix_k.extent(0));
    call.prefix_k = in.prefix_k.data();
    call.prefix_v = in.prefix_v.data();
    call.prefix_k_pitch = in.prefix_k.stride(0);
    call.prefix_v_pitch = in.prefix_v.stride(0);
  }
  call.dropout = DropoutDraw(in.dropout);
  return call;
}

/// Blocks along each axis, from the lengths that the caller knows.
template <class T>
struct AttentionGrid {
  int rows, heads, query_tiles, key_tiles;

  explicit AttentionGrid(AttentionInputs<T, Cuda> const& in)
      : rows(static_cast<int>(in.q_offsets.extent(0) - 1)), heads(static_cast<int>(in.heads)) {
    index_t const queries = in.longest_queries > 0 ? in.longest_queries : in.q.extent(0);
    index_t const keys = in.longest_keys > 0 ? in.longest_keys : in.k.extent(0);
    query_tiles = cuda::blocks_for(queries, attention_tile);
    key_tiles = cuda::blocks_for(keys + in.prefix_k.extent(0), attention_tile);
  }
};

}  // namespace detail

/// o and the log-sum-exp of each query's scores on the GPU; as the overload for Cpu in
/// ops/attention.hpp. Work is ordered on dev.stream, no synchronisation. Offsets lie in device
/// memory and are not checked: they must rise from 0 to the number of packed rows, and no row may
/// be longer than in.longest_queries and in.longest_keys say.
/// @param o   (Nq, H*Dh), written
/// @param lse (H, Nq) float, written; -inf for a query without keys; empty if no backward pass
/// follows
/// @throws ShapeError if extents disagree, a row of q, k, v, o or the prefix does not begin at a
/// multiple of 16 bytes, or the bias table does not reach the longest distance
/// @throws ConfigError if heads are not 32, 64 or 128 columns wide and there is a bias or a prefix
/// @throws CudaError if a launch fails
template <CudaElement T>
void attention_forward(Cuda& dev, Out<T, 2, Cuda> o, OptionalOut<float, 2, Cuda> lse,
                       std::type_identity_t<AttentionInputs<T, Cuda>> const& in) {
  if (in.heads > 0 && !detail::has_tiled_attention(in.q.extent(1) / in.heads)) {
    return attention_unfused_forward<T>(dev, o, lse, in);
  }
  detail::AttentionCall<T> const call = detail::attention_call(in);
  detail::AttentionGrid<T> const grid(in);
  expects(o.extents() == in.q.extents() &&
              (lse.empty() || (lse.extent(0) == in.heads && lse.extent(1) == in.q.extent(0))),
          "attention: o must have the shape of q, lse one row a head and one column a query");
  detail::check_attention_alignment(o);
  detail::dispatch_head_width("attention", in.q.extent(1) / in.heads, [&](auto head_dim) {
    if (grid.rows == 0 || grid.query_tiles == 0) return;
    auto const run = [&](auto with_dropout) {
      constexpr int width = decltype(head_dim)::value;
      constexpr bool dropout = decltype(with_dropout)::value;
      using Layout = detail::AttentionLayout<T, width>;
      constexpr std::size_t bytes =
          cuda::shared_bytes<T>(Layout::elements) +
          2 * cuda::shared_bytes<T>(Layout::stages * Layout::elements) +
          cuda::shared_bytes<float>(Layout::stages * Layout::window) +
          cuda::shared_bytes<float>(Layout::exchange) +
          cuda::shared_bytes<std::uint32_t>(dropout ? Layout::stages * Layout::kept : 4);
      static_assert(bytes <= cuda::most_shared_bytes);
      cuda::launch<detail::attention_forward_kernel<T, width, dropout>>(
          dev.stream,
          {.grid = {grid.query_tiles, grid.heads, grid.rows},
           .block = {detail::attention_threads},
           .shared_bytes = bytes},
          o.data(), o.stride(0), data_or_null(lse), lse.stride(0), call);
    };
    if (in.dropout.active()) {
      run(std::true_type{});
    } else {
      run(std::false_type{});
    }
  });
}

/// Gradients of attention_forward on the GPU; as the overload for Cpu in ops/attention.hpp, with
/// the same bits in every run. Takes (B H (Tq/64) (Tk+P+128) + 2 B P H Dh + H Nq) floats of
/// dev.scratch for what it is asked for.
/// @param out  `=` and `+=` as its fields say      @param o, lse as written by attention_forward
/// @param d_o (Nq, H*Dh)
/// @throws ShapeError, ConfigError and CudaError as attention_forward does
template <CudaElement T>
void attention_backward(Cuda& dev, AttentionGradients<T, Cuda> const& out,
                        std::type_identity_t<AttentionInputs<T, Cuda>> const& in, In<T, 2, Cuda> o,
                        In<float, 2, Cuda> lse, In<T, 2, Cuda> d_o) {
  if (in.heads > 0 && !detail::has_tiled_attention(in.q.extent(1) / in.heads)) {
    return attention_unfused_backward<T>(dev, out, in, lse, d_o);
  }
  detail::AttentionCall<T> const call = detail::attention_call(in);
  detail::AttentionGrid<T> const grid(in);
  expects(o.extents() == in.q.extents() && d_o.extents() == in.q.extents() &&
              out.dq.extents() == in.q.extents() && out.dk.extents() == in.k.extents() &&
              out.dv.extents() == in.v.extents() &&
              (in.q.empty() || (lse.extent(0) == in.heads && lse.extent(1) == in.q.extent(0))),
          "attention: gradients must have the shapes of what they are gradients of");
  expects(out.dbias.empty() || out.dbias.extents() == in.bias.extents(),
          "attention: dbias must have the shape of bias");
  expects(out.dprefix_k.empty() || (out.dprefix_k.extents() == in.prefix_k.extents() &&
                                    out.dprefix_v.extents() == in.prefix_v.extents()),
          "attention: prefix gradients must have the shape of the prefix");
  detail::check_attention_alignment(o);
  detail::check_attention_alignment(d_o);
  detail::check_attention_alignment(out.dq);
  detail::check_attention_alignment(out.dk);
  detail::check_attention_alignment(out.dv);

  detail::dispatch_head_width("attention", in.q.extent(1) / in.heads, [&](auto head_dim) {
    if (grid.rows == 0) return;
    constexpr int width = decltype(head_dim)::value;
    ArenaScope scope(dev.scratch);
    detail::AttentionBackwardCall<T> back{};
    back.o = o.data();
    back.d_o = d_o.data();
    back.o_pitch = o.stride(0);
    back.d_o_pitch = d_o.stride(0);
    back.lse = lse.data();
    back.lse_pitch = lse.stride(0);
    auto const delta = dev.scratch.template allocate<float, 2>({in.heads, in.q.extent(0)});
    back.delta = delta.data();
    back.delta_pitch = delta.stride(0);
    bool const want_bias = !out.dbias.empty() && grid.query_tiles > 0 && grid.key_tiles > 0;
    bool const want_prefix = !out.dprefix_k.empty();
    back.query_tiles = grid.query_tiles;
    back.diagonal_count = (grid.key_tiles + 1) * detail::attention_tile;
    if (want_bias) {
      back.diagonals = dev.scratch
                           .template allocate<float, 4>(
                               {grid.rows, in.heads, grid.query_tiles, back.diagonal_count})
                           .data();
    }
    if (want_prefix) {
      back.prefix_gradients =
          dev.scratch
              .template allocate<float, 4>({2, grid.rows, in.prefix_k.extent(0), in.q.extent(1)})
              .data();
    }

    auto const run = [&](auto with_dropout) {
      constexpr bool dropout = decltype(with_dropout)::value;
      using Layout = detail::AttentionLayout<T, width>;
      constexpr int stages = Layout::stages;
      constexpr std::size_t common =
          2 * cuda::shared_bytes<T>(Layout::elements) +
          2 * cuda::shared_bytes<T>(stages * Layout::elements) +
          cuda::shared_bytes<float>(stages * Layout::window) +
          cuda::shared_bytes<float>(Layout::exchange) +
          cuda::shared_bytes<std::uint32_t>(dropout ? stages * Layout::kept : 4);
      constexpr std::size_t of_queries = common + cuda::shared_bytes<float>(Layout::skew) +
                                         cuda::shared_bytes<float>(2 * detail::attention_tile);
      constexpr std::size_t of_keys =
          common + cuda::shared_bytes<float>(stages * 2 * detail::attention_tile);
      static_assert(of_queries <= cuda::most_shared_bytes && of_keys <= cuda::most_shared_bytes);
      if (grid.query_tiles > 0) {
        cuda::launch<detail::attention_backward_queries_kernel<T, width, dropout>>(
            dev.stream,
            {.grid = {grid.query_tiles, grid.heads, grid.rows},
             .block = {detail::attention_threads},
             .shared_bytes = of_queries},
            out.dq.data(), out.dq.stride(0), back, call);
      }
      if (grid.key_tiles > 0) {
        cuda::launch<detail::attention_backward_keys_kernel<T, width, dropout>>(
            dev.stream,
            {.grid = {grid.key_tiles, grid.heads, grid.rows},
             .block = {detail::attention_threads},
             .shared_bytes = of_keys},
            out.dk.data(), out.dk.stride(0), out.dv.data(), out.dv.stride(0), back, call);
      }
    };
    if (in.dropout.active()) {
      run(std::true_type{});
    } else {
      run(std::false_type{});
    }

    if (want_bias) {
      cuda::launch<detail::attention_bias_gradient_kernel<T>>(
          dev.stream,
          {.grid = {cuda::blocks_for(out.dbias.extent(1), 32), grid.heads},
           .block = {32, detail::attention_bias_lanes}},
          out.dbias.data(), out.dbias.stride(0), grid.rows, back, call);
    }
    if (want_prefix) {
      cuda::launch<detail::attention_prefix_gradient_kernel>(
          dev.stream, {.grid = {cuda::blocks_for(in.prefix_k.size(), 256), 2}, .block = {256}},
          out.dprefix_k.data(), out.dprefix_k.stride(0), out.dprefix_v.data(),
          out.dprefix_v.stride(0), static_cast<float const*>(back.prefix_gradients), grid.rows,
          call.prefix, static_cast<int>(in.q.extent(1)));
    }
  });
}

}  // namespace emprl
