// SPDX-License-Identifier: Apache-2.0
#pragma once

// A handful of dialogues, and a tokenizer of their words, for tests that train on text.

#include <cstddef>
#include <string>
#include <vector>

#include "emprl/data/dialogue.hpp"
#include "emprl/text/tokenizer.hpp"
#include "emprl/text/train_tokenizer.hpp"

namespace support {

inline std::vector<emprl::data::Pair> small_dialogues(std::size_t count) {
  std::vector<emprl::data::Pair> pairs;
  char const* const things[] = {"my dog ran away", "i passed the test", "the rain ruined it",
                                "we won a prize"};
  char const* const answers[] = {"what happened then ?", "that is great .",
                                 "i am sorry to hear that .", "how did you do it ?"};
  for (std::size_t i = 0; i < count; ++i) {
    emprl::data::Pair pair;
    pair.id = "pair " + std::to_string(i);
    pair.context = things[i % 4];
    pair.response = answers[(i * 7 + i / 4) % 4];
    pair.levels = emprl::data::Levels{static_cast<int>(i % 3), 0, 1};
    pairs.push_back(pair);
  }
  return pairs;
}

inline emprl::text::SentencePieceTokenizer small_tokenizer(
    std::vector<emprl::data::Pair> const& dialogues) {
  std::vector<std::string> texts;
  for (emprl::data::Pair const& pair : dialogues) {
    texts.push_back(pair.context);
    texts.push_back(pair.response);
  }
  emprl::text::TokenizerTraining settings;
  settings.vocabulary = 60;
  settings.allow_smaller = true;
  return {emprl::text::train_tokenizer(texts, settings), "test tokenizer"};
}

}  // namespace support
