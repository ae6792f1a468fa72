// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the three identifiers say of one response, and the reward that follows from it.

#include <array>
#include <cmath>
#include <cstddef>
#include <string>
#include <string_view>

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

/// How the mechanisms of the mask make one number of a response; each in [0, 1].
enum class RewardVariant {
  product,  ///< prod_k p_k(l_k), as published: one mechanism that is far off spoils the whole
  sum,      ///< mean_k p_k(l_k): each mechanism counts by itself, whatever the others do
  match     ///< the share of the mechanisms whose likeliest level is the target's
};

/// @throws ConfigError for a name that is none
inline RewardVariant reward_variant_of(std::string_view name) {
  if (name == "product") return RewardVariant::product;
  if (name == "sum") return RewardVariant::sum;
  if (name == "match") return RewardVariant::match;
  throw ConfigError("the empathy reward \"" + std::string(name) +
                    "\" is unknown; product, sum and match are understood.");
}

/// What one mechanism brings to the reward: p(l), or for RewardVariant::match 1 where l is the
/// likeliest level and 0 elsewhere.
/// @throws ConfigError for a level outside 0 .. 2
inline double mechanism_reward(MechanismProbabilities const& p, int target,
                               RewardVariant variant = RewardVariant::product) {
  if (target < 0 || target >= data::level_count) {
    throw ConfigError("a target level must be 0, 1 or 2.");
  }
  if (variant == RewardVariant::match) return most_probable(p) == target ? 1.0 : 0.0;
  return p[static_cast<std::size_t>(target)];
}

/// The empathy reward of a response whose target has levels l, over the K mechanisms k of the mask;
/// in [0, 1]:
///   product   R = exp(-sum_k CE_k) = prod_k p_k(l_k)     (EmpRL, arXiv 2408.02976)
///   sum       R = 1/K sum_k p_k(l_k)
///   match     R = 1/K sum_k [argmax_l p_k(l) = l_k],     the lowest of equals
/// The sum is divided by K so that the scale, and with it the weight of the KL penalty where scores
/// are not normalised, does not depend on the mask. With one mechanism product and sum are equal.
/// @throws ConfigError for an empty mask or a level outside 0 .. 2
inline double empathy_reward(LevelProbabilities const& p, Levels const& target,
                             MechanismMask const& mechanisms = every_mechanism,
                             RewardVariant variant = RewardVariant::product) {
  double product = 1.0;
  double sum = 0.0;
  int counted = 0;
  for (std::size_t k = 0; k < 3; ++k) {
    if (!mechanisms[k]) continue;
    double const one = mechanism_reward(p[k], target[k], variant);
    product *= one;
    sum += one;
    ++counted;
  }
  expects<ConfigError>(counted > 0, "the empathy reward needs at least one mechanism.");
  return variant == RewardVariant::product ? product : sum / counted;
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
