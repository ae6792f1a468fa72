// SPDX-License-Identifier: Apache-2.0
#pragma once

// The model's own distribution over the vocabulary, before anything is barred or filtered.

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "emprl/core/scalar.hpp"

namespace emprl::gen {

/// Of p = softmax(x), in double:   lse = log sum_v exp(x_v),   entropy = -sum_v p_v log p_v (nats).
/// -inf is a token of probability 0. Without a finite number lse is -inf and the entropy NaN.
struct FullSoftmax {
  double lse = 0;
  double entropy = 0;

  template <Scalar T>
  explicit FullSoftmax(std::span<T const> x) {
    double const top = x.empty() ? -std::numeric_limits<double>::infinity()
                                 : static_cast<double>(*std::max_element(x.begin(), x.end()));
    double sum = 0;
    double dot = 0;
    for (T const value : x) {
      double const below = static_cast<double>(value) - top;
      double const weight = std::exp(below);
      sum += weight;
      if (weight > 0) dot += weight * below;
    }
    double const log_sum = std::log(sum);
    lse = top + log_sum;
    entropy = log_sum - dot / sum;
  }

  /// log p of a token whose logit is x.
  double logp(double x) const { return x - lse; }
};

}  // namespace emprl::gen
