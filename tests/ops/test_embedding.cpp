// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/embedding.hpp"

#include <cstdint>
#include <vector>

#include "support/catch.hpp"
#include "support/compare.hpp"

using emprl::Cpu;
using emprl::index_t;
using emprl::Tensor;
using emprl::TensorView;
using support::to_tensor;

namespace {

TensorView<std::int32_t const, 1, Cpu> view(std::vector<std::int32_t> const& ids) {
  return {ids.data(), {static_cast<index_t>(ids.size())}};
}

}  // namespace

TEMPLATE_TEST_CASE("embedding: forward copies rows", "[ops][embedding][unit]", float, double) {
  using T = TestType;
  Cpu dev(2);
  auto const table = to_tensor(support::random_matrix<T>(7, 33, 1));
  std::vector<std::int32_t> ids;
  for (int i = 0; i < 257; ++i) ids.push_back((i * 5) % 7);
  auto y = support::poisoned<T, 2>({257, 33});
  emprl::embedding_forward<T>(dev, y.view(), table, view(ids));
  for (index_t i = 0; i < 257; ++i) {
    for (index_t c = 0; c < 33; ++c) {
      REQUIRE(y(i, c) == table(ids[static_cast<std::size_t>(i)], c));
    }
  }
}

TEMPLATE_TEST_CASE("embedding: backward adds up repeated ids on top of what is there",
                   "[ops][embedding][grad]", float, double) {
  using T = TestType;
  Cpu dev(2);
  std::vector<std::int32_t> const ids{2, 0, 2, 2, 4};
  auto const dy = support::random_matrix<T>(5, 97, 1);
  Tensor<T, 2, Cpu> dtable({5, 97}, T(10));
  emprl::embedding_backward<T>(dev, dtable.view(), to_tensor(dy), view(ids));
  for (index_t c = 0; c < 97; ++c) {
    CHECK(dtable(0, c) == T(10) + dy(1, c));
    CHECK(dtable(1, c) == T(10));
    CHECK(dtable(2, c) == T(10) + dy(0, c) + dy(2, c) + dy(3, c));
    CHECK(dtable(3, c) == T(10));
    CHECK(dtable(4, c) == T(10) + dy(4, c));
  }
}

TEST_CASE("embedding: ids outside the table and wrong shapes throw", "[ops][embedding][unit]") {
  Cpu dev;
  Tensor<float, 2, Cpu> table({5, 3}, 0.0f);
  Tensor<float, 2, Cpu> y({2, 3}, 0.0f);
  for (std::int32_t const bad : {-1, 5, 1000000}) {
    std::vector<std::int32_t> const ids{0, bad};
    CHECK_THROWS_WITH(emprl::embedding_forward<float>(dev, y.view(), table, view(ids)),
                      Catch::Matchers::ContainsSubstring(std::to_string(bad)));
    CHECK_THROWS_AS(emprl::embedding_backward<float>(dev, table.view(), y, view(ids)),
                    emprl::ShapeError);
  }
  std::vector<std::int32_t> const three{0, 1, 2};
  CHECK_THROWS_AS(emprl::embedding_forward<float>(dev, y.view(), table, view(three)),
                  emprl::ShapeError);
  Tensor<float, 2, Cpu> const none({0, 3});
  CHECK_NOTHROW(emprl::embedding_forward<float>(dev, none.view(), table, view({})));
}
