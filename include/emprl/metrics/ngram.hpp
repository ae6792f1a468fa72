// SPDX-License-Identifier: Apache-2.0
#pragma once

// Words as numbers, and n-grams of them.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/metrics/treebank.hpp"

namespace emprl::metrics {

/// Gives each distinct word the next number. Texts that are compared must go through the same one.
class Interner {
 public:
  std::int32_t id(std::string const& word) {
    return ids_.try_emplace(word, static_cast<std::int32_t>(ids_.size())).first->second;
  }
  index_t size() const { return static_cast<index_t>(ids_.size()); }

 private:
  std::unordered_map<std::string, std::int32_t> ids_;
};

/// The numbers of a text's Treebank tokens.
inline std::vector<std::int32_t> treebank_ids(std::string_view text, Interner& words) {
  std::vector<std::int32_t> ids;
  for (auto const& token : treebank_tokenize(text)) ids.push_back(words.id(token));
  return ids;
}

/// The same for many texts, one row each.
inline Ragged treebank_rows(std::span<std::string const> texts, Interner& words) {
  Ragged rows;
  for (auto const& text : texts) rows.push_back(treebank_ids(text, words));
  return rows;
}

/// The first `length` tokens of every row.
inline Ragged truncate_rows(RaggedView rows, index_t length) {
  Ragged part;
  for (index_t i = 0; i < rows.rows(); ++i) {
    auto const row = rows.row(i);
    part.push_back(row.first(std::min(row.size(), static_cast<std::size_t>(length))));
  }
  return part;
}

/// n tokens in a row, as a key of hash tables.
using Ngram = std::u32string;

/// Calls f(ngram) for every n-gram of a row, from left to right; stops when f returns false.
template <class F>
void for_each_ngram(std::span<std::int32_t const> row, std::size_t n, F&& f) {
  Ngram ngram(n, U'\0');
  for (std::size_t i = 0; i + n <= row.size(); ++i) {
    for (std::size_t j = 0; j < n; ++j) ngram[j] = static_cast<char32_t>(row[i + j]);
    if (!f(static_cast<Ngram const&>(ngram))) return;
  }
}

}  // namespace emprl::metrics
