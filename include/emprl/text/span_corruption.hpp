// SPDX-License-Identifier: Apache-2.0
#pragma once

// Span corruption, the objective that T5 was pre-trained with (Raffel et al. 2020, section 3.1.4):
// spans of a text are hidden, and the model writes them.
//
//   text      we walked home along the river when it began to rain
//   input     we walked <extra_id_0> the river when it <extra_id_1> </s>
//   target    <extra_id_0> home along <extra_id_1> began to rain </s>
//
// Which spans are hidden is drawn as in T5's own preprocessing: their number and the number of
// hidden tokens follow from the length of the text alone (noise_counts); shown and hidden spans
// alternate, a shown one first; and of all such divisions each is equally likely. A text therefore
// ends in a hidden span, and a target ends with that span's tokens and </s>. The figure in the
// paper has another sentinel there, which T5's code writes only where a text ends in shown tokens:
// here that is a text of a single token, of which nothing is hidden, and whose target is that
// sentinel alone.
//
// A division is a function of (seed, epoch, number of the example): it can be drawn anew in every
// epoch, in any order, on any device, after any resume.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/text/batching.hpp"
#include "emprl/text/concepts.hpp"

namespace emprl::text {

/// How much is hidden. The defaults are T5's.
struct SpanCorruption {
  double density = 0.15;   ///< the share of tokens that are hidden
  double mean_length = 3;  ///< of a hidden span, in tokens

  /// @throws ConfigError naming the setting that is out of range
  void validate() const {
    expects<ConfigError>(density > 0 && density < 1,
                         "the share of tokens to hide must lie between 0 and 1.");
    expects<ConfigError>(std::isfinite(mean_length) && mean_length >= 1,
                         "the mean length of hidden spans must be 1 or more.");
  }
};

/// What is hidden of a text.
struct NoiseCounts {
  index_t tokens = 0;
  index_t spans = 0;

  bool operator==(NoiseCounts const&) const = default;
};

/// How many tokens of a text of n are hidden, and in how many spans:
///   tokens = min(max(round(n * density), 1), n - 1)
///   spans  = min(max(round(tokens / mean_length), 1), n - tokens)
/// Both roundings are T5's: of float32, halves to the even number. (Its own formula does not have
/// the last minimum, which settings near its own never reach: there must be a shown token before
/// each span.) Of a text of fewer than two tokens nothing is hidden.
inline NoiseCounts noise_counts(SpanCorruption const& options, index_t n) {
  if (n < 2) return {};
  auto const rounded = [](float x) { return static_cast<index_t>(std::nearbyint(x)); };
  float const share = static_cast<float>(n) * static_cast<float>(options.density);
  index_t const tokens = std::min(std::max(rounded(share), index_t{1}), n - 1);
  float const pieces = static_cast<float>(tokens) / static_cast<float>(options.mean_length);
  return {tokens, std::min(std::max(rounded(pieces), index_t{1}), n - tokens)};
}

/// @throws ConfigError if options are out of range, or a text of n tokens would need more sentinels
/// than there are
inline void check_corruption(SpanCorruption const& options, index_t n, std::size_t sentinels) {
  options.validate();
  index_t const spans = noise_counts(options, n).spans;
  if (spans > static_cast<index_t>(sentinels)) {
    throw ConfigError("a text of " + std::to_string(n) + " tokens has " + std::to_string(spans) +
                      " hidden spans, and the tokenizer has " + std::to_string(sentinels) +
                      " sentinels; take shorter windows or longer spans.");
  }
}

/// The lengths of `segments` segments, none of them empty, that `items` items are cut into; each of
/// the C(items - 1, segments - 1) ways is equally likely.
/// @throws ShapeError unless 1 <= segments <= items
inline std::vector<index_t> random_segments(index_t items, index_t segments,
                                            RandomSequence& random) {
  expects(segments >= 1 && segments <= items, std::to_string(items) + " items cannot be cut into " +
                                                  std::to_string(segments) + " segments");
  std::vector<index_t> lengths;
  lengths.reserve(static_cast<std::size_t>(segments));
  index_t begin = 0;
  index_t cuts = segments - 1;
  // A cut before item i with probability (cuts to come) / (places to come).
  for (index_t i = 1; cuts > 0; ++i) {
    if (random.below(items - i) >= cuts) continue;
    lengths.push_back(i - begin);
    begin = i;
    --cuts;
  }
  lengths.push_back(items - begin);
  return lengths;
}

/// Appends a text's input to out.contexts and its target to out.responses, both with </s>.
/// @param tokens     the text; it holds no sentinel (append_windows sees to that)
/// @param sentinels  the ids of <extra_id_0>, <extra_id_1>, ...
/// @throws ConfigError as check_corruption
inline void corrupt_spans(std::span<std::int32_t const> tokens, SpanCorruption const& options,
                          std::span<std::int32_t const> sentinels, RandomSequence& random,
                          EncodedPairs& out) {
  auto const n = static_cast<index_t>(tokens.size());
  check_corruption(options, n, sentinels.size());
  NoiseCounts const noise = noise_counts(options, n);
  std::vector<std::int32_t> input, target;
  std::size_t at = 0;
  auto const move = [&](index_t count, std::vector<std::int32_t>& to) {
    auto const part = tokens.subspan(at, static_cast<std::size_t>(count));
    to.insert(to.end(), part.begin(), part.end());
    at += part.size();
  };
  if (noise.spans > 0) {
    std::vector<index_t> const hidden = random_segments(noise.tokens, noise.spans, random);
    std::vector<index_t> const shown = random_segments(n - noise.tokens, noise.spans, random);
    for (std::size_t k = 0; k < hidden.size(); ++k) {
      move(shown[k], input);
      input.push_back(sentinels[k]);
      target.push_back(sentinels[k]);
      move(hidden[k], target);
    }
  } else if (n > 0) {
    move(n, input);
    if (!sentinels.empty()) target.push_back(sentinels[0]);
  }
  input.push_back(eos_id);
  target.push_back(eos_id);
  out.contexts.push_back(input);
  out.responses.push_back(target);
}

/// Some rows of a set of texts, corrupted as an epoch has them: row r with the draws of
/// {seed, Stream::corrupt, epoch, first_example + r}.
/// @param first_example  the number of the set's first row, for sets that must not share draws
/// @throws ConfigError as check_corruption; ShapeError for an epoch or a number that is not below
/// 2^32
inline EncodedPairs corrupt_windows(RaggedView windows, std::span<index_t const> rows,
                                    SpanCorruption const& options,
                                    std::span<std::int32_t const> sentinels, std::uint64_t seed,
                                    index_t epoch, index_t first_example = 0) {
  constexpr index_t most = std::numeric_limits<std::uint32_t>::max();
  expects(epoch >= 0 && epoch <= most, "an epoch's number must be between 0 and 2^32 - 1");
  EncodedPairs pairs;
  for (index_t const row : rows) {
    index_t const example = first_example + row;
    expects(example >= 0 && example <= most, "an example's number must be between 0 and 2^32 - 1");
    RandomSequence random(seed, Stream::corrupt, static_cast<std::uint32_t>(epoch),
                          static_cast<std::uint32_t>(example));
    corrupt_spans(windows.row(row), options, sentinels, random, pairs);
  }
  return pairs;
}

}  // namespace emprl::text
