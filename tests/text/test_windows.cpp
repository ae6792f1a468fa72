// SPDX-License-Identifier: Apache-2.0
#include "emprl/text/windows.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "emprl/text/tokenizer.hpp"
#include "support/catch.hpp"
#include "text/bytes.hpp"
#include "text/small_corpus.hpp"

using namespace emprl;
using Ids = std::vector<std::int32_t>;

namespace {

/// Three texts of 4, 0 and 5 bytes.
std::vector<std::string> const texts{"abcd", "", "efghi"};

std::vector<std::string> windows_of(index_t length) {
  Ragged windows;
  text::append_windows(test::Bytes{}, std::span<std::string const>(texts), length, {}, windows);
  std::vector<std::string> rows;
  for (index_t i = 0; i < windows.rows(); ++i) {
    rows.push_back(test::Bytes{}.decode(windows.row(i)));
  }
  return rows;
}

}  // namespace

TEST_CASE("windows: texts follow one another and are cut after every so many tokens",
          "[text][windows][unit]") {
  using Rows = std::vector<std::string>;
  CHECK(windows_of(3) == Rows{"abc", "def", "ghi"});
  CHECK(windows_of(7) == Rows{"abcdefg", "hi"});
  CHECK(windows_of(9) == Rows{"abcdefghi"});
  CHECK(windows_of(1000) == Rows{"abcdefghi"});
  // Of a single token nothing can be hidden.
  CHECK(windows_of(2) == Rows{"ab", "cd", "ef", "gh"});
  CHECK(windows_of(8) == Rows{"abcdefgh"});
  CHECK_THROWS_AS(windows_of(1), ConfigError);

  // Another file begins a window of its own.
  Ragged windows;
  for (int file = 0; file < 2; ++file) {
    text::append_windows(test::Bytes{}, std::span<std::string const>(texts), 7, {}, windows);
  }
  CHECK(windows.offsets == std::vector<index_t>{0, 7, 9, 16, 18});
}

TEST_CASE("windows: a sentinel that a text spells is an unknown token", "[text][windows][unit]") {
  text::SentencePieceTokenizer const tokenizer(test::small_spiece_model(), "small");
  Ids const sentinels = tokenizer.sentinel_ids();
  REQUIRE(sentinels.size() == 100);
  CHECK(sentinels.front() == tokenizer.size() - 1);
  CHECK(sentinels.back() == tokenizer.pieces());
  std::vector<std::string> const spelled{"i am <extra_id_3> happy <extra_id_99>"};
  Ids expected = tokenizer.encode(spelled[0]);
  CHECK(std::count(expected.begin(), expected.end(), sentinels[3]) == 1);
  std::replace(expected.begin(), expected.end(), sentinels[3], text::unk_id);
  std::replace(expected.begin(), expected.end(), sentinels[99], text::unk_id);
  Ragged windows;
  text::append_windows(tokenizer, std::span<std::string const>(spelled), 100, sentinels, windows);
  REQUIRE(windows.rows() == 1);
  CHECK(windows.ids == expected);
}

TEST_CASE("windows: what is held out is a function of the seed, and nothing is lost",
          "[text][windows][unit]") {
  Ragged windows;
  for (std::int32_t i = 0; i < 50; ++i) windows.push_back(Ids{i, i + 1});
  auto const parts = text::hold_out_windows(windows.view(), 7, 3);
  CHECK(parts.held_out.rows() == 7);
  CHECK(parts.kept.rows() == 43);
  std::vector<std::int32_t> firsts;
  for (Ragged const* const part : {&parts.kept, &parts.held_out}) {
    std::vector<std::int32_t> own;
    for (index_t i = 0; i < part->rows(); ++i) own.push_back(part->row(i)[0]);
    CHECK(std::is_sorted(own.begin(), own.end()));
    firsts.insert(firsts.end(), own.begin(), own.end());
  }
  std::sort(firsts.begin(), firsts.end());
  for (std::int32_t i = 0; i < 50; ++i) CHECK(firsts[static_cast<std::size_t>(i)] == i);
  CHECK(text::hold_out_windows(windows.view(), 7, 3).held_out.ids == parts.held_out.ids);
  CHECK(text::hold_out_windows(windows.view(), 7, 4).held_out.ids != parts.held_out.ids);
  CHECK(text::hold_out_windows(windows.view(), 49, 3).kept.rows() == 1);
  CHECK_THROWS_AS(text::hold_out_windows(windows.view(), 50, 3), ConfigError);
  CHECK_THROWS_AS(text::hold_out_windows(windows.view(), 0, 3), ConfigError);
}
