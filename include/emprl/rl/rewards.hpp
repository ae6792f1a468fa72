// SPDX-License-Identifier: Apache-2.0
#pragma once

// Asking a reward for its scores, and not believing it blindly.

#include <cmath>
#include <limits>
#include <span>
#include <string>
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

/// A reward under a name: its score is also recorded in the log, so that it shows in the
/// statistics.
///   rl::Named asks{"asks_back", [](rl::EpisodeBatch const& e, std::span<float> s) { ... }};
template <RewardModel R>
class Named {
 public:
  Named(std::string name, R reward) : name_(std::move(name)), reward_(std::move(reward)) {}

  void operator()(EpisodeBatch const& episodes, std::span<float> scores, ScoreLog& log) {
    call_reward(reward_, episodes, scores, log);
    log.add(name_, scores);
  }

 private:
  std::string name_;
  R reward_;
};

/// One score an episode.
/// @throws Error naming the first episode whose score is missing (left unwritten) or not finite
template <RewardModel R>
std::vector<double> score_episodes(R& reward, EpisodeBatch const& episodes, ScoreLog& log) {
  std::vector<float> scores(episodes.size(), std::numeric_limits<float>::quiet_NaN());
  call_reward(reward, episodes, std::span<float>(scores), log);
  for (std::size_t i = 0; i < scores.size(); ++i) {
    if (std::isfinite(scores[i])) continue;
    throw Error("the reward of episode \"" + std::string(episodes[i].id) + "\" (number " +
                std::to_string(i) +
                " of the batch) is missing or not finite: " + std::to_string(scores[i]));
  }
  return {scores.begin(), scores.end()};
}

}  // namespace emprl::rl
