// SPDX-License-Identifier: Apache-2.0
#pragma once

// Advantages: how much better a token turned out than the value function expected.

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

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

  /// @throws ConfigError naming the first number that is out of range
  void validate() const {
    expects<ConfigError>(gamma >= 0 && gamma <= 1, "gamma must be from 0 to 1");
    expects<ConfigError>(lambda >= 0 && lambda <= 1, "lambda must be from 0 to 1");
  }

  /// @param rewards, values (tokens)   @param advantages, returns (tokens), written
  /// @param padding_reward the reward of each token of padding, which follows every row up to the
  /// length of the longest and has value 0: not 0 in PpoMode::trl_0_9_6 alone
  /// @throws ShapeError if the arrays are not one number a token
  void operator()(std::span<index_t const> offsets, std::span<double const> rewards,
                  std::span<double const> values, std::span<double> advantages,
                  std::span<double> returns, double padding_reward = 0.0) const {
    check_offsets(offsets, static_cast<index_t>(rewards.size()));
    expects(values.size() == rewards.size() && advantages.size() == rewards.size() &&
                returns.size() == rewards.size(),
            "advantages need a reward and a value for every token");
    index_t longest = 0;
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
      longest = std::max(longest, offsets[i + 1] - offsets[i]);
    }
    for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
      auto const begin = static_cast<std::size_t>(offsets[i]);
      double next_value = 0;
      double next_advantage = 0;
      if (padding_reward != 0) {
        for (index_t t = offsets[i + 1] - offsets[i]; t < longest; ++t) {
          next_advantage = padding_reward + gamma * lambda * next_advantage;
        }
      }
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
    (*this)(rollout.offsets(), rollout.rewards, rollout.values, advantages, returns,
            rollout.padding_reward);
  }
};

static_assert(AdvantageEstimator<Gae>);

namespace detail {

/// Sum of each row's token rewards: the normalised score, less the KL penalty where that is in the
/// reward.
inline std::vector<double> row_returns(Rollout const& rollout) {
  std::vector<double> sums;
  for (index_t i = 0; i < rollout.rows(); ++i) {
    auto const u = static_cast<std::size_t>(i);
    double sum = 0;
    for (auto t = rollout.offsets()[u]; t < rollout.offsets()[u + 1]; ++t) {
      sum += rollout.rewards[static_cast<std::size_t>(t)];
    }
    sums.push_back(sum);
  }
  return sums;
}

/// One number a row, written to all of the row's tokens.
inline void spread_rows(Rollout const& rollout, std::span<double const> rows,
                        std::span<double> tokens) {
  expects(static_cast<index_t>(tokens.size()) == rollout.tokens(),
          "advantages need one number for every token");
  for (std::size_t i = 0; i < rows.size(); ++i) {
    for (auto t = rollout.offsets()[i]; t < rollout.offsets()[i + 1]; ++t) {
      tokens[static_cast<std::size_t>(t)] = rows[i];
    }
  }
}

inline void check_group_size(index_t group_size) {
  expects<ConfigError>(group_size >= 2, "group_size must be at least 2");
}

/// Calls f(group) on the returns of each group of consecutive rows.
/// @throws ConfigError if the rows are no whole number of groups of at least two
template <class F>
void for_each_group(std::span<double> rows, index_t group_size, F&& f) {
  check_group_size(group_size);
  expects<ConfigError>(static_cast<index_t>(rows.size()) % group_size == 0,
                       "a batch of " + std::to_string(rows.size()) +
                           " rows is no whole number of groups of " + std::to_string(group_size) +
                           "; repeat each context group_size times in a row");
  auto const n = static_cast<std::size_t>(group_size);
  for (std::size_t begin = 0; begin < rows.size(); begin += n) f(rows.subspan(begin, n));
}

}  // namespace detail

/// Group-relative advantages (Shao et al. 2024, "DeepSeekMath", GRPO): the rows of a batch are
/// groups of samples of one context, and each row is compared with its group:
///   A = (R - mean_group R) / (deviation_group R + 1e-8),   every token of the row the same,
/// with R the row's summed rewards and the deviation unbiased; undivided where `divide` is false
/// (Liu et al. 2025, "Dr. GRPO": dividing weighs easy and hopeless contexts up). A group of equal
/// returns gets 0. No value function is needed; returns are written as R. Set whiten_rewards and
/// whiten_advantages to false: groups are the normalisation.
struct GroupRelative {
  static constexpr bool uses_values = false;

  index_t group_size = 4;
  bool divide = true;

