// SPDX-License-Identifier: Apache-2.0
#pragma once

// Log-probabilities of chosen tokens under a softmax over the vocabulary, and their gradient
// written over the logits.

#include <cmath>

#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/math/exp.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

///   lse[n] = log sum_v exp(x[n,v]),   logp[n] = x[n,target[n]] - lse[n]
///   entropy[n] = lse[n] - sum_v softmax(x[n])_v x[n,v]
/// A logit of -inf is a token of probability 0 and counts nothing.
/// @param logp    (N), written
/// @param lse (N), written
/// @param entropy (N), written; empty if not needed
/// @param logits  (N, V)            @param targets (N), ids below V
/// @throws ShapeError if extents disagree or a target is not a column
template <Scalar T>
void token_logprob_forward(Cpu& dev, Out<T, 1, Cpu> logp, OptionalOut<T, 1, Cpu> lse,
                           OptionalOut<T, 1, Cpu> entropy, In<T, 2, Cpu> logits,
                           TensorView<std::int32_t const, 1, Cpu> targets) {
  index_t const n = logits.extent(0);
  index_t const v = logits.extent(1);
  expects(logp.extent(0) == n && lse.extent(0) == n && targets.extent(0) == n &&
              (entropy.empty() || entropy.extent(0) == n),
          "token_logprob: one log-probability and one target for each row of logits");
  for (index_t i = 0; i < n; ++i) {
    expects(targets(i) >= 0 && targets(i) < v, "token_logprob: a target is outside the vocabulary");
  }
  bool const want_entropy = !entropy.empty();
  parallel_for(dev, n, 4, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      constexpr index_t lanes = 16;
      T const* const x = logits.row(i);
      T lane_most[lanes];
      T most = x[0];
      for (T& l : lane_most) l = most;
      index_t j = 0;
      for (; j + lanes <= v; j += lanes) {
        for (index_t l = 0; l < lanes; ++l)
          lane_most[l] = x[j + l] > lane_most[l] ? x[j + l] : lane_most[l];
      }
      for (; j < v; ++j) most = x[j] > most ? x[j] : most;
      for (T const l : lane_most) most = l > most ? l : most;
      T lane_sum[lanes] = {};
      T lane_dot[lanes] = {};
      T sum = T(0), dot = T(0);
      j = 0;
      if (want_entropy) {
        for (; j + lanes <= v; j += lanes) {
          for (index_t l = 0; l < lanes; ++l) {
            T const distance = x[j + l] - most;
            T const e = exp_branchless(distance);
            lane_sum[l] += e;
            lane_dot[l] += e * (e > T(0) ? distance : T(0));
          }
        }
      } else {
        for (; j + lanes <= v; j += lanes) {
          for (index_t l = 0; l < lanes; ++l) lane_sum[l] += exp_branchless(x[j + l] - most);
        }
      }
      for (; j < v; ++j) {
        T const distance = x[j] - most;
        T const e = exp_branchless(distance);
        sum += e;
        dot += e * (e > T(0) ? distance : T(0));
      }
      for (index_t l = 0; l < lanes; ++l) {
        sum += lane_sum[l];
        dot += lane_dot[l];
      }
      T const log_sum = std::log(sum);
      lse(i) = most + log_sum;
      // (x - most) - log(sum), not x - lse: the two large numbers cancel exactly first.
      logp(i) = (x[targets(i)] - most) - log_sum;
      if (want_entropy) entropy(i) = log_sum - dot / sum;
    }
  });
}

/// Gradient of the logits from those of log-probability and entropy, written over the logits, with
/// p = softmax(x[n]):
///   dlogits[n,v] = dlogp[n] ([v = target[n]] - p_v) - dentropy[n] p_v (log p_v + entropy[n])
/// @param logits (N, V), overwritten with its gradient
/// @param dlogp (N)
/// @param lse (N), from the forward pass
/// @param dentropy, entropy (N), the second from the forward pass; both empty: without that term
/// @throws ShapeError if extents disagree or a target is not a column
template <Scalar T>
void token_logprob_backward(Cpu& dev, Out<T, 2, Cpu> logits, In<T, 1, Cpu> dlogp, In<T, 1, Cpu> lse,
                            TensorView<std::int32_t const, 1, Cpu> targets,
                            In<T, 1, Cpu> dentropy = {}, In<T, 1, Cpu> entropy = {}) {
  index_t const n = logits.extent(0);
  index_t const v = logits.extent(1);
  bool const has_entropy = !dentropy.empty();
  expects(dlogp.extent(0) == n && lse.extent(0) == n && targets.extent(0) == n,
          "token_logprob: one gradient and one target for each row of logits");
  expects((!has_entropy || dentropy.extent(0) == n) && entropy.extent(0) == dentropy.extent(0),
          "token_logprob: one entropy and its gradient for each row of logits, or neither");
  for (index_t i = 0; i < n; ++i) {
    expects(targets(i) >= 0 && targets(i) < v, "token_logprob: a target is outside the vocabulary");
  }
  parallel_for(dev, n, 4, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      T* const x = logits.row(i);
      T const g = dlogp(i);
      T const log_sum = lse(i);
      T const h = has_entropy ? dentropy(i) : T(0);
      if (g == T(0) && h == T(0)) {
        for (index_t j = 0; j < v; ++j) x[j] = T(0);
        continue;
      }
      if (h == T(0)) {
        for (index_t j = 0; j < v; ++j) x[j] = -g * exp_branchless(x[j] - log_sum);
      } else {
        T const constant = g + h * entropy(i);
        for (index_t j = 0; j < v; ++j) {
          T const log_p = x[j] - log_sum;
          T const p = exp_branchless(log_p);
          // A logit of -inf has no gradient; h log p would make it NaN.
          x[j] = p == T(0) ? T(0) : -p * (constant + h * log_p);
        }
      }
      x[targets(i)] += g;
    }
  });
}

}  // namespace emprl
