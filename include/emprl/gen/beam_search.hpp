// SPDX-License-Identifier: Apache-2.0
#pragma once

// Beam search: the likeliest responses that a search of bounded width finds, step for step that of
// transformers' generate(num_beams=K, do_sample=False) of version 4.44.2.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/device.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/core/tensor.hpp"
#include "emprl/gen/decoder.hpp"
#include "emprl/gen/full_softmax.hpp"
#include "emprl/gen/generate.hpp"
#include "emprl/gen/sampling.hpp"

namespace emprl::gen {

/// When a context is done that has as many finished responses as beams.
enum class EarlyStopping {
  /// Once the best beam's score, as if it ended now, is no better than the worst finished one
  /// (transformers' False).
  heuristic,
  /// At once (True).
  at_once,
  /// Once no beam can become better than the worst finished one, given that log-probabilities only
  /// fall and responses have at most max_new_tokens ("never").
  never
};

/// How wide beams search and what they are ranked by.
struct BeamConfig {
  /// Responses that are continued at a time, for each context.
  index_t beams = 4;
  /// A finished response is ranked by (sum of its tokens' scores) / length^length_penalty. The
  /// length counts generated tokens, `</s>` included. Above 0 favours long responses.
  double length_penalty = 1.0;
  EarlyStopping early_stopping = EarlyStopping::heuristic;
  /// How many of the best responses come out, at most `beams`.
  index_t n_best = 1;

  /// @throws ConfigError naming the field that is out of range
  void validate() const {
    expects<ConfigError>(beams >= 1, "beams must be at least 1");
    expects<ConfigError>(std::isfinite(length_penalty), "length_penalty must be a finite number");
    expects<ConfigError>(n_best >= 1 && n_best <= beams, "n_best must lie in 1 .. beams");
  }
};

/// A response that beam search found.
struct Hypothesis {
  std::vector<std::int32_t> tokens;  ///< `</s>` included if it ended
  double score = 0;                  ///< what it was ranked by
  TokenDetails details;              ///< drawn_logp is what each token added to the sum
};

namespace detail {

struct Beam {
  std::vector<std::int32_t>
      seen;  // what the decoder has read or is about to; the start token first
  double score = 0;
  TokenDetails details;
};

struct BeamCandidate {
  double score;
  std::size_t beam;
  std::int32_t token;
};

/// The most probable continuations of a context's beams, best first; of equals the one of the
/// earlier beam, then of the lower id.
class BeamCandidates {
 public:
  explicit BeamCandidates(std::size_t capacity) : capacity_(capacity) {}

  void clear() { best_.clear(); }

  /// Offers every token of one beam.
  /// @param scores  what a token adds; -inf is no continuation
  void offer(std::size_t beam, double so_far, std::span<double const> scores) {
    double const none = -std::numeric_limits<double>::infinity();
    double worst = best_.size() < capacity_ ? none : best_.back().score;
    for (std::size_t v = 0; v < scores.size(); ++v) {
      double const score = so_far + scores[v];
      if (!(score > worst)) continue;
      if (best_.size() == capacity_) best_.pop_back();
      auto const place = std::upper_bound(
          best_.begin(), best_.end(), score,
          [](double s, BeamCandidate const& candidate) { return s > candidate.score; });
      best_.insert(place, BeamCandidate{score, beam, static_cast<std::int32_t>(v)});
      if (best_.size() == capacity_) worst = best_.back().score;
    }
  }

  std::vector<BeamCandidate> const& best() const { return best_; }

 private:
  std::size_t capacity_;
  std::vector<BeamCandidate> best_;
};

/// The finished responses of a context, as many as beams at most: transformers' BeamHypotheses.
class FinishedBeams {
 public:
  explicit FinishedBeams(BeamConfig const& config) : config_(config) {}

