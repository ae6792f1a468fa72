// SPDX-License-Identifier: Apache-2.0
// The model given in the comment of text/concepts.hpp is a model and keeps what the comment says;
// batching asks for nothing beyond the concept.
#include "emprl/text/concepts.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/data/dialogue.hpp"
#include "emprl/text/batching.hpp"
#include "support/catch.hpp"
#include "text/bytes.hpp"

using namespace emprl;
using emprl::test::Bytes;
using Ids = std::vector<std::int32_t>;

namespace {

/// Exactly the expressions asked for: neither copied nor moved, nor compared, nor made anew.
struct MinimalTokenizer {
  explicit MinimalTokenizer(std::int32_t id) : id_(id) {}
  MinimalTokenizer(MinimalTokenizer const&) = delete;
  MinimalTokenizer& operator=(MinimalTokenizer const&) = delete;
  std::vector<std::int32_t> encode(std::string_view text) const { return Ids(text.size(), id_); }
  std::string decode(std::span<std::int32_t const> ids) const {
    return std::string(ids.size(), '.');
  }
  index_t size() const { return id_ + 1; }

 private:
  std::int32_t id_;
};

static_assert(text::Tokenizer<Bytes> && text::Tokenizer<MinimalTokenizer>);

struct CannotDecode {
  std::vector<std::int32_t> encode(std::string_view) const { return {}; }
  index_t size() const { return 0; }
};
static_assert(!text::Tokenizer<CannotDecode> && !text::Tokenizer<std::string>);

}  // namespace

TEST_CASE("text concepts: the model of the comment spells every byte and nothing else",
          "[text][concepts][contract]") {
  Bytes const bytes;
  std::string every;
  for (int c = 0; c < 256; ++c) every += static_cast<char>(c);
  every += "</s><pad>";
  Ids const ids = bytes.encode(every);
  CHECK(bytes.decode(ids) == every);
  for (auto const id : ids) {
    CHECK(id != text::pad_id);
    CHECK(id != text::eos_id);
    CHECK(id < bytes.size());
  }
  CHECK(bytes.decode(
            Ids{text::pad_id, 3 + 'h', text::unk_id, 3 + 'i', text::eos_id, 259, 100000}) == "hi");
  CHECK(bytes.encode("").empty());
}

TEST_CASE("text concepts: batching runs on an archetype alone", "[text][concepts][contract]") {
  MinimalTokenizer const seven(7);
  std::vector<data::Pair> pairs(2);
  pairs[0].context = "abc";
  pairs[1].response = "de";
  auto const encoded = text::encode_pairs(seven, std::span<data::Pair const>(pairs), {3, 3});
  CHECK(encoded.contexts.ids == Ids{7, 7, 1, 1});
  CHECK(encoded.responses.ids == Ids{1, 7, 7, 1});
  std::vector<std::string> const texts{"a"};
  CHECK(text::encode_texts(seven, std::span<std::string const>(texts), 9).ids == Ids{7, 1});
  CHECK(seven.decode(encoded.responses.row(1)).size() == 3);
}
