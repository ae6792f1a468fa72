// SPDX-License-Identifier: Apache-2.0
#pragma once

// y = x W^T for a few rows x in 16 bits: the products of a decoded token. Their time is that of
// reading W once, so all that counts is how soon the loads begin and how many are under way; and a
// step has so many of them that each launch saved counts as much. So what comes before and behind
// is taken along: RMSNorm of x, bias, residual, ReLU or gated GELU.
//
// A block makes 16 columns of y. Its warps share the k's; each holds the product of 16 rows of W by
// all rows of x in its accumulators, W as the operand A of mma.sync and x as B, both loaded
// straight from global memory: no element is used by two lanes that would not be in the same 32
// bytes. The order of the terms of a sum does not matter as long as both operands have the same
// one, so a lane takes eight neighbouring k's of a row in one load, four each for two mma.sync.
//
// RMSNorm needs no pass of its own. W (x r weight) = r W (x weight), where r = 1 / sqrt(mean(x^2) +
// eps) is one number a row: x is multiplied by the norm's weight as it is loaded, its squares are
// added up beside the products, and r is applied at the end.
//
// A sum's order is that of k alone: a row of y does not depend on which rows stand beside it.
//
// In a LaunchChain a block begins while the launch in front runs: it asks for its part of W, and
// waits before it reads x.

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "emprl/core/half.hpp"
#include "emprl/cuda/context.cuh"
#include "emprl/cuda/launch.cuh"
#include "emprl/cuda/mma.hpp"
#include "emprl/cuda/pack.hpp"
#include "emprl/cuda/shared.hpp"
#include "emprl/math/activation.hpp"

