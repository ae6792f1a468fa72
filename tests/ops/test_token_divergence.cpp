// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/token_divergence.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "emprl/ops/token_logprob.hpp"
#include "reference/cross_entropy.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"

using emprl::Cpu;
using emprl::index_t;
using emprl::ShapeError;
using emprl::Tensor;
using emprl::TensorView;
using reference::Matrix;
using support::to_tensor;

namespace {

/// The log-sum-exps that the op asks for, as the op that is called before it gives them.
template <class T>
Tensor<T, 1, Cpu> log_sums(Cpu& dev, Matrix<T> const& logits) {
  Tensor<T, 1, Cpu> lse({logits.rows}), logp({logits.rows});
  std::vector<std::int32_t> const first(static_cast<std::size_t>(logits.rows), 0);
  emprl::token_logprob_forward<T>(dev, logp.view(), lse, {}, to_tensor(logits),
                                  {first.data(), {logits.rows}});
  return lse;
}

template <class T>
std::vector<T> kl_of(Matrix<T> const& x, Matrix<T> const& y) {
  Cpu dev(2);
  auto kl = support::poisoned<T, 1>({x.rows});
  emprl::token_divergence<T>(dev, kl.view(), to_tensor(x), log_sums(dev, x), to_tensor(y),
                             log_sums(dev, y));
  return support::values(kl);
}

/// Checks against the formula in long double. The result is rounded once to its format; before that
/// there are sums in double of V terms, which are together of the size of 1 and the result, and
/// whose exp, products, quotient and logarithms round some eight times more.
template <class T>
void check_as_exact(std::string const& what, std::vector<T> const& kl, Matrix<T> const& x,
                    Matrix<T> const& y) {
  auto const truth =
      reference::divergence(reference::convert<long double>(x), reference::convert<long double>(y));
  REQUIRE(kl.size() == truth.size());
  for (std::size_t i = 0; i < kl.size(); ++i) {
    auto const expected = static_cast<double>(truth[i]);
    double const error = std::abs(static_cast<double>(kl[i]) - expected);
    double const sums =
        static_cast<double>(x.cols + 8) * support::rounding<double> * (1 + expected);
    INFO(what << " of row " << i << ": " << kl[i] << ", error " << error << ", exactly "
              << expected);
    CHECK(kl[i] >= T(0));
    CHECK(error <= 2 * support::rounding<T> * expected + sums);
  }
}

template <class T>
Matrix<T> one_row(std::vector<T> const& values) {
  Matrix<T> m(1, static_cast<index_t>(values.size()));
  m.values = values;
  return m;
}

}  // namespace

TEMPLATE_TEST_CASE(
    "token_divergence: as exact as its result can be, of distributions far apart and close",
    "[ops][token_divergence][unit]", float, double) {
  using T = TestType;
  for (index_t const n : {1, 2, 31}) {
    for (index_t const v : {1, 2, 31, 33, 97, 257, 4097}) {
      for (double const size : {0.1, 3.0, 30.0}) {
        for (double const apart : {1.0, 1e-3}) {
          INFO(n << " rows, " << v << " tokens, size " << size << ", apart " << apart);
          auto const x = support::random_matrix<T>(n, v, 1, size);
          auto y = support::random_matrix<T>(n, v, 2, apart * size);
          if (apart < 1) {
            for (std::size_t i = 0; i < y.values.size(); ++i) y.values[i] += x.values[i];
          }
          check_as_exact("kl", kl_of(x, y), x, y);
        }
      }
    }
  }
}

TEMPLATE_TEST_CASE("token_divergence: numbers worked by hand", "[ops][token_divergence][unit]",
                   float, double) {
  using T = TestType;
  T const log3 = std::log(T(3));
  // p = (1/4, 3/4), q = (1/2, 1/2) and the other way round.
  auto const p = one_row<T>({0, log3});
  auto const q = one_row<T>({5, 5});
  CHECK(kl_of(p, q)[0] == Approx(0.75 * std::log(3.0) - std::log(2.0)).epsilon(1e-6));
  CHECK(kl_of(q, p)[0] == Approx(std::log(2.0) - 0.5 * std::log(3.0)).epsilon(1e-6));
}

TEMPLATE_TEST_CASE("token_divergence: of a distribution from itself it is 0, and never below",
                   "[ops][token_divergence][unit]", float, double) {
  using T = TestType;
  for (index_t const v : {1, 2, 97, 4097}) {
    auto const x = support::random_matrix<T>(5, v, 3, 3.0);
    CHECK(kl_of(x, x) == std::vector<T>(5, T(0)));
    // The same distribution by other logits, and one a rounding away: what is left is rounding, and
    // not negative.
    auto y = x;
    for (T& e : y.values) e += T(64);
    for (T const kl : kl_of(x, y)) {
      CHECK(kl >= T(0));
      // Adding 64 rounds a logit by 64 units of 2^-24, or 2^-53, at most.
      CHECK(static_cast<double>(kl) <= 64 * support::rounding<T>);
    }
  }
}

TEMPLATE_TEST_CASE("token_divergence: the rounding of the log-sum-exps of huge logits is not in it",
                   "[ops][token_divergence][unit]", float, double) {
  using T = TestType;
  for (T const offset : {T(10000), T(-10000)}) {
    // Whole quarters, which float holds exactly at this size; the log-sum-exps it rounds by 5e-4.
    auto x = support::random_matrix<T>(7, 97, 4);
    auto y = support::random_matrix<T>(7, 97, 5);
    auto small_x = x, small_y = y;
    for (std::size_t i = 0; i < x.values.size(); ++i) {
      small_x.values[i] = std::round(4 * x.values[i]) / 4;
      small_y.values[i] = std::round(4 * y.values[i]) / 4;
      x.values[i] = offset + small_x.values[i];
      y.values[i] = small_y.values[i] - offset;
    }
    check_as_exact("kl", kl_of(x, y), small_x, small_y);
  }
}

