// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/token_divergence.cuh"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "emprl/ops/token_logprob.hpp"
#include "reference/cross_entropy.hpp"
#include "support/catch.hpp"
#include "support/device_matrix.hpp"

using emprl::Bf16;
using emprl::Cpu;
using emprl::Cuda;
using emprl::index_t;
using emprl::ShapeError;
using emprl::TensorView;
using reference::Matrix;
using support::as_vector;
using support::DeviceArray;
using support::DeviceMatrix;

namespace {

std::vector<float> log_sums(Matrix<float> const& logits) {
  Cpu dev;
  emprl::Tensor<float, 1, Cpu> lse({logits.rows}), logp({logits.rows});
  std::vector<std::int32_t> const first(static_cast<std::size_t>(logits.rows), 0);
  emprl::token_logprob_forward<float>(dev, logp.view(), lse, {}, support::to_tensor(logits),
                                      {first.data(), {logits.rows}});
  return support::values(lse);
}

/// Rows of x stand `gap` numbers apart, those of y twice as many; both gaps are NaN.
std::vector<float> kl_of(Matrix<float> const& x, Matrix<float> const& y, index_t gap = 0) {
  Cuda dev;
  index_t const n = x.rows;
  DeviceMatrix<float> a(x, gap), b(y, 2 * gap);
  DeviceArray<float> a_lse(log_sums(x)), b_lse(log_sums(y));
  auto kl = DeviceArray<float>::poisoned(n);
  emprl::token_divergence(dev, as_vector(kl, n), a, as_vector(a_lse, n), b, as_vector(b_lse, n));
  dev.synchronize();
  return kl.values();
}

std::vector<float> on_host(Matrix<float> const& x, Matrix<float> const& y) {
  Cpu dev;
  auto kl = support::poisoned<float, 1>({x.rows});
  auto const a_lse = log_sums(x), b_lse = log_sums(y);
  emprl::token_divergence<float>(dev, kl.view(), support::to_tensor(x), {a_lse.data(), {x.rows}},
                                 support::to_tensor(y), {b_lse.data(), {x.rows}});
  return support::values(kl);
}

Matrix<float> plus(Matrix<float> x, Matrix<float> const& y) {
  for (std::size_t i = 0; i < x.values.size(); ++i) x.values[i] += y.values[i];
  return x;
}

}  // namespace

// The logits of a model in 16 bits are float too, but many of them are equal.
TEMPLATE_TEST_CASE("token_divergence on the GPU: as exact as its result can be",
                   "[cuda][token_divergence][unit]", float, Bf16) {
  using T = TestType;
  support::for_each_schedule(2, [] {
    for (index_t const v : {1, 2, 31, 33, 97, 257, 4097}) {
      for (index_t const n : {1, 2, 31}) {
        if (n * v > 9000) continue;
        for (double const size : {0.1, 3.0, 30.0}) {
          for (bool const close : {false, true}) {
            INFO(n << " rows, " << v << " tokens, size " << size << ", close " << close);
            auto const x = support::random_in_format<T>(n, v, 1, size);
            auto const other = support::random_in_format<T>(n, v, 2, close ? 1e-3 * size : size);
            auto const y = close ? plus(x, other) : other;
            auto const kl = kl_of(x, y, v % 2);
            auto const truth = reference::divergence(reference::convert<long double>(x),
                                                     reference::convert<long double>(y));
            REQUIRE(kl.size() == truth.size());
            for (std::size_t i = 0; i < kl.size(); ++i) {
              // Rounded once to float, after sums in double of V terms that are together of the
              // size of 1 and the result; exp, products, quotient and logarithms round some eight
              // times more.
              auto const expected = static_cast<double>(truth[i]);
              double const sums =
                  static_cast<double>(v + 8) * support::rounding<double> * (1 + expected);
              CHECK(kl[i] >= 0.0f);
              CHECK(std::abs(static_cast<double>(kl[i]) - expected) <=
                    2 * support::rounding<float> * expected + sums);
            }
          }
        }
      }
    }
  });
}

