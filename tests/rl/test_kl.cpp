// SPDX-License-Identifier: Apache-2.0
#include "emprl/rl/kl.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"

using namespace emprl;
using namespace emprl::rl;

TEST_CASE("kl: the four estimators by hand", "[rl][kl][unit]") {
  double const p = -1.0, q = -1.5;
  CHECK(KlK1{}(p, q) == 0.5);
  CHECK(KlAbs{}(q, p) == 0.5);
  CHECK(KlK2{}(p, q) == 0.125);
  CHECK(KlK3{}(p, q) == Approx(std::exp(-0.5) - 1 + 0.5).epsilon(1e-15));
  CHECK(KlK1{}(p, p) == 0.0);
  CHECK(KlK3{}(p, p) == 0.0);
}

TEST_CASE("kl: k1 and k3 are unbiased on an exact distribution, k3 is never negative",
          "[rl][kl][unit]") {
  std::vector<double> const p{0.5, 0.3, 0.15, 0.05}, q{0.25, 0.25, 0.25, 0.25};
  double exact = 0, k1 = 0, k3 = 0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    exact += p[i] * std::log(p[i] / q[i]);
    k1 += p[i] * KlK1{}(std::log(p[i]), std::log(q[i]));
    double const one = KlK3{}(std::log(p[i]), std::log(q[i]));
    CHECK(one >= 0);
    k3 += p[i] * one;
  }
  CHECK(k1 == Approx(exact).epsilon(1e-14));
  CHECK(k3 == Approx(exact).epsilon(1e-14));
}

TEST_CASE("kl: the adaptive coefficient moves by at most a fifth of n / horizon",
          "[rl][kl][unit]") {
  AdaptiveKl c(0.2, 6, 10000);
  c.update(1000.0, 32);
  CHECK(c.coefficient() == Approx(0.2 * (1 + 0.2 * 32 / 10000)).epsilon(1e-15));
  AdaptiveKl d(0.2, 6, 10000);
  d.update(-5.0, 32);
  CHECK(d.coefficient() == Approx(0.2 * (1 - 0.2 * 32 / 10000)).epsilon(1e-15));
  AdaptiveKl e(0.2, 6, 10000);
  e.update(6.0, 32);
  CHECK(e.coefficient() == 0.2);
}

TEST_CASE("kl: the adaptive coefficient is saved and restored exactly", "[rl][kl][unit]") {
  AdaptiveKl a(0.2, 6, 10000), b(0.5, 6, 10000);
  a.update(9.0, 17);
  b.restore(a.state());
  CHECK(a.coefficient() == b.coefficient());
  CHECK_THROWS_AS(b.restore(std::vector<double>{}), ConfigError);
  CHECK_THROWS_AS(b.restore(std::vector<double>{-1.0}), ConfigError);
}

TEST_CASE("kl: impossible controllers are refused by name", "[rl][kl][unit]") {
  CHECK_THROWS_WITH(FixedKl(-0.1), Catch::Matchers::ContainsSubstring("kl_coefficient"));
  CHECK_THROWS_WITH(AdaptiveKl(0.2, 0, 1), Catch::Matchers::ContainsSubstring("kl_target"));
  CHECK_THROWS_WITH(AdaptiveKl(0.2, 6, std::numeric_limits<double>::quiet_NaN()),
                    Catch::Matchers::ContainsSubstring("kl_horizon"));
}
