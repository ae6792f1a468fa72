// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/rms_norm.hpp"

#include <cmath>
#include <vector>

#include "reference/rms_norm.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/gradient_check.hpp"

using emprl::Cpu;
using emprl::index_t;
using emprl::Tensor;
using emprl::Write;
using support::random_matrix;
using support::random_values;
using support::to_tensor;
using support::values;

namespace {
constexpr double eps = 1e-6;
}

TEST_CASE("rms_norm: worked by hand", "[ops][rms_norm][unit]") {
  Cpu dev;
  auto const x = to_tensor(reference::Matrix<double>(1, 4));
  x.view()(0, 0) = 3;
  x.view()(0, 1) = -4;
  x.view()(0, 2) = 0;
  x.view()(0, 3) = 0;
  auto const w = to_tensor(std::vector<double>{1, 2, 3, 4});
  Tensor<double, 2, Cpu> y({1, 4});
  emprl::rms_norm_forward<double>(dev, y.view(), {}, x, w, 0.0);
  // Root mean square of (3, -4, 0, 0) is 2.5.
  CHECK(y(0, 0) == Approx(1.2));
  CHECK(y(0, 1) == Approx(-3.2));
  CHECK(y(0, 2) == 0.0);
}

TEMPLATE_TEST_CASE("rms_norm: forward matches the loops", "[ops][rms_norm][unit]", float, double) {
  using T = TestType;
  Cpu dev(2);
  for (index_t const n : {1, 2, 97}) {
    for (index_t const c : {1, 2, 7, 8, 31, 33, 97, 257}) {
      auto const x = random_matrix<T>(n, c, 1, 3.0);
      auto const w = random_values<T>(c, 2);
      auto const truth =
          reference::rms_norm(reference::convert<double>(x), reference::convert<double>(w), eps);
      auto const plain = reference::rms_norm(x, w, static_cast<T>(eps));
      auto y = support::poisoned<T, 2>({n, c});
      auto rstd = support::poisoned<T, 1>({n});
      emprl::rms_norm_forward<T>(dev, y.view(), rstd, to_tensor(x), to_tensor(w), eps);
      support::check_two_times("y", values(y), plain.values, truth.values);

      auto in_place = to_tensor(x);
      emprl::rms_norm_forward<T>(dev, in_place.view(), {}, in_place, to_tensor(w), eps);
      CHECK(values(in_place) == values(y));
    }
  }
}

TEST_CASE("add_rms_norm: the sum, and its norm, bit for bit", "[ops][rms_norm][unit]") {
  Cpu dev(2);
  for (index_t const n : {0, 1, 97}) {
    for (index_t const c : {1, 8, 33}) {
      auto const a = to_tensor(random_matrix<float>(n, c, 1));
      auto const b = to_tensor(random_matrix<float>(n, c, 2));
      auto const w = to_tensor(random_values<float>(c, 3));
      auto sum = support::poisoned<float, 2>({n, c});
      auto y = support::poisoned<float, 2>({n, c});
      auto rstd = support::poisoned<float, 1>({n});
      emprl::add_rms_norm_forward<float>(dev, y.view(), rstd, sum, a, b, w, eps);
      Tensor<float, 2, Cpu> expected({n, c});
      for (index_t i = 0; i < n * c; ++i) expected.data()[i] = a.data()[i] + b.data()[i];
      CHECK(values(sum) == values(expected));
      auto norm = support::poisoned<float, 2>({n, c});
      auto expected_rstd = support::poisoned<float, 1>({n});
      emprl::rms_norm_forward<float>(dev, norm.view(), expected_rstd, expected, w, eps);
      CHECK(values(y) == values(norm));
      CHECK(values(rstd) == values(expected_rstd));

      // The sum may take the place of a summand.
      auto in_place = to_tensor(random_matrix<float>(n, c, 1));
      emprl::add_rms_norm_forward<float>(dev, y.view(), {}, in_place, in_place, b, w, eps);
      CHECK(values(in_place) == values(expected));
      CHECK(values(y) == values(norm));
    }
  }
}

