// SPDX-License-Identifier: Apache-2.0
#include "emprl/core/ragged.hpp"

#include <array>
#include <cstdint>
#include <vector>

#include "support/catch.hpp"

using emprl::index_t;
using emprl::Ragged;
using emprl::RaggedView;
using Ids = std::vector<std::int32_t>;

namespace {

Ids row(RaggedView const& x, index_t i) {
  auto const r = x.row(i);
  return {r.begin(), r.end()};
}

}  // namespace

TEST_CASE("Ragged: rows come back as they went in, empty ones too", "[core][ragged][unit]") {
  Ragged x;
  CHECK(x.rows() == 0);
  CHECK(x.tokens() == 0);
  x.push_back(Ids{3, 4, 5});
  x.push_back(Ids{});
  x.push_back(Ids{6});
  CHECK(x.rows() == 3);
  CHECK(x.tokens() == 4);
  auto const v = x.view();
  CHECK(v.rows() == 3);
  CHECK(v.length(0) == 3);
  CHECK(v.length(1) == 0);
  CHECK(row(v, 0) == Ids{3, 4, 5});
  CHECK(row(v, 1).empty());
  CHECK(row(v, 2) == Ids{6});
  x.clear();
  CHECK(x.rows() == 0);
  CHECK(x.tokens() == 0);
}

TEST_CASE("RaggedView: an empty view has no rows", "[core][ragged][unit]") {
  CHECK(RaggedView{}.rows() == 0);
  CHECK(RaggedView{}.tokens() == 0);
}

TEST_CASE("gather_rows: any order, repeats allowed", "[core][ragged][unit]") {
  Ragged x;
  x.push_back(Ids{1, 2});
  x.push_back(Ids{});
  x.push_back(Ids{3});
  std::vector<index_t> const order{2, 0, 2, 1};
  Ragged const y = emprl::gather_rows(x.view(), order);
  CHECK(y.rows() == 4);
  CHECK(y.ids == Ids{3, 1, 2, 3});
  CHECK(y.offsets == std::vector<index_t>{0, 1, 3, 4, 4});
}

TEST_CASE("check_offsets: refuses what is not a partition of the tokens", "[core][ragged][unit]") {
  using Offsets = std::vector<index_t>;
  CHECK_NOTHROW(emprl::check_offsets(Offsets{0, 2, 2, 5}, 5));
  CHECK_NOTHROW(emprl::check_offsets(Offsets{0}, 0));
  CHECK_THROWS_AS(emprl::check_offsets(Offsets{}, 0), emprl::ShapeError);
  CHECK_THROWS_AS(emprl::check_offsets(Offsets{1, 5}, 5), emprl::ShapeError);
  CHECK_THROWS_AS(emprl::check_offsets(Offsets{0, 4}, 5), emprl::ShapeError);
  CHECK_THROWS_AS(emprl::check_offsets(Offsets{0, 7, 5}, 5), emprl::ShapeError);
}
