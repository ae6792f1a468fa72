// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <vector>

#include "emprl/ops/rms_norm.cuh"
#include "reference/rms_norm.hpp"
#include "support/catch.hpp"
#include "support/device_matrix.hpp"

using emprl::Bf16;
using emprl::Cuda;
using emprl::index_t;
using emprl::Write;
using support::as_row;
using support::as_vector;
using support::DeviceArray;
using support::DeviceMatrix;

namespace {

constexpr double eps = 1e-6;

/// Columns that go element by element and in packs, that a lane keeps whole and not, with and
/// without a gap between rows. The last has more rows than the backward pass has warps.
struct Case {
  index_t rows, columns, gap;
};
constexpr Case cases[] = {{1, 1, 0},   {2, 2, 0},    {31, 33, 0}, {3, 97, 1},
                          {2, 257, 0}, {1, 300, 3},  {33, 8, 8},  {9, 64, 0},
                          {2, 768, 8}, {1, 1040, 0}, {1600, 8, 0}};

template <class T>
struct Inputs {
  explicit Inputs(Case const& c)
      : x(support::random_in_format<T>(c.rows, c.columns, 1, 3.0)),
        dy(support::random_in_format<T>(c.rows, c.columns, 2)),
        weight(support::random_in_format<T>(1, c.columns, 3)) {}

  std::vector<double> truth_rstd() const {
    std::vector<double> r;
    for (index_t n = 0; n < x.rows; ++n) {
      double sum = 0;
      for (index_t c = 0; c < x.cols; ++c) {
        sum += static_cast<double>(x(n, c)) * static_cast<double>(x(n, c));
      }
      r.push_back(1 / std::sqrt(sum / static_cast<double>(x.cols) + eps));
    }
    return r;
  }

