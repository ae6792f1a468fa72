// SPDX-License-Identifier: Apache-2.0
#include "emprl/metrics/agreement.hpp"

#include <vector>

#include "support/catch.hpp"

using namespace emprl;
using metrics::Confusion;

TEST_CASE("agreement: scores are scikit-learn's", "[metrics][agreement][golden]") {
  std::vector<int> const truth{0, 0, 0, 1, 1, 2, 2, 2, 2, 0, 1, 0};
  std::vector<int> const predicted{0, 1, 0, 1, 2, 2, 2, 0, 2, 0, 0, 0};
  Confusion const m(3, truth, predicted);
  CHECK(m.total() == 12);
  CHECK(m.count(1, 2) == 1);
  CHECK(m.count(2, 1) == 0);
  CHECK(metrics::accuracy(m) == Approx(0.6666666666666666).epsilon(1e-14));
  CHECK(metrics::macro_f1(m) == Approx(0.6257575757575758).epsilon(1e-14));
  CHECK(metrics::weighted_f1(m) == Approx(0.6530303030303031).epsilon(1e-14));
  CHECK(metrics::cohen_kappa(m) == Approx(0.4782608695652175).epsilon(1e-14));
  CHECK(metrics::marginal_divergence(m) == Approx(0.008788112561672307).epsilon(1e-12));
  auto const first = metrics::class_score(m, 0);
  CHECK(first.precision == Approx(2.0 / 3.0));
  CHECK(first.recall == Approx(0.8));
  CHECK(first.f1 == Approx(0.72727273));
  CHECK(first.support == 5);
  CHECK(metrics::class_score(m, 1).f1 == Approx(0.4));
  CHECK(metrics::class_score(m, 2).f1 == Approx(0.75));
}

TEST_CASE("agreement: a class that never occurs does not count in the macro mean",
          "[metrics][agreement][golden]") {
  std::vector<int> const truth{0, 0, 0, 2, 2, 2, 2};
  std::vector<int> const predicted{0, 0, 2, 2, 2, 0, 0};
  CHECK(metrics::macro_f1(Confusion(3, truth, predicted)) == Approx(0.5714285714285714));
}

TEST_CASE("agreement: the ends of the scales", "[metrics][agreement][unit]") {
  std::vector<int> const mixed{0, 1, 2, 0, 1, 2};
  std::vector<int> const turned{1, 2, 0, 1, 2, 0};
  std::vector<int> const constant(6, 1);
  CHECK(metrics::cohen_kappa(Confusion(3, mixed, mixed)) == 1.0);
  CHECK(metrics::cohen_kappa(Confusion(3, mixed, turned)) == Approx(-0.5));
  CHECK(metrics::cohen_kappa(Confusion(3, mixed, constant)) == Approx(0.0).margin(1e-15));
  CHECK(metrics::cohen_kappa(Confusion(3, constant, constant)) == 0.0);
  CHECK(metrics::weighted_f1(Confusion(3, constant, constant)) == 1.0);
  CHECK(metrics::accuracy(Confusion(3, mixed, turned)) == 0.0);
  CHECK(metrics::macro_f1(Confusion(3)) == 0.0);
  CHECK(metrics::weighted_f1(Confusion(3)) == 0.0);
  CHECK(metrics::accuracy(Confusion(3)) == 0.0);
}

TEST_CASE("agreement: Jensen-Shannon lies between 0 for equal and 1 bit for disjoint",
          "[metrics][agreement][unit]") {
  std::vector<double> const p{0.5, 0.5, 0.0};
  std::vector<double> const q{0.0, 0.0, 1.0};
  std::vector<double> const r{1.0, 0.0, 0.0};
  CHECK(metrics::jensen_shannon(p, p) == 0.0);
  CHECK(metrics::jensen_shannon(p, q) == Approx(1.0));
  // Middle (3/4, 1/4): (1/2 log2(2/3) + 1/2 log2 2 + log2(4/3)) / 2.
  double const expected = 0.5 * (0.5 * std::log2(2.0 / 3.0) + 0.5 + std::log2(4.0 / 3.0));
  CHECK(metrics::jensen_shannon(p, r) == Approx(expected));
  CHECK(metrics::jensen_shannon(r, p) == Approx(expected));
  CHECK_THROWS_AS(metrics::jensen_shannon(p, std::vector<double>{1.0}), ShapeError);
}

TEST_CASE("agreement: mistakes are errors", "[metrics][agreement][unit]") {
  CHECK_THROWS_AS(Confusion(0), ConfigError);
  Confusion m(3);
  CHECK_THROWS_AS(m.add(3, 0), Error);
  CHECK_THROWS_AS(m.add(0, -1), Error);
  CHECK(m.total() == 0);
  CHECK_THROWS_AS(Confusion(3, std::vector<int>{0}, std::vector<int>{0, 1}), ShapeError);
}
