// SPDX-License-Identifier: Apache-2.0
#pragma once

// Log-softmax of a row, entropy, their derivatives, and the divergence of two rows.

#include <algorithm>
#include <cmath>

#include "reference/matrix.hpp"

namespace reference {

template <class T>
Matrix<T> log_softmax(Matrix<T> const& logits) {
  Matrix<T> y(logits.rows, logits.cols);
  for (index_t n = 0; n < logits.rows; ++n) {
    T most = logits(n, 0);
    for (index_t v = 1; v < logits.cols; ++v) most = std::max(most, logits(n, v));
    T sum = 0;
    for (index_t v = 0; v < logits.cols; ++v) sum += std::exp(logits(n, v) - most);
    for (index_t v = 0; v < logits.cols; ++v) y(n, v) = logits(n, v) - most - std::log(sum);
  }
  return y;
}

/// -sum_v p_v log p_v of every row.
template <class T>
Vector<T> entropy(Matrix<T> const& logits) {
  Matrix<T> const lp = log_softmax(logits);
  Vector<T> h(static_cast<std::size_t>(logits.rows), T(0));
  for (index_t n = 0; n < lp.rows; ++n) {
    for (index_t v = 0; v < lp.cols; ++v) {
      h[static_cast<std::size_t>(n)] -= std::exp(lp(n, v)) * lp(n, v);
    }
  }
  return h;
}

/// Gradient of sum_n weight[n] * log_softmax(logits[n])[target[n]]: weight * ([v = target] - p_v).
template <class T, class Id>
Matrix<T> token_logprob_backward(Matrix<T> const& logits, std::vector<Id> const& target,
                                 Vector<T> const& weight) {
  Matrix<T> const lp = log_softmax(logits);
  Matrix<T> d(logits.rows, logits.cols);
  for (index_t n = 0; n < lp.rows; ++n) {
    auto const u = static_cast<std::size_t>(n);
    for (index_t v = 0; v < lp.cols; ++v) {
      d(n, v) =
          weight[u] * ((v == static_cast<index_t>(target[u]) ? T(1) : T(0)) - std::exp(lp(n, v)));
    }
  }
  return d;
}

/// Gradient of sum_n weight[n] * entropy(logits[n]): -weight * p_v (log p_v + H).
template <class T>
Matrix<T> entropy_backward(Matrix<T> const& logits, Vector<T> const& weight) {
  Matrix<T> const lp = log_softmax(logits);
  Vector<T> const h = entropy(logits);
  Matrix<T> d(logits.rows, logits.cols);
  for (index_t n = 0; n < lp.rows; ++n) {
    auto const u = static_cast<std::size_t>(n);
    for (index_t v = 0; v < lp.cols; ++v) {
      d(n, v) = -weight[u] * std::exp(lp(n, v)) * (lp(n, v) + h[u]);
    }
  }
  return d;
}

/// sum_v p_v (log p_v - log q_v) of every row, with p = softmax(x) and q = softmax(y).
template <class T>
Vector<T> divergence(Matrix<T> const& x, Matrix<T> const& y) {
  Matrix<T> const p = log_softmax(x);
  Matrix<T> const q = log_softmax(y);
  Vector<T> kl(static_cast<std::size_t>(x.rows), T(0));
  for (index_t n = 0; n < x.rows; ++n) {
    for (index_t v = 0; v < x.cols; ++v) {
      kl[static_cast<std::size_t>(n)] += std::exp(p(n, v)) * (p(n, v) - q(n, v));
    }
  }
  return kl;
}

}  // namespace reference