TEMPLATE_TEST_CASE(
    "token_divergence: barred tokens weigh nothing, and one that q alone bars is "
    "infinitely far",
    "[ops][token_divergence][unit]", float, double) {
  using T = TestType;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  auto const p = one_row<T>({1, 2, -infinity, 0});
  auto const q = one_row<T>({0, 3, -infinity, 1});
  auto const without = kl_of(one_row<T>({1, 2, 0}), one_row<T>({0, 3, 1}));
  // Barred in both, as if there were no such token; barred by p alone, q's share of it counts.
  CHECK(kl_of(p, q)[0] == Approx(without[0]).epsilon(1e-6));
  auto const r = one_row<T>({0, 3, 2, 1});
  double const q_mass = std::log((1 + std::exp(3.0) + std::exp(1.0) + std::exp(2.0)) /
                                 (1 + std::exp(3.0) + std::exp(1.0)));
  CHECK(kl_of(p, r)[0] == Approx(static_cast<double>(without[0]) + q_mass).epsilon(1e-6));
  CHECK(kl_of(r, p)[0] == infinity);
  // A token that is as good as barred: its probability is no double.
  CHECK(kl_of(one_row<T>({0, -5000}), one_row<T>({0, -4000}))[0] == T(0));
}

TEST_CASE("token_divergence: what is no distribution has no number",
          "[ops][token_divergence][unit]") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  auto const fine = one_row<float>({0, 1, 2});
  for (std::vector<float> const& bad :
       {std::vector<float>{0, nan, 1}, {0, infinity, 1}, {-infinity, -infinity, -infinity}}) {
    CHECK(std::isnan(kl_of(one_row(bad), fine)[0]));
    CHECK(std::isnan(kl_of(fine, one_row(bad))[0]));
  }
}

TEST_CASE("token_divergence: views with gaps are read and written as they lie",
          "[ops][token_divergence][contract]") {
  Cpu dev;
  index_t const n = 3, v = 33;
  auto const x = support::random_matrix<float>(n, v, 6);
  auto const y = support::random_matrix<float>(n, v, 7);
  auto const expected = kl_of(x, y);
  auto const x_lse = log_sums(dev, x), y_lse = log_sums(dev, y);
  // Columns of wider matrices, whose other numbers are NaN.
  auto wide_x = support::poisoned<float, 2>({n, v + 5});
  auto wide_y = support::poisoned<float, 2>({n, v + 2});
  auto lses = support::poisoned<float, 2>({n, 2});
  auto results = support::poisoned<float, 2>({n, 3});
  for (index_t i = 0; i < n; ++i) {
    std::copy_n(&x.values[static_cast<std::size_t>(i * v)], v, wide_x.view().row(i) + 4);
    std::copy_n(&y.values[static_cast<std::size_t>(i * v)], v, wide_y.view().row(i));
    lses(i, 0) = x_lse(i);
    lses(i, 1) = y_lse(i);
  }
  emprl::token_divergence<float>(
      dev, TensorView<float, 1, Cpu>(results.data() + 1, {n}, {3}), wide_x.view().columns(4, 4 + v),
      TensorView<float, 1, Cpu>(lses.data(), {n}, {2}), wide_y.view().columns(0, v),
      TensorView<float, 1, Cpu>(lses.data() + 1, {n}, {2}));
  for (index_t i = 0; i < n; ++i) {
    CHECK(results(i, 1) == expected[static_cast<std::size_t>(i)]);
    CHECK(std::isnan(results(i, 0)));
    CHECK(std::isnan(results(i, 2)));
  }
}

TEST_CASE("token_divergence: no rows are no work, and shapes that do not fit throw",
          "[ops][token_divergence][unit]") {
  Cpu dev;
  CHECK(kl_of(Matrix<float>(0, 5), Matrix<float>(0, 5)).empty());
  Tensor<float, 2, Cpu> const x({2, 5}, 0.0f), wide({2, 6}, 0.0f), long_one({3, 5}, 0.0f),
      nothing({2, 0});
  Tensor<float, 1, Cpu> const two({2}, 0.0f), three({3}, 0.0f);
  auto const run = [&](Tensor<float, 1, Cpu> const& kl, Tensor<float, 2, Cpu> const& a,
                       Tensor<float, 1, Cpu> const& a_lse, Tensor<float, 2, Cpu> const& b,
                       Tensor<float, 1, Cpu> const& b_lse) {
    emprl::token_divergence<float>(dev, kl.view(), a, a_lse, b, b_lse);
  };
  CHECK_NOTHROW(run(two, x, two, x, two));
  CHECK_THROWS_AS(run(three, x, two, x, two), ShapeError);
  CHECK_THROWS_AS(run(two, wide, two, x, two), ShapeError);
  CHECK_THROWS_AS(run(two, x, two, long_one, two), ShapeError);
  CHECK_THROWS_AS(run(two, x, three, x, two), ShapeError);
  CHECK_THROWS_AS(run(two, x, two, x, three), ShapeError);
  CHECK_THROWS_AS(run(two, nothing, two, nothing, two), ShapeError);
}