  void add(Beam const& beam, double sum) {
    auto const length = static_cast<double>(beam.seen.size() - 1);
    double const score = sum / std::pow(length, config_.length_penalty);
    if (full() && !(score > worst_)) return;
    kept_.push_back({{beam.seen.begin() + 1, beam.seen.end()}, score, beam.details});
    if (kept_.size() > static_cast<std::size_t>(config_.beams)) {
      // Of equals the one that came first leaves.
      kept_.erase(std::min_element(kept_.begin(), kept_.end(), worse));
      worst_ = std::min_element(kept_.begin(), kept_.end(), worse)->score;
    } else {
      worst_ = std::min(score, worst_);
    }
  }

  bool full() const { return kept_.size() >= static_cast<std::size_t>(config_.beams); }
  bool empty() const { return kept_.empty(); }

  /// Whether the search of this context ends, `length` tokens having been generated.
  /// @param best_sum  the best candidate's sum of scores, whether it goes on or has ended
  bool done(double best_sum, index_t length, index_t max_length) const {
    if (!full()) return false;
    if (config_.early_stopping == EarlyStopping::at_once) return true;
    bool const longest =
        config_.early_stopping == EarlyStopping::never && config_.length_penalty > 0.0;
    auto const divisor = static_cast<double>(longest ? max_length : length);
    return worst_ >= best_sum / std::pow(divisor, config_.length_penalty);
  }

  /// The best ones, best first; of equals the one that was found last comes first.
  std::vector<Hypothesis> best() && {
    std::stable_sort(kept_.begin(), kept_.end(), worse);
    std::reverse(kept_.begin(), kept_.end());
    if (kept_.size() > static_cast<std::size_t>(config_.n_best)) {
      kept_.resize(static_cast<std::size_t>(config_.n_best));
    }
    return std::move(kept_);
  }

 private:
  static bool worse(Hypothesis const& a, Hypothesis const& b) { return a.score < b.score; }

