// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/relative_bias.hpp"

#include "reference/relative_bucket.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"

using emprl::Cpu;
using emprl::Direction;
using emprl::index_t;
using emprl::Tensor;
using support::to_tensor;

TEMPLATE_TEST_CASE("relative_bias: expands the table by distance and gathers its gradient",
                   "[ops][relative_bias][unit]", float, double) {
  using T = TestType;
  Cpu dev;
  for (Direction const direction : {Direction::bidirectional, Direction::unidirectional}) {
    for (index_t const buckets : {8, 32}) {
      bool const both = direction == Direction::bidirectional;
      auto const table = support::random_matrix<T>(buckets, 3, 1);
      index_t const first = -150;
      index_t const distances = both ? 301 : 151;
      auto bias = support::poisoned<T, 2>({3, distances});
      emprl::relative_bias_forward<T>(dev, bias.view(), to_tensor(table), first, {direction, 100});
      // Small integers: sums are exact, in whatever order.
      Tensor<T, 2, Cpu> dbias({3, distances});
      Tensor<T, 2, Cpu> dtable({buckets, 3}, T(5));
      reference::Matrix<T> expected(buckets, 3);
      for (index_t r = 0; r < distances; ++r) {
        index_t const bucket = reference::relative_bucket(r + first, both, buckets, 100);
        for (index_t h = 0; h < 3; ++h) {
          REQUIRE(bias(h, r) == table(bucket, h));
          dbias(h, r) = static_cast<T>((r * 7 + h) % 11 - 5);
          expected(bucket, h) += dbias(h, r);
        }
      }
      emprl::relative_bias_backward<T>(dev, dtable.view(), dbias, first, {direction, 100});
      for (index_t b = 0; b < buckets; ++b) {
        for (index_t h = 0; h < 3; ++h) REQUIRE(dtable(b, h) == expected(b, h) + T(5));
      }
    }
  }
}

TEST_CASE("relative_bias: heads that disagree throw", "[ops][relative_bias][unit]") {
  Cpu dev;
  Tensor<float, 2, Cpu> bias({3, 5}, 0.0f);
  Tensor<float, 2, Cpu> table({8, 2}, 0.0f);
  CHECK_THROWS_AS(emprl::relative_bias_forward<float>(dev, bias.view(), table, -2, {}),
                  emprl::ShapeError);
  CHECK_THROWS_AS(emprl::relative_bias_backward<float>(dev, table.view(), bias, -2, {}),
                  emprl::ShapeError);
}
