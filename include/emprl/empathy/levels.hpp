// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the three identifiers say of one response, and the reward that follows from it.

#include <array>
#include <cmath>
#include <cstddef>
#include <string>

#include "emprl/core/error.hpp"
#include "emprl/data/dialogue.hpp"

namespace emprl::empathy {

using data::Levels;

/// p(level) of one mechanism, level 0 .. 2; sums to 1.
using MechanismProbabilities = std::array<double, 3>;

/// p[mechanism][level], mechanisms in the order er, ip, ex.
using LevelProbabilities = std::array<MechanismProbabilities, 3>;

/// Which mechanisms count, in the order er, ip, ex. Leaving one out is an ablation.
using MechanismMask = std::array<bool, 3>;

/// The reward as published: all three mechanisms.
inline constexpr MechanismMask every_mechanism{true, true, true};

/// The likeliest level of one mechanism; the lowest of equals.
constexpr int most_probable(MechanismProbabilities const& p) {
  int best = 0;
  for (int level = 1; level < data::level_count; ++level) {
    if (p[static_cast<std::size_t>(level)] > p[static_cast<std::size_t>(best)]) best = level;
  }
  return best;
}

/// The likeliest level of each mechanism; the lowest of equals.
constexpr Levels most_probable(LevelProbabilities const& p) {
  return {most_probable(p[0]), most_probable(p[1]), most_probable(p[2])};
}

/// The empathy reward of a response whose target has levels l:
///   R = exp(-sum_k CE_k) = prod_k p_k(l_k)   over the mechanisms k of the mask; in [0, 1].
/// @throws ConfigError for an empty mask or a level outside 0 .. 2
inline double empathy_reward(LevelProbabilities const& p, Levels const& target,
                             MechanismMask const& mechanisms = every_mechanism) {
  expects<ConfigError>(mechanisms[0] || mechanisms[1] || mechanisms[2],
                       "the empathy reward needs at least one mechanism.");
  double reward = 1.0;
  for (std::size_t k = 0; k < 3; ++k) {
    if (!mechanisms[k]) continue;
    expects<ConfigError>(target[k] >= 0 && target[k] < data::level_count,
                         "a target level must be 0, 1 or 2.");
    reward *= p[k][static_cast<std::size_t>(target[k])];
  }
  return reward;
}

/// @throws Error unless every mechanism's probabilities are finite, not negative and sum to 1
/// within 1e-4
inline void check_probabilities(LevelProbabilities const& p) {
  for (data::Mechanism const mechanism : data::all_mechanisms) {
    double sum = 0.0;
    bool good = true;
    for (double const x : p[static_cast<std::size_t>(mechanism)]) {
      good = good && x >= 0.0;  // false for NaN
      sum += x;
    }
    if (!good || !(std::abs(sum - 1.0) <= 1e-4)) {
      throw Error("the identifier of " + std::string(data::mechanism_title(mechanism)) +
                  " gave numbers that are not probabilities.");
    }
  }
}

}  // namespace emprl::empathy
