// SPDX-License-Identifier: Apache-2.0
#include "emprl/rl/advantages.hpp"

#include <cmath>
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