TEMPLATE_TEST_CASE("rms_norm: backward matches the derivatives written out",
                   "[ops][rms_norm][grad]", float, double) {
  using T = TestType;
  Cpu dev(2);
  for (index_t const n : {1, 2, 97}) {
    for (index_t const c : {2, 8, 31, 33, 97}) {
      auto const x = random_matrix<T>(n, c, 1);
      auto const w = random_values<T>(c, 2);
      auto const dy = random_matrix<T>(n, c, 3);
      auto const truth =
          reference::rms_norm_backward(reference::convert<double>(x), reference::convert<double>(w),
                                       eps, reference::convert<double>(dy));
      auto const plain = reference::rms_norm_backward(x, w, static_cast<T>(eps), dy);
      Tensor<T, 2, Cpu> y({n, c});
      auto rstd = support::poisoned<T, 1>({n});
      emprl::rms_norm_forward<T>(dev, y.view(), rstd, to_tensor(x), to_tensor(w), eps);
      auto dx = support::poisoned<T, 2>({n, c});
      Tensor<T, 1, Cpu> dw({c}, T(0));
      emprl::rms_norm_backward<T>(dev, dx.view(), dw, to_tensor(dy), to_tensor(x), to_tensor(w),
                                  rstd, Write::overwrite);
      support::check_two_times("dx", values(dx), plain.dx.values, truth.dx.values);
      support::check_two_times("dweight", values(dw), plain.dweight, truth.dweight);

      auto const once = values(dx);
      auto const dw_once = values(dw);
      emprl::rms_norm_backward<T>(dev, dx.view(), dw, to_tensor(dy), to_tensor(x), to_tensor(w),
                                  rstd, Write::accumulate);
      for (std::size_t i = 0; i < once.size(); ++i) {
        REQUIRE(values(dx)[i] == Approx(2 * once[i]).margin(1e-6));
      }
      for (std::size_t i = 0; i < dw_once.size(); ++i) {
        REQUIRE(values(dw)[i] == Approx(2 * dw_once[i]).margin(1e-5));
      }

      // dx may overwrite dy, and dweight may be left out.
      auto in_place = to_tensor(dy);
      emprl::rms_norm_backward<T>(dev, in_place.view(), {}, in_place, to_tensor(x), to_tensor(w),
                                  rstd, Write::overwrite);
      CHECK(values(in_place) == once);
    }
  }
}

TEST_CASE("rms_norm: backward matches central differences", "[ops][rms_norm][grad]") {
  Cpu dev;
  auto x = to_tensor(random_matrix<double>(5, 9, 1));
  auto w = to_tensor(random_values<double>(9, 2));
  auto const dy = to_tensor(random_matrix<double>(5, 9, 3));
  Tensor<double, 2, Cpu> y({5, 9});
  Tensor<double, 1, Cpu> rstd({5});
  auto const f = [&] {
    emprl::rms_norm_forward<double>(dev, y.view(), rstd, x, w, eps);
    double sum = 0;
    for (index_t i = 0; i < y.size(); ++i) sum += y.data()[i] * dy.data()[i];
    return sum;
  };
  f();
  Tensor<double, 2, Cpu> dx({5, 9});
  Tensor<double, 1, Cpu> dw({9}, 0.0);
  emprl::rms_norm_backward<double>(dev, dx.view(), dw, dy, x, w, rstd, Write::overwrite);
  support::check_gradients(f, {{"x", x.span(), values(dx)}, {"weight", w.span(), values(dw)}});
}

TEST_CASE("rms_norm: a row of zeros stays zero and passes a finite gradient",
          "[ops][rms_norm][unit]") {
  Cpu dev;
  Tensor<float, 2, Cpu> const x({1, 33}, 0.0f);
  Tensor<float, 1, Cpu> const w({33}, 1.0f);
  Tensor<float, 2, Cpu> const dy({1, 33}, 1.0f);
  Tensor<float, 2, Cpu> y({1, 33});
  Tensor<float, 1, Cpu> rstd({1});
  emprl::rms_norm_forward<float>(dev, y.view(), rstd, x, w, eps);
  for (float const v : y.span()) CHECK(v == 0.0f);
  Tensor<float, 2, Cpu> dx({1, 33});
  emprl::rms_norm_backward<float>(dev, dx.view(), {}, dy, x, w, rstd, Write::overwrite);
  for (float const v : dx.span()) CHECK(v == Approx(1000.0f));
}

TEST_CASE("rms_norm: no rows are fine, wrong shapes throw", "[ops][rms_norm][unit]") {
  Cpu dev;
  Tensor<float, 2, Cpu> none({0, 5});
  Tensor<float, 1, Cpu> const w({5}, 1.0f);
  CHECK_NOTHROW(emprl::rms_norm_forward<float>(dev, none.view(), {}, none, w, eps));
  Tensor<float, 2, Cpu> y({3, 4}, 0.0f);
  Tensor<float, 2, Cpu> const x({3, 5}, 0.0f);
  Tensor<float, 2, Cpu> fits({3, 5}, 0.0f);
  Tensor<float, 1, Cpu> const short_rstd({2}, 0.0f);
  CHECK_THROWS_AS(emprl::rms_norm_forward<float>(dev, y.view(), {}, x, w, eps), emprl::ShapeError);
  CHECK_THROWS_AS(emprl::rms_norm_forward<float>(dev, fits.view(), short_rstd, x, w, eps),
                  emprl::ShapeError);
  CHECK_THROWS_AS(
      emprl::rms_norm_backward<float>(dev, fits.view(), {}, x, x, w, short_rstd, Write::overwrite),
      emprl::ShapeError);
}
