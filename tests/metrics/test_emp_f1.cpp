// SPDX-License-Identifier: Apache-2.0
#include "emprl/metrics/emp_f1.hpp"

#include <array>
#include <vector>

#include "support/catch.hpp"

using namespace emprl;
using Levels = std::array<int, 3>;

TEST_CASE("emp_f1: the mean of three weighted F1 in percent", "[metrics][emp_f1][unit]") {
  // ER agrees always: 100. IP: target 0 0 1 1, response 0 1 1 1: F1 2/3 and 4/5, mean 73.33.
  // EX: target 0 0 0 2, response constant 0: F1 of 0 is 6/7, of 2 is 0: 0.75 * 6/7.
  std::vector<Levels> const targets{{0, 0, 0}, {1, 0, 0}, {2, 1, 0}, {0, 1, 2}};
  std::vector<Levels> const responses{{0, 0, 0}, {1, 1, 0}, {2, 1, 0}, {0, 1, 0}};
  double const ip = 0.5 * (2.0 / 3.0 + 4.0 / 5.0);
  double const ex = 0.75 * 6.0 / 7.0;
  CHECK(metrics::emp_f1(targets, responses) == Approx(100.0 * (1.0 + ip + ex) / 3.0));
  auto const confusions = metrics::level_confusions(targets, responses);
  CHECK(metrics::weighted_f1(confusions[1]) == Approx(ip));
  CHECK(confusions[2].count(2, 0) == 1);
  CHECK(metrics::emp_f1(targets, targets) == 100.0);
}

TEST_CASE("emp_f1: mistakes are errors", "[metrics][emp_f1][unit]") {
  std::vector<Levels> const one{{0, 0, 0}};
  std::vector<Levels> const two{{0, 0, 0}, {0, 0, 3}};
  CHECK_THROWS_AS(metrics::emp_f1(one, two), ShapeError);
  CHECK_THROWS_AS(metrics::emp_f1(two, two), Error);
}
