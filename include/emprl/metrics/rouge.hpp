// SPDX-License-Identifier: Apache-2.0
#pragma once

// ROUGE-L (Lin 2004): the longest common subsequence of response and reference.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"

namespace emprl::metrics {

/// The length of the longest sequence of tokens that both hold in this order, not necessarily next
/// to one another.
inline index_t longest_common_subsequence(std::span<std::int32_t const> a,
                                          std::span<std::int32_t const> b) {
  std::vector<index_t> best(b.size() + 1, 0);
  for (std::int32_t const x : a) {
    index_t diagonal = 0;
    for (std::size_t j = 0; j < b.size(); ++j) {
      index_t const above = best[j + 1];
      best[j + 1] = x == b[j] ? diagonal + 1 : std::max(above, best[j]);
      diagonal = above;
    }
  }
  return best.back();
}

/// 100 * F1 of the subsequence's share of the response (precision) and of the reference (recall); 0
/// if either is empty.
inline double rouge_l(std::span<std::int32_t const> response,
                      std::span<std::int32_t const> reference) {
  if (response.empty() || reference.empty()) return 0.0;
  auto const common = static_cast<double>(longest_common_subsequence(response, reference));
  return 100.0 * 2.0 * common / static_cast<double>(response.size() + reference.size());
}

/// The ROUGE-L of each row; their mean is the corpus's.
/// @throws ShapeError if there are not as many references as responses
inline std::vector<double> rouge_l(RaggedView responses, RaggedView references) {
  expects(responses.rows() == references.rows(), "ROUGE needs one reference for each response");
  std::vector<double> scores;
  for (index_t i = 0; i < responses.rows(); ++i) {
    scores.push_back(rouge_l(responses.row(i), references.row(i)));
  }
  return scores;
}

}  // namespace emprl::metrics
