// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "emprl/ops/dropout.cuh"
#include "support/catch.hpp"
#include "support/device_matrix.hpp"

using emprl::Bf16;
using emprl::Cpu;
using emprl::Cuda;
using emprl::DropoutKey;
using emprl::index_t;
using support::DeviceMatrix;

TEMPLATE_TEST_CASE("dropout: the GPU draws the CPU's mask", "[cuda][dropout]", float, Bf16) {
  using T = TestType;
  support::for_each_schedule(2, [] {
    for (index_t const columns : {1, 2, 15, 17, 31, 33, 97, 127, 128, 129, 257, 768}) {
      for (index_t const gap : {0, 3}) {
        CAPTURE(columns, gap);
        index_t const rows = 5;
        DropoutKey const key{0.1, (std::uint64_t{7} << 32) + 9, 3, 11};
        auto const in = support::random_in_format<T>(rows, columns, 1);
        Cpu cpu;
        auto const plain = support::to_tensor(in);
        emprl::dropout_apply(cpu, plain.view(), key);
        auto expected = support::values(plain);
        for (float& v : expected) v = support::rounded<T>(v);

        Cuda dev;
        DeviceMatrix<T> x(in, gap);
        emprl::dropout_apply(dev, x.view(), key);
        CHECK(x.values() == expected);

        auto y = DeviceMatrix<T>::poisoned(rows, columns, gap);
        emprl::dropout_forward(dev, y.view(), DeviceMatrix<T>(in, 1), key);
        CHECK(y.values() == expected);
        // What is added is not dropped, and the sum is rounded once.
        auto const more = support::random_in_format<T>(rows, columns, 2);
        DeviceMatrix<T> from(in, gap), added(more, 1);
        emprl::dropout_add(dev, y.view(), from.view(), added.view(), key);
        auto const sum = y.values();
        double worst = 0;
        for (std::size_t i = 0; i < sum.size(); ++i) {
          double const product = static_cast<double>(plain.data()[i]);
          double const exact = static_cast<double>(more.values[i]) + product;
          double const error = std::abs(static_cast<double>(sum[i]) - exact);
          worst = std::max(worst, error - support::storage_rounding<T> * std::abs(exact) -
                                      2 * 0x1p-24 * std::abs(product));
        }
        CHECK(worst <= 0);
        emprl::dropout_add(dev, from.view(), from.view(), added.view(), key);
        CHECK(from.values() == sum);
      }
    }
  });
}

TEST_CASE("dropout: on the GPU, its share of elements, none at probability 0, another mask a step",
          "[cuda][dropout]") {
  index_t const rows = 64;
  index_t const columns = 256;
  reference::Matrix<float> ones(rows, columns);
  std::fill(ones.values.begin(), ones.values.end(), 1.0f);
  auto const draw = [&](DropoutKey const& key) {
    Cuda dev;
    DeviceMatrix<float> x(ones);
    emprl::dropout_apply(dev, x.view(), key);
    return x.values();
  };
  auto const first = draw({0.25, 1, 0, 0});
  auto const dropped = std::count(first.begin(), first.end(), 0.0f);
  // 16384 draws: a deviation is 55.
  CHECK(std::abs(static_cast<double>(dropped) - 4096) < 5 * 55.4);
  CHECK(*std::max_element(first.begin(), first.end()) == 1.0f / 0.75f);
  CHECK(draw({0.25, 1, 1, 0}) != first);
  CHECK(draw({0, 1, 0, 0}) == ones.values);
}
