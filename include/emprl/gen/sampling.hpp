// SPDX-License-Identifier: Apache-2.0
#pragma once

// One token from one row of logits: penalties and bars, then temperature, top-k and top-p filters,
// or the most probable token.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/gen/processors.hpp"

namespace emprl::gen {

/// How responses are drawn. Lengths count generated tokens: `</s>` included, the start token
/// excluded.
struct SamplingConfig {
  /// Take the most probable token (the lowest id among equals); temperature and filters are not
  /// used.
  bool greedy = false;
  /// Logits are divided by it before the filters.
  double temperature = 1.0;
  /// Keep the k largest logits and all that tie with the k-th; 0 keeps every token.
  index_t top_k = 0;
  /// Keep the most probable tokens that together reach this probability (after temperature and
  /// top-k; the lowest ids among equals); 1 keeps every token.
  double top_p = 1.0;
  /// `</s>` is barred while it would make a response shorter than this.
  index_t min_new_tokens = 1;
  /// A response that has not ended after this many tokens is cut.
  index_t max_new_tokens = 49;
  /// The token that decoding starts from.
  std::int32_t start = 0;
  /// `</s>`
  std::int32_t eos = 1;
  /// Tokens that are never drawn (padding, sentinels, ids without a piece). Empty in the original.
  std::vector<std::int32_t> barred;
  /// Divides the positive logits of tokens that the decoder has seen (the start token among them)
  /// and multiplies the negative ones: penalise_repetition. 1: off.
  double repetition_penalty = 1.0;
  /// No n tokens in a row come twice in a response, the start token before it included. 0: off.
  index_t no_repeat_ngram = 0;

  bool operator==(SamplingConfig const&) const = default;

  /// Whether the next token depends on which tokens came before, besides through the model.
  bool needs_history() const { return repetition_penalty != 1.0 || no_repeat_ngram > 0; }

  /// @throws ConfigError naming the field that is out of range
  void validate() const {
    expects<ConfigError>(std::isfinite(temperature) && temperature > 0.0,
                         "temperature must be a finite number above 0");
    expects<ConfigError>(top_k >= 0, "top_k must be 0 (off) or more");
    expects<ConfigError>(top_p > 0.0 && top_p <= 1.0, "top_p must lie in (0, 1]");
    expects<ConfigError>(min_new_tokens >= 0, "min_new_tokens must not be negative");
    expects<ConfigError>(max_new_tokens >= 1, "max_new_tokens must be at least 1");
    expects<ConfigError>(min_new_tokens <= max_new_tokens,
                         "min_new_tokens must not exceed max_new_tokens");
    expects<ConfigError>(start >= 0 && eos >= 0, "start and eos must be token ids");
    expects<ConfigError>(std::isfinite(repetition_penalty) && repetition_penalty > 0.0,
                         "repetition_penalty must be a finite number above 0; 1 is off");
    expects<ConfigError>(no_repeat_ngram >= 0, "no_repeat_ngram must be 0 (off) or more");
  }

