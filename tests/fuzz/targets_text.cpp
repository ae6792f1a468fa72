// SPDX-License-Identifier: Apache-2.0

// Targets of text/: a tokenizer's file, and the text and ids that a tokenizer is given.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/text/batching.hpp"
#include "emprl/text/tokenizer.hpp"
#include "fuzz/harness.hpp"
#include "text/small_corpus.hpp"

namespace emprl::fuzz {

namespace {

constexpr char const* texts[] = {
    "",
    "i am so happy about my dog.",
    "\xEF\xAC\x81 \xEF\xBD\x89 \xC3\xA9 \xE6\xBC\xA2 \xF0\x9F\x98\x80 e\xCC\x81",
    "dog <extra_id_0> happy<extra_id_99></s>",
    "\xFF\xFE \xE2\x96\x81 a\xE2\x80\x8B",
};

void spiece_model(std::string_view bytes) {
  accepted([&] {
    text::SentencePieceTokenizer const tokenizer(std::string(bytes), "input");
    require(tokenizer.serialized() == bytes, "a tokenizer keeps its file");
    require(tokenizer.pieces() > text::unk_id && tokenizer.size() >= tokenizer.pieces(),
            "a tokenizer has its three special pieces");
    std::vector<std::int32_t> all;
    for (char const* const text : texts) {
      std::vector<std::int32_t> ids;
      if (!accepted([&] { ids = tokenizer.encode(text); })) continue;
      for (auto const id : ids) {
        require(id >= 0 && id < tokenizer.size(), "an id lies in the vocabulary");
        require(id != text::pad_id && id != text::eos_id, "no text ends or pads a sequence");
      }
      all.insert(all.end(), ids.begin(), ids.end());
    }
    for (std::int32_t id = 0; id < std::min<index_t>(tokenizer.size() + 2, 300); ++id) {
      all.push_back(id);
    }
    accepted([&] { static_cast<void>(tokenizer.decode(all)); });
  });
}

void tokenizer_text(std::string_view bytes) {
  static text::SentencePieceTokenizer const tokenizer(test::small_spiece_model(), "small");
  auto const ids = tokenizer.encode(bytes);
  for (auto const id : ids) {
    require(id >= text::unk_id && id < tokenizer.size(), "an id lies in the vocabulary");
  }
  require(tokenizer.encode(bytes) == ids, "the same text has the same ids");
  auto const cut = text::encode_with_end(tokenizer, bytes, 8);
  require(cut.size() <= 8 && cut.back() == text::eos_id, "a row is cut and ends in </s>");
  auto const text = tokenizer.decode(ids);
  auto const again = tokenizer.decode(tokenizer.encode(text));
  require(again == tokenizer.decode(tokenizer.encode(again)), "normalised text stays as it is");

  std::vector<std::int32_t> raw(bytes.size() / sizeof(std::int32_t));
  if (!raw.empty()) std::memcpy(raw.data(), bytes.data(), raw.size() * sizeof(std::int32_t));
  bool negative = false;
  for (auto& id : raw) {
    if (id > 1000) id %= 1000;
    negative = negative || id < 0;
  }
  bool const decoded = accepted([&] { static_cast<void>(tokenizer.decode(raw)); });
  require(decoded != negative, "all ids decode but negative ones");
}

}  // namespace

Targets text_targets() {
  // A vocabulary's index has a fixed price, and so have the matches of a normaliser.
  return {{"spiece_model", spiece_model, std::size_t{64} << 20, 4096},
          {"tokenizer_text", tokenizer_text, std::size_t{64} << 20, 4096}};
}

}  // namespace emprl::fuzz
