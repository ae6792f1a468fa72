// SPDX-License-Identifier: Apache-2.0
#pragma once

// Running text as windows of so many tokens, for learning without targets.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/text/concepts.hpp"

namespace emprl::text {

/// Appends the windows of texts that follow one another: all their tokens in one row, cut after
/// every `length`-th, without </s>. As in T5's pre-training nothing marks where one text ends and
/// the next begins, and a window may hold the end of one and the beginning of another. The last
/// window is shorter; a rest of a single token, of which nothing can be hidden and the other shown,
/// is left out.
/// @param texts     paragraphs of books, turns of dialogues
/// @param length    tokens of a window, at least 2
/// @param reserved  ids that the windows must not hold: sentinels, which a text can spell
///                  (<extra_id_3>). unk_id stands in their place
/// @throws ConfigError if length < 2; std::out_of_range for a reserved id that the tokenizer has
/// not
template <Tokenizer T>
void append_windows(T const& tokenizer, std::span<std::string const> texts, index_t length,
                    std::span<std::int32_t const> reserved, Ragged& windows) {
  expects<ConfigError>(length >= 2, "a window must have two tokens at least.");
  auto const size = static_cast<std::size_t>(length);
  std::vector<bool> taken(static_cast<std::size_t>(tokenizer.size()), false);
  for (std::int32_t const id : reserved) taken.at(static_cast<std::size_t>(id)) = true;
  std::vector<std::int32_t> window;
  for (std::string const& text : texts) {
    for (std::int32_t const id : tokenizer.encode(text)) {
      window.push_back(taken[static_cast<std::size_t>(id)] ? unk_id : id);
      if (window.size() < size) continue;
      windows.push_back(window);
      window.clear();
    }
  }
  if (window.size() >= 2) windows.push_back(window);
}

/// Windows cut in two.
struct HeldOutWindows {
  Ragged kept;
  Ragged held_out;
};

/// Takes some windows out, drawn without replacement: which ones is a function of the seed and of
/// their number. Both parts keep the order.
/// @throws ConfigError unless 1 <= count < windows.rows()
inline HeldOutWindows hold_out_windows(RaggedView windows, index_t count, std::uint64_t seed) {
  index_t const n = windows.rows();
  expects<ConfigError>(count >= 1 && count < n,
                       std::to_string(count) + " of " + std::to_string(n) +
                           " windows cannot be held out; both parts need one at least.");
  std::vector<index_t> order(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<index_t>(i);
  RandomSequence(seed, Stream::split).shuffle(std::span<index_t>(order));
  auto const middle = order.begin() + static_cast<std::ptrdiff_t>(count);
  std::sort(order.begin(), middle);
  std::sort(middle, order.end());
  auto const taken = static_cast<std::size_t>(count);
  std::span<index_t const> const all(order);
  return {gather_rows(windows, all.subspan(taken)), gather_rows(windows, all.first(taken))};
}

}  // namespace emprl::text
