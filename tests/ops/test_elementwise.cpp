// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/elementwise.hpp"

#include <cmath>
#include <utility>
#include <vector>

#include "reference/activations.hpp"
#include "reference/matrix.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/gradient_check.hpp"

using emprl::Cpu;
using emprl::index_t;
using emprl::ShapeError;
using emprl::Tensor;
using emprl::TensorView;
using support::random_matrix;
using support::to_tensor;
using support::values;

namespace {

TensorView<index_t const, 1, Cpu> view(std::vector<index_t> const& x) {
  return {x.data(), {static_cast<index_t>(x.size())}};
}

double dot(Tensor<double, 2, Cpu> const& a, Tensor<double, 2, Cpu> const& b) {
  double sum = 0;
  for (index_t i = 0; i < a.size(); ++i) sum += a.data()[i] * b.data()[i];
  return sum;
}

}  // namespace

TEMPLATE_TEST_CASE("copy, add, fill, scale: on views with gaps, and nothing beside them",
                   "[ops][elementwise][unit]", float, double) {
  using T = TestType;
  Cpu dev(2);
  auto const x = random_matrix<T>(33, 31, 1);
  Tensor<T, 2, Cpu> wide({33, 40}, T(-1));
  auto const part = wide.view().columns(4, 35);
  emprl::copy<T>(dev, part, to_tensor(x));
  CHECK(values(part) == x.values);
  emprl::add<T>(dev, part, to_tensor(x));
  emprl::scale<T>(dev, part, T(3));
  for (index_t i = 0; i < 33; ++i) {
    for (index_t j = 0; j < 31; ++j) REQUIRE(part(i, j) == (x(i, j) + x(i, j)) * T(3));
  }
  emprl::fill<T>(dev, part, T(0));
  for (index_t i = 0; i < 33; ++i) {
    for (index_t j = 0; j < 40; ++j) REQUIRE(wide(i, j) == (j < 4 || j >= 35 ? T(-1) : T(0)));
  }
}

TEMPLATE_TEST_CASE("relu: forward and backward, in place too", "[ops][elementwise][unit]", float,
                   double) {
  using T = TestType;
  Cpu dev(2);
  auto const x = random_matrix<T>(97, 33, 1);
  auto const dy = random_matrix<T>(97, 33, 2);
  auto y = support::poisoned<T, 2>({97, 33});
  emprl::relu_forward<T>(dev, y.view(), to_tensor(x));
  auto dx = support::poisoned<T, 2>({97, 33});
  emprl::relu_backward<T>(dev, dx.view(), to_tensor(dy), y);
  for (index_t i = 0; i < 97; ++i) {
    for (index_t j = 0; j < 33; ++j) {
      REQUIRE(y(i, j) == reference::relu(x(i, j)));
      REQUIRE(dx(i, j) == dy(i, j) * reference::relu_derivative(x(i, j)));
    }
  }
  auto in_place = to_tensor(dy);
  emprl::relu_backward<T>(dev, in_place.view(), in_place, y);
  CHECK(values(in_place) == values(dx));
}

TEMPLATE_TEST_CASE("gated_gelu: forward and backward match the loops", "[ops][elementwise][grad]",
                   float, double) {
  using T = TestType;
  Cpu dev(2);
  index_t const f = 33;
  for (index_t const n : {1, 2, 97}) {
    auto const x = random_matrix<T>(n, 2 * f, 1, 2.0);
    auto const dy = random_matrix<T>(n, f, 2);
    auto const run = [&]<class S>(S) {
      auto const sx = reference::convert<S>(x);
      auto const sdy = reference::convert<S>(dy);
      reference::Matrix<S> y(n, f);
      reference::Matrix<S> dx(n, 2 * f);
      for (index_t i = 0; i < n; ++i) {
        for (index_t j = 0; j < f; ++j) {
          y(i, j) = reference::gelu_new(sx(i, j)) * sx(i, f + j);
          dx(i, j) = sdy(i, j) * reference::gelu_new_derivative(sx(i, j)) * sx(i, f + j);
          dx(i, f + j) = sdy(i, j) * reference::gelu_new(sx(i, j));
        }
      }
      return std::pair{y, dx};
    };
    auto const plain = run(T{});
    auto const truth = run(double{});
    auto y = support::poisoned<T, 2>({n, f});
    auto dx = support::poisoned<T, 2>({n, 2 * f});
    emprl::gated_gelu_forward<T>(dev, y.view(), to_tensor(x));
    emprl::gated_gelu_backward<T>(dev, dx.view(), to_tensor(dy), to_tensor(x));
    support::check_two_times("y", values(y), plain.first.values, truth.first.values);
    support::check_two_times("dx", values(dx), plain.second.values, truth.second.values);
  }
}