  reference::Matrix<float> x, dy, weight;
};

template <class T>
void check_forward(Case const& c) {
  INFO(c.rows << " x " << c.columns << ", gap " << c.gap);
  Inputs<T> const in(c);
  auto const truth = reference::rms_norm(reference::convert<double>(in.x),
                                         reference::convert<double>(in.weight.values), eps);
  auto const plain = reference::rms_norm(in.x, in.weight.values, static_cast<float>(eps));
  Cuda dev;
  DeviceMatrix<T> x(in.x, c.gap);
  DeviceMatrix<T> weight(in.weight);
  auto const w = as_row(weight);
  auto y = DeviceMatrix<T>::poisoned(c.rows, c.columns, c.gap);
  auto rstd = DeviceArray<float>::poisoned(c.rows);
  emprl::rms_norm_forward(dev, y.view(), as_vector(rstd, c.rows), x, w, eps);
  support::check_stored<T>("y", y.values(), plain.values, truth.values);
  auto const truth_rstd = in.truth_rstd();
  for (std::size_t n = 0; n < truth_rstd.size(); ++n) {
    // A sum of squares has a smaller relative error than its terms; root and quotient round once.
    CHECK(static_cast<double>(rstd.values()[n]) == Approx(truth_rstd[n]).epsilon(4 * 0x1p-24));
  }
  auto const y_values = y.stored();
  emprl::rms_norm_forward(dev, x.view(), {}, x, w, eps);
  CHECK(support::bits(x.stored()) == support::bits(y_values));
}

template <class T>
void check_add(Case const& c) {
  INFO(c.rows << " x " << c.columns << ", gap " << c.gap);
  Inputs<T> const in(c);
  reference::Matrix<float> both(c.rows, c.columns);
  for (std::size_t i = 0; i < both.values.size(); ++i) {
    both.values[i] = support::rounded<T>(in.x.values[i] + in.dy.values[i]);
  }
  Cuda dev;
  DeviceMatrix<T> a(in.x, c.gap);
  DeviceMatrix<T> b(in.dy);
  DeviceMatrix<T> expected_sum(both, c.gap);
  DeviceMatrix<T> weight(in.weight);
  auto const w = as_row(weight);
  auto expected = DeviceMatrix<T>::poisoned(c.rows, c.columns, c.gap);
  auto expected_rstd = DeviceArray<float>::poisoned(c.rows);
  emprl::rms_norm_forward(dev, expected.view(), as_vector(expected_rstd, c.rows), expected_sum, w,
                          eps);
  auto sum = DeviceMatrix<T>::poisoned(c.rows, c.columns, c.gap);
  auto y = DeviceMatrix<T>::poisoned(c.rows, c.columns);
  auto rstd = DeviceArray<float>::poisoned(c.rows);
  emprl::add_rms_norm_forward(dev, y.view(), as_vector(rstd, c.rows), sum, a, b, w, eps);
  CHECK(sum.values() == both.values);
  CHECK(y.values() == expected.values());
  CHECK(rstd.values() == expected_rstd.values());
  // The sum may take the place of a summand, the norm that of the other.
  emprl::add_rms_norm_forward(dev, b.view(), {}, a, a, b, w, eps);
  CHECK(a.values() == both.values);
  CHECK(b.values() == expected.values());
}

template <class T>
void check_backward(Case const& c) {
  INFO(c.rows << " x " << c.columns << ", gap " << c.gap);
  Inputs<T> const in(c);
  auto const truth = reference::rms_norm_backward(reference::convert<double>(in.x),
                                                  reference::convert<double>(in.weight.values), eps,
                                                  reference::convert<double>(in.dy));
  auto const plain =
      reference::rms_norm_backward(in.x, in.weight.values, static_cast<float>(eps), in.dy);
  std::vector<float> rstds;
  for (double const r : in.truth_rstd()) rstds.push_back(static_cast<float>(r));
  Cuda dev;
  dev.scratch.poison(true);
  DeviceMatrix<T> x(in.x, c.gap);
  DeviceMatrix<T> dy(in.dy, c.gap);
  DeviceMatrix<T> weight(in.weight);
  auto const w = as_row(weight);
  DeviceArray<float> rstd(rstds);
  auto const r = as_vector(rstd, c.rows);
  auto dx = DeviceMatrix<T>::poisoned(c.rows, c.columns, c.gap);
  DeviceArray<float> dweight(std::vector<float>(static_cast<std::size_t>(c.columns), 0.0f));
  emprl::rms_norm_backward(dev, dx.view(), as_vector(dweight, c.columns), dy, x, w, r,
                           Write::overwrite);
  support::check_stored<T>("dx", dx.values(), plain.dx.values, truth.dx.values);
  support::check_two_times("dweight", dweight.values(), plain.dweight, truth.dweight);

  auto const once = dx.values();
  auto const dweight_once = dweight.values();
  emprl::rms_norm_backward(dev, dx.view(), as_vector(dweight, c.columns), dy, x, w, r,
                           Write::accumulate);
  bool doubled = true;
  for (std::size_t i = 0; i < once.size(); ++i) {
    // The second gradient is added before it is rounded.
    double const difference =
        static_cast<double>(dx.values()[i]) - 2.0 * static_cast<double>(once[i]);
    doubled = doubled && std::abs(difference) <= 4 * support::storage_rounding<T> *
                                                     std::abs(static_cast<double>(once[i]));
  }
  CHECK(doubled);
  for (std::size_t i = 0; i < dweight_once.size(); ++i) {
    CHECK(dweight.values()[i] == 2 * dweight_once[i]);
  }

  // dx may overwrite dy, and dweight may be left out.
  DeviceArray<float> beside(std::vector<float>(static_cast<std::size_t>(c.columns), 0.0f));
  DeviceMatrix<T> in_place(in.dy, c.gap);
  emprl::rms_norm_backward(dev, in_place.view(), as_vector(beside, c.columns), in_place, x, w, r,
                           Write::overwrite);
  CHECK(in_place.values() == once);
  CHECK(beside.values() == dweight_once);
  auto alone = DeviceMatrix<T>::poisoned(c.rows, c.columns, c.gap);
  emprl::rms_norm_backward(dev, alone.view(), {}, dy, x, w, r, Write::overwrite);
  CHECK(alone.values() == once);
}

}  // namespace

