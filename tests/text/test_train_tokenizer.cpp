// SPDX-License-Identifier: Apache-2.0
#include "emprl/text/train_tokenizer.hpp"

#include <string>
#include <vector>

#include "emprl/text/tokenizer.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"
#include "text/small_corpus.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::ConfigError;
using emprl::test::message_of;
using emprl::text::SentencePieceTokenizer;
using emprl::text::train_tokenizer;

TEST_CASE("train_tokenizer: the model follows T5's conventions", "[text][train_tokenizer][unit]") {
  SentencePieceTokenizer const tokenizer(emprl::test::small_spiece_model(), "small");
  CHECK(tokenizer.pieces() == 56);
  CHECK(tokenizer.piece(0) == "<pad>");
  CHECK(tokenizer.piece(1) == "</s>");
  CHECK(tokenizer.piece(2) == "<unk>");
  for (std::int32_t id = 3; id < 56; ++id) CHECK(tokenizer.piece(id) != "<s>");
  // NFKC and white space: a full-width letter, a ligature and two spaces.
  CHECK(tokenizer.encode("\xEF\xBD\x89  am \n happy") == tokenizer.encode("i am happy"));
  for (auto const& text : emprl::test::small_corpus()) {
    if (tokenizer.decode(tokenizer.encode(text)) != text) FAIL(text);
  }
}

TEST_CASE("train_tokenizer: the same texts give the same bytes", "[text][train_tokenizer][unit]") {
  auto const texts = emprl::test::small_corpus();
  CHECK(train_tokenizer(texts, {.vocabulary = 56}) == emprl::test::small_spiece_model());
}

TEST_CASE("train_tokenizer: texts too few for the vocabulary are an error, or give fewer pieces",
          "[text][train_tokenizer][bad_input]") {
  std::vector<std::string> const texts{"one two three", "three two one"};
  CHECK_THAT(message_of<ConfigError>([&] { train_tokenizer(texts, {.vocabulary = 5000}); }),
             ContainsSubstring("5000 pieces") && ContainsSubstring("more text"));
  SentencePieceTokenizer const small(
      train_tokenizer(texts, {.vocabulary = 5000, .allow_smaller = true}), "small");
  CHECK(small.pieces() < 100);
  CHECK(small.decode(small.encode("one two")) == "one two");
  std::vector<std::string> const blank{"", " \n"};
  CHECK_THAT(message_of<ConfigError>([&] { train_tokenizer(blank); }),
             ContainsSubstring("no text"));
  CHECK_THROWS_AS(train_tokenizer({}), ConfigError);
  CHECK_THAT(message_of<ConfigError>([&] { train_tokenizer(texts, {.vocabulary = 8}); }),
             ContainsSubstring("8 pieces"));
  CHECK_THROWS_AS(train_tokenizer(texts, {.vocabulary = 2}), ConfigError);
  CHECK_THROWS_AS(train_tokenizer(texts, {.character_coverage = 1.5}), ConfigError);
}

TEST_CASE("train_tokenizer: long texts are not left out", "[text][train_tokenizer][unit]") {
  std::string text = "zebra";
  for (int i = 0; i < 3000; ++i) text += " quagga";
  std::vector<std::string> const texts{text, "a b"};
  SentencePieceTokenizer const tokenizer(
      train_tokenizer(texts, {.vocabulary = 200, .character_coverage = 1.0, .allow_smaller = true}),
      "t");
  CHECK(tokenizer.decode(tokenizer.encode("zebra quagga")) == "zebra quagga");
}
