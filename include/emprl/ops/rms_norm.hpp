// SPDX-License-Identifier: Apache-2.0
#pragma once

// RMS normalisation over the last dimension (Zhang & Sennrich 2019), as T5 uses it: no mean, no
// bias.

#include <cmath>

#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

namespace detail {

template <class T>
T sum_of_squares(T const* x, index_t n) {
  // Eight partial sums: the compiler may not reorder one sum, but it may run eight side by side.
  T partial[8] = {};
  index_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int l = 0; l < 8; ++l) partial[l] += x[i + l] * x[i + l];
  }
  T sum = T(0);
  for (; i < n; ++i) sum += x[i] * x[i];
  for (T const p : partial) sum += p;
  return sum;
}

/// y[j] = x[j] r weight[j]. @return r = 1 / sqrt(mean(x^2) + eps)
template <class T>
T rms_norm_row(T* y, T const* x, T const* weight, index_t n, T eps) {
  T const mean = sum_of_squares(x, n) / static_cast<T>(n);
  T const r = T(1) / std::sqrt(mean + eps);
  for (index_t j = 0; j < n; ++j) y[j] = x[j] * r * weight[j];
  return r;
}

}  // namespace detail

/// y[n,c] = x[n,c] rstd[n] weight[c],   rstd[n] = 1 / sqrt(mean_c(x[n,c]^2) + eps)
/// @param y    (N, C), written, may alias x      @param x (N, C)      @param weight (C)
/// @param rstd (N), written, needed by backward; empty if not needed
/// @throws ShapeError if extents disagree
template <Scalar T>
void rms_norm_forward(Cpu& dev, Out<T, 2, Cpu> y, OptionalOut<T, 1, Cpu> rstd, In<T, 2, Cpu> x,
                      In<T, 1, Cpu> weight, double eps) {
  index_t const c = x.extent(1);
  expects(y.extents() == x.extents() && weight.extent(0) == c &&
              (rstd.empty() || rstd.extent(0) == x.extent(0)),
          "rms_norm: y and x must agree, weight has one element a column, rstd one a row");
  parallel_for(dev, x.extent(0), 32, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      T const r = detail::rms_norm_row(y.row(i), x.row(i), weight.data(), c, static_cast<T>(eps));
      if (!rstd.empty()) rstd(i) = r;
    }
  });
}

/// A residual sum and the norm of the next sub-layer in one pass: sum = a + b, y = rms_norm(sum).
/// @param y    (N, C), written, may not alias sum      @param weight (C)
/// @param rstd (N), written; empty if not needed
/// @param sum  (N, C), written, may alias a or b      @param a, b (N, C)
/// @throws ShapeError if extents disagree
template <Scalar T>
void add_rms_norm_forward(Cpu& dev, Out<T, 2, Cpu> y, OptionalOut<T, 1, Cpu> rstd,
                          OptionalOut<T, 2, Cpu> sum, In<T, 2, Cpu> a, In<T, 2, Cpu> b,
                          In<T, 1, Cpu> weight, double eps) {
  index_t const c = a.extent(1);
  expects(y.extents() == a.extents() && b.extents() == a.extents() &&
              sum.extents() == a.extents() && weight.extent(0) == c &&
              (rstd.empty() || rstd.extent(0) == a.extent(0)),
          "add_rms_norm: y, sum, a and b must agree, weight has one element a column, rstd one a "
          "row");
  parallel_for(dev, a.extent(0), 32, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      T* const s = sum.row(i);
      for (index_t j = 0; j < c; ++j) s[j] = a.row(i)[j] + b.row(i)[j];
      T const r = detail::rms_norm_row(y.row(i), s, weight.data(), c, static_cast<T>(eps));
      if (!rstd.empty()) rstd(i) = r;
    }
  });
}

/// With g = dy * weight:   dx[n,c] = rstd (g[c] - x[c] rstd^2 mean_k(g[k] x[k])),   dweight[c] +=
/// sum_n dy[n,c] x[n,c] rstd[n]
/// @param dx      (N, C), = or += by `write`; may alias dy only when overwritten
/// @param dweight (C), accumulated; empty if not needed
/// @throws ShapeError if extents disagree
template <Scalar T>
void rms_norm_backward(Cpu& dev, Out<T, 2, Cpu> dx, OptionalOut<T, 1, Cpu> dweight,
                       In<T, 2, Cpu> dy, In<T, 2, Cpu> x, In<T, 1, Cpu> weight, In<T, 1, Cpu> rstd,
                       Write write) {
  index_t const c = x.extent(1);
  expects(dx.extents() == x.extents() && dy.extents() == x.extents() && weight.extent(0) == c &&
              rstd.extent(0) == x.extent(0) && (dweight.empty() || dweight.extent(0) == c),
          "rms_norm: dx, dy and x must agree, weight has one element a column, rstd one a row");
  // dweight first: dx may overwrite dy.
  if (!dweight.empty()) {
    parallel_for(dev, c, 32, [&](index_t begin, index_t end) {
      for (index_t i = 0; i < x.extent(0); ++i) {
        T const* const g = dy.row(i);
        T const* const in = x.row(i);
        T const r = rstd(i);
        for (index_t j = begin; j < end; ++j) dweight.data()[j] += g[j] * in[j] * r;
      }
    });
  }
  parallel_for(dev, x.extent(0), 32, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      T const* const g = dy.row(i);
      T const* const in = x.row(i);
      T* const out = dx.row(i);
      T partial[8] = {};
      index_t j = 0;
      for (; j + 8 <= c; j += 8) {
        for (int l = 0; l < 8; ++l) partial[l] += g[j + l] * weight.data()[j + l] * in[j + l];
      }
      T dot = T(0);
      for (; j < c; ++j) dot += g[j] * weight.data()[j] * in[j];
      for (T const p : partial) dot += p;
      T const r = rstd(i);
      T const pull = r * r * dot / static_cast<T>(c);
      if (write == Write::accumulate) {
        for (j = 0; j < c; ++j) out[j] += r * (g[j] * weight.data()[j] - in[j] * pull);
      } else {
        for (j = 0; j < c; ++j) out[j] = r * (g[j] * weight.data()[j] - in[j] * pull);
      }
    }
  });
}

}  // namespace emprl
