// SPDX-License-Identifier: Apache-2.0
#include "emprl/rl/advantages.hpp"

#include <cmath>
#include <cstdint>
#include <vector>

#include "support/catch.hpp"

using namespace emprl;
using namespace emprl::rl;

TEST_CASE("advantages: GAE equals its definition, the discounted sum of residuals",
          "[rl][advantages][unit]") {
  std::vector<index_t> const offsets{0, 1, 1, 3, 36, 133};
  std::size_t const n = 133;
  std::vector<double> r, v, a(n), ret(n);
  for (std::size_t t = 0; t < n; ++t) {
    r.push_back(std::sin(1.1 * static_cast<double>(t)));
    v.push_back(std::cos(0.7 * static_cast<double>(t)));
  }
  for (double const gamma : {1.0, 0.9}) {
    for (double const lambda : {0.0, 0.95, 1.0}) {
      Gae{gamma, lambda}(offsets, r, v, a, ret);
      for (std::size_t i = 0; i + 1 < offsets.size(); ++i) {
        auto const end = static_cast<std::size_t>(offsets[i + 1]);
        for (auto t = static_cast<std::size_t>(offsets[i]); t < end; ++t) {
          double sum = 0;
          for (std::size_t s = t; s < end; ++s) {
            double const next = s + 1 < end ? v[s + 1] : 0;
            sum +=
                std::pow(gamma * lambda, static_cast<double>(s - t)) * (r[s] + gamma * next - v[s]);
          }
          CHECK(a[t] == Approx(sum).epsilon(1e-12).margin(1e-13));
          CHECK(ret[t] == Approx(sum + v[t]).epsilon(1e-12).margin(1e-13));
        }
      }
    }
  }
}

TEST_CASE("advantages: with lambda 1 and gamma 1 the return is the sum of rewards to come",
          "[rl][advantages][unit]") {
  std::vector<index_t> const offsets{0, 3};
  std::vector<double> const r{1, 2, 4}, v{5, -6, 7};
  std::vector<double> a(3), ret(3);
  Gae{1, 1}(offsets, r, v, a, ret);
  CHECK(ret == std::vector<double>{7, 6, 4});
  CHECK(a == std::vector<double>{2, 12, -3});
}

TEST_CASE("advantages: arrays of the wrong length are refused", "[rl][advantages][unit]") {
  std::vector<index_t> const offsets{0, 2};
  std::vector<double> two(2), one(1);
  CHECK_THROWS_AS((Gae{}(offsets, two, one, two, two)), ShapeError);
  CHECK_THROWS_AS((Gae{}(offsets, one, one, one, one)), ShapeError);
}

namespace {

/// Rows of one, two, no and three tokens; token rewards as given.
Rollout rollout_of(std::vector<std::vector<double>> const& rewards) {
  Rollout r;
  for (auto const& row : rewards) {
    r.responses.push_back(std::vector<std::int32_t>(row.size(), 2));
    r.rewards.insert(r.rewards.end(), row.begin(), row.end());
  }
  r.values.assign(r.rewards.size(), 0.0);
  return r;
}

template <class A>
std::vector<double> advantages_of(A&& estimator, Rollout const& r, std::vector<double>& returns) {
  std::vector<double> a(r.rewards.size(), std::nan(""));
  returns.assign(r.rewards.size(), std::nan(""));
  estimator(r, a, returns);
  return a;
}

}  // namespace

TEST_CASE("advantages: a group's rows are compared with their group alone, by hand",
          "[rl][advantages][unit]") {
  // Returns 1, 3 and 10, 4: means 2 and 7, deviations sqrt(2) and sqrt(18).
  Rollout const r = rollout_of({{1}, {1, 2}, {5, 5}, {4}});
  std::vector<double> returns;
  auto const a = advantages_of(GroupRelative{2}, r, returns);
  double const one = 1 / (std::sqrt(2.0) + 1e-8), three = 3 / (std::sqrt(18.0) + 1e-8);
  std::vector<double> const expected{-one, one, one, three, three, -three};
  for (std::size_t t = 0; t < a.size(); ++t) CHECK(a[t] == Approx(expected[t]).epsilon(1e-15));
  CHECK(returns == std::vector<double>{1, 3, 3, 10, 10, 4});
  CHECK(advantages_of(GroupRelative{2, false}, r, returns) ==
        std::vector<double>{-1, 1, 1, 3, 3, -3});
}

TEST_CASE("advantages: leave-one-out subtracts the mean of the others", "[rl][advantages][unit]") {
  Rollout const r = rollout_of({{1}, {1, 2}, {8}, {4}, {4}, {4}});
  std::vector<double> returns;
  // Returns 1, 3, 8: others' means 5.5, 4.5, 2; then a group of equals.
  CHECK(advantages_of(LeaveOneOut{3}, r, returns) ==
        std::vector<double>{-4.5, -1.5, -1.5, 6, 0, 0, 0});
}

TEST_CASE("advantages: equal returns of a group give zeros, an empty response takes part",
          "[rl][advantages][unit]") {
  Rollout const r = rollout_of({{2}, {2}, {}, {3}});
  std::vector<double> returns;
  auto const a = advantages_of(GroupRelative{2}, r, returns);
  CHECK(a[0] == 0);
  CHECK(a[1] == 0);
  CHECK(a[2] > 0);
}

TEST_CASE("advantages: rows that are no whole number of groups are refused",
          "[rl][advantages][unit]") {
  Rollout const r = rollout_of({{1}, {2}, {3}});
  std::vector<double> returns;
  CHECK_THROWS_WITH(advantages_of(GroupRelative{2}, r, returns),
                    Catch::Matchers::ContainsSubstring("groups of 2"));
  CHECK_THROWS_AS(advantages_of(LeaveOneOut{1}, r, returns), ConfigError);
}

TEST_CASE("advantages: the running baseline is the mean of earlier batches, and is resumed",
          "[rl][advantages][unit]") {
  RunningBaseline estimator(1.0, 0.5);
  std::vector<double> returns;
  // First batch: its own mean, (3 + 1) / 2.
  CHECK(advantages_of(estimator, rollout_of({{1, 2}, {1}}), returns) ==
        std::vector<double>{1, 0, -1});
  CHECK(returns == std::vector<double>{3, 2, 1});
  RunningBaseline resumed(1.0, 0.5);
  resumed.restore(estimator.state());
  // Second: still 2, though this batch's mean is 6; third: 4.
  for (RunningBaseline* e : {&estimator, &resumed}) {
    CHECK(advantages_of(*e, rollout_of({{6}}), returns) == std::vector<double>{4});
    CHECK(advantages_of(*e, rollout_of({{6}}), returns) == std::vector<double>{2});
  }
  CHECK_THROWS_AS(resumed.restore(std::vector<double>{1.0}), ConfigError);
  CHECK_THROWS_AS(RunningBaseline(1.0, 1.0), ConfigError);
}
