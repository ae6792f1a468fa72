// SPDX-License-Identifier: Apache-2.0
#include "emprl/math/activation.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/activations.hpp"
#include "support/catch.hpp"

TEST_CASE("exp_branchless: within 2 units in the last place", "[math][exp][unit]") {
  double worst = 0;
  for (int i = 0; i <= 400000; ++i) {
    float const x = -87.0f + 175.72f * static_cast<float>(i) / 400000.0f;
    double const truth = std::exp(static_cast<double>(x));
    float const nearest = static_cast<float>(truth);
    double const unit =
        static_cast<double>(std::nextafter(nearest, std::numeric_limits<float>::infinity())) -
        static_cast<double>(nearest);
    worst = std::max(worst, std::abs(static_cast<double>(emprl::exp_branchless(x)) - truth) / unit);
  }
  CHECK(worst <= 2.0);
}

TEST_CASE("exp_branchless: zero, one, and the ends of the range", "[math][exp][unit]") {
  float const inf = std::numeric_limits<float>::infinity();
  CHECK(emprl::exp_branchless(0.0f) == 1.0f);
  CHECK(emprl::exp_branchless(-0.0f) == 1.0f);
  CHECK(emprl::exp_branchless(-inf) == 0.0f);
  CHECK(emprl::exp_branchless(-1e9f) == 0.0f);
  CHECK(emprl::exp_branchless(inf) == inf);
  CHECK(emprl::exp_branchless(89.0f) == inf);
  CHECK(std::isnan(emprl::exp_branchless(std::numeric_limits<float>::quiet_NaN())));
  CHECK(emprl::exp_branchless(1.0) == std::exp(1.0));
}

TEST_CASE("tanh_branchless: absolute error of two units at 1, odd, saturates",
          "[math][exp][unit]") {
  double worst = 0;
  for (int i = -200000; i <= 200000; ++i) {
    float const x = static_cast<float>(i) * 1e-4f;
    worst = std::max(worst, std::abs(static_cast<double>(emprl::tanh_branchless(x)) -
                                     std::tanh(static_cast<double>(x))));
    REQUIRE(emprl::tanh_branchless(-x) == -emprl::tanh_branchless(x));
  }
  CHECK(worst <= 2 * 0x1p-23);
  CHECK(emprl::tanh_branchless(1000.0f) == 1.0f);
  CHECK(emprl::tanh_branchless(-1000.0f) == -1.0f);
}

TEST_CASE("gelu_new: the formula, in float and in double", "[math][activation][unit]") {
  for (int i = -800; i <= 800; ++i) {
    double const x = i * 0.01;
    double const truth = reference::gelu_new(x);
    CHECK(std::abs(emprl::gelu_new(x) - truth) <= 1e-15 * (1 + std::abs(x)));
    CHECK(std::abs(static_cast<double>(emprl::gelu_new(static_cast<float>(x))) - truth) <=
          4 * 0x1p-23 * (1 + std::abs(x)));
  }
  // Published values of transformers' gelu_new at 1 and -1.
  CHECK(std::abs(emprl::gelu_new(1.0) - 0.8411919906082768) < 1e-12);
  CHECK(std::abs(emprl::gelu_new(-1.0) + 0.15880800939172324) < 1e-12);
}

TEST_CASE("gelu_new: the derivative matches central differences", "[math][activation][grad]") {
  for (int i = -60; i <= 60; ++i) {
    double const x = i * 0.1;
    double const h = 1e-4;
    double const numeric = (8 * (reference::gelu_new(x + h) - reference::gelu_new(x - h)) -
                            (reference::gelu_new(x + 2 * h) - reference::gelu_new(x - 2 * h))) /
                           (12 * h);
    CHECK(std::abs(emprl::gelu_new_derivative(x) - numeric) < 1e-10);
    CHECK(std::abs(emprl::gelu_new_derivative(x) - reference::gelu_new_derivative(x)) < 1e-14);
    CHECK(std::abs(static_cast<double>(emprl::gelu_new_derivative(static_cast<float>(x))) -
                   numeric) < 1e-5);
  }
}

TEST_CASE("relu: positive or zero", "[math][activation][unit]") {
  CHECK(emprl::relu(2.5) == 2.5);
  CHECK(emprl::relu(-2.5f) == 0.0f);
  CHECK(emprl::relu(0.0) == 0.0);
}
