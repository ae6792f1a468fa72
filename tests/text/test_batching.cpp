// SPDX-License-Identifier: Apache-2.0
#include "emprl/text/batching.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/data/dialogue.hpp"
#include "support/catch.hpp"
#include "text/bytes.hpp"

using emprl::index_t;
using emprl::test::Bytes;
using emprl::text::encode_with_end;
using Ids = std::vector<std::int32_t>;

namespace {

constexpr std::int32_t a = 3 + 'a';
constexpr std::int32_t b = 3 + 'b';

}  // namespace

TEST_CASE("batching: rows end in </s> and keep their beginning", "[text][batching][unit]") {
  Bytes const bytes;
  CHECK(encode_with_end(bytes, "ab", 10) == Ids{a, b, 1});
  CHECK(encode_with_end(bytes, "ab", 3) == Ids{a, b, 1});
  CHECK(encode_with_end(bytes, "ab", 2) == Ids{a, 1});
  CHECK(encode_with_end(bytes, "ab", 1) == Ids{1});
  CHECK(encode_with_end(bytes, "", 5) == Ids{1});
  CHECK_THROWS_AS(encode_with_end(bytes, "a", 0), emprl::ConfigError);
}

TEST_CASE("batching: pairs are packed row by row", "[text][batching][unit]") {
  Bytes const bytes;
  std::vector<emprl::data::Pair> pairs(3);
  pairs[0].context = "aab";
  pairs[0].response = "b";
  pairs[2].context = "b";
  pairs[2].response = "aaaa";
  auto const encoded =
      emprl::text::encode_pairs(bytes, std::span<emprl::data::Pair const>(pairs), {3, 4});
  CHECK(encoded.rows() == 3);
  CHECK(encoded.contexts.ids == Ids{a, a, 1, 1, b, 1});
  CHECK(encoded.contexts.offsets == std::vector<index_t>{0, 3, 4, 6});
  CHECK(encoded.responses.ids == Ids{b, 1, 1, a, a, a, 1});
  std::vector<index_t> const picked{2, 0};
  auto const part = emprl::text::gather_pairs(encoded, picked);
  CHECK(part.contexts.ids == Ids{b, 1, a, a, 1});
  CHECK(part.responses.ids == Ids{a, a, a, 1, b, 1});
  std::vector<std::string> const texts{"a", "bb"};
  CHECK(emprl::text::encode_texts(bytes, std::span<std::string const>(texts), 9).ids ==
        Ids{a, 1, b, b, 1});
}

namespace {

/// Bytes, of which one text is refused.
struct Choosy : Bytes {
  std::string refused;

  std::vector<std::int32_t> encode(std::string_view text) const {
    if (text == refused) throw std::out_of_range("refused");
    return Bytes::encode(text);
  }
};

}  // namespace

TEST_CASE("batching: several threads make the rows of one, in their order",
          "[text][batching][unit]") {
  std::vector<std::string> texts;
  for (std::size_t i = 0; i < 101; ++i) texts.emplace_back(i % 13, static_cast<char>('a' + i % 26));
  for (std::size_t const n : {0u, 1u, 15u, 16u, 101u}) {
    auto const some = std::span<std::string const>(texts).first(n);
    auto const expected = emprl::text::encode_texts(Bytes(), some, 9);
    for (int const threads : {0, 2, 3, 7, 1000}) {
      CAPTURE(n, threads);
      auto const rows = emprl::text::encode_texts(Bytes(), some, 9, threads);
      CHECK(rows.ids == expected.ids);
      CHECK(rows.offsets == expected.offsets);
    }
  }
  // What goes wrong in any of them comes out.
  for (std::size_t const wrong : {0u, 50u, 100u}) {
    texts[wrong] = "no";
    Choosy choosy;
    choosy.refused = "no";
    CHECK_THROWS_AS(
        emprl::text::encode_texts(choosy, std::span<std::string const>(texts).subspan(wrong), 9, 4),
        std::out_of_range);
    CHECK_THROWS_AS(emprl::text::encode_texts(
                        choosy, std::span<std::string const>(texts).first(wrong + 1), 9, 4),
                    std::out_of_range);
  }
}

TEST_CASE("batching: an epoch's order is a permutation that seed and epoch decide",
          "[text][batching][unit]") {
  auto const order = emprl::text::shuffled_rows(257, 5, 0);
  auto sorted = order;
  std::sort(sorted.begin(), sorted.end());
  std::vector<index_t> rows(257);
  std::iota(rows.begin(), rows.end(), index_t{0});
  CHECK(sorted == rows);
  CHECK(order != rows);
  CHECK(emprl::text::shuffled_rows(257, 5, 0) == order);
  CHECK(emprl::text::shuffled_rows(257, 5, 1) != order);
  CHECK(emprl::text::shuffled_rows(257, 6, 0) != order);
  CHECK(emprl::text::shuffled_rows(0, 5, 0).empty());
  CHECK_THROWS_AS(emprl::text::shuffled_rows(3, 5, -1), emprl::ConfigError);

  auto const batches = emprl::text::cut_into_batches(order, 100);
  REQUIRE(batches.size() == 3);
  CHECK(batches[2].size() == 57);
  CHECK(batches[1][0] == order[100]);
  CHECK(emprl::text::cut_into_batches({}, 4).empty());
  CHECK_THROWS_AS(emprl::text::cut_into_batches(order, 0), emprl::ConfigError);
}
