// SPDX-License-Identifier: Apache-2.0
#pragma once

// A few hundred sentences of a toy grammar and the tokenizer trained on them.

#include <string>
#include <vector>

#include "emprl/text/train_tokenizer.hpp"

namespace emprl::test {

/// Sentences that are all different and share their words.
inline std::vector<std::string> small_corpus() {
  std::vector<std::string> texts;
  for (char const* who : {"i am", "you are", "my sister is", "everyone was", "they were"}) {
    for (char const* how :
         {"so happy", "very sad", "a bit angry", "really proud", "quite lonely"}) {
      for (char const* what : {"about my dog", "since the party", "because of work",
                               "after the exam", "when nobody called", "at the hospital"}) {
        texts.push_back(std::string(who) + " " + how + " " + what + ".");
      }
    }
  }
  return texts;
}

/// A serialized model of 56 pieces.
inline std::string const& small_spiece_model() {
  static std::string const model = [] {
    auto const texts = small_corpus();
    return text::train_tokenizer(texts, {.vocabulary = 56});
  }();
  return model;
}

}  // namespace emprl::test
