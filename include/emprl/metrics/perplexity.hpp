// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a language model pays for a text.

#include <cmath>
#include <numbers>

#include "emprl/core/config.hpp"

namespace emprl::metrics {

/// Totals over target responses: add them up, then ask.
struct LanguageModelTotals {
  /// -sum of natural log-probabilities, `</s>` included.
  double cross_entropy = 0.0;
  /// Tokens predicted, `</s>` included.
  index_t tokens = 0;
  /// UTF-8 bytes of the texts.
  index_t bytes = 0;

  LanguageModelTotals& operator+=(LanguageModelTotals const& other) {
    cross_entropy += other.cross_entropy;
    tokens += other.tokens;
    bytes += other.bytes;
    return *this;
  }

  /// exp(cross-entropy per token); depends on the tokenizer. NaN of nothing.
  double perplexity() const { return std::exp(cross_entropy / static_cast<double>(tokens)); }

  /// -log2 p / bytes; comparable across tokenizers. NaN of nothing.
  double bits_per_byte() const {
    return cross_entropy / std::numbers::ln2 / static_cast<double>(bytes);
  }
};

}  // namespace emprl::metrics
