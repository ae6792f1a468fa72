// SPDX-License-Identifier: Apache-2.0
#include "emprl/rl/kl.hpp"

#include <array>
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

TEST_CASE("kl: abs and k2 are biased, and k2 only in the third order", "[rl][kl][unit]") {
  // p = q (1 + s g) with E_q g = 0: KL = s^2 Var / 2 + O(s^3).
  std::vector<double> const q{0.4, 0.3, 0.2, 0.1}, g{0.5, -1.0, 0.8, -0.6};
  auto const expectations = [&](double s) {
    double exact = 0, abs = 0, k2 = 0;
    for (std::size_t i = 0; i < q.size(); ++i) {
      double const p = q[i] * (1 + s * g[i]);
      exact += p * std::log(p / q[i]);
      abs += p * KlAbs{}(std::log(p), std::log(q[i]));
      k2 += p * KlK2{}(std::log(p), std::log(q[i]));
    }
    return std::array{exact, abs, k2};
  };
  auto const [exact, abs, k2] = expectations(0.5);
  CHECK(abs > 2 * exact);
  CHECK(std::abs(k2 - exact) > 1e-3 * exact);
  // Halving the distance divides the bias of k2 by about eight, KL itself by four.
  auto const half = expectations(0.05), quarter = expectations(0.025);
  double const ratio = (half[2] - half[0]) / (quarter[2] - quarter[0]);
  CHECK(ratio > 7);
  CHECK(ratio < 9);
}

TEST_CASE(
    "kl: k3 varies less than k1 while the policy is near, and more where it has left the "
    "reference",
    "[rl][kl][unit]") {
  auto const deviation = [](auto estimator, std::vector<double> const& p,
                            std::vector<double> const& q) {
    double mean = 0, squares = 0;
    for (std::size_t i = 0; i < p.size(); ++i) {
      double const x = estimator(std::log(p[i]), std::log(q[i]));
      mean += p[i] * x;
      squares += p[i] * x * x;
    }
    return std::sqrt(squares - mean * mean);
  };
  std::vector<double> const q{0.25, 0.25, 0.25, 0.25};
  std::vector<double> const near{0.3, 0.22, 0.26, 0.22}, far{0.98999, 0.01, 5e-6, 5e-6};
  CHECK(deviation(KlK3{}, near, q) < 0.3 * deviation(KlK1{}, near, q));
  CHECK(deviation(KlK3{}, far, q) > 10 * deviation(KlK1{}, far, q));
}

TEST_CASE("kl: in the loss k2 has the gradient of KL(p || q), k3 that of KL(q || p)",
          "[rl][kl][grad]") {
  // Expected gradient over tokens drawn from p, by the logits of p: sum_i p_i k'(log p_i)
  // (1[i=j] - p_j), against the exact gradients of the two divergences.
  std::vector<double> const p{0.5, 0.3, 0.15, 0.05}, q{0.2, 0.3, 0.1, 0.4};
  using D = Dual<double, 1>;
  auto const expected = [&](auto kl) {
    std::vector<double> gradient(p.size(), 0.0);
    for (std::size_t i = 0; i < p.size(); ++i) {
      double const slope = kl(D::variable(std::log(p[i]), 0), D(std::log(q[i]))).derivative[0];
      for (std::size_t j = 0; j < p.size(); ++j) {
        gradient[j] += p[i] * slope * ((i == j ? 1.0 : 0.0) - p[j]);
      }
    }
    return gradient;
  };
  double divergence = 0;
  for (std::size_t i = 0; i < p.size(); ++i) divergence += p[i] * std::log(p[i] / q[i]);
  auto const k2 = expected(KlInLoss<KlK2>{});
  auto const k3 = expected(KlInLoss<KlK3>{});
  for (std::size_t j = 0; j < p.size(); ++j) {
    CHECK(k2[j] == Approx(p[j] * (std::log(p[j] / q[j]) - divergence)).epsilon(1e-13));
    CHECK(k3[j] == Approx(p[j] - q[j]).epsilon(1e-13).margin(1e-15));
  }
}

TEST_CASE("kl: a linear schedule goes from its first to its last coefficient and stays",
          "[rl][kl][unit]") {
  LinearKl beta(0.2, 0.05, 3);
  CHECK(beta.coefficient() == 0.2);
  beta.update(100.0, 32);
  CHECK(beta.coefficient() == Approx(0.15).epsilon(1e-15));
  LinearKl resumed(0.2, 0.05, 3);
  resumed.restore(beta.state());
  for (int i = 0; i < 5; ++i) {
    beta.update(0.0, 32);
    resumed.update(0.0, 32);
    CHECK(beta.coefficient() == resumed.coefficient());
  }
  CHECK(beta.coefficient() == Approx(0.05).epsilon(1e-15));
  CHECK_THROWS_AS(resumed.restore(std::vector<double>{0.5}), ConfigError);
  CHECK_THROWS_AS(LinearKl(0.1, -0.1, 3), ConfigError);
  CHECK_THROWS_AS(LinearKl(0.1, 0.1, 0), ConfigError);
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
