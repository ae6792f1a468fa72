// SPDX-License-Identifier: Apache-2.0
#pragma once

// PPO's corrected arithmetic once more, plainly: padded rectangles, loops, double, gradients
// derived by hand. It shares no code with the library and follows the formulas' definitions where
// the library uses recursions.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace emprl::reference {

using Rows = std::vector<std::vector<double>>;                 // [episode][position]
using Logits = std::vector<std::vector<std::vector<double>>>;  // [episode][position][token]

struct PpoInput {
  std::vector<std::vector<int>> tokens;  // generated tokens of each episode, of any length
  Logits old_logits, reference_logits, new_logits;
  Rows old_values, new_values;
  std::vector<double> scores;
  std::vector<double> earlier_scores;  // all scores of earlier batches
  double beta = 0.2, gamma = 1, lambda = 0.95, policy_clip = 0.2, value_clip = 0.2,
         value_coefficient = 0.1;
};

struct PpoOutput {
  Rows logp, reference, rewards, whitened, advantages, raw_advantages, returns;
  double kl = 0, policy_loss = 0, value_loss = 0, loss = 0;
  Logits grad_logits;
  Rows grad_values;
};

inline double log_softmax_at(std::vector<double> const& logits, int token) {
  long double sum = 0;
  for (double const x : logits) sum += std::exp(static_cast<long double>(x));
  return static_cast<double>(logits[static_cast<std::size_t>(token)] - std::log(sum));
}

/// (x - mean) / sqrt(var + 1e-8) over the real positions of all rows; the mean is added again if
/// kept. One number alone, or none, has deviation 1.
inline Rows whiten(Rows const& x, bool keep_mean) {
  double n = 0, sum = 0, squares = 0;
  for (auto const& row : x) {
    for (double const v : row) {
      n += 1;
      sum += v;
    }
  }
  double const mean = n > 0 ? sum / n : 0;
  for (auto const& row : x) {
    for (double const v : row) squares += (v - mean) * (v - mean);
  }
  double const deviation = n > 1 ? std::sqrt(squares / (n - 1) + 1e-8) : 1;
  Rows y = x;
  for (auto& row : y) {
    for (double& v : row) v = (v - mean) / deviation + (keep_mean ? mean : 0);
  }
  return y;
}

/// d max(a, b) split between a and b: 1/0, 0/1, or half each at a tie.
inline double share_of_first(double a, double b) {
  return a > b ? 1 : (a < b ? 0 : 0.5);
}

inline PpoOutput ppo(PpoInput const& in) {
  std::size_t const batch = in.tokens.size();
  PpoOutput out;

  // Normalised scores: mean and deviation of all scores ever seen.
  std::vector<double> seen = in.earlier_scores;
  seen.insert(seen.end(), in.scores.begin(), in.scores.end());
  double mean = 0, squares = 0;
  for (double const s : seen) mean += s / static_cast<double>(seen.size());
  for (double const s : seen) squares += (s - mean) * (s - mean);
  double const deviation =
      seen.size() > 1 ? std::sqrt(squares / static_cast<double>(seen.size() - 1)) : 1;

  for (std::size_t i = 0; i < batch; ++i) {
    std::size_t const n = in.tokens[i].size();
    std::vector<double> p(n), q(n), r(n);
    for (std::size_t t = 0; t < n; ++t) {
      p[t] = log_softmax_at(in.old_logits[i][t], in.tokens[i][t]);
      q[t] = log_softmax_at(in.reference_logits[i][t], in.tokens[i][t]);
      r[t] = -in.beta * (p[t] - q[t]);
      out.kl += (p[t] - q[t]) / static_cast<double>(batch);
    }
    if (n > 0) r[n - 1] += (in.scores[i] - mean) / (deviation + 1.1920928955078125e-07);
    out.logp.push_back(p);
    out.reference.push_back(q);
    out.rewards.push_back(r);
  }
  out.whitened = whiten(out.rewards, true);

  // A[t] = sum_l (gamma lambda)^l delta[t + l], by definition.
  double tokens = 0;
  for (std::size_t i = 0; i < batch; ++i) {
    std::size_t const n = in.tokens[i].size();
    tokens += static_cast<double>(n);
    auto const value = [&](std::size_t t) { return t < n ? in.old_values[i][t] : 0.0; };
    std::vector<double> a(n), ret(n);
    for (std::size_t t = 0; t < n; ++t) {
      for (std::size_t l = 0; t + l < n; ++l) {
        double const delta = out.whitened[i][t + l] + in.gamma * value(t + l + 1) - value(t + l);
        a[t] += std::pow(in.gamma * in.lambda, static_cast<double>(l)) * delta;
      }
      ret[t] = a[t] + value(t);
    }
    out.raw_advantages.push_back(a);
    out.returns.push_back(ret);
  }
  out.advantages = whiten(out.raw_advantages, false);

  for (std::size_t i = 0; i < batch; ++i) {
    std::size_t const n = in.tokens[i].size();
    out.grad_values.emplace_back(n);
    out.grad_logits.emplace_back();
    for (std::size_t t = 0; t < n; ++t) {
      double const a = out.advantages[i][t];
      double const ratio =
          std::exp(log_softmax_at(in.new_logits[i][t], in.tokens[i][t]) - out.logp[i][t]);
      double const low = 1 - in.policy_clip, high = 1 + in.policy_clip;
      double const clipped = std::min(std::max(ratio, low), high);
      out.policy_loss += std::max(-a * ratio, -a * clipped) / tokens;
      double const first = share_of_first(-a * ratio, -a * clipped);
      double const inside = ratio >= low && ratio <= high ? 1 : 0;
      double const dlogp = -a * ratio * (first + (1 - first) * inside) / tokens;

      double const v = in.new_values[i][t], old = in.old_values[i][t], ret = out.returns[i][t];
      double const under = std::min(v, old + in.value_clip);
      double const held = std::max(under, old - in.value_clip);
      out.value_loss += 0.5 * std::max((v - ret) * (v - ret), (held - ret) * (held - ret)) / tokens;
      double const free = share_of_first((v - ret) * (v - ret), (held - ret) * (held - ret));
      double const dheld =
          share_of_first(old + in.value_clip, v) * share_of_first(under, old - in.value_clip);
      out.grad_values[i][t] =
          in.value_coefficient * (free * (v - ret) + (1 - free) * dheld * (held - ret)) / tokens;

      std::vector<double> g;
      for (std::size_t k = 0; k < in.new_logits[i][t].size(); ++k) {
        double const p = std::exp(log_softmax_at(in.new_logits[i][t], static_cast<int>(k)));
        g.push_back(dlogp * ((static_cast<int>(k) == in.tokens[i][t] ? 1 : 0) - p));
      }
      out.grad_logits[i].push_back(g);
    }
  }
  out.loss = out.policy_loss + in.value_coefficient * out.value_loss;
  return out;
}

}  // namespace emprl::reference
