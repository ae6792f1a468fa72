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