  BeamConfig config_;
  std::vector<Hypothesis> kept_;
  double worst_ = std::numeric_limits<double>::infinity();
};

/// The search of one context.
struct BeamContext {
  std::vector<Beam> live{};
  FinishedBeams finished;
  bool done = false;
};

}  // namespace detail

/// Searches for the best responses to each context.
///   sum(y) = sum_t s_t(y_t),   s_t = processed(log_softmax(logits_t)),
///   score(y) = sum(y) / length(y)^length_penalty
/// The processors are those of sampling (repetition penalty, repeated n-grams, the limits of
/// length, barred tokens). As in transformers they see log-probabilities and what they leave is not
/// normalised again. In each step the 2 beams best continuations of a context are looked at, best
/// first: one that ends is finished if it is among the first `beams`, the others go on until there
/// are `beams` of them. Beams that reach max_new_tokens are finished as they are.
///
/// Where a context has fewer continuations than beams (a small vocabulary, many bars), there are
/// fewer beams, and there may be fewer than n_best responses; transformers fills up with beams of
/// score -1e9.
/// @param config  start, eos, limits of length, penalties and bars; the settings of drawing
/// (greedy, temperature, top_k, top_p) are not used
/// @return for each context up to n_best responses, best first
/// @throws ConfigError if a configuration is out of range, Error naming the context's place in the
/// batch if a logit is NaN or +inf or if no token is left
template <BeamDecoder M>
std::vector<std::vector<Hypothesis>> beam_search(M& model, RaggedView contexts,
                                                 SamplingConfig const& config,
                                                 BeamConfig const& beams) {
  using T = typename M::value_type;
  config.validate();
  beams.validate();
  auto const width = static_cast<std::size_t>(beams.beams);
  index_t const vocabulary = model.vocabulary();
  std::vector<detail::BeamContext> searches;
  for (index_t i = 0; i < contexts.rows(); ++i) {
    searches.push_back({.finished = detail::FinishedBeams(beams)});
    searches.back().live.push_back({{config.start}, 0.0, {}});
  }
  std::vector<std::vector<Hypothesis>> found;
  if (searches.empty()) return found;

  Tensor<T, 2, Cpu> const logits({contexts.rows() * beams.beams, vocabulary});
  std::vector<double> scores, scratch;
  std::vector<FullSoftmax> softmaxes;
  detail::BeamCandidates candidates(2 * width);
  std::vector<std::int32_t> tokens(searches.size(), config.start);
  std::vector<index_t> rows, sources;
  typename M::State state = model.start(contexts);
  for (index_t t = 0; t < config.max_new_tokens && !tokens.empty(); ++t) {
    rows.resize(tokens.size());
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<index_t>(i);
    auto const stepped = logits.view().rows(0, static_cast<index_t>(rows.size()));
    model.step(state, std::span<index_t const>(rows), std::span<std::int32_t const>(tokens),
               stepped);
    bool const last = t + 1 == config.max_new_tokens;
    tokens.clear();
    sources.clear();
    index_t first = 0;  // the first beam's row in this step
    for (std::size_t c = 0; c < searches.size(); ++c) {
      detail::BeamContext& search = searches[c];
      if (search.done) continue;
      candidates.clear();
      softmaxes.clear();
      try {
        for (std::size_t b = 0; b < search.live.size(); ++b) {
          std::span<T const> const x(stepped.row(first + static_cast<index_t>(b)),
                                     static_cast<std::size_t>(vocabulary));
          detail::expect_sound(x);
          softmaxes.emplace_back(x);
          scores.resize(x.size());
          for (std::size_t v = 0; v < x.size(); ++v) {
            scores[v] = softmaxes.back().logp(static_cast<double>(x[v]));
          }
          detail::process_scores(std::span<double>(scores), config, t,
                                 std::span<std::int32_t const>(search.live[b].seen), scratch);
          candidates.offer(b, search.live[b].score, scores);
        }
        expects<Error>(!candidates.best().empty() || !search.finished.empty(),
                       "no token is left to continue with");
      } catch (Error const& error) {
        throw Error("beam search, context " + std::to_string(c) + ", token " + std::to_string(t) +
                    ": " + error.what());
      }

      std::vector<detail::Beam> next;
      std::vector<index_t> parents;
      for (std::size_t rank = 0; rank < candidates.best().size() && next.size() < width; ++rank) {
        detail::BeamCandidate const& candidate = candidates.best()[rank];
        bool const ends = candidate.token == config.eos;
        if (ends && rank >= width) continue;
        auto const parent = first + static_cast<index_t>(candidate.beam);
        detail::Beam beam = search.live[candidate.beam];
        beam.details.drawn_logp.push_back(candidate.score - beam.score);
        beam.details.logp.push_back(
            softmaxes[candidate.beam].logp(static_cast<double>(stepped(parent, candidate.token))));
        beam.details.entropy.push_back(softmaxes[candidate.beam].entropy);
        beam.seen.push_back(candidate.token);
        beam.score = candidate.score;
        if (ends) {
          search.finished.add(beam, beam.score);
        } else {
          next.push_back(std::move(beam));
          parents.push_back(parent);
        }
      }
      first += static_cast<index_t>(search.live.size());
      search.live = std::move(next);
      search.done = search.live.empty() || search.finished.done(candidates.best().front().score,
                                                                t + 1, config.max_new_tokens);
      if (search.done) continue;
      if (last) {
        for (detail::Beam const& beam : search.live) search.finished.add(beam, beam.score);
        continue;
      }
      sources.insert(sources.end(), parents.begin(), parents.end());
      for (detail::Beam const& beam : search.live) tokens.push_back(beam.seen.back());
    }
    if (!tokens.empty()) model.reorder(state, std::span<index_t const>(sources));
  }
  for (detail::BeamContext& search : searches) {
    found.push_back(std::move(search.finished).best());
  }
  return found;
}

}  // namespace emprl::gen
