// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "emprl/ops/embedding.cuh"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/device_array.hpp"
#include "support/device_matrix.hpp"
#include "support/formats.hpp"

using emprl::Bf16;
using emprl::Cuda;
using emprl::index_t;
using emprl::TensorView;
using support::DeviceArray;
using support::in_float;

namespace {

template <class T>
std::vector<T> random_elements(index_t n, std::uint64_t seed) {
  return support::in_format<T>(support::random_values<float>(n, seed));
}

/// Few ids of many: some often, some once, most never.
std::vector<std::int32_t> some_ids(index_t n, index_t rows) {
  emprl::RandomSequence random(7, emprl::Stream::initialise);
  std::vector<std::int32_t> ids;
  for (index_t i = 0; i < n; ++i) {
    double const u = random.uniform();
    ids.push_back(static_cast<std::int32_t>(static_cast<double>(rows) * u * u * u));
  }
  return ids;
}

}  // namespace

TEMPLATE_TEST_CASE("embedding on the GPU: forward copies rows", "[cuda][embedding][unit]", float,
                   Bf16) {
  using T = TestType;
  Cuda dev;
  support::for_each_schedule(2, [&] {
    for (index_t const columns : {1, 2, 31, 33, 97, 128, 257}) {
      for (index_t const n : {0, 1, 2, 33, 97}) {
        auto const table = random_elements<T>(7 * columns, 1);
        auto const ids = some_ids(n, 7);
        DeviceArray<T> table_on_device(table);
        DeviceArray<std::int32_t> ids_on_device(ids);
        auto y = DeviceArray<T>::poisoned(n * columns);
        emprl::embedding_forward(dev, TensorView<T, 2, Cuda>(y.data(), {n, columns}),
                                 {table_on_device.data(), {7, columns}},
                                 {ids_on_device.data(), {n}});
        dev.synchronize();
        std::vector<T> expected;
        for (auto const id : ids) {
          expected.insert(expected.end(), table.begin() + id * columns,
                          table.begin() + (id + 1) * columns);
        }
        CHECK(in_float(y.values()) == in_float(expected));
      }
    }
  });
}

TEMPLATE_TEST_CASE(
    "embedding on the GPU: rows may stand apart, and nothing between them is touched",
    "[cuda][embedding][contract]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  dev.scratch.poison(true);
  index_t const rows = 7, n = 33;
  auto const ids = some_ids(n, rows);
  for (index_t const columns : {1, 16, 31, 64}) {
    // Packs in neither, in one, in both of the matrices.
    for (index_t const gap : {3, 8}) {
      for (index_t const other_gap : {0, 3, 8}) {
        INFO(columns << " columns, gaps " << gap << " and " << other_gap);
        auto const numbers = support::random_in_format<T>(rows, columns, 1);
        support::DeviceMatrix<T> table(numbers, gap);
        DeviceArray<std::int32_t> places(ids);
        auto const at = support::as_vector(places, n);
        auto y = support::DeviceMatrix<T>::poisoned(n, columns, other_gap);
        emprl::embedding_forward(dev, y.view(), table, at);
        dev.synchronize();
        reference::Matrix<float> expected(n, columns);
        for (index_t i = 0; i < n; ++i) {
          for (index_t j = 0; j < columns; ++j) {
            expected(i, j) = numbers(ids[static_cast<std::size_t>(i)], j);
          }
        }
        CHECK(y.values() == expected.values);

        // Of whole numbers, so that sums are exact.
        auto up = expected;
        for (float& x : up.values) x = std::round(2 * x);
        support::DeviceMatrix<T> dy(up, other_gap);
        support::DeviceMatrix<T> dtable(reference::Matrix<float>(rows, columns), gap);
        emprl::embedding_backward(dev, dtable.view(), dy, at);
        dev.synchronize();
        reference::Matrix<float> sums(rows, columns);
        for (index_t i = 0; i < n; ++i) {
          for (index_t j = 0; j < columns; ++j) {
            sums(ids[static_cast<std::size_t>(i)], j) += up(i, j);
          }
        }
        CHECK(dtable.values() == support::in_float(support::in_format<T>(sums.values)));
      }
    }
  }
}

