// SPDX-License-Identifier: Apache-2.0
#pragma once

// What changes a row of scores before a token is chosen, each a function of the row and of the
// tokens that the decoder has seen. Scores are logits in greedy decoding and sampling,
// log-probabilities in beam search, as in transformers.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/scalar.hpp"

namespace emprl::gen {

/// x[token] = -inf. Tokens outside the vocabulary are passed over.
template <Scalar T>
void bar_token(std::span<T> x, std::int32_t token) {
  if (token < 0 || static_cast<std::size_t>(token) >= x.size()) return;
  x[static_cast<std::size_t>(token)] = -std::numeric_limits<T>::infinity();
}

/// For every token that is in `seen`, once:   x = x < 0 ? x penalty : x / penalty   (Keskar et al.
/// 2019, with the case below 0 that transformers adds). Above 1 the tokens get less likely.
/// @param seen     what the decoder has read, the start token among it, as in transformers; tokens
/// outside the vocabulary are passed over
/// @param scratch  working memory
template <Scalar T>
void penalise_repetition(std::span<T> x, std::span<std::int32_t const> seen, double penalty,
                         std::vector<T>& scratch) {
  auto const inside = [&](std::int32_t token) {
    return token >= 0 && static_cast<std::size_t>(token) < x.size();
  };
  auto const factor = static_cast<T>(penalty);
  // All are read before one is written: a token that was seen twice is penalised once.
  scratch.clear();
  for (std::int32_t const token : seen) {
    if (!inside(token)) continue;
    T const score = x[static_cast<std::size_t>(token)];
    scratch.push_back(score < T(0) ? score * factor : score / factor);
  }
  std::size_t next = 0;
  for (std::int32_t const token : seen) {
    if (inside(token)) x[static_cast<std::size_t>(token)] = scratch[next++];
  }
}

/// Bars every token that would make of the last n - 1 of `seen` an n-gram that is in `seen`
/// already. With n = 1 that is every token of `seen`.
/// @param seen  the start token first: as in transformers, it is part of an n-gram
template <Scalar T>
void bar_repeated_ngrams(std::span<T> x, std::span<std::int32_t const> seen, index_t n) {
  auto const size = static_cast<std::size_t>(n);
  if (n < 1 || seen.size() < size) return;
  auto const last = seen.last(size - 1);
  for (std::size_t i = 0; i + size <= seen.size(); ++i) {
    if (std::equal(last.begin(), last.end(), seen.begin() + static_cast<std::ptrdiff_t>(i))) {
      bar_token(x, seen[i + size - 1]);
    }
  }
}

}  // namespace emprl::gen