TEST_CASE("token_divergence on the GPU: huge logits, barred tokens and broken rows as on the CPU",
          "[cuda][token_divergence][unit]") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  index_t const v = 300;
  auto x = support::random_matrix<float>(6, v, 3, 2.0);
  auto y = support::random_matrix<float>(6, v, 4, 2.0);
  auto const same = x;
  CHECK(kl_of(x, same) == std::vector<float>(6, 0.0f));
  for (index_t j = 0; j < v; ++j) {
    x(0, j) += 10000.0f;
    y(0, j) -= 10000.0f;
    if (j % 3 == 0) x(1, j) = y(1, j) = -infinity;  // barred in both
    if (j % 5 == 0) x(2, j) = -infinity;            // in p alone
    if (j % 5 == 0) y(3, j) = -infinity;            // in q alone
  }
  x(4, 299) = std::numeric_limits<float>::quiet_NaN();
  for (index_t j = 0; j < v; ++j) y(5, j) = -infinity;
  auto const expected = on_host(x, y);
  auto const kl = kl_of(x, y);
  for (std::size_t i = 0; i < 3; ++i) {
    INFO("row " << i);
    CHECK(expected[i] > 0.1f);
    // Sums of 300 terms in double in another order: the rounding to float may fall the other way.
    CHECK(std::abs(kl[i] - expected[i]) <= 0x1p-23f * expected[i]);
  }
  CHECK(expected[3] == infinity);
  CHECK(kl[3] == infinity);
  for (std::size_t i = 4; i < 6; ++i) {
    CHECK(std::isnan(expected[i]));
    CHECK(std::isnan(kl[i]));
  }
}

TEST_CASE("token_divergence on the GPU: the same bits in every schedule",
          "[cuda][token_divergence][contract]") {
  auto const x = support::random_matrix<float>(3, 1031, 5, 3.0);
  auto const y = support::random_matrix<float>(3, 1031, 6, 3.0);
  std::vector<float> first;
  support::for_each_schedule(10, [&] {
    auto const now = kl_of(x, y);
    if (first.empty()) first = now;
    CHECK(now == first);
  });
}

TEST_CASE("token_divergence on the GPU: a number goes where its view says, and wrong shapes throw",
          "[cuda][token_divergence][contract]") {
  Cuda dev;
  auto const x = support::random_matrix<float>(3, 33, 7);
  auto const y = support::random_matrix<float>(3, 33, 8);
  auto const x_lse = log_sums(x), y_lse = log_sums(y);
  std::vector<float> both;
  for (std::size_t i = 0; i < 3; ++i) both.insert(both.end(), {x_lse[i], y_lse[i]});
  DeviceMatrix<float> a(x), b(y), wide(Matrix<float>(3, 34)), longer(Matrix<float>(4, 33));
  DeviceArray<float> lses(both), results(std::vector<float>(9, -7.0f));
  using Vector = TensorView<float, 1, Cuda>;
  emprl::token_divergence(dev, Vector(results.data() + 2, {3}, {3}), a,
                          Vector(lses.data(), {3}, {2}), b, Vector(lses.data() + 1, {3}, {2}));
  dev.synchronize();
  auto const expected = kl_of(x, y);
  std::vector<float> all(9, -7.0f);
  for (std::size_t i = 0; i < 3; ++i) all[3 * i + 2] = expected[i];
  CHECK(results.values() == all);

  CHECK(kl_of(Matrix<float>(0, 5), Matrix<float>(0, 5)).empty());
  Vector const three(results.data(), {3}), two(results.data(), {2});
  CHECK_NOTHROW(emprl::token_divergence(dev, three, a, three, b, three));
  CHECK_THROWS_AS(emprl::token_divergence(dev, two, a, three, b, three), ShapeError);
  CHECK_THROWS_AS(emprl::token_divergence(dev, three, wide, three, b, three), ShapeError);
  CHECK_THROWS_AS(emprl::token_divergence(dev, three, a, three, longer, three), ShapeError);
  CHECK_THROWS_AS(emprl::token_divergence(dev, three, a, two, b, three), ShapeError);
  CHECK_THROWS_AS(emprl::token_divergence(dev, three, a, three, b, two), ShapeError);
  auto nothing = DeviceMatrix<float>::poisoned(3, 0);
  CHECK_THROWS_AS(emprl::token_divergence(dev, three, nothing, three, nothing, three), ShapeError);
}