TEMPLATE_TEST_CASE("rms_norm: on the GPU, forward is as exact as the loops in float",
                   "[cuda][rms_norm]", float, Bf16) {
  support::for_each_schedule(2, [] {
    for (Case const& c : cases) check_forward<TestType>(c);
  });
}

TEMPLATE_TEST_CASE("add_rms_norm: on the GPU, the norm of the sum as it is stored, bit for bit",
                   "[cuda][rms_norm]", float, Bf16) {
  for (Case const& c : cases) check_add<TestType>(c);
}

TEMPLATE_TEST_CASE("rms_norm: on the GPU, backward is as exact as the loops in float",
                   "[cuda][rms_norm]", float, Bf16) {
  support::for_each_schedule(2, [] {
    for (Case const& c : cases) check_backward<TestType>(c);
  });
}

TEST_CASE("rms_norm: on the GPU, gradients are the same bits in every schedule",
          "[cuda][rms_norm]") {
  // More rows than one round of the largest grid takes.
  Case const c{4 * 396 + 9, 5, 0};
  Inputs<float> const in(c);
  std::vector<float> first;
  support::for_each_schedule(10, [&] {
    Cuda dev;
    dev.scratch.poison(true);
    DeviceMatrix<float> x(in.x);
    DeviceMatrix<float> dy(in.dy);
    DeviceMatrix<float> weight(in.weight);
    DeviceArray<float> rstd(std::vector<float>(static_cast<std::size_t>(c.rows), 0.7f));
    auto dx = DeviceMatrix<float>::poisoned(c.rows, c.columns);
    DeviceArray<float> dweight(std::vector<float>(static_cast<std::size_t>(c.columns), 0.25f));
    emprl::rms_norm_backward(dev, dx.view(), as_vector(dweight, c.columns), dy, x, as_row(weight),
                             as_vector(rstd, c.rows), Write::overwrite);
    auto all = dx.values();
    auto const dw = dweight.values();
    all.insert(all.end(), dw.begin(), dw.end());
    if (first.empty()) first = all;
    CHECK(all == first);
  });
}

TEST_CASE("rms_norm: on the GPU, no rows are fine, wrong shapes throw", "[cuda][rms_norm]") {
  Cuda dev;
  auto none = DeviceMatrix<float>::poisoned(0, 5);
  DeviceMatrix<float> weight(reference::Matrix<float>(1, 5));
  DeviceArray<float> dweight(std::vector<float>(5, 1.0f));
  emprl::rms_norm_forward(dev, none.view(), {}, none, as_row(weight), eps);
  emprl::rms_norm_backward(dev, none.view(), as_vector(dweight, 5), none, none, as_row(weight), {},
                           Write::overwrite);
  CHECK(dweight.values() == std::vector<float>(5, 1.0f));
  auto x = DeviceMatrix<float>::poisoned(3, 5);
  auto y = DeviceMatrix<float>::poisoned(3, 4);
  DeviceArray<float> rstd(std::vector<float>(2, 1.0f));
  CHECK_THROWS_AS(emprl::rms_norm_forward(dev, y.view(), {}, x, as_row(weight), eps),
                  emprl::ShapeError);
  CHECK_THROWS_AS(
      emprl::rms_norm_forward(dev, x.view(), as_vector(rstd, 2), x, as_row(weight), eps),
      emprl::ShapeError);
  CHECK_THROWS_AS(emprl::rms_norm_backward(dev, x.view(), {}, x, x, as_row(weight),
                                           as_vector(rstd, 2), Write::overwrite),
                  emprl::ShapeError);
}
