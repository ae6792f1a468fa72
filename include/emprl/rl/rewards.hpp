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

/// Calls a reward of either form; a form without a log leaves the log as it is.
template <RewardModel R>
void call_reward(R& reward, EpisodeBatch const& episodes, std::span<float> scores, ScoreLog& log) {
  if constexpr (LoggingRewardModel<R>) {
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

/// A reward under a name: its score is also recorded in the log, so that it shows in the
/// statistics, and messages about the score call it by its name.
///   rl::Named asks{"asks_back", [](rl::EpisodeBatch const& e, std::span<float> s) { ... }};
template <RewardModel R>
class Named {
 public:
  Named(std::string name, R reward) : name_(std::move(name)), reward_(std::move(reward)) {}

  void operator()(EpisodeBatch const& episodes, std::span<float> scores, ScoreLog& log) {
    call_reward(reward_, episodes, scores, log);
    log.add(name_, scores);
  }

  std::string const& name() const { return name_; }

  std::vector<double> state() const requires detail::Remembers<R> { return reward_state(reward_); }
  void restore(std::span<double const> state) requires detail::Remembers<R> {
    restore_reward(reward_, state);
  }

 private:
  std::string name_;
  R reward_;
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
template <RewardModel R>
std::vector<double> score_episodes(R& reward, EpisodeBatch const& episodes, ScoreLog& log,
                                   std::string_view name = "the reward") {
  std::vector<float> scores(episodes.size(), std::numeric_limits<float>::quiet_NaN());
  call_reward(reward, episodes, std::span<float>(scores), log);
  check_scores(episodes, scores, name);
  return {scores.begin(), scores.end()};
}

}  // namespace emprl::rl