  /// @throws ConfigError if group_size is below 2
  void validate() const { detail::check_group_size(group_size); }

  /// @throws ConfigError unless the rows are whole groups of at least two
  void operator()(Rollout const& rollout, std::span<double> advantages,
                  std::span<double> returns) const {
    std::vector<double> rows = detail::row_returns(rollout);
    detail::spread_rows(rollout, rows, returns);
    detail::for_each_group(rows, group_size, [this](std::span<double> group) {
      double mean = 0;
      for (double const r : group) mean += r;
      mean /= static_cast<double>(group.size());
      double squares = 0;
      for (double& r : group) {
        r -= mean;
        squares += r * r;
      }
      if (!divide) return;
      double const deviation = std::sqrt(squares / static_cast<double>(group.size() - 1));
      for (double& r : group) r /= deviation + 1e-8;
    });
    detail::spread_rows(rollout, rows, advantages);
  }
};

/// Leave-one-out advantages (Kool et al. 2019; Ahmadian et al. 2024, RLOO): as GroupRelative, but
/// each row's baseline is the mean of the others of its group, which keeps the gradient unbiased:
///   A_i = R_i - mean_{j != i} R_j.
struct LeaveOneOut {
  static constexpr bool uses_values = false;

  index_t group_size = 4;

  /// @throws ConfigError if group_size is below 2
  void validate() const { detail::check_group_size(group_size); }

  /// @throws ConfigError unless the rows are whole groups of at least two
  void operator()(Rollout const& rollout, std::span<double> advantages,
                  std::span<double> returns) const {
    std::vector<double> rows = detail::row_returns(rollout);
    detail::spread_rows(rollout, rows, returns);
    detail::for_each_group(rows, group_size, [](std::span<double> group) {
      double sum = 0;
      for (double const r : group) sum += r;
      double const others = static_cast<double>(group.size() - 1);
      for (double& r : group) r -= (sum - r) / others;
    });
    detail::spread_rows(rollout, rows, advantages);
  }
};

/// REINFORCE with a running baseline: A[t] = (sum of the rewards from t on, discounted by gamma) -
/// baseline, the baseline an exponential mean of the rows' returns over the batches before, so that
/// no row is compared with itself. In the first batch, that batch's own mean. With
/// whiten_advantages this is the advantage of REINFORCE++ (Hu 2025), which normalises over the
/// batch.
class RunningBaseline {
 public:
  static constexpr bool uses_values = false;

  /// @param decay share of the old baseline that stays, from 0 to below 1
  /// @throws ConfigError naming the argument that is out of range
  explicit RunningBaseline(double gamma = 1.0, double decay = 0.9) : gamma_(gamma), decay_(decay) {
    expects<ConfigError>(gamma >= 0 && gamma <= 1, "gamma must be from 0 to 1");
    expects<ConfigError>(decay >= 0 && decay < 1, "decay must be at least 0 and below 1");
  }

  void operator()(Rollout const& rollout, std::span<double> advantages, std::span<double> returns) {
    std::vector<double> const zeros(rollout.rewards.size(), 0.0);
    Gae{gamma_, 1.0}(rollout.offsets(), rollout.rewards, zeros, advantages, returns);
    double mean = 0;
    for (double const r : detail::row_returns(rollout)) mean += r;
    mean /= std::max(1.0, static_cast<double>(rollout.rows()));
    if (!known_) baseline_ = mean;
    for (double& a : advantages) a -= baseline_;
    baseline_ = known_ ? decay_ * baseline_ + (1.0 - decay_) * mean : mean;
    known_ = true;
  }

  std::vector<double> state() const { return {baseline_, known_ ? 1.0 : 0.0}; }

  /// @throws ConfigError if the numbers are not from state()
  void restore(std::span<double const> state) {
    // Thrown here, for g++ 12 does not see that expects would not return.
    if (state.size() != 2 || !std::isfinite(state[0]) || (state[1] != 0 && state[1] != 1)) {
      throw ConfigError("the saved state of a running baseline is a number, and 0 or 1");
    }
    baseline_ = state[0];
    known_ = state[1] == 1;
  }

 private:
  double gamma_;
  double decay_;
  double baseline_ = 0;
  bool known_ = false;
};

static_assert(AdvantageEstimator<GroupRelative> && AdvantageEstimator<LeaveOneOut> &&
              StatefulAdvantageEstimator<RunningBaseline>);
static_assert(uses_values<Gae> && !uses_values<GroupRelative> && !uses_values<LeaveOneOut> &&
              !uses_values<RunningBaseline>);

}  // namespace emprl::rl
