// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/linear.cuh"

#include <cmath>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "reference/linear.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/device_array.hpp"
#include "support/formats.hpp"
#if !defined(__CUDACC__)
#include "emprl/ops/gemm_cpu.hpp"
#endif

using emprl::Bf16;
using emprl::Cuda;
using emprl::index_t;
using emprl::TensorView;
using support::in_format;
using support::random_in_format;

namespace {

/// Rows of `pitch` elements, NaN behind the first `columns` of each.
template <class T>
std::vector<T> padded(std::vector<T> const& x, index_t rows, index_t columns, index_t pitch) {
  std::vector<T> y(static_cast<std::size_t>(rows * pitch), T(std::nanf("")));
  for (index_t i = 0; i < rows; ++i) {
    for (index_t j = 0; j < columns; ++j) {
      y[static_cast<std::size_t>(i * pitch + j)] = x[static_cast<std::size_t>(i * columns + j)];
    }
  }
  return y;
}

}  // namespace

TEMPLATE_TEST_CASE("add_bias: every row gets the bias, rounded once", "[cuda][linear]", float,
                   Bf16) {
  using T = TestType;
  Cuda dev;
  support::for_each_schedule(2, [&] {
    for (index_t const rows : {0, 1, 3}) {
      for (index_t const columns : {1, 31, 257}) {
        auto const x = in_format<T>(support::random_values<float>(rows * columns, 1));
        auto const b = in_format<T>(support::random_values<float>(columns, 2));
        support::DeviceArray<T> y(padded(x, rows, columns, columns + 3)), bias(b);
        add_bias(dev, TensorView<T, 2, Cuda>(y.data(), {rows, columns + 3}).columns(0, columns),
                 TensorView<T, 1, Cuda>(bias.data(), {columns}));
        dev.synchronize();
        auto const result = y.values();
        int wrong = 0;
        for (index_t i = 0; i < rows; ++i) {
          for (index_t j = 0; j < columns; ++j) {
            auto const u = static_cast<std::size_t>(j);
            float const expected = static_cast<float>(
                T(static_cast<float>(x[static_cast<std::size_t>(i * columns + j)]) +
                  static_cast<float>(b[u])));
            if (static_cast<float>(result[static_cast<std::size_t>(i * (columns + 3) + j)]) !=
                expected) {
              ++wrong;
            }
          }
          CHECK(std::isnan(
              static_cast<float>(result[static_cast<std::size_t>(i * (columns + 3) + columns)])));
        }
        CHECK(wrong == 0);
      }
    }
  });
}

TEMPLATE_TEST_CASE("sum_rows: adds the sums of columns, the same bits in every order of threads",
                   "[cuda][linear]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  dev.scratch.poison(true);
  // Two chunks of rows, and a part of one.
  for (index_t const rows : {0, 1, 7, 33, 600}) {
    for (index_t const columns : {1, 33, 97}) {
      auto const x = in_format<T>(support::random_values<float>(rows * columns, 3));
      auto const before = support::random_values<float>(columns, 4);
      std::vector<std::vector<float>> results;
      support::for_each_schedule(columns == 33 ? 10 : 1, [&] {
        support::DeviceArray<T> dy(padded(x, rows, columns, columns + 5));
        support::DeviceArray<float> db(before);
        sum_rows(dev, TensorView<float, 1, Cuda>(db.data(), {columns}),
                 TensorView<T, 2, Cuda>(dy.data(), {rows, columns + 5}).columns(0, columns));
        dev.synchronize();
        results.push_back(db.values());
      });
      for (auto const& result : results) CHECK(result == results.front());
      int wrong = 0;
      for (index_t j = 0; j < columns; ++j) {
        auto const u = static_cast<std::size_t>(j);
        double sum = before[u];
        double size = std::abs(sum);
        for (index_t i = 0; i < rows; ++i) {
          double const v = static_cast<float>(x[static_cast<std::size_t>(i * columns + j)]);
          sum += v;
          size += std::abs(v);
        }
        // A chunk is added in 32 + 8 steps, three chunks in 8, and the sum to what was there.
        double const allowed = 49 * 0x1p-24 * size;
        if (!(std::abs(static_cast<double>(results.front()[u]) - sum) <= allowed)) ++wrong;
      }
      CHECK(wrong == 0);
    }
  }
}