TEST_CASE("gated_gelu and tanh: backward matches central differences", "[ops][elementwise][grad]") {
  Cpu dev;
  auto x = to_tensor(random_matrix<double>(5, 14, 1));
  auto const dy = to_tensor(random_matrix<double>(5, 7, 2));
  Tensor<double, 2, Cpu> y({5, 7});
  Tensor<double, 2, Cpu> dx({5, 14});
  emprl::gated_gelu_backward<double>(dev, dx.view(), dy, x);
  support::check_gradients(
      [&] {
        emprl::gated_gelu_forward<double>(dev, y.view(), x);
        return dot(y, dy);
      },
      {{"gated_gelu x", x.span(), values(dx)}});

  auto z = to_tensor(random_matrix<double>(5, 7, 3));
  Tensor<double, 2, Cpu> dz({5, 7});
  emprl::tanh_forward<double>(dev, y.view(), z);
  emprl::tanh_backward<double>(dev, dz.view(), dy, y);
  support::check_gradients(
      [&] {
        emprl::tanh_forward<double>(dev, y.view(), z);
        return dot(y, dy);
      },
      {{"tanh x", z.span(), values(dz)}});
}

TEMPLATE_TEST_CASE("segment_mean: means of ragged rows, zeros for an empty one",
                   "[ops][elementwise][unit]", float, double) {
  using T = TestType;
  Cpu dev(2);
  auto const offsets = support::offsets_of({3, 0, 1, 31, 2});
  auto const x = random_matrix<T>(37, 33, 1);
  auto const run = [&]<class S>(S) {
    auto const sx = reference::convert<S>(x);
    reference::Matrix<S> y(5, 33);
    for (index_t b = 0; b < 5; ++b) {
      auto const u = static_cast<std::size_t>(b);
      for (index_t i = offsets[u]; i < offsets[u + 1]; ++i) {
        for (index_t j = 0; j < 33; ++j) {
          y(b, j) += sx(i, j) / static_cast<S>(offsets[u + 1] - offsets[u]);
        }
      }
    }
    return y;
  };
  auto y = support::poisoned<T, 2>({5, 33});
  emprl::segment_mean_forward<T>(dev, y.view(), to_tensor(x), view(offsets));
  support::check_two_times("y", values(y), run(T{}).values, run(double{}).values);
  for (index_t j = 0; j < 33; ++j) CHECK(y(1, j) == T(0));

  auto const dy = random_matrix<T>(5, 33, 2);
  auto dx = support::poisoned<T, 2>({37, 33});
  emprl::segment_mean_backward<T>(dev, dx.view(), to_tensor(dy), view(offsets));
  for (index_t j = 0; j < 33; ++j) {
    CHECK(dx(0, j) == dy(0, j) / T(3));
    CHECK(dx(3, j) == dy(2, j));
    CHECK(dx(10, j) == dy(3, j) / T(31));
    CHECK(dx(36, j) == dy(4, j) / T(2));
  }
}

TEST_CASE("element-wise: wrong shapes throw", "[ops][elementwise][unit]") {
  Cpu dev;
  Tensor<float, 2, Cpu> a({3, 4}, 0.0f);
  Tensor<float, 2, Cpu> const fewer_rows({2, 4}, 0.0f);
  Tensor<float, 2, Cpu> const narrow({3, 3}, 0.0f);
  for (auto const* other : {&fewer_rows, &narrow}) {
    CHECK_THROWS_AS(emprl::copy<float>(dev, a.view(), *other), ShapeError);
    CHECK_THROWS_AS(emprl::add<float>(dev, a.view(), *other), ShapeError);
    CHECK_THROWS_AS(emprl::relu_forward<float>(dev, a.view(), *other), ShapeError);
    CHECK_THROWS_AS(emprl::relu_backward<float>(dev, a.view(), *other, a), ShapeError);
    CHECK_THROWS_AS(emprl::relu_backward<float>(dev, a.view(), a, *other), ShapeError);
    CHECK_THROWS_AS(emprl::tanh_forward<float>(dev, a.view(), *other), ShapeError);
    CHECK_THROWS_AS(emprl::tanh_backward<float>(dev, a.view(), a, *other), ShapeError);
    CHECK_THROWS_AS(emprl::gated_gelu_forward<float>(dev, a.view(), *other), ShapeError);
  }
  Tensor<float, 2, Cpu> means({2, 4}, 0.0f);
  for (auto const& offsets :
       {std::vector<index_t>{0, 3}, std::vector<index_t>{0, 2, 4}, std::vector<index_t>{0, 1, 2}}) {
    CHECK_THROWS_AS(emprl::segment_mean_forward<float>(dev, means.view(), a, view(offsets)),
                    ShapeError);
    CHECK_THROWS_AS(emprl::segment_mean_backward<float>(dev, a.view(), means, view(offsets)),
                    ShapeError);
  }
}
