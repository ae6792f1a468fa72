// SPDX-License-Identifier: Apache-2.0
#include "emprl/rl/kl.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "emprl/rl/evaluate.hpp"
#include "emprl/rl/reward_shaping.hpp"
#include "rl/tabular.hpp"
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

namespace {

/// Mean and variance of an estimator over tokens drawn from p, exactly.
struct Moments {
  double mean = 0, variance = 0;
};

template <class K>
Moments moments(K const& estimator, std::vector<double> const& p, std::vector<double> const& q) {
  Moments m;
  for (std::size_t i = 0; i < p.size(); ++i) {
    m.mean += p[i] * estimator(std::log(p[i]), std::log(q[i]));
  }
  for (std::size_t i = 0; i < p.size(); ++i) {
    double const d = estimator(std::log(p[i]), std::log(q[i])) - m.mean;
    m.variance += p[i] * d * d;
  }
  return m;
}

double divergence(std::vector<double> const& p, std::vector<double> const& q) {
  double kl = 0;
  for (std::size_t i = 0; i < p.size(); ++i) kl += p[i] * std::log(p[i] / q[i]);
  return kl;
}

/// q and p = q (1 + s g), with E_q g = 0: a policy at distance s of its reference.
std::vector<double> const base{0.4, 0.3, 0.2, 0.1}, direction{0.5, -1.0, 0.8, -0.6};

std::vector<double> at_distance(double s) {
  std::vector<double> p;
  for (std::size_t i = 0; i < base.size(); ++i) p.push_back(base[i] * (1 + s * direction[i]));
  return p;
}

}  // namespace

TEST_CASE("kl: mean and variance of every estimator on a fair coin against a biased one",
          "[rl][kl][unit]") {
  // p = 1/2, 1/2 and q = 1/4, 3/4, so that log p/q = log 2 and log 2/3. Of two numbers x and y, as
  // likely the one as the other, the mean is (x + y) / 2 and the variance ((x - y) / 2)^2.
  std::vector<double> const p{0.5, 0.5}, q{0.25, 0.75};
  double const a = std::log(2.0), b = std::log(2.0 / 3.0);
  auto const check = [&](auto estimator, double x, double y) {
    Moments const m = moments(estimator, p, q);
    CHECK(m.mean == Approx((x + y) / 2).epsilon(1e-14));
    CHECK(m.variance == Approx((x - y) * (x - y) / 4).epsilon(1e-14));
  };
  check(KlK1{}, a, b);
  check(KlAbs{}, a, -b);
  check(KlK2{}, a * a / 2, b * b / 2);
  check(KlK3{}, 0.5 - 1 + a, 1.5 - 1 + b);
  double const exact = (a + b) / 2;
  CHECK(moments(KlK1{}, p, q).mean == Approx(exact).epsilon(1e-14));
  CHECK(moments(KlK3{}, p, q).mean == Approx(exact).epsilon(1e-14));
}

TEST_CASE("kl: bias near the reference: none of k1 and k3, first order of abs, third of k2",
          "[rl][kl][unit]") {
  // KL is s^2 E g^2 / 2 + O(s^3). abs has E|log p/q| = s E|g| + O(s^2), with E|g| = 0.72, which is
  // 1 / s larger than KL itself. At s = 1e-3 the next order is a part in a thousand.
  double const s = 1e-3;
  std::vector<double> const p = at_distance(s);
  double const exact = divergence(p, base);
  CHECK(exact == Approx(s * s * 0.564 / 2).epsilon(2e-3));
  // Sums of numbers of size s, each rounded to 1e-16.
  CHECK(moments(KlK1{}, p, base).mean == Approx(exact).epsilon(0).margin(1e-15));
  CHECK(moments(KlK3{}, p, base).mean == Approx(exact).epsilon(0).margin(1e-15));
  CHECK(moments(KlAbs{}, p, base).mean == Approx(s * 0.72).epsilon(2e-3));
  auto const bias_of_k2 = [&](double distance) {
    std::vector<double> const near = at_distance(distance);
    return moments(KlK2{}, near, base).mean - divergence(near, base);
  };
  CHECK(bias_of_k2(0.02) / bias_of_k2(0.01) == Approx(8).epsilon(0.03));
}

TEST_CASE("kl: variance near the reference: second order of k1 and abs, fourth of k2 and k3",
          "[rl][kl][unit]") {
  // With log p/q = s g + O(s^2): Var k1 = s^2 Var g, Var abs = s^2 Var|g|, and k2 and k3, both
  // s^2 g^2 / 2 to leading order, have s^4 Var(g^2) / 4.
  double g2 = 0, g4 = 0;
  for (std::size_t i = 0; i < base.size(); ++i) {
    g2 += base[i] * std::pow(direction[i], 2);
    g4 += base[i] * std::pow(direction[i], 4);
  }
  double const s = 1e-4;  // the next order is less than ten s
  std::vector<double> const p = at_distance(s);
  CHECK(moments(KlK1{}, p, base).variance == Approx(s * s * g2).epsilon(0.01));
  CHECK(moments(KlAbs{}, p, base).variance == Approx(s * s * (g2 - 0.72 * 0.72)).epsilon(0.01));
  double const fourth = std::pow(s, 4) * (g4 - g2 * g2) / 4;
  CHECK(moments(KlK2{}, p, base).variance == Approx(fourth).epsilon(0.01));
  CHECK(moments(KlK3{}, p, base).variance == Approx(fourth).epsilon(0.01));
}

TEST_CASE("kl: abs never varies more than k1, and k1's variance is twice k2's mean less KL squared",
          "[rl][kl][unit]") {
  // Both have the square (log p/q)^2, and E|log p/q| >= |KL|.
  for (double const s : {1e-2, 0.3, 0.9}) {
    std::vector<double> const p = at_distance(s);
    double const exact = divergence(p, base);
    Moments const k1 = moments(KlK1{}, p, base), abs = moments(KlAbs{}, p, base);
    CHECK(abs.mean > exact);
    CHECK(abs.variance < k1.variance);
    CHECK(k1.variance == Approx(2 * moments(KlK2{}, p, base).mean - exact * exact).epsilon(1e-12));
  }
}

TEST_CASE("kl: the full KL has neither bias nor variance", "[rl][kl][unit]") {
  // Whichever token was drawn, it is the divergence of the distributions that it was drawn from.
  std::size_t const n = base.size();
  std::vector<double> const p = at_distance(0.9);
  tests::Tabular<double> policy(1, 1, n), reference(1, 1, n);
  rl::Rollout r;
  rl::PromptBatch prompts;
  for (std::size_t i = 0; i < n; ++i) {
    policy.logits[i] = std::log(p[i]);
    reference.logits[i] = std::log(base[i]);
    prompts.contexts.push_back(std::array{std::int32_t{0}});
    r.responses.push_back(std::array{static_cast<std::int32_t>(i)});
  }
  r.mask = response_mask(r.responses.view());
  evaluate_full_kl(policy, reference, prompts, 3, r);
  REQUIRE(r.kl.size() == n);
  for (double const kl : r.kl) {
    CHECK(kl == r.kl[0]);
    CHECK(kl == Approx(divergence(p, base)).epsilon(1e-13));
  }
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
  double const exact = divergence(p, q);
  auto const k2 = expected(KlInLoss<KlK2>{});
  auto const k3 = expected(KlInLoss<KlK3>{});
  for (std::size_t j = 0; j < p.size(); ++j) {
    CHECK(k2[j] == Approx(p[j] * (std::log(p[j] / q[j]) - exact)).epsilon(1e-13));
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
