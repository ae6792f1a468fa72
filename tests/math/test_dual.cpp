// SPDX-License-Identifier: Apache-2.0
#include "emprl/math/dual.hpp"

#include <cmath>
#include <limits>

#include "support/catch.hpp"

using emprl::Dual;
using D = Dual<double, 2>;

namespace {

// A function that uses every operation; written once, evaluated with numbers and with duals.
template <class S>
S everything(S x, S y) {
  using namespace emprl::scalar_math;
  S const a = exp(x * y) / (S(2) + abs(x - y));
  S const b = log(S(3) + x * x) - y / (S(1) + exp(-x));
  return max(a, b) + min(a * b, S(0.7)) - clip(x + y, -0.5, 0.9) * S(0.3) + (-y);
}

}  // namespace

TEST_CASE("dual: arithmetic agrees with central differences", "[math][dual][grad]") {
  double const h = 1e-6;
  for (int i = 0; i < 200; ++i) {
    double const x = -1.3 + 0.0131 * i;
    double const y = 1.1 - 0.0113 * i;
    D const f = everything(D::variable(x, 0), D::variable(y, 1));
    CHECK(f.value == everything(x, y));
    double const fx = (everything(x + h, y) - everything(x - h, y)) / (2 * h);
    double const fy = (everything(x, y + h) - everything(x, y - h)) / (2 * h);
    // A kink within h of the point makes the difference, not the dual, wrong.
    bool const kink =
        std::abs(x - y) < 2e-6 || std::abs(x + y + 0.5) < 2e-6 || std::abs(x + y - 0.9) < 2e-6;
    if (kink) continue;
    CHECK(f.derivative[0] == Approx(fx).epsilon(1e-7).margin(1e-8));
    CHECK(f.derivative[1] == Approx(fy).epsilon(1e-7).margin(1e-8));
  }
}

TEST_CASE("dual: max and min share a tie half and half", "[math][dual][unit]") {
  D const x = D::variable(2.0, 0);
  D const y = D::variable(2.0, 1);
  for (D const& m : {max(x, y), min(x, y)}) {
    CHECK(m.value == 2.0);
    CHECK(m.derivative[0] == 0.5);
    CHECK(m.derivative[1] == 0.5);
  }
  CHECK(max(x, D(2.0)).derivative[0] == 0.5);
  CHECK(max(x, D(1.0)).derivative[0] == 1.0);
  CHECK(max(x, D(3.0)).derivative[0] == 0.0);
  CHECK(min(x, D(3.0)).derivative[0] == 1.0);
}

TEST_CASE("dual: max and min of equal numbers are that number, however large",
          "[math][dual][unit]") {
  double const infinity = std::numeric_limits<double>::infinity();
  for (double const x : {1.1, -0.3, 0.0, 5e-308, 1.7e308, infinity, -infinity}) {
    CHECK(emprl::scalar_math::max(x, x) == x);
    CHECK(emprl::scalar_math::min(x, x) == x);
    CHECK(max(D::variable(x, 0), D::variable(x, 1)).value == x);
    CHECK(min(D::variable(x, 0), D::variable(x, 1)).value == x);
  }
  CHECK(emprl::scalar_math::max(-infinity, infinity) == infinity);
  CHECK(emprl::scalar_math::min(-infinity, infinity) == -infinity);
}

TEST_CASE("dual: the branch that is not chosen leaves no trace, not even an infinite one",
          "[math][dual][unit]") {
  D const huge = exp(D::variable(1000.0, 0));
  D const small = D::variable(0.5, 1);
  for (D const& y : {min(huge, small), min(small, huge), max(-huge, small), max(small, -huge)}) {
    CHECK(y.value == 0.5);
    CHECK(y.derivative[0] == 0.0);
    CHECK(y.derivative[1] == 1.0);
  }
  D const held = clip(huge, 0.0, 2.0);
  CHECK(held.value == 2.0);
  CHECK(held.derivative[0] == 0.0);
}

TEST_CASE("dual: clip passes gradient 1 at its bounds and 0 outside", "[math][dual][unit]") {
  CHECK(clip(D::variable(0.8, 0), 0.8, 1.2).derivative[0] == 1.0);
  CHECK(clip(D::variable(1.2, 0), 0.8, 1.2).derivative[0] == 1.0);
  CHECK(clip(D::variable(1.0, 0), 0.8, 1.2).derivative[0] == 1.0);
  CHECK(clip(D::variable(1.3, 0), 0.8, 1.2).derivative[0] == 0.0);
  CHECK(clip(D::variable(0.7, 0), 0.8, 1.2).derivative[0] == 0.0);
  CHECK(clip(D::variable(0.7, 0), 0.8, 1.2).value == 0.8);
}

TEST_CASE("dual: the derivative of abs at 0 is 0", "[math][dual][unit]") {
  CHECK(abs(D::variable(0.0, 0)).derivative[0] == 0.0);
  CHECK(abs(D::variable(-3.0, 0)).derivative[0] == -1.0);
}

TEST_CASE("dual: NaN is not lost in max, min or clip", "[math][dual][unit]") {
  double const nan = std::numeric_limits<double>::quiet_NaN();
  CHECK(std::isnan(max(D(nan), D(1.0)).value));
  CHECK(std::isnan(min(D(1.0), D(nan)).value));
  CHECK(std::isnan(clip(D(nan), 0.0, 1.0).value));
  CHECK(std::isnan(emprl::scalar_math::max(1.0, nan)));
  CHECK(std::isnan(emprl::scalar_math::min(nan, 1.0)));
  CHECK(std::isnan(emprl::scalar_math::clip(nan, 0.0, 1.0)));
}

TEST_CASE("dual: works in float", "[math][dual][unit]") {
  using F = Dual<float, 1>;
  F const f = exp(F::variable(0.5f, 0)) * F(2.0f);
  CHECK(f.value == Approx(2 * std::exp(0.5)).epsilon(1e-6));
  CHECK(f.derivative[0] == Approx(2 * std::exp(0.5)).epsilon(1e-6));
}
