// SPDX-License-Identifier: Apache-2.0
#include <cstddef>
#include <vector>

#include "emprl/ops/relative_bias.cuh"
#include "support/catch.hpp"
#include "support/device_matrix.hpp"

using emprl::Bf16;
using emprl::Cpu;
using emprl::Cuda;
using emprl::Direction;
using emprl::index_t;
using emprl::RelativeBuckets;
using support::DeviceMatrix;

namespace {

struct Case {
  RelativeBuckets kind;
  int buckets;
  index_t first, columns;
};

/// Tables of T5 and odd ones; columns on both sides, on one, far beyond the last bucket, and none.
std::vector<Case> cases() {
  std::vector<Case> all;
  for (Direction const direction : {Direction::bidirectional, Direction::unidirectional}) {
    for (int const buckets : {4, 7, 32, 33}) {
      for (int const most : {20, 128}) {
        for (auto const& [first, columns] : {std::pair<index_t, index_t>{0, 1},
                                             {-1, 2},
                                             {-30, 31},
                                             {-32, 65},
                                             {-300, 601},
                                             {5, 97},
                                             {-400, 257},
                                             {-3, 0}}) {
          all.push_back({{direction, most}, buckets, first, columns});
        }
      }
    }
  }
  return all;
}

}  // namespace

TEMPLATE_TEST_CASE("relative_bias: on the GPU, every distance gets the CPU's bucket",
                   "[cuda][relative_bias]", float, Bf16) {
  using T = TestType;
  for (Case const& c : cases()) {
    CAPTURE(c.buckets, c.kind.max_distance, c.first, c.columns);
    index_t const heads = 3;
    auto const numbers = support::random_in_format<T>(c.buckets, heads, 1);
    emprl::Tensor<float, 2, Cpu> expected({heads, c.columns});
    Cpu cpu;
    emprl::relative_bias_forward<float>(cpu, expected.view(), support::to_tensor(numbers), c.first,
                                        c.kind);
    Cuda dev;
    DeviceMatrix<T> table(numbers, 2);
    auto bias = DeviceMatrix<float>::poisoned(heads, c.columns, 5);
    emprl::relative_bias_forward(dev, bias.view(), table.view(), c.first, c.kind);
    CHECK(bias.values() == support::values(expected));
  }
}

TEST_CASE("relative_bias: on the GPU, the gradient is folded as exactly as by the loops",
          "[cuda][relative_bias]") {
  for (Case const& c : cases()) {
    CAPTURE(c.buckets, c.kind.max_distance, c.first, c.columns);
    index_t const heads = 3;
    auto const numbers = support::random_matrix<float>(heads, c.columns, 2);
    auto const fold = [&]<class R>(R) {
      emprl::Tensor<R, 2, Cpu> table({c.buckets, heads}, R(0.5));
      Cpu cpu;
      emprl::relative_bias_backward<R>(
          cpu, table.view(), support::to_tensor(reference::convert<R>(numbers)), c.first, c.kind);
      return support::values(table);
    };
    reference::Matrix<float> halves(c.buckets, heads);
    for (float& v : halves.values) v = 0.5f;
    std::vector<float> first;
    support::for_each_schedule(2, [&] {
      Cuda dev;
      DeviceMatrix<float> dbias(numbers, 1);
      DeviceMatrix<float> dtable(halves, 2);
      emprl::relative_bias_backward(dev, dtable.view(), dbias, c.first, c.kind);
      auto const actual = dtable.values();
      support::check_two_times("dtable", actual, fold(0.0f), fold(0.0));
      if (first.empty()) first = actual;
      CHECK(actual == first);
    });
  }
}

TEST_CASE("relative_bias: on the GPU, tables that do not fit are refused",
          "[cuda][relative_bias]") {
  using Catch::Matchers::ContainsSubstring;
  Cuda dev;
  auto bias = DeviceMatrix<float>::poisoned(2, 5);
  auto const run = [&](index_t buckets, index_t heads) {
    auto table = DeviceMatrix<float>::poisoned(buckets, heads);
    emprl::relative_bias_forward(dev, bias.view(), table.view(), -2, {});
  };
  CHECK_THROWS_WITH(run(257, 2), ContainsSubstring("256 buckets"));
  CHECK_THROWS_WITH(run(3, 2), ContainsSubstring("it has 3"));
  CHECK_THROWS_AS(run(32, 3), emprl::ShapeError);
}