  /// The sampling of EmpRL: temperature 0.9, top-k 20, 5 to 30 decoder tokens counting the start
  /// token. `</s>` may be the sixth decoder token at the earliest, which is the fifth generated
  /// one; at most 29 are generated.
  static SamplingConfig emprl() {
    SamplingConfig config;
    config.temperature = 0.9;
    config.top_k = 20;
    config.min_new_tokens = 5;
    config.max_new_tokens = 29;
    return config;
  }
};

/// Working memory of sample_token; reused, so that a draw does not allocate once the vocabulary has
/// been seen. What is left in it after a draw: the drawn token had the probability `drawn_weight` /
/// `total_weight`.
template <Scalar T>
struct SamplerWorkspace {
  double drawn_weight = 1.0;
  double total_weight = 1.0;
  std::vector<T> logits;
  std::vector<T> largest;
  std::vector<std::int32_t> ids;
  std::vector<double> weights;
  std::vector<std::size_t> order;
};

namespace detail {

/// The k-th largest of x (1 <= k <= x.size()). One pass that keeps a few candidates, so that most
/// elements cost one comparison with the threshold found so far.
template <Scalar T>
T kth_largest(std::span<T const> x, std::size_t k, std::vector<T>& candidates) {
  std::size_t const capacity = std::min(x.size(), std::max<std::size_t>(2 * k, 256));
  candidates.clear();
  candidates.reserve(capacity);
  auto const select = [&] {
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(k - 1),
                     candidates.end(), std::greater<>());
    candidates.resize(k);
    return candidates[k - 1];
  };
  T threshold = -std::numeric_limits<T>::infinity();
  for (T const value : x) {
    if (!(value > threshold) && candidates.size() >= k) continue;
    if (candidates.size() == capacity) {
      threshold = select();
      if (!(value > threshold)) continue;
    }
    candidates.push_back(value);
  }
  return select();
}

/// Drops from (ids, weights), which are in the order of ids, all but the smallest set of heaviest
/// tokens whose weight reaches top_p of `total`; returns the weight kept.
inline double keep_nucleus(std::vector<std::int32_t>& ids, std::vector<double>& weights,
                           std::vector<std::size_t>& order, double top_p, double total) {
  order.resize(weights.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  auto const heavier = [&](std::size_t a, std::size_t b) {
    return weights[a] > weights[b] || (weights[a] == weights[b] && a < b);
  };
  // Sort a growing head only: the nucleus is rarely more than a small part of the vocabulary.
  double reached = 0.0;
  std::size_t kept = 0;
  std::size_t sorted = 0;
  while (kept < order.size() && (kept == 0 || reached < top_p * total)) {
    if (kept == sorted) {
      sorted = std::min(order.size(), std::max<std::size_t>(64, 4 * sorted));
      std::partial_sort(order.begin() + static_cast<std::ptrdiff_t>(kept),
                        order.begin() + static_cast<std::ptrdiff_t>(sorted), order.end(), heavier);
    }
    reached += weights[order[kept++]];
  }
  std::size_t const last = order[kept - 1];
  double const lightest = weights[last];
  std::size_t out = 0;
  double sum = 0.0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    double const weight = weights[i];
    if (weight < lightest || (weight == lightest && i > last)) continue;
    ids[out] = ids[i];
    weights[out] = weight;
    sum += weight;
    ++out;
  }
  ids.resize(out);
  weights.resize(out);
  return sum;
}

/// @throws Error if a score is NaN or +inf
template <Scalar T>
void expect_sound(std::span<T const> x) {
  // An integer sum of comparisons is vectorised; an early exit would not be.
  std::size_t sound = 0;
  for (T const value : x) sound += value < std::numeric_limits<T>::infinity() ? 1 : 0;
  expects<Error>(sound == x.size(), "a logit is NaN or +inf; the model has diverged");
}

/// The part of transformers' list of processors that a configuration asks for, in its order:
/// repetition penalty, repeated n-grams, the least length, barred tokens. Only the penalty is not a
/// bar, and it leaves -inf as it is, so that the order of the rest does not show.
/// @param seen  read only if config.needs_history()
template <Scalar T>
void process_scores(std::span<T> x, SamplingConfig const& config, index_t generated_so_far,
                    std::span<std::int32_t const> seen, std::vector<T>& scratch) {
  if (config.repetition_penalty != 1.0) {
    penalise_repetition(x, seen, config.repetition_penalty, scratch);
  }
  if (config.no_repeat_ngram > 0) bar_repeated_ngrams(x, seen, config.no_repeat_ngram);
  if (generated_so_far + 1 < config.min_new_tokens) bar_token(x, config.eos);
  for (std::int32_t const token : config.barred) bar_token(x, token);
}

template <Scalar T>
std::int32_t sample_processed(std::span<T const> logits, SamplingConfig const& config,
                              index_t generated_so_far, std::span<std::int32_t const> seen,
                              RngAddress const& at, SamplerWorkspace<T>& workspace) {
  constexpr T infinity = std::numeric_limits<T>::infinity();
  auto& x = workspace.logits;
  x.assign(logits.begin(), logits.end());
  expect_sound(std::span<T const>(x));
  process_scores(std::span<T>(x), config, generated_so_far, seen, workspace.largest);

  auto const best = std::max_element(x.begin(), x.end());
  expects<Error>(best != x.end() && *best > -infinity, "no token is left to draw");
  expects<Error>(*best < infinity, "a penalised logit is +inf; repetition_penalty is too small");
  workspace.drawn_weight = workspace.total_weight = 1.0;
  if (config.greedy) return static_cast<std::int32_t>(best - x.begin());

  auto const k = static_cast<std::size_t>(config.top_k);
  T const threshold = config.top_k > 0 && k < x.size()
                          ? detail::kth_largest(std::span<T const>(x), k, workspace.largest)
                          : -infinity;
  auto& ids = workspace.ids;
  auto& weights = workspace.weights;
  ids.clear();
  weights.clear();
  double const top = static_cast<double>(*best);
  double total = 0.0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (x[i] < threshold || x[i] == -infinity) continue;
    double const weight = std::exp((static_cast<double>(x[i]) - top) / config.temperature);
    ids.push_back(static_cast<std::int32_t>(i));
    weights.push_back(weight);
    total += weight;
  }
  if (config.top_p < 1.0) {
    total = detail::keep_nucleus(ids, weights, workspace.order, config.top_p, total);
  }
  workspace.total_weight = total;
  double left = uniform(at) * total;
  std::int32_t drawn = -1;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (weights[i] == 0.0) continue;
    // Remembered even when passed over: rounding may leave a crumb after the last token.
    drawn = ids[i];
    workspace.drawn_weight = weights[i];
    left -= weights[i];
    if (left < 0.0) break;
  }
  return drawn;
}

}  // namespace detail

