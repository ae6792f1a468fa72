// SPDX-License-Identifier: Apache-2.0
#pragma once

// How far one distribution over the vocabulary is from another, at every token.

#include <cmath>

#include "emprl/core/config.hpp"
#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

namespace detail {

/// The divergence of softmax(a) from softmax(b) in one pass, a and b being logits near their
/// log-sum-exp, so that exp does not overflow: with s = sum exp(a) and t = sum exp(b)
///   sum_v p_v (log p_v - log q_v) = 1/s sum_v exp(a_v) (a_v - b_v) + log t - log s
/// With exact log-sum-exps s and t would be 1. Those of float are off by half a unit in their last
/// place, 5e-4 for logits of 10000, which this takes out again.
struct DivergenceSums {
  double weight = 0.0;  ///< s
  double other = 0.0;   ///< t
  double terms = 0.0;   ///< sum_v exp(a_v) (a_v - b_v)

  EMPRL_HD void add(double a, double b) {
    double const p = std::exp(a);
    weight += p;
    other += std::exp(b);
    // A token that p bars adds nothing, even where q bars it too and the difference is no number.
    if (p > 0.0) terms += p * (a - b);
  }

  /// Never below 0, as rounding would have it; NaN if a number was.
  EMPRL_HD double divergence() const {
    double const kl = terms / weight + (std::log(other) - std::log(weight));
    return kl < 0.0 ? 0.0 : kl;
  }
};

inline constexpr char token_divergence_shapes[] =
    "token_divergence: one number for each row of two matrices of the same extents, which have "
    "columns";

}  // namespace detail

/// Kullback-Leibler divergence in nats, with p = softmax(x[n]) and q = softmax(y[n]):
///   kl[n] = sum_v p_v (log p_v - log q_v),   at least 0
/// Summed in double: the terms of both signs are larger than their sum. A logit of -inf is a token
/// of probability 0: it counts nothing in p, and in q makes the divergence infinite unless p has it
/// too. NaN if a row has a logit that is NaN or +inf, or none that is finite.
/// @param kl  (N), written
/// @param x, y  (N, V), logits      @param x_lse, y_lse  (N), their log-sum-exp, from
/// token_logprob_forward; their rounding does not matter
/// @throws ShapeError if extents disagree, or rows are without columns
template <Scalar T>
void token_divergence(Cpu& dev, Out<T, 1, Cpu> kl, In<T, 2, Cpu> x, In<T, 1, Cpu> x_lse,
                      In<T, 2, Cpu> y, In<T, 1, Cpu> y_lse) {
  index_t const n = kl.extent(0);
  expects(x.extents() == y.extents() && x.extent(0) == n && x_lse.extent(0) == n &&
              y_lse.extent(0) == n && (n == 0 || x.extent(1) > 0),
          detail::token_divergence_shapes);
  parallel_for(dev, n, 1, [&](index_t first, index_t last) {
    for (index_t i = first; i < last; ++i) {
      detail::DivergenceSums sums;
      for (index_t v = 0; v < x.extent(1); ++v) {
        sums.add(static_cast<double>(x(i, v)) - static_cast<double>(x_lse(i)),
                 static_cast<double>(y(i, v)) - static_cast<double>(y_lse(i)));
      }
      kl(i) = static_cast<T>(sums.divergence());
    }
  });
}

}  // namespace emprl
