// SPDX-License-Identifier: Apache-2.0
#pragma once

// The reward of EmpRL's PPO: how well the levels that the identifiers see in a response match the
// levels of the human response to the same context.

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "emprl/empathy/levels.hpp"
#include "emprl/rl/concepts.hpp"
#include "emprl/rl/types.hpp"
#include "emprl/train/empathy_scorer.hpp"

namespace emprl::train {

/// The empathy reward as an rl::RewardModel: empathy::empathy_reward in one of its variants.
///   score = prod_k p_k(l_k),  mean_k p_k(l_k)  or  the share of k whose likeliest level is l_k
/// with l the target's data::Levels, the payload of the episode. What each mechanism of the mask
/// brings to it (its factor, or its term of the mean) is logged under the mechanism's name.
template <class Scorer>
class EmpathyReward {
 public:
  /// @param scorer p[row][mechanism][level] of contexts and responses; must outlive the reward
  explicit EmpathyReward(Scorer const& scorer,
                         empathy::MechanismMask mechanisms = empathy::every_mechanism,
                         empathy::RewardVariant variant = empathy::RewardVariant::product)
      : scorer_(scorer), mechanisms_(mechanisms), variant_(variant) {}

  /// @throws Error naming the first episode without levels; ConfigError for an empty mask or a
  /// level outside 0 .. 2
  void operator()(rl::EpisodeBatch const& episodes, std::span<float> scores,
                  rl::ScoreLog& log) const {
    expects(scores.size() == episodes.size(), "a reward writes one score an episode");
    std::vector<std::string> contexts, responses;
    for (rl::Episode const& episode : episodes) {
      contexts.emplace_back(episode.context);
      responses.emplace_back(episode.response);
    }
    std::vector<empathy::LevelProbabilities> const p = scorer_(contexts, responses);
    expects(p.size() == episodes.size(), "a scorer gives one judgement an episode");
    auto const target = [&](std::size_t i) -> data::Levels const& {
      return episodes[i].template payload_as<data::Levels>();
    };
    std::vector<float> parts(episodes.size());
    for (data::Mechanism const mechanism : data::all_mechanisms) {
      auto const k = static_cast<std::size_t>(mechanism);
      if (!mechanisms_[k]) continue;
      for (std::size_t i = 0; i < p.size(); ++i) {
        parts[i] = static_cast<float>(empathy::mechanism_reward(p[i][k], target(i)[k], variant_));
      }
      log.add(std::string(data::mechanism_name(mechanism)), parts);
    }
    for (std::size_t i = 0; i < p.size(); ++i) {
      scores[i] =
          static_cast<float>(empathy::empathy_reward(p[i], target(i), mechanisms_, variant_));
    }
  }

 private:
  Scorer const& scorer_;
  empathy::MechanismMask mechanisms_;
  empathy::RewardVariant variant_;
};

static_assert(rl::RewardModel<EmpathyReward<EmpathyScorer<float>>>);

}  // namespace emprl::train