/// Draws one token.
///   penalties and bars (detail::process_scores); x = logits / temperature; top-k, then top-p;
///   p = softmax(x of the kept); the draw is the inverse of p's distribution function, tokens in
///   the order of their ids, at uniform(at).
/// The temperature cannot change which logits are largest, so the k-th is sought before the
/// division.
/// @param logits  one number a token; -inf is a token of probability 0
/// @param seen    what the decoder has read: the start token, then the tokens of the response
/// @param at      address of the draw; not used when greedy
/// @throws Error if a logit is NaN or +inf, or if no token is left
template <Scalar T>
std::int32_t sample_token(std::span<T const> logits, SamplingConfig const& config,
                          std::span<std::int32_t const> seen, RngAddress const& at,
                          SamplerWorkspace<T>& workspace) {
  expects(!seen.empty(), "a token is drawn after the start token at the earliest");
  return detail::sample_processed(logits, config, static_cast<index_t>(seen.size()) - 1, seen, at,
                                  workspace);
}

/// As above where only the number of earlier tokens matters.
/// @param generated_so_far  tokens that the response already has, the start token excluded
/// @throws ConfigError if the configuration asks which tokens they were
template <Scalar T>
std::int32_t sample_token(std::span<T const> logits, SamplingConfig const& config,
                          index_t generated_so_far, RngAddress const& at,
                          SamplerWorkspace<T>& workspace) {
  expects<ConfigError>(!config.needs_history(),
                       "repetition_penalty and no_repeat_ngram need the tokens drawn so far; give "
                       "sample_token those, not their number");
  return detail::sample_processed(logits, config, generated_so_far, {}, at, workspace);
}

/// As above, with working memory of its own.
template <Scalar T>
std::int32_t sample_token(std::span<T const> logits, SamplingConfig const& config,
                          index_t generated_so_far, RngAddress const& at) {
  SamplerWorkspace<T> workspace;
  return sample_token(logits, config, generated_so_far, at, workspace);
}

}  // namespace emprl::gen
