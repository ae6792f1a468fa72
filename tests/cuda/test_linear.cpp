// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/linear.cuh"

#include <cmath>
#include <span>
#include <vector>

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
