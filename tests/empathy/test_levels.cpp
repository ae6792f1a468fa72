// SPDX-License-Identifier: Apache-2.0
#include "emprl/empathy/levels.hpp"

#include <cmath>
#include <limits>

#include "support/catch.hpp"

namespace {

using emprl::empathy::check_probabilities;
using emprl::empathy::empathy_reward;
using emprl::empathy::LevelProbabilities;
using emprl::empathy::Levels;
using emprl::empathy::most_probable;

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
