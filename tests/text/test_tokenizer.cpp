// SPDX-License-Identifier: Apache-2.0
#include "emprl/text/tokenizer.hpp"

#include <cstdint>
#include <string>
#include <vector>

#include "data/real_data.hpp"
#include "emprl/text/train_tokenizer.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"
#include "text/small_corpus.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::IoError;
using emprl::test::message_of;
using emprl::test::TemporaryFolder;
using emprl::text::SentencePieceTokenizer;
using Ids = std::vector<std::int32_t>;

TEST_CASE("tokenizer: text comes back and sentinels lie above the pieces",
          "[text][tokenizer][unit]") {
  SentencePieceTokenizer const tokenizer(emprl::test::small_spiece_model(), "small");
  std::int32_t const pieces = static_cast<std::int32_t>(tokenizer.pieces());
  CHECK(tokenizer.size() == pieces + 100);
  CHECK(tokenizer.sentinel_id(0) == pieces + 99);
  CHECK(tokenizer.sentinel_id(99) == pieces);
  CHECK_THROWS_AS(tokenizer.sentinel_id(100), emprl::ShapeError);

  std::string const text = "i am so happy about my dog.";
  Ids const ids = tokenizer.encode(text);
  REQUIRE_FALSE(ids.empty());
  for (auto const id : ids) CHECK((id > emprl::text::unk_id && id < pieces));
  CHECK(tokenizer.decode(ids) == text);
  CHECK(tokenizer.encode("").empty());
  CHECK(tokenizer.encode("  \n ").empty());
  CHECK(tokenizer.decode({}).empty());

  Ids const dog = tokenizer.encode("dog");
  Ids const happy = tokenizer.encode("happy");
  Ids expected = dog;
  expected.push_back(pieces + 99);
  expected.insert(expected.end(), happy.begin(), happy.end());
  expected.push_back(pieces);
  CHECK(tokenizer.encode("dog <extra_id_0> happy<extra_id_99>") == expected);
  CHECK(tokenizer.encode("dog<extra_id_0>happy <extra_id_99>") == expected);
  CHECK(tokenizer.decode(expected) == "dog <extra_id_0> happy <extra_id_99>");
  CHECK(tokenizer.encode("<extra_id_1><extra_id_1>") == Ids{pieces + 98, pieces + 98});
  for (char const* text_only :
       {"<extra_id_100>", "<extra_id_>", "<extra_id_07>", "<extra_id_1", "<extra_id_-1>"}) {
    INFO(text_only);
    for (auto const id : tokenizer.encode(text_only)) CHECK(id < pieces);
  }
}

TEST_CASE("tokenizer: special tokens, unused rows and control words in text are harmless",
          "[text][tokenizer][unit]") {
  SentencePieceTokenizer const tokenizer(emprl::test::small_spiece_model(), "small");
  Ids const dog = tokenizer.encode("my dog");
  Ids noisy{emprl::text::pad_id};
  for (auto const id : dog) {
    noisy.push_back(id);
    noisy.push_back(emprl::text::unk_id);
    noisy.push_back(static_cast<std::int32_t>(tokenizer.size()) + 7);
  }
  noisy.push_back(emprl::text::eos_id);
  noisy.push_back(emprl::text::pad_id);
  CHECK(tokenizer.decode(noisy) == "my dog");
  CHECK_THROWS_AS(tokenizer.decode(Ids{-1}), emprl::ShapeError);
  for (char const* word : {"</s>", "<pad>", "dog</s>dog", "<s>"}) {
    INFO(word);
    for (auto const id : tokenizer.encode(word)) {
      CHECK(id != emprl::text::eos_id);
      CHECK(id != emprl::text::pad_id);
    }
  }
  Ids const foreign = tokenizer.encode("\xE6\xBC\xA2 \xF0\x9F\x98\x80");
  CHECK_FALSE(foreign.empty());
  CHECK_NOTHROW(tokenizer.encode("\xFF\xFE broken"));
  CHECK_NOTHROW(tokenizer.encode(std::string_view("a\0b", 3)));
}

TEST_CASE("tokenizer: missing, empty, truncated and foreign files are refused by name",
          "[text][tokenizer][bad_input]") {
  TemporaryFolder const folder;
  auto const refusal = [&](std::string const& bytes) {
    auto const path = folder.put("spiece.model", bytes);
    std::string const message = message_of<IoError>([&] { SentencePieceTokenizer t(path); });
    CHECK_THAT(message, ContainsSubstring(path.string()));
    return message;
  };
  CHECK_THAT(refusal(""), ContainsSubstring("is empty"));
  CHECK_THAT(refusal("not a model"), ContainsSubstring("sentencepiece model"));
  CHECK_THAT(refusal(std::string(1000, '\xFF')), ContainsSubstring("sentencepiece model"));
  CHECK_THAT(message_of<IoError>([&] { SentencePieceTokenizer t(folder / "missing"); }),
             ContainsSubstring("No such file"));
  CHECK_THAT(message_of<IoError>([&] { SentencePieceTokenizer t(folder.path()); }),
             ContainsSubstring("folder"));
  std::string const whole = emprl::test::small_spiece_model();
  // Every cut among the pieces and the settings; what follows is one long table of the normaliser.
  for (std::size_t n = 1; n < whole.size(); n += n < 3000 ? 1 : 997) {
    if (refusal(whole.substr(0, n)).empty()) FAIL("a model cut to " << n << " bytes was taken");
  }
  CHECK_NOTHROW(SentencePieceTokenizer(folder.put("whole", whole)));
}

TEST_CASE("tokenizer: T5's own model gives the published ids", "[text][tokenizer][real]") {
  auto const model = emprl::test::real_data("t5_tokenizer/spiece.model");
  if (model.empty()) return;
  SentencePieceTokenizer const tokenizer(model);
  CHECK(tokenizer.size() == 32'100);
  CHECK(tokenizer.sentinel_id(0) == 32'099);
  CHECK(tokenizer.encode("translate English to German: The house is wonderful.") ==
        Ids{13959, 1566, 12, 2968, 10, 37, 629, 19, 1627, 5});
  CHECK(tokenizer.encode("The <extra_id_0> walks in <extra_id_1> park") ==
        Ids{37, 32099, 10681, 16, 32098, 2447});
  CHECK(tokenizer.encode("<extra_id_0> cute dog <extra_id_1> the <extra_id_2>") ==
        Ids{32099, 5295, 1782, 32098, 8, 32097});
  CHECK(tokenizer.decode(Ids{0, 37, 629, 19, 1627, 5, 1, 0, 0}) == "The house is wonderful.");
  CHECK(tokenizer.decode(Ids{32127, 37, 2, 629}) == "The house");
}
