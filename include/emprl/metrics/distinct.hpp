// SPDX-License-Identifier: Apache-2.0
#pragma once

// Distinct-n (Li et al. 2016): the share of n-grams of a corpus that are different from one
// another.

#include <cstddef>
#include <limits>
#include <unordered_set>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/metrics/ngram.hpp"

namespace emprl::metrics {

/// Different n-grams among all.
struct Distinct {
  index_t unique = 0;
  index_t total = 0;
  /// 100 * unique / total; 0 of nothing.
  double value() const {
    return total == 0 ? 0.0 : 100.0 * static_cast<double>(unique) / static_cast<double>(total);
  }
};

/// Distinct-n over all rows; n-grams do not cross rows. It falls with the size of a corpus, so
/// corpora of different sizes are compared at equal counts: `limit` counts the first that many
/// n-grams, in the order of the rows. (At equal lengths: truncate_rows first.)
inline Distinct distinct(RaggedView rows, int n,
                         index_t limit = std::numeric_limits<index_t>::max()) {
  expects<ConfigError>(n >= 1, "the n of n-grams must be at least 1");
  Distinct result;
  std::unordered_set<Ngram> seen;
  for (index_t i = 0; i < rows.rows(); ++i) {
    for_each_ngram(rows.row(i), static_cast<std::size_t>(n), [&](Ngram const& ngram) {
      if (result.total >= limit) return false;
      seen.insert(ngram);
      ++result.total;
      return true;
    });
  }
  result.unique = static_cast<index_t>(seen.size());
  return result;
}

}  // namespace emprl::metrics
