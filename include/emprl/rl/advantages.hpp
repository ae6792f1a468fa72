// SPDX-License-Identifier: Apache-2.0
#pragma once

// Advantages: how much better a token turned out than the value function expected.

#include <span>

#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/rl/concepts.hpp"
#include "emprl/rl/types.hpp"

namespace emprl::rl {

/// Generalised advantage estimation (Schulman et al. 2016), backwards through every row:
///   delta[t] = r[t] + gamma V[t+1] - V[t]
///   A[t] = delta[t] + gamma lambda A[t+1]
///   returns[t] = A[t] + V[t]
/// with V and A zero after the last token. Rewards and values of masked tokens must be 0 already.
struct Gae {
  double gamma = 1.0;
  double lambda = 0.95;

  /// @param rewards, values (tokens)   @param advantages, returns (tokens), written
  /// @throws ShapeError if the arrays are not one number a token
  void operator()(std::span<index_t const> offsets, std::span<double const> rewards,
                  std::span<double const> values, std::span<double> advantages,
                  std::span<double> returns) const {
    check_offsets(offsets, static_cast<index_t>(rewards.size()));
    expects(values.size() == rewards.size() && advantages.size() == rewards.size() &&
                returns.size() == rewards.size(),
            "advantages need a reward and a value for every token");
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
      auto const begin = static_cast<std::size_t>(offsets[i]);
      double next_value = 0;
      double next_advantage = 0;
      for (auto t = static_cast<std::size_t>(offsets[i + 1]); t-- > begin;) {
        double const delta = rewards[t] + gamma * next_value - values[t];
        next_advantage = delta + gamma * lambda * next_advantage;
        next_value = values[t];
        advantages[t] = next_advantage;
        returns[t] = next_advantage + values[t];
      }
    }
  }

  /// The estimator of PPO: reads the rollout's rewards and values.
  void operator()(Rollout const& rollout, std::span<double> advantages,
                  std::span<double> returns) const {
    (*this)(rollout.offsets(), rollout.rewards, rollout.values, advantages, returns);
  }
};

static_assert(AdvantageEstimator<Gae>);

}  // namespace emprl::rl
