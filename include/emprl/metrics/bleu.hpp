// SPDX-License-Identifier: Apache-2.0
#pragma once

// BLEU (Papineni et al. 2002) of a corpus, without smoothing.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/metrics/ngram.hpp"

namespace emprl::metrics {

/// What BLEU-1 to BLEU-4 need to know of one response, or of their sum over a corpus: matched
/// n-grams (no n-gram more often than in the reference), n-grams, and lengths.
struct BleuStatistics {
  std::array<index_t, 4> matched{};
  std::array<index_t, 4> total{};
  index_t length = 0;
  index_t reference_length = 0;

  BleuStatistics& operator+=(BleuStatistics const& other) {
    for (std::size_t n = 0; n < 4; ++n) {
      matched[n] += other.matched[n];
      total[n] += other.total[n];
    }
    length += other.length;
    reference_length += other.reference_length;
    return *this;
  }

  /// 100 * exp(min(0, 1 - reference length / length)) * (prod_{n <= order} matched_n / total_n)^(1
  /// / order). 0 if some order has no match. @throws ConfigError unless order is 1 to 4
  double bleu(int order) const {
    expects<ConfigError>(order >= 1 && order <= 4, "the order of BLEU must be 1 to 4");
    double log_precision = 0.0;
    for (std::size_t n = 0; n < static_cast<std::size_t>(order); ++n) {
      if (matched[n] == 0) return 0.0;
      log_precision += std::log(static_cast<double>(matched[n]) / static_cast<double>(total[n]));
    }
    double const brevity =
        std::min(0.0, 1.0 - static_cast<double>(reference_length) / static_cast<double>(length));
    return 100.0 * std::exp(brevity + log_precision / order);
  }
};

/// The statistics of one response against one reference.
inline BleuStatistics bleu_statistics(std::span<std::int32_t const> response,
                                      std::span<std::int32_t const> reference) {
  BleuStatistics result;
  result.length = static_cast<index_t>(response.size());
  result.reference_length = static_cast<index_t>(reference.size());
  for (std::size_t n = 1; n <= 4; ++n) {
    std::unordered_map<Ngram, index_t> left;
    for_each_ngram(reference, n, [&](Ngram const& ngram) { return ++left[ngram], true; });
    for_each_ngram(response, n, [&](Ngram const& ngram) {
      ++result.total[n - 1];
      auto const found = left.find(ngram);
      if (found != left.end() && found->second > 0) {
        --found->second;
        ++result.matched[n - 1];
      }
      return true;
    });
  }
  return result;
}

/// The statistics of a corpus, row by row. @throws ShapeError if there are not as many references
/// as responses
inline BleuStatistics bleu_statistics(RaggedView responses, RaggedView references) {
  if (responses.rows() != references.rows()) {
    throw ShapeError("BLEU needs one reference for each response");
  }
  BleuStatistics sum;
  for (index_t i = 0; i < responses.rows(); ++i) {
    sum += bleu_statistics(responses.row(i), references.row(i));
  }
  return sum;
}

}  // namespace emprl::metrics
