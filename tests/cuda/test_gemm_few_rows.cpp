// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/gemm_few_rows.cuh"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "emprl/ops/linear.cuh"
#include "reference/linear.hpp"
#include "reference/rms_norm.hpp"
#include "support/catch.hpp"
#include "support/device_matrix.hpp"
#if !defined(__CUDACC__)
#include "emprl/ops/gemm_cpu.hpp"
#endif

using namespace emprl;
using emprl::detail::FewRowsTail;
using reference::Matrix;
using support::DeviceMatrix;
using support::random_in_format;

namespace {

/// What is multiplied, all of it numbers that the format holds.
struct Case {
  Case(index_t rows, index_t outputs, index_t terms, FewRowsTail its_tail = FewRowsTail::none)
      : m(rows), n(outputs), k(terms), tail(its_tail) {}

  index_t m, n, k;
  FewRowsTail tail;
  bool gated = tail == FewRowsTail::gated_gelu;
  Matrix<float> x = random_in_format<Bf16>(m, k, 1, 3.0);
  Matrix<float> weight = random_in_format<Bf16>(gated ? 2 * n : n, k, 2);
  std::optional<Matrix<float>> norm = {}, bias = {}, added = {};
  float alpha = 1;

  Case& with_norm() {
    norm = random_in_format<Bf16>(1, k, 3);
    return *this;
  }
  Case& with_bias() {
    bias = random_in_format<Bf16>(1, n, 4);
    return *this;
  }
  Case& with_added() {
    added = random_in_format<Bf16>(m, n, 5);
    return *this;
  }
};

constexpr double eps = 1e-6;

/// y by the kernel, one launch. Behind rows and between them lies NaN.
std::vector<Bf16> by_kernel(Cuda& dev, Case const& c) {
  DeviceMatrix<Bf16> x(c.x, 8), weight(c.weight, 16);
  auto y = DeviceMatrix<Bf16>::poisoned(c.m, c.n, 3);
  std::optional<DeviceMatrix<Bf16>> norm, bias, added;
  detail::FewRowsProduct p{.y = y.view().data(),
                           .x = x.view().data(),
                           .weight = weight.view().data(),
                           .y_pitch = y.view().stride(0),
                           .x_pitch = x.view().stride(0),
                           .weight_pitch = weight.view().stride(0),
                           .m = static_cast<int>(c.m),
                           .n = static_cast<int>(c.n),
                           .k = static_cast<int>(c.k),
                           .alpha = c.alpha,
                           .eps = static_cast<float>(eps)};
  if (c.norm) p.norm = norm.emplace(*c.norm).view().data();
  if (c.bias) p.bias = bias.emplace(*c.bias).view().data();
  if (c.added) {
    p.added = added.emplace(*c.added, 5).view().data();
    p.added_pitch = added->view().stride(0);
  }
  REQUIRE(detail::few_rows_fit(p));
  detail::multiply_few_rows(dev, p, c.tail);
  dev.synchronize();
  return y.stored();
}

/// The product before its tail in double, and the sizes of the terms of its sums.
struct Truth {
  Matrix<double> product, size;
};
Truth truth_of(Case const& c) {
  auto x = reference::convert<double>(c.x);
  if (c.norm) x = reference::rms_norm(x, reference::convert<double>(c.norm->values), eps);
  auto const weight = reference::convert<double>(c.weight);
  auto const absolute = [](Matrix<double> z) {
    for (double& v : z.values) v = std::abs(v);
    return z;
  };
  Truth t{reference::linear(x, weight), reference::linear(absolute(x), absolute(weight))};
  for (index_t i = 0; i < t.product.rows; ++i) {
    for (index_t j = 0; j < t.product.cols; ++j) {
      double more = 0;
      if (c.bias) more += static_cast<double>((*c.bias)(0, j));
      if (c.added) more += static_cast<double>((*c.added)(i, j));
      t.product(i, j) = static_cast<double>(c.alpha) * t.product(i, j) + more;
      t.size(i, j) = std::abs(static_cast<double>(c.alpha)) * t.size(i, j) + std::abs(more);
    }
  }
  return t;
}

double gelu(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

/// Every element within what its sum may err by, and one rounding of the result. With a norm each
/// term has a factor that was rounded to 16 bits, 2^-8 of it at most.
void check(Cuda& dev, Case const& c) {
  INFO("m = " << c.m << ", n = " << c.n << ", k = " << c.k << ", norm " << bool(c.norm) << ", tail "
              << static_cast<int>(c.tail));
  auto const y = by_kernel(dev, c);
  Truth const t = truth_of(c);
  REQUIRE(static_cast<index_t>(y.size()) == c.m * c.n);
  int wrong = 0;
  for (index_t i = 0; i < c.m; ++i) {
    for (index_t j = 0; j < c.n; ++j) {
      double const terms = static_cast<double>(c.k + 16) * 0x1p-23 + (c.norm ? 0x1p-8 : 0.0);
      double value = t.product(i, j);
      double error = terms * t.size(i, j);
      if (c.tail == FewRowsTail::relu) value = std::max(value, 0.0);
      if (c.gated) {
        // |gelu'| < 1.13; the activation itself is good to some units of float.
        double const other = t.product(i, j + c.n), its = terms * t.size(i, j + c.n);
        double const first = gelu(value);
        error = 1.13 * error * (std::abs(other) + its) + std::abs(first) * its +
                0x1p-20 * std::abs(value * other);
        value = first * other;
      }
      double const found =
          static_cast<double>(static_cast<float>(y[static_cast<std::size_t>(i * c.n + j)]));
      if (!(std::abs(found - value) <= error + 0x1p-8 * (std::abs(value) + error))) ++wrong;
    }
  }
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("gemm_few_rows: products of any few rows are those of the matrices",
          "[cuda][gemm][few_rows]") {
  Cuda dev;
  for (index_t const m : {1, 2, 7, 8, 9, 16, 31, 33, 64}) {
    for (index_t const n : {1, 16, 31, 97}) {
      for (index_t const k : {8, 32, 264}) check(dev, Case(m, n, k));
    }
  }
  check(dev, Case(32, 48, 3072));
}

TEST_CASE("gemm_few_rows: takes norm, bias, residual and factor along, with one rounding",
          "[cuda][gemm][few_rows]") {
  Cuda dev;
  for (index_t const m : {1, 15, 32, 57}) {
    for (index_t const k : {24, 520}) {
      check(dev, Case(m, 33, k).with_norm());
      check(dev, Case(m, 33, k).with_norm().with_bias());
      check(dev, Case(m, 33, k).with_added());
      auto all = Case(m, 33, k).with_norm().with_bias().with_added();
      all.alpha = -0.5f;
      check(dev, all);
      check(dev, Case(m, 33, k, FewRowsTail::relu).with_norm());
      check(dev, Case(m, 40, k, FewRowsTail::gated_gelu).with_norm());
    }
  }
}

TEST_CASE("gemm_few_rows: a normed product errs by at most twice what norm and product do",
          "[cuda][gemm][few_rows]") {
  Cuda dev;
  auto const c = Case(64, 97, 768).with_norm();
  auto const y = support::in_float(by_kernel(dev, c));
  auto const truth = truth_of(c).product;
  auto const normed =
      support::rounded<Bf16>(reference::rms_norm(c.x, c.norm->values, static_cast<float>(eps)));
  auto const plain = support::rounded<Bf16>(reference::linear(normed, c.weight));
  support::check_two_times("y", y, plain.values, truth.values);
}

TEST_CASE("gemm_few_rows: a row is the same bits alone, among others, and in every schedule",
          "[cuda][gemm][few_rows]") {
  Cuda dev;
  auto const all = Case(40, 24, 264).with_norm().with_added();
  auto const y = by_kernel(dev, all);
  support::for_each_schedule(
      10, [&] { CHECK(support::bits(by_kernel(dev, all)) == support::bits(y)); });
  for (index_t const rows : {1, 5, 13, 29}) {
    auto some = all;
    some.m = rows;
    for (auto* const x : {&some.x, &*some.added}) {
      x->rows = rows;
      x->values.resize(static_cast<std::size_t>(rows * x->cols));
    }
    // What stands in another row is nobody else's.
    if (rows > 1) {
      for (index_t j = 0; j < some.k; ++j) some.x(0, j) = std::numeric_limits<float>::quiet_NaN();
    }
    auto const z = by_kernel(dev, some);
    auto const from = static_cast<std::ptrdiff_t>(rows > 1 ? some.n : 0);
    auto const to = static_cast<std::ptrdiff_t>(rows * some.n);
    CHECK(support::bits(std::vector<Bf16>(z.begin() + from, z.begin() + to)) ==
          support::bits(std::vector<Bf16>(y.begin() + from, y.begin() + to)));
  }
}

TEST_CASE("gemm_few_rows: what it cannot take goes to the library, with the same result",
          "[cuda][gemm][few_rows]") {
  Cuda dev;
  // One row too many, rows that begin elsewhere, terms that are no multiple of eight; and when it
  // is not wanted.
  struct Shape {
    index_t m, k, gap, few_rows;
  };
  for (Shape const s : {Shape{65, 32, 0, 64}, {8, 32, 3, 64}, {8, 33, 7, 64}, {8, 32, 0, 0}}) {
    dev.products.few_rows = s.few_rows;
    auto const c = Case(s.m, 16, s.k).with_norm();
    DeviceMatrix<Bf16> x(c.x, s.gap), weight(c.weight, s.gap), norm(*c.norm);
    auto y = DeviceMatrix<Bf16>::poisoned(s.m, 16);
    auto room = DeviceMatrix<Bf16>::poisoned(s.m, s.k);
    NormedRows<Bf16, Cuda> rows(x, support::as_row(norm), eps, room.view());
    linear_forward(dev, y.view(), rows, weight);
    dev.synchronize();
    auto const truth = truth_of(c);
    auto const values = y.values();
    int wrong = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      double const allowed = 0x1.04p-8 * (truth.size.values[i] + std::abs(truth.product.values[i]));
      if (!(std::abs(static_cast<double>(values[i]) - truth.product.values[i]) <= allowed)) ++wrong;
    }
    CHECK(wrong == 0);
  }
}

TEST_CASE("linear: rows to be normalised have no bias by an empty view, wherever it points",
          "[cuda][linear]") {
  Cuda dev;
  auto const c = Case(4, 16, 32).with_norm();
  DeviceMatrix<Bf16> x(c.x), weight(c.weight), norm(*c.norm);
  auto plain = DeviceMatrix<Bf16>::poisoned(4, 16), y = DeviceMatrix<Bf16>::poisoned(4, 16);
  auto room = DeviceMatrix<Bf16>::poisoned(4, 32);
  NormedRows<Bf16, Cuda> rows(x, support::as_row(norm), eps, room.view());
  linear_forward(dev, plain.view(), rows, weight);
  linear_forward(dev, y.view(), rows, weight, {x.view().data(), {0}});
  dev.synchronize();
  CHECK(support::bits(y.stored()) == support::bits(plain.stored()));
}

TEST_CASE("linear: rows to be normalised, of shapes that do not fit, are named", "[cuda][linear]") {
  Cuda dev;
  auto const c = Case(4, 16, 32).with_norm();
  DeviceMatrix<Bf16> x(c.x), weight(c.weight), norm(*c.norm);
  auto y = DeviceMatrix<Bf16>::poisoned(4, 15);
  auto room = DeviceMatrix<Bf16>::poisoned(4, 32);
  NormedRows<Bf16, Cuda> rows(x, support::as_row(norm), eps, room.view());
  CHECK_THROWS_AS(linear_forward(dev, y.view(), rows, weight), ShapeError);
  CHECK_THROWS_AS(linear_relu_forward(dev, y.view(), rows, weight), ShapeError);
  auto none = DeviceMatrix<Bf16>::poisoned(0, 16);
  DeviceMatrix<Bf16> no_x(Matrix<float>(0, 32));
  NormedRows<Bf16, Cuda> no_rows(no_x, support::as_row(norm), eps, none.view());
  CHECK_NOTHROW(linear_forward(dev, none.view(), no_rows, weight));
}

TEST_CASE("gemm_few_rows: a chain of launches that overlap gives the bits of one after the other",
          "[cuda][gemm][few_rows]") {
  Cuda dev;
  // Each product reads what the one in front wrote, normalised, so that sizes stay as they are. The
  // executor sees whether all threads wait; that they read nothing too early, only a GPU shows.
  index_t const width = 64, rows = 32;
  int const length = 30;
  auto const weight = random_in_format<Bf16>(width, width, 1);
  auto const start = random_in_format<Bf16>(rows, width, 2);
  auto const last = [&](bool overlap) {
    dev.overlap_launches = overlap;
    DeviceMatrix<Bf16> w(weight), norm(random_in_format<Bf16>(1, width, 3)), room(start);
    DeviceMatrix<Bf16> states[2] = {DeviceMatrix<Bf16>(start), DeviceMatrix<Bf16>(start)};
    dev.synchronize();
    LaunchChain<Cuda> const chain(dev);
    for (int i = 0; i < length; ++i) {
      NormedRows<Bf16, Cuda> x(states[i % 2], support::as_row(norm), eps, room.view());
      linear_forward(dev, states[(i + 1) % 2].view(), x, w);
    }
    dev.synchronize();
    return states[length % 2].stored();
  };
  bool const can = dev.overlap_launches;
  auto const expected = last(false);
  CHECK(support::max_abs(support::in_float(expected)) > 1);
  for (int again = 0; again < (can ? 10 : 1); ++again) {
    CHECK(support::bits(last(can)) == support::bits(expected));
  }
}
