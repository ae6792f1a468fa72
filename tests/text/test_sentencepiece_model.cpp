// SPDX-License-Identifier: Apache-2.0
#include "emprl/text/sentencepiece_model.hpp"

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "data/real_data.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/text/tokenizer.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"
#include "text/small_corpus.hpp"

using emprl::text::detail::find_fault_in_model;
using emprl::text::detail::is_safe_normaliser_table;

namespace {

std::string table_of(std::vector<std::uint32_t> const& units, std::string const& strings) {
  auto const n = static_cast<std::uint32_t>(units.size() * 4);
  std::string table(4 + n, '\0');
  std::memcpy(table.data(), &n, 4);
  std::memcpy(table.data() + 4, units.data(), n);
  return table + strings;
}

/// A trie of the one key "a" with value 0: the root's children lie at 256, the leaf of "a" at 512.
std::vector<std::uint32_t> one_key() {
  std::vector<std::uint32_t> units(768, 0x80000000u);
  units[0] = 256u << 10;
  units[256 ^ 'a'] = ((256u ^ 'a') ^ 512u) << 10 | 0x100u | 'a';
  units[512] = 0x80000000u;
  return units;
}

}  // namespace

TEST_CASE("sentencepiece_model: whole models pass", "[text][sentencepiece_model][unit]") {
  CHECK_FALSE(find_fault_in_model(emprl::test::small_spiece_model()).has_value());
  auto const real = emprl::test::real_data("t5_tokenizer/spiece.model");
  if (!real.empty()) {
    CHECK_FALSE(find_fault_in_model(emprl::test::slurp(real)).has_value());
  }
}

TEST_CASE("sentencepiece_model: a normaliser's table that leads outside is refused",
          "[text][sentencepiece_model][bad_input]") {
  std::string const strings("x\0", 2);
  CHECK(is_safe_normaliser_table(""));
  CHECK(is_safe_normaliser_table(table_of(one_key(), strings)));
  CHECK_FALSE(is_safe_normaliser_table("abc"));
  CHECK_FALSE(is_safe_normaliser_table(table_of(one_key(), "")));
  CHECK_FALSE(is_safe_normaliser_table(table_of(one_key(), "unended")));

  auto units = one_key();
  units[0] = 768u << 10;  // the root's children lie beyond the end
  CHECK_FALSE(is_safe_normaliser_table(table_of(units, strings)));
  units = one_key();
  units[256 ^ 'a'] = 4096u << 10 | 0x100u | 'a';  // so does the leaf
  CHECK_FALSE(is_safe_normaliser_table(table_of(units, strings)));
  units = one_key();
  units[512] = 0x80000000u | 2;  // the value lies beyond the strings
  CHECK_FALSE(is_safe_normaliser_table(table_of(units, strings)));
  units = one_key();
  units[256 ^ 'a'] = ((256u ^ 'a') ^ 256u) << 10 | 'a';  // "a" is its own child
  CHECK_FALSE(is_safe_normaliser_table(table_of(units, strings)));
  units = one_key();
  units.resize(700);  // children are looked for by 256s
  CHECK_FALSE(is_safe_normaliser_table(table_of(units, strings)));
}

TEST_CASE("sentencepiece_model: no damaged model makes the tokenizer crash",
          "[text][sentencepiece_model][bad_input]") {
  std::string const whole = emprl::test::small_spiece_model();
  emprl::RandomSequence random(11, emprl::Stream::sample);
  int refused = 0;
  for (int trial = 0; trial < 300; ++trial) {
    std::string damaged = whole;
    // Half of the time only the pieces, the settings and the head of the table, where damage tells.
    auto const range = static_cast<emprl::index_t>(trial % 2 == 0 ? whole.size() : 2000);
    for (int k = 0; k < 3; ++k) {
      damaged[static_cast<std::size_t>(random.below(range))] = static_cast<char>(random.below(256));
    }
    try {
      emprl::text::SentencePieceTokenizer const tokenizer(damaged, "damaged");
      auto const ids =
          tokenizer.encode("i am so happy \xEF\xAC\x81 \xEF\xBD\x89 dog \xC3\xA9 \xE6\xBC\xA2");
      static_cast<void>(tokenizer.decode(ids));
    } catch (emprl::Error const&) {
      ++refused;
    }
  }
  CHECK(refused > 0);
}