namespace emprl::detail {

/// What follows the product.
enum class FewRowsTail { none, relu, gated_gelu };

/// y = tail(alpha norm(x) W^T + bias + added). Pitches are elements from row to row.
struct FewRowsProduct {
  Bf16* y = nullptr;        // (m, n)
  Bf16 const* x = nullptr;  // (m, k)
  /// (n, k); of gated_gelu (2 n, k), the linear part's rows behind the others.
  Bf16 const* weight = nullptr;
  Bf16 const* norm = nullptr;   // (k), the weight of RMSNorm; null for none
  Bf16 const* bias = nullptr;   // (n), null for none
  Bf16 const* added = nullptr;  // (m, n), may be y; null for none
  index_t y_pitch = 0, x_pitch = 0, weight_pitch = 0, added_pitch = 0;
  int m = 0, n = 0, k = 0;
  float alpha = 1;
  float eps = 0;
};

inline constexpr int few_rows_warps = 8;
inline constexpr int few_rows_threads = few_rows_warps * cuda::warp_size;
/// The most rows. And the most columns, and terms of a sum: every block reads all of x, which for
/// the logits of a vocabulary would be more than W is.
inline constexpr int few_rows_most = 64;
inline constexpr int few_rows_most_columns = 8192;

/// Four registers of eight 16-bit elements.
using FewRowsPack = cuda::Pack<std::uint32_t, 4>;

/// Eight elements from `p` on, which is aligned to 16 bytes; zeros unless `inside`.
EMPRL_DEVICE FewRowsPack load_eight(Bf16 const* p, bool inside) {
  if (!inside) return {};
  return cuda::load_pack<4>(reinterpret_cast<std::uint32_t const*>(p));
}

/// x *= weight, eight elements, and squares += the sum of x^2.
EMPRL_DEVICE void scale_by_norm(FewRowsPack& x, FewRowsPack const& weight, float& squares) {
  EMPRL_UNROLL
  for (int i = 0; i < 4; ++i) {
    float const low = bf16_value(static_cast<std::uint16_t>(x.x[i]));
    float const high = bf16_value(static_cast<std::uint16_t>(x.x[i] >> 16));
    squares += low * low + high * high;
    x.x[i] =
        cuda::pack_halves<Bf16>(low * bf16_value(static_cast<std::uint16_t>(weight.x[i])),
                                high * bf16_value(static_cast<std::uint16_t>(weight.x[i] >> 16)));
  }
}

/// For up to 8 Tiles rows.
/// PRECOND: a block for every 16 rows of the weight; k a multiple of 8; all rows of x and weight,
/// and norm, begin at multiples of 16 bytes; with gated_gelu n a multiple of 8
template <int Tiles, FewRowsTail Tail, bool Norm>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(few_rows_threads, Tiles <= 4 ? 2 : 1)
    few_rows_kernel(FewRowsProduct in) {
  constexpr int rows = 8 * Tiles;
  constexpr int columns = Tail == FewRowsTail::gated_gelu ? 8 : 16;
  constexpr int chunk = 32;  // k's that a warp multiplies at once: eight of each of four lanes
  // Chunks that are loaded at once, as far as registers reach.
  constexpr int together = Tiles < 4 || (Tiles == 4 && Tail != FewRowsTail::gated_gelu) ? 2 : 1;
  // A row of partial sums; with 4 more, writing pairs and reading columns meet a bank twice at
  // most.
  constexpr int pitch = rows + 4;
  constexpr int outputs = (columns * rows + few_rows_threads - 1) / few_rows_threads;
  EMPRL_SHARED(float, partial, few_rows_warps * 16 * pitch);
  EMPRL_SHARED(float, squares, few_rows_warps* rows);
  EMPRL_SHARED(float, rstd, rows);

  int const warp = cuda::warp_index();
  int const lane = cuda::lane_index();
  int const g = lane / 4;
  int const t8 = lane % 4 * 8;
  int const first = cuda::block_index().x * columns;
  int const chunks = (in.k + chunk - 1) / chunk;
  int const begin = chunks * warp / few_rows_warps;
  int const end = chunks * (warp + 1) / few_rows_warps;

  // Rows g and g + 8 of the 16; those behind the last are the last.
  int const low_row = first + g < in.n ? first + g : in.n - 1;
  int const high_row = Tail == FewRowsTail::gated_gelu ? low_row + in.n
                       : first + g + 8 < in.n          ? first + g + 8
                                                       : in.n - 1;
  Bf16 const* const low = in.weight + low_row * in.weight_pitch;
  Bf16 const* const high = in.weight + high_row * in.weight_pitch;
  struct Weights {
    FewRowsPack low[together], high[together];
  };
  auto const load_weights = [&](int from) {
    Weights w;
    EMPRL_UNROLL
    for (int u = 0; u < together; ++u) {
      int const c = from + u;
      int const k = c * chunk + t8;
      bool const inside = c < end && k < in.k;
      w.low[u] = load_eight(low + k, inside);
      w.high[u] = load_eight(high + k, inside);
    }
    return w;
  };
  // Weights are there before the launch in front has ended, x and what is added are not.
  cuda::begin_next();
  Weights next = load_weights(begin);
  for (int c = begin + together; c < end; ++c) {
    int const k = c * chunk + t8;
    if (k >= in.k) continue;
    cuda::prefetch_line(low + k);
    cuda::prefetch_line(high + k);
  }
  cuda::wait_for_previous();

  // What a thread will add to its outputs, long before they are there.
  float added[outputs];
  EMPRL_UNROLL
  for (int i = 0; i < outputs; ++i) {
    int const o = i * few_rows_threads + cuda::thread_rank();
    int const row = o / columns;
    int const column = first + o % columns;
    added[i] = 0.0f;
    if (row >= in.m || column >= in.n) continue;
    if (in.bias != nullptr) added[i] = static_cast<float>(in.bias[column]);
    if (in.added != nullptr) {
      added[i] += static_cast<float>(in.added[row * in.added_pitch + column]);
    }
  }

  float sums[Tiles][4] = {};
  float own_squares[Tiles] = {};
  for (int from = begin; from < end; from += together) {
    Weights const w = next;
    FewRowsPack x[together][Tiles];
    EMPRL_UNROLL
    for (int u = 0; u < together; ++u) {
      int const c = from + u;
      int const k = c * chunk + t8;
      EMPRL_UNROLL
      for (int tile = 0; tile < Tiles; ++tile) {
        int const row = 8 * tile + g;
        x[u][tile] = load_eight(in.x + row * in.x_pitch + k, c < end && k < in.k && row < in.m);
      }
    }
    next = load_weights(from + together);
    EMPRL_UNROLL
    for (int u = 0; u < together; ++u) {
      if constexpr (Norm) {
        int const c = from + u;
        int const k = c * chunk + t8;
        FewRowsPack const norm = load_eight(in.norm + k, c < end && k < in.k);
        EMPRL_UNROLL
        for (int tile = 0; tile < Tiles; ++tile) {
          scale_by_norm(x[u][tile], norm, own_squares[tile]);
        }
      }
      EMPRL_UNROLL
      for (int half = 0; half < 2; ++half) {
        std::uint32_t const a[4] = {w.low[u].x[2 * half], w.high[u].x[2 * half],
                                    w.low[u].x[2 * half + 1], w.high[u].x[2 * half + 1]};
        EMPRL_UNROLL
        for (int tile = 0; tile < Tiles; ++tile) {
          cuda::mma_m16n8k16<Bf16>(sums[tile], a, x[u][tile].x[2 * half],
                                   x[u][tile].x[2 * half + 1]);
        }
      }
    }
  }

  EMPRL_UNROLL
  for (int tile = 0; tile < Tiles; ++tile) {
    EMPRL_UNROLL
    for (int i = 0; i < 4; i += 2) {
      int const at = (warp * 16 + cuda::accumulator_row(lane, i)) * pitch + 8 * tile +
                     cuda::accumulator_column(lane, i);
      partial.as<cuda::Pack<float, 2>>()[at / 2] =
          cuda::Pack<float, 2>{{sums[tile][i], sums[tile][i + 1]}};
    }
    if constexpr (Norm) {
      float sum = own_squares[tile];
      sum += cuda::shuffle_xor(sum, 1);
      sum += cuda::shuffle_xor(sum, 2);
      if (lane % 4 == 0) squares[warp * rows + 8 * tile + g] = sum;
    }
  }
  cuda::sync_threads();
  if constexpr (Norm) {
    int const row = cuda::thread_rank();
    if (row < rows) {
      float sum = 0.0f;
      EMPRL_UNROLL
      for (int w = 0; w < few_rows_warps; ++w) {
        float const its = squares[w * rows + row];
        sum += its;
      }
      rstd[row] = 1.0f / std::sqrt(sum / static_cast<float>(in.k) + in.eps);
    }
    cuda::sync_threads();
  }

  auto const product = [&](int weight_row, int row) {
    float sum = 0.0f;
    EMPRL_UNROLL
    for (int w = 0; w < few_rows_warps; ++w) {
      float const its = partial[(w * 16 + weight_row) * pitch + row];
      sum += its;
    }
    if constexpr (Norm) {
      float const r = rstd[row];
      sum *= r;
    }
    return in.alpha * sum;
  };
  EMPRL_UNROLL
  for (int i = 0; i < outputs; ++i) {
    int const o = i * few_rows_threads + cuda::thread_rank();
    int const row = o / columns;
    int const column = o % columns;
    if (row >= in.m || first + column >= in.n) continue;
    float y = product(column, row) + added[i];
    if constexpr (Tail == FewRowsTail::relu) y = relu(y);
    if constexpr (Tail == FewRowsTail::gated_gelu) y = gelu_new(y) * product(column + 8, row);
    in.y[row * in.y_pitch + first + column] = Bf16(y);
  }
}

/// Whether the kernel can take a product, by where its rows begin and how many there are.
inline bool few_rows_fit(FewRowsProduct const& p) {
  auto const whole = [](Bf16 const* data, index_t pitch) {
    return reinterpret_cast<std::uintptr_t>(data) % 16 == 0 && pitch % 8 == 0;
  };
  return p.m <= few_rows_most && p.k % 8 == 0 && whole(p.x, p.x_pitch) &&
         whole(p.weight, p.weight_pitch) && whole(p.norm, 0);
}

/// Launches it. PRECOND: few_rows_fit; ReLU and gated GELU follow a norm
inline void multiply_few_rows(Cuda& dev, FewRowsProduct const& p, FewRowsTail tail) {
  auto const with_tiles = [&]<FewRowsTail Tail, bool Norm>() {
    int const columns = Tail == FewRowsTail::gated_gelu ? 8 : 16;
    cuda::LaunchShape const shape{.grid = {cuda::blocks_for(p.n, columns)},
                                  .block = {few_rows_threads},
                                  .overlaps = dev.overlaps()};
    if (p.m <= 8) {
      cuda::launch<few_rows_kernel<1, Tail, Norm>>(dev.stream, shape, p);
    } else if (p.m <= 16) {
      cuda::launch<few_rows_kernel<2, Tail, Norm>>(dev.stream, shape, p);
    } else if (p.m <= 32) {
      cuda::launch<few_rows_kernel<4, Tail, Norm>>(dev.stream, shape, p);
    } else {
      cuda::launch<few_rows_kernel<8, Tail, Norm>>(dev.stream, shape, p);
    }
  };
  if (tail == FewRowsTail::relu) {
    with_tiles.template operator()<FewRowsTail::relu, true>();
  } else if (tail == FewRowsTail::gated_gelu) {
    with_tiles.template operator()<FewRowsTail::gated_gelu, true>();
  } else if (p.norm != nullptr) {
    with_tiles.template operator()<FewRowsTail::none, true>();
  } else {
    with_tiles.template operator()<FewRowsTail::none, false>();
  }
}

}  // namespace emprl::detail
