// SPDX-License-Identifier: Apache-2.0
#pragma once

// The sums of a softmax in one pass over its row: the largest number is found while the sums grow,
// and they are rescaled when it changes (Milakov & Gimelshein 2018).

#include <cmath>
#include <limits>

#include "emprl/core/config.hpp"

namespace emprl {

/// Of the numbers seen so far:
///   most = max_v x_v,   sum = sum_v exp(x_v - most),   dot = sum_v exp(x_v - most) (x_v - most)
/// -inf counts as a number of probability 0. NaN and +inf make `sum` NaN.
struct SoftmaxSums {
  float most = -std::numeric_limits<float>::infinity();
  float sum = 0.0f;
  float dot = 0.0f;

  /// Takes `to`, which is no smaller than most, as the number that is subtracted.
  EMPRL_HD void rescale(float to) {
    if (most == to) return;
    float const factor = std::exp(most - to);
    // Nothing finite yet: there is no dot, and 0 times infinity would be NaN.
    dot =
        most == -std::numeric_limits<float>::infinity() ? 0.0f : factor * (dot + sum * (most - to));
    sum *= factor;
    most = to;
  }

  /// N more numbers. The largest of them is looked for first, so that at most one rescaling is
  /// needed.
  template <int N>
  EMPRL_HD void add(float const (&x)[N]) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    float largest = x[0];
    for (int i = 1; i < N; ++i) largest = x[i] > largest ? x[i] : largest;
    if (largest > most) rescale(largest);
    float const shift = most == -infinity ? 0.0f : most;
    for (int i = 0; i < N; ++i) {
      float const distance = x[i] - shift;
      float const e = std::exp(distance);
      sum += e;
      dot += e > 0.0f ? e * distance : 0.0f;
    }
  }

  /// log sum_v exp(x_v - most)
  EMPRL_HD float log_sum() const { return std::log(sum); }
  /// log sum_v exp(x_v); -inf if no number was finite
  EMPRL_HD float log_sum_exp() const { return most + log_sum(); }
  /// -sum_v p_v log p_v with p = softmax(x)
  EMPRL_HD float entropy() const { return log_sum() - dot / sum; }
};

}  // namespace emprl