TEST_CASE("embedding on the GPU: an id outside the table gives NaN and no gradient",
          "[cuda][embedding][unit]") {
  Cuda dev;
  dev.scratch.poison(true);
  DeviceArray<float> table(std::vector<float>(5 * 8, 1.0f));
  DeviceArray<std::int32_t> ids(std::vector<std::int32_t>{4, -1, 5, 1000000});
  auto y = DeviceArray<float>::poisoned(4 * 8);
  TensorView<float, 2, Cuda> const table_view(table.data(), {5, 8});
  TensorView<float, 2, Cuda> const y_view(y.data(), {4, 8});
  emprl::embedding_forward(dev, y_view, table_view, {ids.data(), {4}});
  for (std::size_t i = 0; i < 32; ++i) {
    if (i < 8) {
      CHECK(y.values()[i] == 1.0f);
    } else {
      CHECK(std::isnan(y.values()[i]));
    }
  }
  emprl::embedding_backward(dev, table_view, y_view, {ids.data(), {4}});
  for (std::size_t i = 0; i < 40; ++i) CHECK(table.values()[i] == (i < 32 ? 1.0f : 2.0f));
  CHECK_THROWS_AS(emprl::embedding_forward(dev, y_view, table_view, {ids.data(), {3}}),
                  emprl::ShapeError);
  CHECK_THROWS_AS(emprl::embedding_backward(dev, table_view, y_view, {ids.data(), {3}}),
                  emprl::ShapeError);
}

TEMPLATE_TEST_CASE("embedding on the GPU: backward adds up repeated ids on top of what is there",
                   "[cuda][embedding][grad]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  dev.scratch.poison(true);
  support::for_each_schedule(2, [&] {
    for (index_t const columns : {1, 2, 31, 33, 97, 128, 260}) {
      for (index_t const n : {0, 1, 2, 33, 257}) {
        INFO(n << " tokens, " << columns << " columns");
        index_t const rows = 50;
        auto const ids = some_ids(n, rows);
        auto const dy = random_elements<T>(n * columns, 2);
        auto const before = random_elements<T>(rows * columns, 3);
        auto const expected = [&]<class S>(S) {
          // The sum first, then on top: as if the table had been zero.
          std::vector<S> sum(before.size(), S(0));
          for (std::size_t i = 0; i < dy.size(); ++i) {
            auto const at = ids[i / static_cast<std::size_t>(columns)] * columns +
                            static_cast<index_t>(i) % columns;
            sum[static_cast<std::size_t>(at)] += static_cast<S>(static_cast<float>(dy[i]));
          }
          for (std::size_t i = 0; i < sum.size(); ++i) {
            sum[i] += static_cast<S>(static_cast<float>(before[i]));
          }
          return sum;
        };
        auto const plain = support::in_format<T>(expected(0.0f));
        DeviceArray<T> dtable(before), dy_on_device(dy);
        DeviceArray<std::int32_t> ids_on_device(ids);
        emprl::embedding_backward(dev, TensorView<T, 2, Cuda>(dtable.data(), {rows, columns}),
                                  {dy_on_device.data(), {n, columns}}, {ids_on_device.data(), {n}});
        dev.synchronize();
        support::check_two_times("dtable", in_float(dtable.values()), in_float(plain),
                                 expected(0.0));
      }
    }
  });
}

TEST_CASE("embedding on the GPU: gradients in Bf16 are summed into a table in float",
          "[cuda][embedding][grad]") {
  Cuda dev;
  auto const dy = random_elements<Bf16>(33 * 64, 2);
  DeviceArray<Bf16> dy_on_device(dy);
  DeviceArray<std::int32_t> ids(std::vector<std::int32_t>(33, 1));
  DeviceArray<float> dtable(std::vector<float>(2 * 64, 0.0f));
  emprl::embedding_backward(dev, TensorView<float, 2, Cuda>(dtable.data(), {2, 64}),
                            {dy_on_device.data(), {33, 64}}, {ids.data(), {33}});
  dev.synchronize();
  auto const actual = dtable.values();
  for (std::size_t c = 0; c < 64; ++c) {
    double sum = 0;
    double size = 0;
    for (std::size_t i = 0; i < 33; ++i) {
      auto const x = static_cast<double>(static_cast<float>(dy[i * 64 + c]));
      sum += x;
      size += std::abs(x);
    }
    CHECK(actual[c] == 0.0f);
    // Five additions in a warp's share, eight of the shares and one to the table, each rounding
    // once.
    CHECK(std::abs(static_cast<double>(actual[64 + c]) - sum) <= 14 * 0x1p-24 * size);
  }
}

TEST_CASE("embedding on the GPU: the gradient has the same bits in every schedule",
          "[cuda][embedding][grad]") {
  Cuda dev;
  dev.scratch.poison(true);
  auto const ids = some_ids(257, 11);
  auto const dy = random_elements<float>(257 * 68, 2);
  std::vector<float> first;
  support::for_each_schedule(10, [&] {
    DeviceArray<float> dtable(std::vector<float>(11 * 68, 0.5f)), dy_on_device(dy);
    DeviceArray<std::int32_t> ids_on_device(ids);
    emprl::embedding_backward(dev, TensorView<float, 2, Cuda>(dtable.data(), {11, 68}),
                              {dy_on_device.data(), {257, 68}}, {ids_on_device.data(), {257}});
    dev.synchronize();
    auto const now = dtable.values();
    if (first.empty()) first = now;
    CHECK(std::memcmp(now.data(), first.data(), now.size() * sizeof(float)) == 0);
  });
}