TEMPLATE_TEST_CASE(
    "linear: with its ReLU in one pass, and the gradient before the ReLU in one more",
    "[cuda][linear]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  dev.scratch.poison(true);
  auto const there = [](reference::Matrix<float> const& x) {
    return support::DeviceArray<T>(in_format<T>(x.values));
  };
  auto const double_of = [](support::DeviceArray<T> const& x) {
    std::vector<double> y;
    for (T const v : x.values()) y.push_back(static_cast<float>(v));
    return y;
  };
  // Outputs that fill the 128 bits of a mask's row, and some that do not and get none.
  for (auto const& [rows, outputs] : {std::pair<index_t, index_t>{1, 128}, {33, 256}, {5, 96}}) {
    INFO(rows << " x " << outputs);
    index_t const inputs = 33, next = 20;
    auto const x = random_in_format<T>(rows, inputs, 1),
               w = random_in_format<T>(outputs, inputs, 2), dz = random_in_format<T>(rows, next, 3),
               v = random_in_format<T>(next, outputs, 4);
    auto x_there = there(x), w_there = there(w), dz_there = there(dz), v_there = there(v);
    auto y = support::DeviceArray<T>::poisoned(rows * outputs);
    auto dy = support::DeviceArray<T>::poisoned(rows * outputs);
    support::DeviceArray<float> dv(std::vector<float>(static_cast<std::size_t>(next * outputs)));
    auto const extents = relu_mask_extents(dev, rows, outputs);
    CHECK((extents[0] > 0) == (outputs % 128 == 0));
    auto mask = support::DeviceArray<std::uint8_t>::poisoned(extents[0] * extents[1]);
    auto const matrix = [](auto& array, index_t m, index_t n) {
      return TensorView<std::remove_pointer_t<decltype(array.data())>, 2, Cuda>(array.data(),
                                                                                {m, n});
    };
    auto const bits = matrix(mask, extents[0], extents[1]);
    linear_relu_forward(dev, matrix(y, rows, outputs), matrix(x_there, rows, inputs),
                        matrix(w_there, outputs, inputs), bits);
    linear_relu_backward(dev, matrix(dy, rows, outputs), matrix(dv, next, outputs),
                         matrix(dz_there, rows, next), matrix(y, rows, outputs),
                         matrix(v_there, next, outputs), bits);
    dev.synchronize();

    // A float sum of so many terms, of the order of one, and one rounding to the format.
    auto const close = [](std::vector<double> const& actual, std::vector<double> const& truth,
                          index_t terms, double rounding) {
      double const sum_error = static_cast<double>((terms + 2) * terms) * 0x1p-23;
      REQUIRE(actual.size() == truth.size());
      int wrong = 0;
      for (std::size_t i = 0; i < truth.size(); ++i) {
        double const allowed = sum_error + rounding * (std::abs(truth[i]) + sum_error);
        if (!(std::abs(actual[i] - truth[i]) <= allowed)) ++wrong;
      }
      CHECK(wrong == 0);
    };
    double const rounding = support::storage_rounding<T>;
    auto const double_of_matrix = [](reference::Matrix<float> const& m) {
      return reference::convert<double>(m);
    };
    auto truth = reference::linear(double_of_matrix(x), double_of_matrix(w));
    for (double& t : truth.values) t = t > 0 ? t : 0;
    auto const stored = double_of(y);
    close(stored, truth.values, inputs, rounding);
    auto before = multiply(double_of_matrix(dz), double_of_matrix(v));
    int passed = 0;
    for (std::size_t i = 0; i < stored.size(); ++i) {
      if (stored[i] > 0) {
        ++passed;
      } else {
        before.values[i] = 0;
      }
    }
    close(double_of(dy), before.values, next, rounding);
    CHECK(passed > 0);
    CHECK(passed < rows * outputs);
    // The weights' gradient takes what is stored.
    reference::Matrix<double> hidden(rows, outputs);
    hidden.values = stored;
    auto const dv_values = dv.values();
    close({dv_values.begin(), dv_values.end()},
          multiply(transpose(double_of_matrix(dz)), hidden).values, 6 * rows, 0x1p-24);
  }
}
