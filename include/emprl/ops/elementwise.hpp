// SPDX-License-Identifier: Apache-2.0
#pragma once

// Element-wise operations on packed rows: sums, activations, and the row means of ragged batches.

#include <algorithm>

#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/math/activation.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

namespace detail {

/// Calls f(row of y, rows of xs...) for every row, in parallel.
template <class F, class V, class... Vs>
void for_each_row(Cpu& dev, F f, V y, Vs... xs) {
  expects(((xs.extent(0) == y.extent(0)) && ...), "element-wise: the numbers of rows disagree");
  index_t const grain = std::max<index_t>(1, 8192 / std::max<index_t>(1, y.extent(1)));
  parallel_for(dev, y.extent(0), grain, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) f(y.row(i), xs.row(i)...);
  });
}

/// @throws ShapeError unless the offsets rise from 0 to the number of packed rows
inline void check_segments(TensorView<index_t const, 1, Cpu> offsets, index_t rows) {
  bool rising = offsets(0) == 0 && offsets(offsets.extent(0) - 1) == rows;
  for (index_t b = 1; b < offsets.extent(0); ++b) rising = rising && offsets(b - 1) <= offsets(b);
  expects(rising, "segment_mean: the offsets must rise from 0 to the number of packed rows");
}

}  // namespace detail

/// y = x.     y, x (N, C)
template <Scalar T>
void copy(Cpu& dev, Out<T, 2, Cpu> y, In<T, 2, Cpu> x) {
  expects(y.extent(1) == x.extent(1), "copy: the numbers of columns disagree");
  detail::for_each_row(
      dev, [c = y.extent(1)](T* a, T const* b) { std::copy(b, b + c, a); }, y, x);
}

/// y += x.     y, x (N, C)
template <Scalar T>
void add(Cpu& dev, Out<T, 2, Cpu> y, In<T, 2, Cpu> x) {
  expects(y.extent(1) == x.extent(1), "add: the numbers of columns disagree");
  detail::for_each_row(
      dev,
      [c = y.extent(1)](T* a, T const* b) {
        for (index_t j = 0; j < c; ++j) a[j] += b[j];
      },
      y, x);
}

/// y = value.
template <Scalar T>
void fill(Cpu& dev, Out<T, 2, Cpu> y, std::type_identity_t<T> value) {
  detail::for_each_row(
      dev, [c = y.extent(1), value](T* a) { std::fill(a, a + c, value); }, y);
}

/// x *= factor.
template <Scalar T>
void scale(Cpu& dev, Out<T, 2, Cpu> x, std::type_identity_t<T> factor) {
  detail::for_each_row(
      dev,
      [c = x.extent(1), factor](T* a) {
        for (index_t j = 0; j < c; ++j) a[j] *= factor;
      },
      x);
}

/// y = max(x, 0).     y may alias x
template <Scalar T>
void relu_forward(Cpu& dev, Out<T, 2, Cpu> y, In<T, 2, Cpu> x) {
  expects(y.extent(1) == x.extent(1), "relu: the numbers of columns disagree");
  detail::for_each_row(
      dev,
      [c = y.extent(1)](T* a, T const* b) {
        for (index_t j = 0; j < c; ++j) a[j] = relu(b[j]);
      },
      y, x);
}

/// dx = dy where y > 0, else 0 (the derivative at 0 is 0).     dx may alias dy; y is the output of
/// the forward pass
template <Scalar T>
void relu_backward(Cpu& dev, Out<T, 2, Cpu> dx, In<T, 2, Cpu> dy, In<T, 2, Cpu> y) {
  expects(dx.extent(1) == dy.extent(1) && dx.extent(1) == y.extent(1),
          "relu: the numbers of columns disagree");
  detail::for_each_row(
      dev,
      [c = dx.extent(1)](T* a, T const* g, T const* b) {
        for (index_t j = 0; j < c; ++j) a[j] = b[j] > T(0) ? g[j] : T(0);
      },
      dx, dy, y);
}

/// Gated GELU (Shazeer 2020): y[n,f] = gelu_new(x[n,f]) * x[n,F+f].     y (N, F), x (N, 2F)
template <Scalar T>
void gated_gelu_forward(Cpu& dev, Out<T, 2, Cpu> y, In<T, 2, Cpu> x) {
  expects(x.extent(1) == 2 * y.extent(1),
          "gated_gelu: the input must be twice as wide as the output");
  detail::for_each_row(
      dev,
      [f = y.extent(1)](T* a, T const* b) {
        for (index_t j = 0; j < f; ++j) a[j] = gelu_new(b[j]) * b[f + j];
      },
      y, x);
}

