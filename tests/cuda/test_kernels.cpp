// SPDX-License-Identifier: Apache-2.0
// Small real kernels against plain loops. Compiled without nvcc they run on the host executor.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <type_traits>
#include <vector>

#include "cuda/kernels/histogram.cuh"
#include "cuda/kernels/matmul.cuh"
#include "cuda/kernels/row_sum.cuh"
#include "cuda/kernels/transpose.cuh"
#include "emprl/core/half.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/cuda/launch.cuh"
#include "support/catch.hpp"
#include "support/device_array.hpp"

using emprl::Bf16;
using emprl::Fp16;
using emprl::index_t;
using emprl::cuda::blocks_for;
using emprl::cuda::launch;
using support::DeviceArray;

namespace {

constexpr int awkward[] = {1, 2, 31, 33, 97, 257};

std::vector<float> random_floats(index_t n, std::uint64_t seed) {
  emprl::RandomSequence random(seed, emprl::Stream::initialise);
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& v : x) v = static_cast<float>(random.normal());
  return x;
}

}  // namespace

TEST_CASE("row_sum: a block's sum is that of double within the error of a float sum",
          "[cuda][kernels]") {
  support::for_each_schedule(3, [] {
    for (int const columns : awkward) {
      index_t const rows = 3;
      auto const x = random_floats(rows * columns, 1);
      DeviceArray<float> on_device(x);
      auto y = DeviceArray<float>::poisoned(rows);
      launch<kernels::row_sum_kernel>(nullptr, {.grid = {int{rows}}, .block = {256}}, y.data(),
                                      on_device.data(), index_t{columns});
      auto const sums = y.values();
      for (index_t n = 0; n < rows; ++n) {
        double sum = 0;
        double size = 0;
        for (index_t c = 0; c < columns; ++c) {
          auto const v = static_cast<double>(x[static_cast<std::size_t>(n * columns + c)]);
          sum += v;
          size += std::abs(v);
        }
        // A thread adds at most two numbers, ten levels of pairs follow: each rounds once.
        CHECK(std::abs(static_cast<double>(sums[static_cast<std::size_t>(n)]) - sum) <=
              12 * 0x1p-24 * size);
      }
    }
  });
}

TEST_CASE("row_range: two reductions may share their scratch", "[cuda][kernels]") {
  support::for_each_schedule(3, [] {
    for (int const columns : awkward) {
      index_t const rows = 2;
      auto const x = random_floats(rows * columns, 2);
      DeviceArray<float> on_device(x);
      auto low = DeviceArray<float>::poisoned(rows);
      auto high = DeviceArray<float>::poisoned(rows);
      launch<kernels::row_range_kernel>(nullptr, {.grid = {int{rows}}, .block = {96}}, low.data(),
                                        high.data(), on_device.data(), index_t{columns});
      for (index_t n = 0; n < rows; ++n) {
        auto const row = x.begin() + n * columns;
        CHECK(low.values()[static_cast<std::size_t>(n)] == *std::min_element(row, row + columns));
        CHECK(high.values()[static_cast<std::size_t>(n)] == *std::max_element(row, row + columns));
      }
    }
  });
}

TEMPLATE_TEST_CASE("transpose: every element arrives, at every awkward size", "[cuda][kernels]",
                   float, std::uint16_t, double) {
  support::for_each_schedule(2, [] {
    for (int const rows : awkward) {
      for (int const columns : awkward) {
        std::vector<TestType> x(static_cast<std::size_t>(rows * columns));
        for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<TestType>(i);
        DeviceArray<TestType> on_device(x);
        auto y = DeviceArray<TestType>::poisoned(index_t{rows} * columns);
        launch<kernels::transpose_kernel<TestType>>(
            nullptr,
            {.grid = {blocks_for(columns, kernels::transpose_tile),
                      blocks_for(rows, kernels::transpose_tile)},
             .block = {kernels::transpose_tile, 8}},
            y.data(), on_device.data(), rows, columns);
        auto const transposed = y.values();
        int wrong = 0;
        for (int i = 0; i < rows; ++i) {
          for (int j = 0; j < columns; ++j) {
            if (transposed[static_cast<std::size_t>(j * rows + i)] !=
                x[static_cast<std::size_t>(i * columns + j)]) {
              ++wrong;
            }
          }
        }
        CHECK(wrong == 0);
      }
    }
  });
}

