// SPDX-License-Identifier: Apache-2.0
#pragma once

// Trains a sentencepiece unigram model (Kudo 2018) in T5's conventions: <pad> 0, </s> 1, <unk> 2,
// no <s>, NMT's NFKC normalisation, a space before the first word.

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <unordered_map>

#include <sentencepiece_trainer.h>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"

namespace emprl::text {

/// How a tokenizer is trained.
struct TokenizerTraining {
  index_t vocabulary =
      8000;  ///< pieces, <pad>, </s> and <unk> among them; the 100 sentinels come on top
  double character_coverage =
      0.9999;  ///< the share of the text's characters that get a piece of their own
  bool allow_smaller =
      false;  ///< take fewer pieces where the texts have no more to give, instead of an error
};

namespace detail {

/// Hands texts to sentencepiece one by one.
class TextIterator : public sentencepiece::SentenceIterator {
 public:
  explicit TextIterator(std::span<std::string const> texts) : texts_(texts) {}

  bool done() const override { return at_ >= texts_.size(); }
  void Next() override { ++at_; }
  std::string const& value() const override { return texts_[at_]; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  std::span<std::string const> texts_;
  std::size_t at_ = 0;
};

}  // namespace detail

/// Trains a tokenizer, quietly; the result is a function of the texts and the options alone.
/// @param texts sentences, utterances or paragraphs; the longer, the slower
/// @return the serialized model, for SentencePieceTokenizer and for a folder's spiece.model
/// @throws ConfigError if an option is out of range, or the texts are too few for so large a
/// vocabulary
inline std::string train_tokenizer(std::span<std::string const> texts,
                                   TokenizerTraining const& options = {}) {
  expects<ConfigError>(options.vocabulary >= 8 && options.vocabulary <= 1'000'000,
                       "the tokenizer's vocabulary must lie between 8 and 1000000.");
  expects<ConfigError>(options.character_coverage >= 0.98 && options.character_coverage <= 1.0,
                       "the tokenizer's character coverage must lie between 0.98 and 1.");
  bool any = false;
  std::size_t longest = 0;
  for (std::string const& text : texts) {
    any = any || text.find_first_not_of(" \t\r\n\v\f") != std::string::npos;
    longest = std::max(longest, text.size());
  }
  expects<ConfigError>(any, "there is no text to train a tokenizer on.");

  std::unordered_map<std::string, std::string> const settings{
      {"model_type", "unigram"},
      {"vocab_size", std::to_string(options.vocabulary)},
      {"character_coverage", std::to_string(options.character_coverage)},
      {"hard_vocab_limit", options.allow_smaller ? "false" : "true"},
      {"pad_id", "0"},
      {"eos_id", "1"},
      {"unk_id", "2"},
      {"bos_id", "-1"},
      {"pad_piece", "<pad>"},
      {"eos_piece", "</s>"},
      {"unk_piece", "<unk>"},
      {"normalization_rule_name", "nmt_nfkc"},
      {"add_dummy_prefix", "true"},
      {"remove_extra_whitespaces", "true"},
      // Longer texts would be left out in silence.
      {"max_sentence_length", std::to_string(longest + 1)},
      // Sums of expected counts are formed thread by thread: their number decides the last bits, so
      // it is fixed.
      {"num_threads", "2"},
      {"minloglevel", "3"},
  };
  detail::TextIterator iterator(texts);
  std::string model;
  auto const status = sentencepiece::SentencePieceTrainer::Train(settings, &iterator, &model);
  if (!status.ok()) {
    std::string reason = status.message();
    // Its messages begin with a place in its own source and the condition there, "file(line)
    // [condition] ".
    if (auto const end = reason.rfind("] "); end != std::string::npos) reason.erase(0, end + 2);
    throw ConfigError("the texts do not make a tokenizer of " + std::to_string(options.vocabulary) +
                      " pieces; give more text or ask for fewer (sentencepiece says: " + reason +
                      ").");
  }
  return model;
}

}  // namespace emprl::text
