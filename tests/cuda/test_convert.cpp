// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/convert.cuh"

#include <cmath>
#include <vector>

#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/device_array.hpp"

using emprl::Bf16;
using emprl::Cuda;
using emprl::index_t;
using emprl::TensorView;

TEST_CASE("convert: rounds every element to the nearest, there and back", "[cuda][convert]") {
  Cuda dev;
  for (index_t const rows : {0, 1, 33}) {
    for (index_t const columns : {1, 31, 32, 260}) {
      // Rows that begin anywhere, and rows of whole packs.
      for (index_t const gap : {0, 3, 4}) {
        index_t const pitch = columns + gap;
        auto const x = support::random_values<float>(rows * pitch, 1);
        support::DeviceArray<float> from(x);
        auto there = support::DeviceArray<Bf16>::poisoned(rows * pitch);
        auto back = support::DeviceArray<float>::poisoned(rows * columns);
        TensorView<Bf16, 2, Cuda> const y =
            TensorView<Bf16, 2, Cuda>(there.data(), {rows, pitch}).columns(0, columns);
        convert(dev, y, TensorView<float, 2, Cuda>(from.data(), {rows, pitch}).columns(0, columns));
        convert(dev, TensorView<float, 2, Cuda>(back.data(), {rows, columns}), y);
        dev.synchronize();
        auto const half = there.values();
        auto const full = back.values();
        int wrong = 0;
        for (index_t i = 0; i < rows; ++i) {
          for (index_t j = 0; j < pitch; ++j) {
            auto const at = static_cast<std::size_t>(i * pitch + j);
            if (j >= columns) {
              // Nothing outside is touched.
              if (half[at].bits != 0xffff) ++wrong;
            } else if (half[at].bits != Bf16(x[at]).bits ||
                       full[static_cast<std::size_t>(i * columns + j)] !=
                           static_cast<float>(Bf16(x[at]))) {
              ++wrong;
            }
          }
        }
        INFO("rows " << rows << ", columns " << columns << ", gap " << gap);
        CHECK(wrong == 0);
      }
    }
  }
}
