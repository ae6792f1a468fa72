// SPDX-License-Identifier: Apache-2.0
#pragma once

// RMS normalisation on the GPU. A warp takes a row and keeps it in registers between its two uses,
// so that each number is read once; what a row has beyond 1024 columns is read twice. The gradient
// of the weight is summed per lane over the rows of a warp, per block over its warps, and over
// blocks by a second kernel: always in the same order.

#include <cmath>

#include "emprl/core/scalar.hpp"
#include "emprl/ops/rms_norm.hpp"
#include "emprl/ops/row_packs.cuh"

namespace emprl {

namespace detail {

inline constexpr int rms_norm_forward_warps = 8;
inline constexpr int rms_norm_forward_threads = rms_norm_forward_warps * cuda::warp_size;
/// Backward a lane holds three numbers a column: with blocks of four warps, three of them on a
/// multiprocessor, it may have 168 registers.
inline constexpr int rms_norm_backward_warps = 4;
inline constexpr int rms_norm_backward_threads = rms_norm_backward_warps * cuda::warp_size;

/// Blocks of the backward pass at most: three for each of an H100's multiprocessors, few enough
/// that their sums are read in no time. A constant, so that the order of additions is the same on
/// any GPU.
inline constexpr index_t rms_norm_blocks = 396;

/// Packs of a row that a lane keeps: 1024 columns of packs of 16 bytes, 256 of single elements.
template <class T, int Width>
inline constexpr int rms_norm_held = Width == cuda::pack_elements<Bf16> ? 4 : 8;

template <class T, int Width>
EMPRL_DEVICE float sum_of_squares(cuda::Pack<T, Width> const& pack) {
  float sum = 0.0f;
  EMPRL_UNROLL
  for (int i = 0; i < Width; ++i) {
    float const v = static_cast<float>(pack.x[i]);
    sum += v * v;
  }
  return sum;
}

template <class T, int Width>
EMPRL_DEVICE cuda::Pack<T, Width> add_packs(cuda::Pack<T, Width> a, cuda::Pack<T, Width> const& b) {
  EMPRL_UNROLL
  for (int i = 0; i < Width; ++i) {
    a.x[i] = static_cast<T>(static_cast<float>(a.x[i]) + static_cast<float>(b.x[i]));
  }
  return a;
}

/// x * factor * weight[c...], a pack of a normalised row.
template <class T, int Width>
EMPRL_DEVICE cuda::Pack<T, Width> normalised(cuda::Pack<T, Width> x, float factor,
                                             cuda::Pack<T, Width> const& weight) {
  EMPRL_UNROLL
  for (int i = 0; i < Width; ++i) {
    x.x[i] = static_cast<T>(static_cast<float>(x.x[i]) * factor * static_cast<float>(weight.x[i]));
  }
  return x;
}

/// The forward pass; with Add of x = a + b, which is also written.
/// PRECOND: a warp a row; `rstd` null or one element a row; Width 1, or all rows in packs
template <CudaElement T, int Width, bool Add>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(rms_norm_forward_threads, 4)
    rms_norm_forward_kernel(TensorView<T, 2, Cuda> y, float* rstd, TensorView<T, 2, Cuda> sum,
                            TensorView<T const, 2, Cuda> a, TensorView<T const, 2, Cuda> b,
                            T const* weight, float eps) {
  constexpr int held = rms_norm_held<T, Width>;
  constexpr int step = cuda::warp_size * Width;
  index_t const row = index_t{cuda::block_index().x} * rms_norm_forward_warps + cuda::warp_index();
  if (row >= y.extent(0)) return;
  int const columns = static_cast<int>(y.extent(1));
  int const first = cuda::lane_index() * Width;
  T const* const in = a.row(row);

  auto const take = [&](int c) {
    auto x = cuda::load_pack<Width>(in + c);
    if constexpr (Add) {
      x = add_packs(x, cuda::load_pack<Width>(b.row(row) + c));
      cuda::store_pack(sum.row(row) + c, x);
    }
    return x;
  };
  cuda::Pack<T, Width> kept[held] = {};
  EMPRL_UNROLL
  for (int k = 0; k < held; ++k) {
    if (first + k * step < columns) kept[k] = take(first + k * step);
  }
  float squares = 0.0f;
  EMPRL_UNROLL
  for (int k = 0; k < held; ++k) squares += sum_of_squares(kept[k]);
  for (int c = first + held * step; c < columns; c += step) squares += sum_of_squares(take(c));
  squares = cuda::warp_sum(squares);

  float const r = 1.0f / std::sqrt(squares / static_cast<float>(columns) + eps);
  if (rstd != nullptr && cuda::lane_index() == 0) rstd[row] = r;
  T* const out = y.row(row);
  EMPRL_UNROLL
  for (int k = 0; k < held; ++k) {
    int const c = first + k * step;
    if (c < columns) {
      cuda::store_pack(out + c, normalised(kept[k], r, cuda::load_pack<Width>(weight + c)));
    }
  }
  T const* const again = Add ? sum.row(row) : in;
  for (int c = first + held * step; c < columns; c += step) {
    cuda::store_pack(out + c, normalised(cuda::load_pack<Width>(again + c), r,
                                         cuda::load_pack<Width>(weight + c)));
  }
}

/// One pack of a row in the backward pass.
template <class T, int Width>
struct RmsNormBackward {
  /// sum dy weight x
  EMPRL_DEVICE static float dot(cuda::Pack<T, Width> const& dy, cuda::Pack<T, Width> const& x,
                                cuda::Pack<T, Width> const& weight) {
    float sum = 0.0f;
    EMPRL_UNROLL
    for (int i = 0; i < Width; ++i) {
      sum += static_cast<float>(dy.x[i]) * static_cast<float>(weight.x[i]) *
             static_cast<float>(x.x[i]);
    }
    return sum;
  }

