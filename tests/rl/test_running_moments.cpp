// SPDX-License-Identifier: Apache-2.0
#include "emprl/rl/running_moments.hpp"

#include <cmath>
#include <vector>

#include "support/catch.hpp"

using namespace emprl::rl;

TEST_CASE("running_moments: batches merge to the moments of all numbers",
          "[rl][running_moments][unit]") {
  RunningMoments moments;
  std::vector<double> all;
  for (int batch = 0; batch < 7; ++batch) {
    std::vector<double> x;
    for (int i = 0; i <= batch * 3; ++i) x.push_back(std::sin(1.7 * i + batch) + 0.3 * batch);
    all.insert(all.end(), x.begin(), x.end());
    moments.update(x);
    double mean = 0, squares = 0;
    for (double const v : all) mean += v / static_cast<double>(all.size());
    for (double const v : all) squares += (v - mean) * (v - mean);
    CHECK(moments.mean == Approx(mean).epsilon(1e-13));
    CHECK(moments.variance ==
          Approx(squares / static_cast<double>(all.size())).epsilon(1e-13).margin(1e-15));
    CHECK(moments.count == Approx(static_cast<double>(all.size())));
    if (all.size() > 1) {
      CHECK(moments.deviation ==
            Approx(std::sqrt(squares / static_cast<double>(all.size() - 1))).epsilon(1e-13));
    }
  }
}

TEST_CASE("running_moments: one number has deviation 1, none changes nothing",
          "[rl][running_moments][unit]") {
  RunningMoments moments;
  moments.update({});
  CHECK(moments == RunningMoments{});
  moments.update(std::vector<double>{3.0});
  CHECK(moments.mean == 3.0);
  CHECK(moments.variance == Approx(0.0).margin(1e-20));
  CHECK(moments.deviation == 1.0);
  std::vector<double> s{3.0};
  scale_scores(s, moments, ScoreScaling::normalise);
  CHECK(s[0] == 0.0);
}

TEST_CASE("running_moments: identical scores normalise to 0", "[rl][running_moments][unit]") {
  RunningMoments moments;
  std::vector<double> s{0.25, 0.25, 0.25};
  moments.update(s);
  scale_scores(s, moments, ScoreScaling::normalise);
  for (double const v : s) CHECK(v == 0.0);
  std::vector<double> untouched{0.25};
  scale_scores(untouched, moments, ScoreScaling::none);
  CHECK(untouched[0] == 0.25);
}
