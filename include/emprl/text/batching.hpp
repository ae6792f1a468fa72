// SPDX-License-Identifier: Apache-2.0
#pragma once

// From texts to packed rows of token ids, and the order in which rows are visited.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <future>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/text/concepts.hpp"

namespace emprl::text {

/// The most tokens of a context and of a response, `</s>` included.
struct TokenLimits {
  index_t context = 200;
  index_t response = 50;
};

/// The ids of a text with `</s>` at the end, cut to `max_tokens` in all; what is kept is the
/// beginning, as Hugging Face's truncation has it.
/// @throws ConfigError if max_tokens < 1
template <Tokenizer T>
std::vector<std::int32_t> encode_with_end(T const& tokenizer, std::string_view text,
                                          index_t max_tokens) {
  expects<ConfigError>(max_tokens >= 1, "a row must have room for one token at least.");
  std::vector<std::int32_t> ids = tokenizer.encode(text);
  if (ids.size() >= static_cast<std::size_t>(max_tokens)) {
    ids.resize(static_cast<std::size_t>(max_tokens) - 1);
  }
  ids.push_back(eos_id);
  return ids;
}

/// One row for each text, each ending in `</s>`.
/// @param text_of gives the text of an element: [](Pair const& p) { return
/// std::string_view(p.context); }
/// @param threads  that share the rows, at most; a few rows are not worth one
template <Tokenizer T, class Element, class TextOf>
Ragged encode_rows(T const& tokenizer, std::span<Element const> elements, index_t max_tokens,
                   TextOf text_of, int threads = 1) {
  auto const encode = [&](std::size_t begin, std::size_t end) {
    Ragged rows;
    for (Element const& element : elements.subspan(begin, end - begin)) {
      rows.push_back(encode_with_end(tokenizer, text_of(element), max_tokens));
    }
    return rows;
  };
  // A row takes some tens of microseconds, and so does the start of a thread.
  constexpr std::size_t least = 8;
  std::size_t const parts = std::clamp<std::size_t>(elements.size() / least, 1,
                                                    static_cast<std::size_t>(std::max(threads, 1)));
  auto const bound = [&](std::size_t k) { return elements.size() * k / parts; };
  std::vector<std::future<Ragged>> others;
  for (std::size_t k = 1; k < parts; ++k) {
    others.push_back(std::async(std::launch::async, encode, bound(k), bound(k + 1)));
  }
  Ragged rows = encode(0, bound(1));
  for (auto& other : others) {
    Ragged const more = other.get();
    for (index_t i = 0; i < more.rows(); ++i) rows.push_back(more.row(i));
  }
  return rows;
}

/// One row for each text, each ending in `</s>`.
template <Tokenizer T>
Ragged encode_texts(T const& tokenizer, std::span<std::string const> texts, index_t max_tokens,
                    int threads = 1) {
  return encode_rows(
      tokenizer, texts, max_tokens, [](std::string const& text) { return std::string_view(text); },
      threads);
}

/// Contexts and responses, row by row.
struct EncodedPairs {
  Ragged contexts;
  Ragged responses;

  index_t rows() const { return contexts.rows(); }
  /// Of contexts and responses together.
  index_t tokens() const { return contexts.tokens() + responses.tokens(); }
};

/// Encodes anything with members `context` and `response`.
template <Tokenizer T, class PairType>
EncodedPairs encode_pairs(T const& tokenizer, std::span<PairType const> pairs,
                          TokenLimits const& limits = {}) {
  return {encode_rows(tokenizer, pairs, limits.context,
                      [](PairType const& pair) { return std::string_view(pair.context); }),
          encode_rows(tokenizer, pairs, limits.response,
                      [](PairType const& pair) { return std::string_view(pair.response); })};
}

/// Some rows, in the order given.
inline EncodedPairs gather_pairs(EncodedPairs const& from, std::span<index_t const> rows) {
  return {gather_rows(from.contexts.view(), rows), gather_rows(from.responses.view(), rows)};
}

/// The rows 0 .. n-1 in the order of one epoch: a function of the seed and the epoch.
inline std::vector<index_t> shuffled_rows(index_t n, std::uint64_t seed, index_t epoch) {
  expects<ConfigError>(epoch >= 0 && epoch <= std::numeric_limits<std::uint32_t>::max(),
                       "an epoch's number must be between 0 and 2^32 - 1.");
  std::vector<index_t> order(static_cast<std::size_t>(std::max(n, index_t{0})));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<index_t>(i);
  RandomSequence(seed, Stream::shuffle, static_cast<std::uint32_t>(epoch))
      .shuffle(std::span<index_t>(order));
  return order;
}

/// Consecutive pieces of an order, `batch` rows each and what is left over in the last. The parts
/// point into `order`.
/// @throws ConfigError if batch < 1
inline std::vector<std::span<index_t const>> cut_into_batches(std::span<index_t const> order,
                                                              index_t batch) {
  expects<ConfigError>(batch >= 1, "a batch must have one row at least.");
  auto const size = static_cast<std::size_t>(batch);
  std::vector<std::span<index_t const>> batches;
  for (std::size_t at = 0; at < order.size(); at += size) {
    batches.push_back(order.subspan(at, std::min(size, order.size() - at)));
  }
  return batches;
}

}  // namespace emprl::text
