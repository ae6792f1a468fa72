// SPDX-License-Identifier: Apache-2.0
#pragma once

// y[n,c] = x[n,c] * weight[c] / sqrt(mean_c(x[n,c]^2) + eps), and its derivatives written out by
// the quotient rule.

#include <cmath>

#include "reference/matrix.hpp"

namespace reference {

template <class T>
Matrix<T> rms_norm(Matrix<T> const& x, Vector<T> const& weight, T eps) {
  Matrix<T> y(x.rows, x.cols);
  for (index_t n = 0; n < x.rows; ++n) {
    T sum = 0;
    for (index_t c = 0; c < x.cols; ++c) sum += x(n, c) * x(n, c);
    T const root = std::sqrt(sum / static_cast<T>(x.cols) + eps);
    for (index_t c = 0; c < x.cols; ++c) {
      y(n, c) = x(n, c) / root * weight[static_cast<std::size_t>(c)];
    }
  }
  return y;
}

template <class T>
struct RmsNormGradients {
  Matrix<T> dx;
  Vector<T> dweight;
};

/// d y[n,c] / d x[n,j] = weight[c] * ([c = j] / root - x[n,c] x[n,j] / (C root^3)), summed one pair
/// at a time.
template <class T>
RmsNormGradients<T> rms_norm_backward(Matrix<T> const& x, Vector<T> const& weight, T eps,
                                      Matrix<T> const& dy) {
  RmsNormGradients<T> g{Matrix<T>(x.rows, x.cols), Vector<T>(weight.size(), T(0))};
  for (index_t n = 0; n < x.rows; ++n) {
    T sum = 0;
    for (index_t c = 0; c < x.cols; ++c) sum += x(n, c) * x(n, c);
    T const root = std::sqrt(sum / static_cast<T>(x.cols) + eps);
    for (index_t c = 0; c < x.cols; ++c) {
      auto const u = static_cast<std::size_t>(c);
      g.dweight[u] += dy(n, c) * x(n, c) / root;
      for (index_t j = 0; j < x.cols; ++j) {
        T const cross = x(n, c) * x(n, j) / (static_cast<T>(x.cols) * root * root * root);
        g.dx(n, j) += dy(n, c) * weight[u] * ((c == j ? 1 / root : T(0)) - cross);
      }
    }
  }
  return g;
}

}  // namespace reference