  /// base + r (dy weight - x pull)
  EMPRL_DEVICE static cuda::Pack<T, Width> gradient(cuda::Pack<T, Width> const& base,
                                                    cuda::Pack<T, Width> const& dy,
                                                    cuda::Pack<T, Width> const& x,
                                                    cuda::Pack<T, Width> const& weight, float r,
                                                    float pull) {
    cuda::Pack<T, Width> dx;
    EMPRL_UNROLL
    for (int i = 0; i < Width; ++i) {
      float const g = r * (static_cast<float>(dy.x[i]) * static_cast<float>(weight.x[i]) -
                           static_cast<float>(x.x[i]) * pull);
      dx.x[i] = static_cast<T>(static_cast<float>(base.x[i]) + g);
    }
    return dx;
  }
};

/// dx, and with Weights each block's part of dweight for the columns that a lane keeps.
/// @param partial (blocks, C), written up to column 32 Width held
/// PRECOND: Width 1, or all rows in packs
template <CudaElement T, int Width, bool Accumulate, bool Weights>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(rms_norm_backward_threads, 3)
    rms_norm_backward_kernel(TensorView<T, 2, Cuda> dx, float* partial,
                             TensorView<T const, 2, Cuda> dy, TensorView<T const, 2, Cuda> x,
                             T const* weight, float const* rstd) {
  using Row = RmsNormBackward<T, Width>;
  using Pack = cuda::Pack<T, Width>;
  constexpr int held = rms_norm_held<T, Width>;
  constexpr int step = cuda::warp_size * Width;
  int const warp = cuda::warp_index();
  int const lane = cuda::lane_index();
  int const columns = static_cast<int>(x.extent(1));
  int const first = lane * Width;
  float dweight[held * Width] = {};

  index_t const stride = index_t{cuda::grid_size().x} * rms_norm_backward_warps;
  for (index_t row = index_t{cuda::block_index().x} * rms_norm_backward_warps + warp;
       row < x.extent(0); row += stride) {
    T const* const g = dy.row(row);
    T const* const in = x.row(row);
    T* const out = dx.row(row);
    Pack kept_g[held] = {};
    Pack kept_x[held] = {};
    EMPRL_UNROLL
    for (int k = 0; k < held; ++k) {
      int const c = first + k * step;
      if (c < columns) {
        kept_g[k] = cuda::load_pack<Width>(g + c);
        kept_x[k] = cuda::load_pack<Width>(in + c);
      }
    }
    float dot = 0.0f;
    EMPRL_UNROLL
    for (int k = 0; k < held; ++k) {
      int const c = first + k * step;
      if (c < columns) dot += Row::dot(kept_g[k], kept_x[k], cuda::load_pack<Width>(weight + c));
    }
    for (int c = first + held * step; c < columns; c += step) {
      dot += Row::dot(cuda::load_pack<Width>(g + c), cuda::load_pack<Width>(in + c),
                      cuda::load_pack<Width>(weight + c));
    }
    dot = cuda::warp_sum(dot);

    float const r = rstd[row];
    float const pull = r * r * dot / static_cast<float>(columns);
    EMPRL_UNROLL
    for (int k = 0; k < held; ++k) {
      int const c = first + k * step;
      if (c < columns) {
        Pack base = {};
        if constexpr (Accumulate) base = cuda::load_pack<Width>(out + c);
        cuda::store_pack(out + c, Row::gradient(base, kept_g[k], kept_x[k],
                                                cuda::load_pack<Width>(weight + c), r, pull));
        if constexpr (Weights) {
          EMPRL_UNROLL
          for (int i = 0; i < Width; ++i) {
            dweight[k * Width + i] +=
                static_cast<float>(kept_g[k].x[i]) * static_cast<float>(kept_x[k].x[i]) * r;
          }
        }
      }
    }
    for (int c = first + held * step; c < columns; c += step) {
      Pack base = {};
      if constexpr (Accumulate) base = cuda::load_pack<Width>(out + c);
      cuda::store_pack(out + c, Row::gradient(base, cuda::load_pack<Width>(g + c),
                                              cuda::load_pack<Width>(in + c),
                                              cuda::load_pack<Width>(weight + c), r, pull));
    }
  }

  if constexpr (Weights) {
    // Element i of a lane goes to i * 32 + lane: lanes that store or load together meet 32 banks.
    EMPRL_SHARED(float, sums, rms_norm_backward_warps* step);
    EMPRL_UNROLL
    for (int k = 0; k < held; ++k) {
      if (k * step >= columns) break;
      EMPRL_UNROLL
      for (int i = 0; i < Width; ++i) {
        sums[warp * step + i * cuda::warp_size + lane] = dweight[k * Width + i];
      }
      cuda::sync_threads();
      for (int rank = cuda::thread_rank(); rank < step; rank += rms_norm_backward_threads) {
        float total = 0.0f;
        for (int w = 0; w < rms_norm_backward_warps; ++w) {
          float const part = sums[w * step + rank];
          total += part;
        }
        int const c = k * step + lane * Width + rank / cuda::warp_size;
        if (c < columns) partial[index_t{cuda::block_index().x} * columns + c] = total;
      }
      cuda::sync_threads();
    }
  }
}

/// A block's part of dweight for the columns from `first` on: a thread a column, every grid.y-th
/// row.
template <CudaElement T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(row_threads)
    rms_norm_dweight_kernel(float* partial, TensorView<T const, 2, Cuda> dy,
                            TensorView<T const, 2, Cuda> x, float const* rstd, index_t first) {
  index_t const c = first + cuda::global_thread_x();
  if (c >= x.extent(1)) return;
  float sum = 0.0f;
  for (index_t row = cuda::block_index().y; row < x.extent(0); row += cuda::grid_size().y) {
    sum += static_cast<float>(dy.row(row)[c]) * static_cast<float>(x.row(row)[c]) * rstd[row];
  }
  partial[cuda::block_index().y * x.extent(1) + c] = sum;
}

template <CudaElement T, bool Add>
void launch_rms_norm_forward(Cuda& dev, TensorView<T, 2, Cuda> y, TensorView<float, 1, Cuda> rstd,
                             TensorView<T, 2, Cuda> sum, TensorView<T const, 2, Cuda> a,
                             TensorView<T const, 2, Cuda> b, TensorView<T const, 1, Cuda> weight,
                             double eps) {
  if (y.empty()) return;
  with_pack_width<T>(
      [&](auto width) {
        cuda::launch<rms_norm_forward_kernel<T, decltype(width)::value, Add>>(
            dev.stream,
            {.grid = {cuda::blocks_for(y.extent(0), rms_norm_forward_warps)},
             .block = {rms_norm_forward_threads}},
            y, data_or_null(rstd), sum, a, b, weight.data(), static_cast<float>(eps));
      },
      y, a, weight, Add ? sum : y, Add ? b : a);
}

}  // namespace detail

/// y[n,c] = x[n,c] rstd[n] weight[c],   rstd[n] = 1 / sqrt(mean_c(x[n,c]^2) + eps)
/// @param dev  work is ordered on dev.stream, no synchronisation
/// @param y    (N, C), written, may alias x      @param x (N, C)      @param weight (C)
/// @param rstd (N), float, written, needed by backward; empty if not needed
/// @throws ShapeError if extents disagree
template <CudaElement T>
void rms_norm_forward(Cuda& dev, Out<T, 2, Cuda> y, OptionalOut<float, 1, Cuda> rstd,
                      In<T, 2, Cuda> x, In<T, 1, Cuda> weight, double eps) {
  expects(y.extents() == x.extents() && weight.extent(0) == x.extent(1) &&
              (rstd.empty() || rstd.extent(0) == x.extent(0)),
          "rms_norm: y and x must agree, weight has one element a column, rstd one a row");
  detail::launch_rms_norm_forward<T, false>(dev, y, rstd, {}, x, {}, weight, eps);
}

/// A residual sum and the norm of the next sub-layer in one pass: sum = a + b, y = rms_norm(sum).
/// The norm is that of the sum as it is stored, so that backward meets the same numbers.
/// @param y    (N, C), written, may not alias sum      @param weight (C)
/// @param rstd (N), float, written; empty if not needed
/// @param sum  (N, C), written, may alias a or b      @param a, b (N, C)
/// @throws ShapeError if extents disagree
template <CudaElement T>
void add_rms_norm_forward(Cuda& dev, Out<T, 2, Cuda> y, OptionalOut<float, 1, Cuda> rstd,
                          OptionalOut<T, 2, Cuda> sum, In<T, 2, Cuda> a, In<T, 2, Cuda> b,
                          In<T, 1, Cuda> weight, double eps) {
  expects(y.extents() == a.extents() && b.extents() == a.extents() &&
              sum.extents() == a.extents() && weight.extent(0) == a.extent(1) &&
              (rstd.empty() || rstd.extent(0) == a.extent(0)),
          "add_rms_norm: y, sum, a and b must agree, weight has one element a column, rstd one a "
          "row");
  detail::launch_rms_norm_forward<T, true>(dev, y, rstd, sum, a, b, weight, eps);
}

/// With g = dy * weight:   dx[n,c] = rstd (g[c] - x[c] rstd^2 mean_k(g[k] x[k])),   dweight[c] +=
/// sum_n dy[n,c] x[n,c] rstd[n], in the same order in every run
/// @param dev     working memory from dev.scratch
/// @param dx      (N, C), = or += by `write`; may alias dy only when overwritten
/// @param dweight (C), float, accumulated; empty if not needed
/// @throws ShapeError if extents disagree
template <CudaElement T>
void rms_norm_backward(Cuda& dev, Out<T, 2, Cuda> dx, OptionalOut<float, 1, Cuda> dweight,
                       In<T, 2, Cuda> dy, In<T, 2, Cuda> x, In<T, 1, Cuda> weight,
                       In<float, 1, Cuda> rstd, Write write) {
  index_t const rows = x.extent(0);
  index_t const columns = x.extent(1);
  expects(dx.extents() == x.extents() && dy.extents() == x.extents() &&
              weight.extent(0) == columns && rstd.extent(0) == rows &&
              (dweight.empty() || dweight.extent(0) == columns),
          "rms_norm: dx, dy and x must agree, weight has one element a column, rstd one a row");
  if (x.empty()) return;
  bool const weights = !dweight.empty();
  int const blocks = static_cast<int>(std::min<index_t>(
      detail::rms_norm_blocks,
      (rows + detail::rms_norm_backward_warps - 1) / detail::rms_norm_backward_warps));
  ArenaScope scope(dev.scratch);
  float* const partial =
      weights ? dev.scratch.allocate<float, 2>({blocks, columns}).data() : nullptr;
  detail::with_pack_width<T>(
      [&](auto width) {
        constexpr int w = decltype(width)::value;
        index_t const kept = index_t{detail::rms_norm_held<T, w>} * cuda::warp_size * w;
        // First what the row kernel does not sum: dx may overwrite dy.
        if (weights && columns > kept) {
          cuda::launch<detail::rms_norm_dweight_kernel<T>>(
              dev.stream,
              {.grid = {cuda::blocks_for(columns - kept, detail::row_threads), blocks},
               .block = {detail::row_threads}},
              partial, dy, x, rstd.data(), kept);
        }
        auto const run = [&](auto accumulate, auto with_weights) {
          cuda::launch<detail::rms_norm_backward_kernel<T, w, decltype(accumulate)::value,
                                                        decltype(with_weights)::value>>(
              dev.stream, {.grid = {blocks}, .block = {detail::rms_norm_backward_threads}}, dx,
              partial, dy, x, weight.data(), rstd.data());
        };
        if (write == Write::accumulate) {
          weights ? run(std::true_type(), std::true_type())
                  : run(std::true_type(), std::false_type());
        } else {
          weights ? run(std::false_type(), std::true_type())
                  : run(std::false_type(), std::false_type());
        }
      },
      dx, dy, x, weight);
  if (weights) detail::add_column_sums(dev, dweight.data(), partial, blocks, columns);
}

}  // namespace emprl
