// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstddef>
#include <vector>

#include "emprl/ops/elementwise.cuh"
#include "reference/activations.hpp"
#include "support/catch.hpp"
#include "support/device_matrix.hpp"

using emprl::Bf16;
using emprl::Cuda;
using emprl::index_t;
using emprl::ShapeError;
using support::as_vector;
using support::DeviceArray;
using support::DeviceMatrix;
using support::random_in_format;
using support::rounded;

namespace {

/// Single elements and packs, with and without a gap between rows, narrower and wider than a block.
struct Case {
  index_t rows, columns, gap;
};
constexpr Case cases[] = {{1, 1, 0},  {2, 2, 1},   {31, 33, 0}, {97, 31, 2}, {257, 1, 1},
                          {3, 64, 0}, {33, 16, 8}, {2, 300, 3}, {2, 2064, 8}};

template <class T, class F>
void for_each_case(F f) {
  for (Case const& c : cases) {
    INFO(c.rows << " x " << c.columns << ", gap " << c.gap);
    f(c);
  }
}

using Matrix = reference::Matrix<float>;

/// f of every element, rounded to the format.
template <class T, class F, class... M>
std::vector<float> expected(F f, Matrix const& first, M const&... others) {
  std::vector<float> y;
  for (std::size_t i = 0; i < first.values.size(); ++i) {
    y.push_back(rounded<T>(f(first.values[i], others.values[i]...)));
  }
  return y;
}

}  // namespace

TEMPLATE_TEST_CASE("copy, add, fill, scale: on the GPU, exact on every layout, and nothing beside",
                   "[cuda][elementwise]", float, Bf16) {
  using T = TestType;
  support::for_each_schedule(2, [] {
    for_each_case<T>([](Case const& c) {
      Cuda dev;
      auto const a = random_in_format<T>(c.rows, c.columns, 1);
      auto const b = random_in_format<T>(c.rows, c.columns, 2);
      DeviceMatrix<T> from(a, c.gap);
      DeviceMatrix<T> other(b);
      auto y = DeviceMatrix<T>::poisoned(c.rows, c.columns, c.gap);
      emprl::copy(dev, y.view(), from);
      CHECK(y.values() == a.values);
      emprl::add(dev, y.view(), other);
      auto const sum = expected<T>([](float p, float q) { return p + q; }, a, b);
      CHECK(y.values() == sum);
      emprl::scale(dev, y.view(), 0.3f);
      std::vector<float> scaled;
      for (float const v : sum) scaled.push_back(rounded<T>(v * 0.3f));
      CHECK(y.values() == scaled);
      emprl::fill(dev, y.view(), T(2.5f));
      CHECK(y.values() == std::vector<float>(sum.size(), 2.5f));
    });
  });
}

TEMPLATE_TEST_CASE("relu: on the GPU, forward and backward, in place too", "[cuda][elementwise]",
                   float, Bf16) {
  using T = TestType;
  for_each_case<T>([](Case const& c) {
    Cuda dev;
    auto a = random_in_format<T>(c.rows, c.columns, 1);
    a.values[0] = 0.0f;
    auto const up = random_in_format<T>(c.rows, c.columns, 2);
    DeviceMatrix<T> x(a, c.gap);
    DeviceMatrix<T> dy(up);
    auto y = DeviceMatrix<T>::poisoned(c.rows, c.columns, c.gap);
    emprl::relu_forward(dev, y.view(), x);
    CHECK(y.values() == expected<T>([](float v) { return reference::relu(v); }, a));
    auto const gradient = expected<T>([](float g, float v) { return v > 0 ? g : 0.0f; }, up, a);
    auto dx = DeviceMatrix<T>::poisoned(c.rows, c.columns);
    emprl::relu_backward(dev, dx.view(), dy, y);
    CHECK(dx.values() == gradient);
    emprl::relu_backward(dev, dy.view(), dy, y);
    CHECK(dy.values() == gradient);
    emprl::relu_forward(dev, x.view(), x);
    CHECK(x.values() == y.values());
  });
}

TEMPLATE_TEST_CASE("gated_gelu: on the GPU, forward and backward are as exact as the loops",
                   "[cuda][elementwise]", float, Bf16) {
  using T = TestType;
  for_each_case<T>([](Case const& c) {
    Cuda dev;
    index_t const f = c.columns;
    auto const in = random_in_format<T>(c.rows, 2 * f, 1);
    auto const up = random_in_format<T>(c.rows, f, 2);
    auto const both = [&]<class R>(R) {
      reference::Matrix<R> y(c.rows, f);
      reference::Matrix<R> dx(c.rows, 2 * f);
      for (index_t n = 0; n < c.rows; ++n) {
        for (index_t j = 0; j < f; ++j) {
          R const gate = in(n, j);
          R const value = in(n, f + j);
          R const g = up(n, j);
          y(n, j) = reference::gelu_new(gate) * value;
          dx(n, j) = g * reference::gelu_new_derivative(gate) * value;
          dx(n, f + j) = g * reference::gelu_new(gate);
        }
      }
      return std::pair(y, dx);
    };
    auto const truth = both(0.0);
    auto const plain = both(0.0f);
    DeviceMatrix<T> x(in, c.gap);
    DeviceMatrix<T> dy(up, c.gap);
    auto y = DeviceMatrix<T>::poisoned(c.rows, f, c.gap);
    auto dx = DeviceMatrix<T>::poisoned(c.rows, 2 * f, c.gap);
    emprl::gated_gelu_forward(dev, y.view(), x);
    emprl::gated_gelu_backward(dev, dx.view(), dy, x);
    support::check_stored<T>("y", y.values(), plain.first.values, truth.first.values);
    support::check_stored<T>("dx", dx.values(), plain.second.values, truth.second.values);
  });
}

