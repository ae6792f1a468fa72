// SPDX-License-Identifier: Apache-2.0
#include "emprl/metrics/distinct.hpp"

#include <string>
#include <vector>

#include "support/catch.hpp"

using namespace emprl;
using metrics::distinct;

namespace {

Ragged rows_of(std::vector<std::vector<std::int32_t>> const& rows) {
  Ragged result;
  for (auto const& row : rows) result.push_back(row);
  return result;
}

}  // namespace

TEST_CASE("distinct: worked by hand", "[metrics][distinct][unit]") {
  Ragged const rows = rows_of({{1, 2, 1, 2}, {1, 2, 3}, {}, {4}});
  CHECK(distinct(rows.view(), 1).unique == 4);
  CHECK(distinct(rows.view(), 1).total == 8);
  CHECK(distinct(rows.view(), 1).value() == 50.0);
  // 12 21 12 | 12 23: the pair that would join two rows does not count.
  CHECK(distinct(rows.view(), 2).unique == 3);
  CHECK(distinct(rows.view(), 2).total == 5);
  CHECK(distinct(rows.view(), 2).value() == 60.0);
  CHECK(distinct(rows.view(), 5).value() == 0.0);
  CHECK(distinct(Ragged{}.view(), 1).value() == 0.0);
  CHECK_THROWS_AS(distinct(rows.view(), 0), ConfigError);
}

TEST_CASE("distinct: at equal counts only the first n-grams count", "[metrics][distinct][unit]") {
  Ragged const rows = rows_of({{1, 2, 1, 2}, {1, 2, 3}, {4}});
  CHECK(distinct(rows.view(), 1, 4).total == 4);
  CHECK(distinct(rows.view(), 1, 4).unique == 2);
  CHECK(distinct(rows.view(), 2, 4).unique == 2);
  CHECK(distinct(rows.view(), 1, 100).total == 8);
  CHECK(distinct(rows.view(), 1, 0).total == 0);
}

TEST_CASE("distinct: rows are cut to equal lengths", "[metrics][distinct][unit]") {
  Ragged const rows = rows_of({{1, 2, 3}, {4}, {}});
  Ragged const cut = metrics::truncate_rows(rows.view(), 2);
  CHECK(cut.ids == std::vector<std::int32_t>{1, 2, 4});
  CHECK(cut.offsets == std::vector<index_t>{0, 2, 3, 3});
}

TEST_CASE("distinct: words keep their case and share numbers across texts",
          "[metrics][distinct][unit]") {
  metrics::Interner words;
  std::vector<std::string> const texts{"I am sorry to hear that . What happened ?",
                                       "That is great news , congratulations on the job !",
                                       "oh no no no"};
  Ragged const rows = metrics::treebank_rows(texts, words);
  CHECK(rows.rows() == 3);
  // NLTK's tokens and ngrams give the same counts.
  CHECK(words.size() == 22);
  CHECK(distinct(rows.view(), 1).unique == 22);
  CHECK(distinct(rows.view(), 1).total == 24);
  CHECK(distinct(rows.view(), 2).unique == 20);
  CHECK(distinct(rows.view(), 2).total == 21);
  CHECK(words.id("that") != words.id("That"));
}
