// SPDX-License-Identifier: Apache-2.0
#pragma once

// The element-wise operations of elementwise.hpp on the GPU. One kernel applies a function of float
// to packs of 16 bytes, or to single elements where rows do not allow packs; rows without gaps are
// taken as one long row.

#include <array>
#include <type_traits>

#include "emprl/core/scalar.hpp"
#include "emprl/math/activation.hpp"
#include "emprl/ops/elementwise.hpp"
#include "emprl/ops/row_packs.cuh"

namespace emprl {

namespace detail {

/// y[n,c] = f(xs[n,c]...).     y may alias any of them
/// PRECOND: Width 1, or all rows in packs
template <int Width, class F, CudaElement T, class... Inputs>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(row_threads)
    map_rows_kernel(F f, TensorView<T, 2, Cuda> y, Inputs... xs) {
  index_t const c = cuda::global_thread_x() * Width;
  if (c >= y.extent(1)) return;
  index_t const step = row_step();
  for (index_t row = first_row(); row < y.extent(0); row += step) {
    auto const apply = [&](auto const&... packs) {
      cuda::Pack<T, Width> result;
      EMPRL_UNROLL
      for (int i = 0; i < Width; ++i) {
        result.x[i] = static_cast<T>(f(static_cast<float>(packs.x[i])...));
      }
      return result;
    };
    cuda::store_pack(y.row(row) + c, apply(cuda::load_pack<Width>(xs.row(row) + c)...));
  }
}

/// Launches it. @throws ShapeError unless all views are of the extents of y
template <CudaElement T, class F, class... Inputs>
void map_rows(Cuda& dev, char const* mismatch, F f, TensorView<T, 2, Cuda> y, Inputs... xs) {
  expects(((xs.extents() == y.extents()) && ...), mismatch);
  if (y.empty()) return;
  auto const run = [&](auto to, auto... from) {
    with_pack_width<T>(
        [&](auto width) {
          constexpr int w = decltype(width)::value;
          cuda::launch<map_rows_kernel<w, F, T, decltype(from)...>>(
              dev.stream, matrix_shape(to.extent(0), to.extent(1) / w), f, to, from...);
        },
        to, from...);
  };
  if (y.is_contiguous() && (xs.is_contiguous() && ...)) {
    std::array<index_t, 2> const one_row{1, y.size()};
    run(TensorView<T, 2, Cuda>(y.data(), one_row),
        TensorView<T const, 2, Cuda>(xs.data(), one_row)...);
  } else {
    run(y, TensorView<T const, 2, Cuda>(xs)...);
  }
}

struct Same {
  EMPRL_HD float operator()(float x) const { return x; }
};
struct Add {
  EMPRL_HD float operator()(float y, float x) const { return y + x; }
};
struct Constant {
  float value;
  EMPRL_HD float operator()() const { return value; }
};
struct Scale {
  float factor;
  EMPRL_HD float operator()(float x) const { return x * factor; }
};
struct Relu {
  EMPRL_HD float operator()(float x) const { return relu(x); }
};
struct ReluBackward {
  EMPRL_HD float operator()(float dy, float y) const { return y > 0.0f ? dy : 0.0f; }
};
struct GatedGelu {
  EMPRL_HD float operator()(float gate, float x) const { return gelu_new(gate) * x; }
};
struct Tanh {
  EMPRL_HD float operator()(float x) const { return tanh_branchless(x); }
};
struct TanhBackward {
  EMPRL_HD float operator()(float dy, float y) const { return dy * (1.0f - y * y); }
};

/// PRECOND: Width 1, or all rows and both halves in packs
template <int Width, CudaElement T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(row_threads)
    gated_gelu_backward_kernel(TensorView<T, 2, Cuda> dgate, TensorView<T, 2, Cuda> dx,
                               TensorView<T const, 2, Cuda> dy, TensorView<T const, 2, Cuda> gate,
                               TensorView<T const, 2, Cuda> x) {
  index_t const c = cuda::global_thread_x() * Width;
  if (c >= dy.extent(1)) return;
  index_t const step = row_step();
  for (index_t row = first_row(); row < dy.extent(0); row += step) {
    auto g = cuda::load_pack<Width>(dy.row(row) + c);
    auto a = cuda::load_pack<Width>(gate.row(row) + c);
    auto const b = cuda::load_pack<Width>(x.row(row) + c);
    EMPRL_UNROLL
    for (int i = 0; i < Width; ++i) {
      float const up = static_cast<float>(g.x[i]);
      float const at = static_cast<float>(a.x[i]);
      a.x[i] = static_cast<T>(up * gelu_new_derivative(at) * static_cast<float>(b.x[i]));
      g.x[i] = static_cast<T>(up * gelu_new(at));
    }
    cuda::store_pack(dgate.row(row) + c, a);
    cuda::store_pack(dx.row(row) + c, g);
  }
}

/// Rows of a segment that are summed side by side.
inline constexpr int segment_groups = 8;

/// y[b,:] = the mean of the rows of segment b, zeros if it has none.
/// PRECOND: blocks of (32, segment_groups) threads, a segment each along y; Width 1, or rows in
/// packs
template <int Width, CudaElement T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(cuda::warp_size* segment_groups)
    segment_mean_forward_kernel(TensorView<T, 2, Cuda> y, TensorView<T const, 2, Cuda> x,
                                index_t const* offsets) {
  constexpr int step = cuda::warp_size * Width;
  EMPRL_SHARED(float, sums, segment_groups* step);
  int const lane = cuda::thread_index().x;
  int const group = cuda::thread_index().y;
  index_t const c = cuda::global_thread_x() * Width;
  for (index_t b = cuda::block_index().y; b < y.extent(0); b += cuda::grid_size().y) {
    index_t const begin = offsets[b];
    index_t const end = offsets[b + 1];
    float sum[Width] = {};
    if (c < y.extent(1)) {
      for (index_t n = begin + group; n < end; n += segment_groups) {
        auto const pack = cuda::load_pack<Width>(x.row(n) + c);
        EMPRL_UNROLL
        for (int i = 0; i < Width; ++i) sum[i] += static_cast<float>(pack.x[i]);
      }
    }
    EMPRL_UNROLL
    for (int i = 0; i < Width; ++i) sums[group * step + i * cuda::warp_size + lane] = sum[i];
    cuda::sync_threads();
    if (group == 0 && c < y.extent(1)) {
      cuda::Pack<T, Width> mean;
      float const length = begin < end ? static_cast<float>(end - begin) : 1.0f;
      EMPRL_UNROLL
      for (int i = 0; i < Width; ++i) {
        for (int g = 1; g < segment_groups; ++g) {
          float const other = sums[g * step + i * cuda::warp_size + lane];
          sum[i] += other;
        }
        mean.x[i] = static_cast<T>(sum[i] / length);
      }
      cuda::store_pack(y.row(b) + c, mean);
    }
    cuda::sync_threads();
  }
}

/// dx[n,:] = dy[b,:] / length for the rows n of segment b.
/// PRECOND: as segment_mean_forward_kernel
template <int Width, CudaElement T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(cuda::warp_size* segment_groups)
    segment_mean_backward_kernel(TensorView<T, 2, Cuda> dx, TensorView<T const, 2, Cuda> dy,
                                 index_t const* offsets) {
  index_t const c = cuda::global_thread_x() * Width;
  if (c >= dx.extent(1)) return;
  for (index_t b = cuda::block_index().y; b < dy.extent(0); b += cuda::grid_size().y) {
    index_t const begin = offsets[b];
    index_t const end = offsets[b + 1];
    if (begin == end) continue;
    auto pack = cuda::load_pack<Width>(dy.row(b) + c);
    float const length = static_cast<float>(end - begin);
    EMPRL_UNROLL
    for (int i = 0; i < Width; ++i) {
      pack.x[i] = static_cast<T>(static_cast<float>(pack.x[i]) / length);
    }
    for (index_t n = begin + cuda::thread_index().y; n < end; n += segment_groups) {
      cuda::store_pack(dx.row(n) + c, pack);
    }
  }
}

inline cuda::LaunchShape segment_shape(index_t segments, index_t packs) {
  return {.grid = {cuda::blocks_for(packs, cuda::warp_size),
                   static_cast<int>(std::min<index_t>(segments, 65535))},
          .block = {cuda::warp_size, segment_groups}};
}

}  // namespace detail

/// y = x.     y, x (N, C)
template <CudaElement T>
void copy(Cuda& dev, Out<T, 2, Cuda> y, In<T, 2, Cuda> x) {
  detail::map_rows(dev, "copy: the extents disagree", detail::Same{}, y, x);
}

/// y += x.     y, x (N, C)
template <CudaElement T>
void add(Cuda& dev, Out<T, 2, Cuda> y, In<T, 2, Cuda> x) {
  detail::map_rows(dev, "add: the extents disagree", detail::Add{}, y, y, x);
}

/// y = value.
template <CudaElement T>
void fill(Cuda& dev, Out<T, 2, Cuda> y, std::type_identity_t<T> value) {
  detail::map_rows(dev, "", detail::Constant{static_cast<float>(value)}, y);
}

/// x *= factor, which is a float for every format of x.
template <CudaElement T>
void scale(Cuda& dev, Out<T, 2, Cuda> x, float factor) {
  detail::map_rows(dev, "", detail::Scale{factor}, x, x);
}

/// y = max(x, 0).     y may alias x
template <CudaElement T>
void relu_forward(Cuda& dev, Out<T, 2, Cuda> y, In<T, 2, Cuda> x) {
  detail::map_rows(dev, "relu: the extents disagree", detail::Relu{}, y, x);
}

/// dx = dy where y > 0, else 0 (the derivative at 0 is 0).     dx may alias dy; y is the output of
/// the forward pass
template <CudaElement T>
void relu_backward(Cuda& dev, Out<T, 2, Cuda> dx, In<T, 2, Cuda> dy, In<T, 2, Cuda> y) {
  detail::map_rows(dev, "relu: the extents disagree", detail::ReluBackward{}, dx, dy, y);
}

/// Gated GELU (Shazeer 2020): y[n,f] = gelu_new(x[n,f]) * x[n,F+f].     y (N, F), x (N, 2F)
template <CudaElement T>
void gated_gelu_forward(Cuda& dev, Out<T, 2, Cuda> y, In<T, 2, Cuda> x) {
  index_t const f = y.extent(1);
  expects(x.extent(1) == 2 * f, "gated_gelu: the input must be twice as wide as the output");
  detail::map_rows(dev, "gated_gelu: the numbers of rows disagree", detail::GatedGelu{}, y,
                   x.columns(0, f), x.columns(f, 2 * f));
}

/// dx[n,f] = dy gelu_new'(x[n,f]) x[n,F+f],  dx[n,F+f] = dy gelu_new(x[n,f]).     dx (N, 2F) may
/// not alias dy (N, F)
template <CudaElement T>
void gated_gelu_backward(Cuda& dev, Out<T, 2, Cuda> dx, In<T, 2, Cuda> dy, In<T, 2, Cuda> x) {
  index_t const f = dy.extent(1);
  expects(dx.extent(1) == 2 * f && x.extent(1) == 2 * f,
          "gated_gelu: the input must be twice as wide as the output");
  expects(dx.extent(0) == dy.extent(0) && x.extent(0) == dy.extent(0),
          "gated_gelu: the numbers of rows disagree");
  if (dy.empty()) return;
  auto const run = [&](auto... halves) {
    detail::with_pack_width<T>(
        [&](auto width) {
          constexpr int w = decltype(width)::value;
          cuda::launch<detail::gated_gelu_backward_kernel<w, T>>(
              dev.stream, detail::matrix_shape(dy.extent(0), f / w), halves...);
        },
        halves...);
  };
  run(dx.columns(0, f), dx.columns(f, 2 * f), dy, x.columns(0, f), x.columns(f, 2 * f));
}

/// y = tanh x.     y may alias x
template <CudaElement T>
void tanh_forward(Cuda& dev, Out<T, 2, Cuda> y, In<T, 2, Cuda> x) {
  detail::map_rows(dev, "tanh: the extents disagree", detail::Tanh{}, y, x);
}

/// dx = dy (1 - y^2).     dx may alias dy; y is the output of the forward pass
template <CudaElement T>
void tanh_backward(Cuda& dev, Out<T, 2, Cuda> dx, In<T, 2, Cuda> dy, In<T, 2, Cuda> y) {
  detail::map_rows(dev, "tanh: the extents disagree", detail::TanhBackward{}, dx, dy, y);
}

/// The mean of each ragged row's vectors: y[b,:] = mean of x[n,:], offsets[b] <= n < offsets[b+1];
/// an empty row gives zeros.
/// @param y (B, C), written      @param x (N, C)
/// @param offsets (B+1), in device memory, dense; they rise from 0 to N, which is not checked
/// @throws ShapeError if extents disagree
template <CudaElement T>
void segment_mean_forward(Cuda& dev, Out<T, 2, Cuda> y, In<T, 2, Cuda> x,
                          TensorView<index_t const, 1, Cuda> offsets) {
  expects(offsets.extent(0) == y.extent(0) + 1,
          "segment_mean: one row of output for each ragged row");
  expects(y.extent(1) == x.extent(1), "segment_mean: the numbers of columns disagree");
  if (y.empty()) return;
  detail::with_pack_width<T>(
      [&](auto width) {
        constexpr int w = decltype(width)::value;
        cuda::launch<detail::segment_mean_forward_kernel<w, T>>(
            dev.stream, detail::segment_shape(y.extent(0), y.extent(1) / w), y, x, offsets.data());
      },
      y, x);
}

/// dx[n,:] = dy[b,:] / length of row b.     dx (N, C), written; offsets as in the forward pass
template <CudaElement T>
void segment_mean_backward(Cuda& dev, Out<T, 2, Cuda> dx, In<T, 2, Cuda> dy,
                           TensorView<index_t const, 1, Cuda> offsets) {
  expects(offsets.extent(0) == dy.extent(0) + 1,
          "segment_mean: one row of output for each ragged row");
  expects(dx.extent(1) == dy.extent(1), "segment_mean: the numbers of columns disagree");
  if (dx.empty() || dy.empty()) return;
  detail::with_pack_width<T>(
      [&](auto width) {
        constexpr int w = decltype(width)::value;
        cuda::launch<detail::segment_mean_backward_kernel<w, T>>(
            dev.stream, detail::segment_shape(dy.extent(0), dx.extent(1) / w), dx, dy,
            offsets.data());
      },
      dx, dy);
}

}  // namespace emprl