TEMPLATE_TEST_CASE("tanh: on the GPU, forward and backward", "[cuda][elementwise]", float, Bf16) {
  using T = TestType;
  for_each_case<T>([](Case const& c) {
    Cuda dev;
    auto const in = random_in_format<T>(c.rows, c.columns, 1, 2.0);
    auto const up = random_in_format<T>(c.rows, c.columns, 2);
    DeviceMatrix<T> x(in, c.gap);
    DeviceMatrix<T> dy(up);
    auto y = DeviceMatrix<T>::poisoned(c.rows, c.columns, c.gap);
    emprl::tanh_forward(dev, y.view(), x);
    std::vector<double> truth;
    std::vector<float> plain;
    for (float const v : in.values) {
      truth.push_back(std::tanh(static_cast<double>(v)));
      plain.push_back(std::tanh(v));
    }
    support::check_stored<T>("y", y.values(), plain, truth);
    auto const stored = y.values();
    emprl::tanh_backward(dev, dy.view(), dy, y);
    truth.clear();
    plain.clear();
    for (std::size_t i = 0; i < stored.size(); ++i) {
      double const s = stored[i];
      truth.push_back(static_cast<double>(up.values[i]) * (1 - s * s));
      plain.push_back(up.values[i] * (1 - stored[i] * stored[i]));
    }
    support::check_stored<T>("dx", dy.values(), plain, truth);
    emprl::tanh_forward(dev, x.view(), x);
    CHECK(x.values() == stored);
  });
}

TEMPLATE_TEST_CASE("segment_mean: on the GPU, means of ragged rows, empty ones included",
                   "[cuda][elementwise]", float, Bf16) {
  using T = TestType;
  auto const offsets = support::offsets_of({0, 1, 2, 0, 31, 33, 8, 0});
  index_t const rows = 8;
  index_t const n = offsets.back();
  support::for_each_schedule(3, [&] {
    for (index_t const columns : {1, 31, 33, 64, 264}) {
      CAPTURE(columns);
      Cuda dev;
      auto const in = random_in_format<T>(n, columns, 1);
      auto const up = random_in_format<T>(rows, columns, 2);
      auto const both = [&]<class R>(R) {
        reference::Matrix<R> y(rows, columns);
        reference::Matrix<R> dx(n, columns);
        for (index_t b = 0; b < rows; ++b) {
          auto const begin = offsets[static_cast<std::size_t>(b)];
          auto const end = offsets[static_cast<std::size_t>(b) + 1];
          for (index_t i = begin; i < end; ++i) {
            for (index_t j = 0; j < columns; ++j) {
              y(b, j) += R(in(i, j));
              dx(i, j) = R(up(b, j)) / static_cast<R>(end - begin);
            }
          }
          for (index_t j = 0; j < columns && begin < end; ++j) {
            y(b, j) /= static_cast<R>(end - begin);
          }
        }
        return std::pair(y, dx);
      };
      auto const truth = both(0.0);
      auto const plain = both(0.0f);
      DeviceArray<index_t> places(offsets);
      auto const at = as_vector(places, rows + 1);
      DeviceMatrix<T> x(in, 8);
      DeviceMatrix<T> dy(up);
      auto y = DeviceMatrix<T>::poisoned(rows, columns);
      auto dx = DeviceMatrix<T>::poisoned(n, columns, 8);
      emprl::segment_mean_forward(dev, y.view(), x, at);
      emprl::segment_mean_backward(dev, dx.view(), dy, at);
      support::check_stored<T>("y", y.values(), plain.first.values, truth.first.values);
      support::check_stored<T>("dx", dx.values(), plain.second.values, truth.second.values);
    }
  });
}

TEST_CASE("element-wise: on the GPU, no rows are fine, wrong shapes throw", "[cuda][elementwise]") {
  Cuda dev;
  auto none = DeviceMatrix<float>::poisoned(0, 4);
  CHECK_NOTHROW(emprl::copy(dev, none.view(), none));
  CHECK_NOTHROW(emprl::fill(dev, none.view(), 1.0f));
  CHECK_NOTHROW(
      emprl::gated_gelu_backward(dev, none.view(), DeviceMatrix<float>::poisoned(0, 2), none));
  auto x = DeviceMatrix<float>::poisoned(3, 4);
  auto y = DeviceMatrix<float>::poisoned(3, 5);
  CHECK_THROWS_AS(emprl::add(dev, x.view(), y), ShapeError);
  CHECK_THROWS_AS(emprl::relu_backward(dev, x.view(), x, y), ShapeError);
  CHECK_THROWS_AS(emprl::gated_gelu_forward(dev, x.view(), y), ShapeError);
  DeviceArray<index_t> offsets({0, 3});
  CHECK_THROWS_AS(emprl::segment_mean_forward(dev, x.view(), x, as_vector(offsets, 2)), ShapeError);
}
