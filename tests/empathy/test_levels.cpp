// SPDX-License-Identifier: Apache-2.0
#include "emprl/empathy/levels.hpp"

#include <cmath>
#include <limits>

#include "support/catch.hpp"

namespace {

using Catch::Matchers::ContainsSubstring;
using emprl::empathy::check_probabilities;
using emprl::empathy::empathy_reward;
using emprl::empathy::every_mechanism;
using emprl::empathy::LevelProbabilities;
using emprl::empathy::Levels;
using emprl::empathy::MechanismMask;
using emprl::empathy::most_probable;
using emprl::empathy::reward_variant_of;
using emprl::empathy::RewardVariant;

LevelProbabilities const example{{{0.5, 0.25, 0.25}, {0.1, 0.1, 0.8}, {0.3, 0.6, 0.1}}};

}  // namespace

TEST_CASE("levels: the likeliest level wins and ties go to the lower one",
          "[empathy][levels][unit]") {
  CHECK(most_probable(example) == Levels{0, 2, 1});
  CHECK(most_probable(LevelProbabilities{{{0.4, 0.4, 0.2}, {0.2, 0.4, 0.4}, {0.3, 0.3, 0.4}}}) ==
        Levels{0, 1, 2});
}

TEST_CASE("levels: the reward is the product of the target levels' probabilities",
          "[empathy][levels][unit]") {
  CHECK(empathy_reward(example, {0, 2, 1}) == Approx(0.5 * 0.8 * 0.6));
  CHECK(empathy_reward(example, {1, 0, 2}) == Approx(0.25 * 0.1 * 0.1));
  double const cross_entropy = -std::log(0.5) - std::log(0.8) - std::log(0.6);
  CHECK(empathy_reward(example, {0, 2, 1}) == Approx(std::exp(-cross_entropy)));
}

TEST_CASE("levels: a mechanism that is left out does not count", "[empathy][levels][unit]") {
  CHECK(empathy_reward(example, {0, 2, 1}, {true, false, true}) == Approx(0.5 * 0.6));
  CHECK(empathy_reward(example, {2, 0, 1}, {false, false, true}) == Approx(0.6));
  // A level that is not asked for may be anything.
  CHECK(empathy_reward(example, {0, -1, 1}, {true, false, true}) == Approx(0.5 * 0.6));
  CHECK_THROWS_AS(empathy_reward(example, {0, 0, 0}, {false, false, false}), emprl::ConfigError);
  CHECK_THROWS_AS(empathy_reward(example, {0, 3, 0}), emprl::ConfigError);
}

TEST_CASE("levels: the sum is the mean of the target levels' probabilities",
          "[empathy][levels][unit]") {
  auto const sum = [](Levels const& target, MechanismMask const& mask) {
    return empathy_reward(example, target, mask, RewardVariant::sum);
  };
  CHECK(sum({0, 2, 1}, every_mechanism) == Approx((0.5 + 0.8 + 0.6) / 3));
  CHECK(sum({1, 0, 2}, every_mechanism) == Approx((0.25 + 0.1 + 0.1) / 3));
  // Divided by the mechanisms that count: the scale does not depend on the mask.
  CHECK(sum({0, 2, 1}, {true, false, true}) == Approx((0.5 + 0.6) / 2));
  LevelProbabilities const sure{{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}};
  CHECK(empathy_reward(sure, {0, 1, 2}, every_mechanism, RewardVariant::sum) == 1);
  CHECK(empathy_reward(sure, {1, 2, 0}, every_mechanism, RewardVariant::sum) == 0);
}

TEST_CASE("levels: the match is the share of mechanisms whose likeliest level is the target's",
          "[empathy][levels][unit]") {
  auto const match = [](Levels const& target, MechanismMask const& mask = every_mechanism) {
    return empathy_reward(example, target, mask, RewardVariant::match);
  };
  CHECK(match({0, 2, 1}) == 1);
  CHECK(match({0, 2, 0}) == Approx(2.0 / 3));
  CHECK(match({1, 0, 2}) == 0);
  CHECK(match({0, 2, 0}, {true, false, true}) == Approx(0.5));
  // Of equals the lowest is the likeliest: level 1 of the first two, say.
  LevelProbabilities const ties{{{0.2, 0.4, 0.4}, {0.2, 0.4, 0.4}, {0, 0, 1}}};
  CHECK(empathy_reward(ties, {1, 2, 2}, every_mechanism, RewardVariant::match) == Approx(2.0 / 3));
}

TEST_CASE("levels: every variant refuses an empty mask and a level that is none",
          "[empathy][levels][unit]") {
  for (RewardVariant const variant :
       {RewardVariant::product, RewardVariant::sum, RewardVariant::match}) {
    CHECK_THROWS_AS(empathy_reward(example, {0, 0, 0}, {false, false, false}, variant),
                    emprl::ConfigError);
    CHECK_THROWS_AS(empathy_reward(example, {0, 3, 0}, every_mechanism, variant),
                    emprl::ConfigError);
    CHECK_THROWS_AS(empathy_reward(example, {0, 0, -1}, every_mechanism, variant),
                    emprl::ConfigError);
    // A level that is not asked for may be anything; alone, product and sum are p(l).
    double const alone = empathy_reward(example, {9, 9, 1}, {false, false, true}, variant);
    CHECK(alone == (variant == RewardVariant::match ? 1.0 : 0.6));
  }
}

TEST_CASE("levels: variants have names, and others are refused by name",
          "[empathy][levels][unit]") {
  CHECK(reward_variant_of("product") == RewardVariant::product);
  CHECK(reward_variant_of("sum") == RewardVariant::sum);
  CHECK(reward_variant_of("match") == RewardVariant::match);
  CHECK_THROWS_WITH(reward_variant_of("mean"), ContainsSubstring("\"mean\""));
}

TEST_CASE("levels: numbers that are not probabilities are refused", "[empathy][levels][unit]") {
  CHECK_NOTHROW(check_probabilities(example));
  auto const with = [](double x) {
    LevelProbabilities p = example;
    p[1][2] = x;
    return p;
  };
  CHECK_THROWS_AS(check_probabilities(with(0.9)), emprl::Error);
  CHECK_THROWS_AS(check_probabilities(with(std::nan(""))), emprl::Error);
  CHECK_THROWS_AS(check_probabilities(with(std::numeric_limits<double>::infinity())), emprl::Error);
}
