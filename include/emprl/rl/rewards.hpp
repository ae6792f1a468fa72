// SPDX-License-Identifier: Apache-2.0
#pragma once

// Asking a reward for its scores, and not believing it blindly; a reward's name and its memory.
// Ready rewards are in reward_rules.hpp, ways to combine rewards in reward_combinators.hpp.

#include <cmath>
#include <concepts>
#include <cstddef>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/rl/concepts.hpp"
#include "emprl/rl/types.hpp"

namespace emprl::rl {

/// Calls a reward with or without a log; a form without one leaves the log as it is. `scores` are a
/// std::span<float>, one an episode, or TokenScores.
template <ResponseReward R>
void call_reward(R& reward, EpisodeBatch const& episodes, std::span<float> scores, ScoreLog& log) {
  if constexpr (LoggingRewardModel<R>) {
    reward(episodes, scores, log);
  } else {
    reward(episodes, scores);
  }
}

template <TokenReward R>
void call_reward(R& reward, EpisodeBatch const& episodes, TokenScores scores, ScoreLog& log) {
  if constexpr (LoggingTokenReward<R>) {
    reward(episodes, scores, log);
  } else {
    reward(episodes, scores);
  }
}

/// Writes f(episode) as the score of every episode: the loop of most rewards.
///   auto asks_back = [](rl::EpisodeBatch const& episodes, std::span<float> scores) {
///     rl::score_each(episodes, scores, [](rl::Episode const& e) {
///       return e.response.ends_with('?') ? 1 : 0;
///     });
///   };
/// @throws ShapeError if there is not one score an episode to be written
template <class F>
void score_each(EpisodeBatch const& episodes, std::span<float> scores, F&& f) {
  expects(scores.size() == episodes.size(), "a reward writes one score an episode");
  for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = static_cast<float>(f(episodes[i]));
}

/// A reward that remembers something from batch to batch and can be saved and restored, as a KL
/// controller can.
template <class R>
concept StatefulRewardModel = RewardModel<R> &&
    requires(R& r, R const& constant, std::span<double const> state) {
  { constant.state() } -> std::same_as<std::vector<double>>;
  { r.restore(state) } -> std::same_as<void>;
};

namespace detail {
/// Whether a reward, or the reward that a std::reference_wrapper refers to, has a state.
template <class R>
concept Remembers = StatefulRewardModel<std::unwrap_reference_t<R>>;
}  // namespace detail

/// What any reward remembers, one held in a std::reference_wrapper too; empty if it has no state.
template <RewardModel R>
std::vector<double> reward_state(R const& reward) {
  if constexpr (detail::Remembers<R>) {
    std::unwrap_reference_t<R> const& held = reward;
    return held.state();
  } else {
    return {};
  }
}

/// Gives a reward back what reward_state returned.
/// @throws ConfigError if the numbers are not from a reward of this kind
template <RewardModel R>
void restore_reward(R& reward, std::span<double const> state) {
  if constexpr (detail::Remembers<R>) {
    std::unwrap_reference_t<R>& held = reward;
    held.restore(state);
  } else {
    expects<ConfigError>(state.empty(), "the saved reward has a state, but this one has none");
  }
}

namespace detail {

/// What rewards around one other reward share: the part, and its memory as their own.
template <RewardModel R>
class OnePart {
 public:
  std::vector<double> state() const requires Remembers<R> { return reward_state(reward_); }
  void restore(std::span<double const> state) requires Remembers<R> {
    restore_reward(reward_, state);
  }

 protected:
  explicit OnePart(R reward) : reward_(std::move(reward)) {}

  R reward_;
};

/// Sum of each row's numbers.
inline std::vector<float> row_sums(TokenScores const& scores) {
  std::vector<float> sums;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    double sum = 0;
    for (float const s : scores.row(i)) sum += static_cast<double>(s);
    sums.push_back(static_cast<float>(sum));
  }
  return sums;
}

}  // namespace detail

/// A reward under a name: its score (of a reward of tokens, each response's sum) is also recorded
/// in the log, so that it shows in the statistics, and messages about the score call it by its
/// name.
///   rl::Named asks{"asks_back", [](rl::EpisodeBatch const& e, std::span<float> s) { ... }};
template <RewardModel R>
class Named : public detail::OnePart<R> {
 public:
  Named(std::string name, R reward)
      : detail::OnePart<R>(std::move(reward)), name_(std::move(name)) {}

  void operator()(EpisodeBatch const& episodes, std::span<float> scores,
                  ScoreLog& log) requires ResponseReward<R> {
    call_reward(this->reward_, episodes, scores, log);
    log.add(name_, scores);
  }

  void operator()(EpisodeBatch const& episodes, TokenScores scores,
                  ScoreLog& log) requires TokenReward<R> {
    call_reward(this->reward_, episodes, scores, log);
    log.add(name_, detail::row_sums(scores));
  }

  std::string const& name() const { return name_; }

 private:
  std::string name_;
};

/// Checks what a reward wrote.
/// @param reward how the message calls the reward
/// @throws Error naming the reward and the first episode whose score is missing (left unwritten,
/// NaN) or not finite
inline void check_scores(EpisodeBatch const& episodes, std::span<float const> scores,
                         std::string_view reward) {
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (std::isfinite(scores[i])) continue;
    throw Error(
        std::string(reward) + " gave episode \"" + std::string(episodes[i].id) + "\" (number " +
        std::to_string(i) +
        " of the batch) a score that is missing or not finite: " + std::to_string(scores[i]));
  }
}

/// One score an episode.
/// @param name how a message calls the reward
/// @throws Error naming the first episode whose score is missing (left unwritten) or not finite
template <ResponseReward R>
std::vector<double> score_episodes(R& reward, EpisodeBatch const& episodes, ScoreLog& log,
                                   std::string_view name = "the reward") {
  std::vector<float> scores(episodes.size(), std::numeric_limits<float>::quiet_NaN());
  call_reward(reward, episodes, std::span<float>(scores), log);
  check_scores(episodes, scores, name);
  return {scores.begin(), scores.end()};
}

/// One score a generated token.
/// @param offsets (episodes + 1) which tokens are whose
/// @param name how a message calls the reward
/// @throws Error naming the first episode and token whose score is missing (left unwritten) or not
/// finite
template <TokenReward R>
std::vector<double> score_tokens(R& reward, EpisodeBatch const& episodes,
                                 std::span<index_t const> offsets, ScoreLog& log,
                                 std::string_view name = "the reward") {
  expects(offsets.size() == episodes.size() + 1, "token scores need the tokens of every episode");
  std::vector<float> scores(static_cast<std::size_t>(offsets.back()),
                            std::numeric_limits<float>::quiet_NaN());
  TokenScores const view{scores, offsets};
  call_reward(reward, episodes, view, log);
  for (std::size_t i = 0; i < view.size(); ++i) {
    std::span<float const> const row = view.row(i);
    for (std::size_t t = 0; t < row.size(); ++t) {
      if (std::isfinite(row[t])) continue;
      throw Error(std::string(name) + " gave token " + std::to_string(t) + " of episode \"" +
                  std::string(episodes[i].id) +
                  "\" a score that is missing or not finite: " + std::to_string(row[t]));
    }
  }
  return {scores.begin(), scores.end()};
}

}  // namespace emprl::rl
