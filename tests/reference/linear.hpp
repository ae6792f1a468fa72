// SPDX-License-Identifier: Apache-2.0
#pragma once

// Matrix products as three nested loops.

#include "reference/matrix.hpp"

namespace reference {

template <class T>
Matrix<T> transpose(Matrix<T> const& a) {
  Matrix<T> t(a.cols, a.rows);
  for (index_t i = 0; i < a.rows; ++i) {
    for (index_t j = 0; j < a.cols; ++j) t(j, i) = a(i, j);
  }
  return t;
}

/// (M, K) times (K, N).
template <class T>
Matrix<T> multiply(Matrix<T> const& a, Matrix<T> const& b) {
  Matrix<T> c(a.rows, b.cols);
  for (index_t i = 0; i < a.rows; ++i) {
    for (index_t j = 0; j < b.cols; ++j) {
      T sum = 0;
      for (index_t k = 0; k < a.cols; ++k) sum += a(i, k) * b(k, j);
      c(i, j) = sum;
    }
  }
  return c;
}

/// y = x weight^T + bias: weight (out, in) as PyTorch stores it; an empty bias is none.
template <class T>
Matrix<T> linear(Matrix<T> const& x, Matrix<T> const& weight, Vector<T> const& bias = {}) {
  Matrix<T> y = multiply(x, transpose(weight));
  for (index_t i = 0; i < y.rows && !bias.empty(); ++i) {
    for (index_t j = 0; j < y.cols; ++j) y(i, j) += bias[static_cast<std::size_t>(j)];
  }
  return y;
}

template <class T>
struct LinearGradients {
  Matrix<T> dx;
  Matrix<T> dweight;
  Vector<T> dbias;
};

template <class T>
LinearGradients<T> linear_backward(Matrix<T> const& x, Matrix<T> const& weight,
                                   Matrix<T> const& dy) {
  LinearGradients<T> g{multiply(dy, weight), multiply(transpose(dy), x),
                       Vector<T>(static_cast<std::size_t>(weight.rows), T(0))};
  for (index_t i = 0; i < dy.rows; ++i) {
    for (index_t j = 0; j < dy.cols; ++j) g.dbias[static_cast<std::size_t>(j)] += dy(i, j);
  }
  return g;
}

}  // namespace reference
