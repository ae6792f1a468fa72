// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/linear.hpp"

#include <vector>

#include "emprl/ops/gemm_cpu.hpp"
#include "reference/linear.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"

using emprl::Cpu;
using emprl::index_t;
using emprl::Tensor;
using emprl::TensorView;
using emprl::Write;
using support::random_matrix;
using support::random_values;
using support::to_tensor;
using support::values;

TEMPLATE_TEST_CASE("linear: forward matches the loops, with and without a bias",
                   "[ops][linear][unit]", float, double) {
  using T = TestType;
  Cpu dev(2);
  for (index_t const n : {1, 2, 31, 97}) {
    auto const x = random_matrix<T>(n, 33, 1);
    auto const w = random_matrix<T>(31, 33, 2);
    auto const b = random_values<T>(31, 3);
    for (bool const bias : {false, true}) {
      auto const used = bias ? b : std::vector<T>{};
      auto y = support::poisoned<T, 2>({n, 31});
      Tensor<T, 1, Cpu> const tb = to_tensor(used);
      emprl::linear_forward<T>(dev, y.view(), to_tensor(x), to_tensor(w), tb);
      support::check_two_times(
          "y", values(y), reference::linear(x, w, used).values,
          reference::linear(reference::convert<double>(x), reference::convert<double>(w),
                            reference::convert<double>(used))
              .values);
    }
  }
}

TEMPLATE_TEST_CASE("linear: backward overwrites dx and adds to parameter gradients",
                   "[ops][linear][grad]", float, double) {
  using T = TestType;
  Cpu dev(2);
  for (index_t const n : {1, 2, 33, 97}) {
    auto const x = random_matrix<T>(n, 17, 1);
    auto const w = random_matrix<T>(31, 17, 2);
    auto const dy = random_matrix<T>(n, 31, 3);
    auto const plain = reference::linear_backward(x, w, dy);
    auto const truth =
        reference::linear_backward(reference::convert<double>(x), reference::convert<double>(w),
                                   reference::convert<double>(dy));
    auto dx = support::poisoned<T, 2>({n, 17});
    Tensor<T, 2, Cpu> dw({31, 17}, T(0));
    Tensor<T, 1, Cpu> db({31}, T(0));
    emprl::linear_backward<T>(dev, dx.view(), dw, db, to_tensor(dy), to_tensor(x), to_tensor(w));
    support::check_two_times("dx", values(dx), plain.dx.values, truth.dx.values);
    support::check_two_times("dweight", values(dw), plain.dweight.values, truth.dweight.values);
    support::check_two_times("dbias", values(db), plain.dbias, truth.dbias);

    auto const once = values(dw);
    auto const dx_once = values(dx);
    emprl::linear_backward<T>(dev, dx.view(), dw, db, to_tensor(dy), to_tensor(x), to_tensor(w),
                              Write::accumulate);
    auto doubled = reference::convert<double>(once);
    for (double& v : doubled) v *= 2;
    support::check_error("dweight after two passes", values(dw), doubled, 0.0);
    doubled = reference::convert<double>(dx_once);
    for (double& v : doubled) v *= 2;
    support::check_error("dx accumulated", values(dx), doubled, 0.0);
  }
}

TEMPLATE_TEST_CASE("linear: a residual is added beside the result and in place",
                   "[ops][linear][unit]", float, double) {
  using T = TestType;
  Cpu dev(2);
  for (index_t const n : {1, 33}) {
    auto const x = random_matrix<T>(n, 33, 1);
    auto const w = random_matrix<T>(31, 33, 2);
    auto const b = random_values<T>(31, 3);
    auto const r = random_matrix<T>(n, 31, 4);
    auto const added = [&](auto y) {
      for (std::size_t i = 0; i < y.values.size(); ++i) {
        y.values[i] += static_cast<typename decltype(y.values)::value_type>(r.values[i]);
      }
      return y.values;
    };
    auto const plain = added(reference::linear(x, w, b));
    auto const truth =
        added(reference::linear(reference::convert<double>(x), reference::convert<double>(w),
                                reference::convert<double>(b)));
    auto y = support::poisoned<T, 2>({n, 31});
    auto const residual = to_tensor(r);
    Tensor<T, 1, Cpu> const bias = to_tensor(b);
    emprl::linear_forward<T>(dev, y.view(), to_tensor(x), to_tensor(w), bias, residual);
    support::check_two_times("y", values(y), plain, truth);
    CHECK(values(residual) == r.values);
    emprl::linear_forward<T>(dev, residual.view(), to_tensor(x), to_tensor(w), bias, residual);
    CHECK(values(residual) == values(y));
  }
}

TEST_CASE("linear: a ReLU beside it is the ReLU after it, and so is its gradient",
          "[ops][linear][unit]") {
  Cpu dev(2);
  auto const x = to_tensor(random_matrix<float>(33, 17, 1));
  auto const w = to_tensor(random_matrix<float>(31, 17, 2));
  auto const out = to_tensor(random_matrix<float>(5, 31, 3));
  auto const dy = to_tensor(random_matrix<float>(33, 5, 4));
  Tensor<float, 2, Cpu> apart({33, 31}), together({33, 31});
  emprl::linear_forward<float>(dev, apart.view(), x, w);
  emprl::relu_forward<float>(dev, apart.view(), apart);
  emprl::linear_relu_forward<float>(dev, together.view(), x, w);
  CHECK(values(together) == values(apart));
  Tensor<float, 2, Cpu> dx({33, 31}), dx_together({33, 31});
  Tensor<float, 2, Cpu> dw({5, 31}, 0.0f), dw_together({5, 31}, 0.0f);
  emprl::linear_backward<float>(dev, dx.view(), dw, {}, dy, apart, out);
  emprl::relu_backward<float>(dev, dx.view(), dx, apart);
  emprl::linear_relu_backward<float>(dev, dx_together.view(), dw_together, dy, apart, out);
  CHECK(values(dx_together) == values(dx));
  CHECK(values(dw_together) == values(dw));
}

TEST_CASE("linear: gradients that are not asked for are not computed", "[ops][linear][unit]") {
  Cpu dev;
  auto const x = to_tensor(random_matrix<float>(3, 5, 1));
  auto const w = to_tensor(random_matrix<float>(2, 5, 2));
  auto const dy = to_tensor(random_matrix<float>(3, 2, 3));
  TensorView<float, 2, Cpu> const none;
  CHECK_NOTHROW(emprl::linear_backward<float>(dev, none, {}, {}, dy, x, w));
}

TEST_CASE("linear: shapes that do not fit throw", "[ops][linear][unit]") {
  Cpu dev;
  Tensor<float, 2, Cpu> y({3, 2}, 0.0f);
  Tensor<float, 2, Cpu> const x({3, 5}, 0.0f);
  Tensor<float, 2, Cpu> const narrow({2, 4}, 0.0f);
  Tensor<float, 2, Cpu> const w({2, 5}, 0.0f);
  Tensor<float, 1, Cpu> const bias({3}, 0.0f);
  CHECK_THROWS_AS(emprl::linear_forward<float>(dev, y.view(), x, narrow), emprl::ShapeError);
  CHECK_THROWS_AS(emprl::linear_forward<float>(dev, y.view(), x, w, bias), emprl::ShapeError);
  Tensor<float, 1, Cpu> sum({3}, 0.0f);
  CHECK_THROWS_AS(emprl::sum_rows<float>(dev, sum.view(), y), emprl::ShapeError);
}