TEST_CASE("histogram: atomic sums lose nothing", "[cuda][kernels]") {
  support::for_each_schedule(4, [] {
    for (int const n : awkward) {
      for (int const bins : {1, 7, 300}) {
        emprl::RandomSequence random(3, emprl::Stream::initialise);
        std::vector<int> x(static_cast<std::size_t>(n));
        std::vector<int> expected(static_cast<std::size_t>(bins), 5);
        for (int& v : x) {
          v = static_cast<int>(random.below(bins));
          ++expected[static_cast<std::size_t>(v)];
        }
        DeviceArray<int> on_device(x);
        DeviceArray<int> counts(std::vector<int>(static_cast<std::size_t>(bins), 5));
        launch<kernels::histogram_kernel>(
            nullptr,
            {.grid = {2}, .block = {64}, .shared_bytes = emprl::cuda::shared_bytes<int>(bins)},
            counts.data(), on_device.data(), index_t{n}, bins);
        CHECK(counts.values() == expected);
      }
    }
  });
}

TEMPLATE_TEST_CASE("matmul: tensor cores give the product within the error of float sums",
                   "[cuda][kernels]", Bf16, Fp16) {
  std::uint64_t seed = 0;
  for (int const m : awkward) {
    for (int const n : awkward) {
      // The two formats differ in one instruction: every shape for one, square ones for the other.
      if (std::is_same_v<TestType, Fp16> && m != n) continue;
      for (int const k : awkward) {
        int const pitch = (k + 7) / 8 * 8;
        // What lies between the rows is NaN: who reads it shows it.
        auto const matrix = [&](int rows) {
          auto const numbers = random_floats(index_t{rows} * k, ++seed);
          std::vector<TestType> x(static_cast<std::size_t>(rows * pitch),
                                  TestType::from_bits(0xffff));
          for (int i = 0; i < rows; ++i) {
            for (int j = 0; j < k; ++j) {
              x[static_cast<std::size_t>(i * pitch + j)] =
                  TestType(numbers[static_cast<std::size_t>(i * k + j)]);
            }
          }
          return x;
        };
        auto const a = matrix(m);
        auto const b = matrix(n);
        DeviceArray<TestType> a_on_device(a);
        DeviceArray<TestType> b_on_device(b);
        auto c = DeviceArray<float>::poisoned(index_t{m} * n);
#if !defined(__CUDACC__)
        host_executor::WithOptions const with({.seed = seed});
#endif
        launch<kernels::matmul_kernel<TestType>>(
            nullptr,
            {.grid = {blocks_for(n, kernels::MatmulTile::columns),
                      blocks_for(m, kernels::MatmulTile::rows)},
             .block = {kernels::MatmulTile::threads},
             .shared_bytes = kernels::matmul_shared_bytes<TestType>()},
            c.data(), a_on_device.data(), b_on_device.data(), m, n, k, pitch);
        auto const product = c.values();
        int wrong = 0;
        for (int i = 0; i < m; ++i) {
          for (int j = 0; j < n; ++j) {
            double sum = 0;
            double size = 0;
            for (int l = 0; l < k; ++l) {
              double const p = static_cast<double>(
                                   static_cast<float>(a[static_cast<std::size_t>(i * pitch + l)])) *
                               static_cast<double>(
                                   static_cast<float>(b[static_cast<std::size_t>(j * pitch + l)]));
              sum += p;
              size += std::abs(p);
            }
            // The product of two 16-bit numbers is exact in float. Each of k additions may lose a
            // unit in the last place: tensor cores truncate.
            double const error =
                std::abs(static_cast<double>(product[static_cast<std::size_t>(i * n + j)]) - sum);
            if (!(error <= k * 0x1p-23 * size)) ++wrong;
          }
        }
        INFO("m = " << m << ", n = " << n << ", k = " << k);
        CHECK(wrong == 0);
      }
    }
  }
}
