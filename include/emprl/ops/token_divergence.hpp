// SPDX-License-Identifier: Apache-2.0
#pragma once

// How far one distribution over the vocabulary is from another, at every token.

#include <cmath>

#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

/// Kullback-Leibler divergence in nats, with p = softmax(x[n]) and q = softmax(y[n]):
///   kl[n] = sum_v p_v (log p_v - log q_v)
/// Summed in double: the terms of both signs are larger than their sum.
/// @param kl  (N), written
/// @param x, y  (N, V), logits      @param x_lse, y_lse  (N), their log-sum-exp
/// @throws ShapeError if extents disagree
template <Scalar T>
void token_divergence(Cpu& dev, Out<T, 1, Cpu> kl, In<T, 2, Cpu> x, In<T, 1, Cpu> x_lse,
                      In<T, 2, Cpu> y, In<T, 1, Cpu> y_lse) {
  index_t const n = kl.extent(0);
  expects(x.extents() == y.extents() && x.extent(0) == n && x_lse.extent(0) == n &&
              y_lse.extent(0) == n,
          "token_divergence: one number for each row of two matrices of the same extents");
  parallel_for(dev, n, 1, [&](index_t first, index_t last) {
    for (index_t i = first; i < last; ++i) {
      double sum = 0;
      for (index_t v = 0; v < x.extent(1); ++v) {
        double const p = static_cast<double>(x(i, v)) - static_cast<double>(x_lse(i));
        double const q = static_cast<double>(y(i, v)) - static_cast<double>(y_lse(i));
        sum += std::exp(p) * (p - q);
      }
      kl(i) = static_cast<T>(sum);
    }
  });
}

}  // namespace emprl