/// dx[n,f] = dy gelu_new'(x[n,f]) x[n,F+f],  dx[n,F+f] = dy gelu_new(x[n,f]).     dx (N, 2F) may
/// not alias dy (N, F)
template <Scalar T>
void gated_gelu_backward(Cpu& dev, Out<T, 2, Cpu> dx, In<T, 2, Cpu> dy, In<T, 2, Cpu> x) {
  expects(dx.extent(1) == 2 * dy.extent(1) && x.extent(1) == dx.extent(1),
          "gated_gelu: the input must be twice as wide as the output");
  detail::for_each_row(
      dev,
      [f = dy.extent(1)](T* a, T const* g, T const* b) {
        for (index_t j = 0; j < f; ++j) {
          a[j] = g[j] * gelu_new_derivative(b[j]) * b[f + j];
          a[f + j] = g[j] * gelu_new(b[j]);
        }
      },
      dx, dy, x);
}

/// y = tanh x.     y may alias x
template <Scalar T>
void tanh_forward(Cpu& dev, Out<T, 2, Cpu> y, In<T, 2, Cpu> x) {
  expects(y.extent(1) == x.extent(1), "tanh: the numbers of columns disagree");
  detail::for_each_row(
      dev,
      [c = y.extent(1)](T* a, T const* b) {
        for (index_t j = 0; j < c; ++j) a[j] = tanh_branchless(b[j]);
      },
      y, x);
}

/// dx = dy (1 - y^2).     dx may alias dy; y is the output of the forward pass
template <Scalar T>
void tanh_backward(Cpu& dev, Out<T, 2, Cpu> dx, In<T, 2, Cpu> dy, In<T, 2, Cpu> y) {
  expects(dx.extent(1) == dy.extent(1) && dx.extent(1) == y.extent(1),
          "tanh: the numbers of columns disagree");
  detail::for_each_row(
      dev,
      [c = dx.extent(1)](T* a, T const* g, T const* b) {
        for (index_t j = 0; j < c; ++j) a[j] = g[j] * (T(1) - b[j] * b[j]);
      },
      dx, dy, y);
}

/// The mean of each ragged row's vectors: y[b,:] = mean of x[n,:], offsets[b] <= n < offsets[b+1];
/// an empty row gives zeros.
/// @param y (B, C), written      @param x (N, C)      @param offsets (B+1)
template <Scalar T>
void segment_mean_forward(Cpu& dev, Out<T, 2, Cpu> y, In<T, 2, Cpu> x,
                          TensorView<index_t const, 1, Cpu> offsets) {
  expects(offsets.extent(0) == y.extent(0) + 1,
          "segment_mean: one row of output for each ragged row");
  detail::check_segments(offsets, x.extent(0));
  expects(y.extent(1) == x.extent(1), "segment_mean: the numbers of columns disagree");
  parallel_for(dev, y.extent(0), 4, [&](index_t begin, index_t end) {
    for (index_t b = begin; b < end; ++b) {
      T* const out = y.row(b);
      std::fill(out, out + y.extent(1), T(0));
      index_t const n = offsets(b + 1) - offsets(b);
      if (n == 0) continue;
      for (index_t i = offsets(b); i < offsets(b + 1); ++i) {
        for (index_t j = 0; j < y.extent(1); ++j) out[j] += x(i, j);
      }
      for (index_t j = 0; j < y.extent(1); ++j) out[j] /= static_cast<T>(n);
    }
  });
}

/// dx[n,:] = dy[b,:] / length of row b.     dx (N, C), written
template <Scalar T>
void segment_mean_backward(Cpu& dev, Out<T, 2, Cpu> dx, In<T, 2, Cpu> dy,
                           TensorView<index_t const, 1, Cpu> offsets) {
  expects(offsets.extent(0) == dy.extent(0) + 1,
          "segment_mean: one row of output for each ragged row");
  detail::check_segments(offsets, dx.extent(0));
  expects(dx.extent(1) == dy.extent(1), "segment_mean: the numbers of columns disagree");
  parallel_for(dev, dy.extent(0), 4, [&](index_t begin, index_t end) {
    for (index_t b = begin; b < end; ++b) {
      auto const n = static_cast<T>(offsets(b + 1) - offsets(b));
      for (index_t i = offsets(b); i < offsets(b + 1); ++i) {
        for (index_t j = 0; j < dy.extent(1); ++j) dx(i, j) = dy(b, j) / n;
      }
    }
  });
}

}  // namespace emprl
