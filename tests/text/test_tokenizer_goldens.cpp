// SPDX-License-Identifier: Apache-2.0

// The tokenizer against what transformers' T5Tokenizer made of the same texts, recorded by
// golden/make_tokenizer_goldens.py.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "emprl/text/batching.hpp"
#include "emprl/text/tokenizer.hpp"
#include "support/catch.hpp"

namespace goldens {

struct Entry {
  std::string text;
  std::vector<std::int32_t> ids;
  std::string back;
};

inline std::string from_hex(std::string const& digits) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < digits.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  }
  return bytes;
}

inline std::vector<Entry> entries() {
  std::ifstream in(std::string(EMPRL_GOLDEN_DIR) + "/tokenizer.json");
  std::vector<Entry> all;
  auto const file = nlohmann::json::parse(in);
  for (auto const& e : file.at("entries")) {
    all.push_back({e.contains("hex") ? from_hex(e["hex"]) : e.at("text").get<std::string>(),
                   e.at("ids").get<std::vector<std::int32_t>>(), e.at("back").get<std::string>()});
  }
  return all;
}

inline emprl::text::SentencePieceTokenizer const& tokenizer() {
  static emprl::text::SentencePieceTokenizer const t(
      std::filesystem::path(EMPRL_GOLDEN_DIR "/tokenizer_model/spiece.model"));
  return t;
}

}  // namespace goldens

TEST_CASE("tokenizer: ids and text are those of T5Tokenizer", "[text][tokenizer][golden]") {
  auto const& tokenizer = goldens::tokenizer();
  auto const entries = goldens::entries();
  REQUIRE(entries.size() > 30);
  for (auto const& entry : entries) {
    INFO(nlohmann::json(entry.text).dump(-1, ' ', true));
    CHECK(tokenizer.encode(entry.text) == entry.ids);
    CHECK(tokenizer.decode(entry.ids) == entry.back);
  }
}

TEST_CASE("tokenizer: rows at the limits are T5Tokenizer's, cut before </s>",
          "[text][tokenizer][golden]") {
  bool any_cut = false;
  for (auto const& entry : goldens::entries()) {
    for (std::size_t const limit : {std::size_t{200}, std::size_t{50}}) {
      // The script asserts that transformers' truncation is this.
      auto expected = entry.ids;
      any_cut = any_cut || expected.size() >= limit;
      if (expected.size() >= limit) expected.resize(limit - 1);
      expected.push_back(emprl::text::eos_id);
      CHECK(emprl::text::encode_with_end(goldens::tokenizer(), entry.text,
                                         static_cast<emprl::index_t>(limit)) == expected);
    }
  }
  CHECK(any_cut);
}

TEST_CASE("tokenizer: a byte that is not UTF-8 is unknown and spoils nothing around it",
          "[text][tokenizer][golden]") {
  auto const& tokenizer = goldens::tokenizer();
  auto const whole = tokenizer.encode("i am sad");
  for (std::string const bad :
       {"\xFF", "\xC0\x80", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xE2\x96"}) {
    auto ids = whole;
    auto const unknown = tokenizer.encode(" " + bad);
    CHECK(unknown.back() == emprl::text::unk_id);
    ids.insert(ids.end(), unknown.begin(), unknown.end());
    CHECK(tokenizer.encode("i am sad " + bad) == ids);
  }
}

TEST_CASE("tokenizer: special tokens in text are text, other than with T5Tokenizer",
          "[text][tokenizer][golden]") {
  auto const& tokenizer = goldens::tokenizer();
  for (std::string const text : {"</s>", "dog</s>dog", "<pad>", "</s> <extra_id_0>"}) {
    INFO(text);
    for (auto const id : tokenizer.encode(text)) {
      CHECK(id != emprl::text::pad_id);
      CHECK(id != emprl::text::eos_id);
    }
  }
}
