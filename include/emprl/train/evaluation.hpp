// SPDX-License-Identifier: Apache-2.0
#pragma once

// What is said of a system that answers: how its answers look to the identifiers (reward, Emp-F1,
// kappa, marginals), how varied and how long they are, and how close to the human replies.
// Intervals are 95 %, over episodes.
//
// Models come in as callables, so that a generator, a file of answers and a constant are judged by
// the same code.

#include <algorithm>
#include <array>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/data/dialogue.hpp"
#include "emprl/empathy/levels.hpp"
#include "emprl/io/json.hpp"
#include "emprl/metrics/agreement.hpp"
#include "emprl/metrics/bleu.hpp"
#include "emprl/metrics/bootstrap.hpp"
#include "emprl/metrics/bootstrap_many.hpp"
#include "emprl/metrics/distinct.hpp"
#include "emprl/metrics/emp_f1.hpp"
#include "emprl/metrics/ngram.hpp"
#include "emprl/metrics/rouge.hpp"
#include "emprl/train/text_table.hpp"

namespace emprl::train {

/// Judges responses: one LevelProbabilities for each (context, response), in order. It does its own
/// batching and changes nothing that a later call would notice. A lambda is one:
///
///     using Texts = std::span<std::string const>;
///     auto scorer = [&](Texts contexts, Texts responses) {
///       std::vector<empathy::LevelProbabilities> p(contexts.size());
///       for (std::size_t i = 0; i < p.size(); ++i) p[i] = judge(contexts[i], responses[i]);
///       return p;
///     };
template <class S>
concept ResponseScorer = requires(S& scorer, std::span<std::string const> contexts,
                                  std::span<std::string const> responses) {
  { scorer(contexts, responses) } -> std::same_as<std::vector<empathy::LevelProbabilities>>;
};

/// How responses are evaluated.
struct EvaluationOptions {
  index_t bootstrap_samples = 1000;
  std::uint64_t seed = 42;
  empathy::MechanismMask mechanisms =
      empathy::every_mechanism;  ///< of the reward; F1 and kappa show all

  /// @throws ConfigError naming the field
  void validate() const {
    expects<ConfigError>(bootstrap_samples >= 1, "bootstrap_samples must be at least 1.");
    expects<ConfigError>(mechanisms[0] || mechanisms[1] || mechanisms[2],
                         "mechanisms must have at least one mechanism.");
  }
  metrics::BootstrapConfig bootstrap() const { return {bootstrap_samples, 0.95, seed}; }
};

/// What only the generator itself can say; absent for systems that are but answers.
struct LikelihoodNumbers {
  std::optional<double> perplexity;              ///< of the target responses, per token
  std::optional<double> bits_per_byte;           ///< of the target responses
  std::optional<double> shuffled_bits_per_byte;  ///< the same after other dialogues' contexts
  std::optional<double> kl_per_sequence;         ///< nats, to the generator before PPO
};

/// One mechanism: levels of the responses against levels of the targets.
struct MechanismEvaluation {
  double weighted_f1 = 0.0;  ///< in percent
  double accuracy = 0.0;     ///< in percent
  metrics::Interval kappa;
  std::array<double, 3> marginals{};         ///< share of each level among the responses
  std::array<double, 3> target_marginals{};  ///< and among the targets
  double jensen_shannon = 0.0;               ///< between the two, in bits
};

/// The pairs of one emotion.
struct EmotionEvaluation {
  std::string emotion;
  index_t n = 0;
  double reward = 0.0;
  double emp_f1 = 0.0;
};

/// What a row of a report is: something trained, something trained to be compared with, or
/// something trivial.
enum class SystemKind { system, control, floor };

/// "system", "control" or "floor".
constexpr std::string_view system_kind_name(SystemKind kind) {
  constexpr std::array<std::string_view, 3> names{"system", "control", "floor"};
  return names[static_cast<std::size_t>(kind)];
}

/// Everything about one system's responses.
struct SystemEvaluation {
  std::string name;
  std::string note;  ///< what it is, in a phrase
  SystemKind kind = SystemKind::system;
  index_t n = 0;
  metrics::Interval reward;                  ///< mean empathy reward
  metrics::Interval emp_f1;                  ///< in percent
  metrics::Interval distinct_1, distinct_2;  ///< in percent; intervals by the jackknife
  metrics::Interval mean_length;             ///< Treebank tokens
  std::array<double, 4> bleu{};              ///< BLEU-1 .. BLEU-4 of the corpus, in percent
  double rouge_l = 0.0;                      ///< in percent
  std::array<MechanismEvaluation, 3> mechanisms;
  std::vector<EmotionEvaluation> emotions;  ///< alphabetical; empty where no pair has an emotion
  LikelihoodNumbers likelihood;

  // For each episode, so that two systems can be compared episode by episode.
  std::vector<std::string> responses;
  std::vector<double> rewards;
  std::vector<empathy::Levels> levels;
  std::vector<empathy::Levels> targets;
  EvaluationOptions options;
};

/// The target levels of pairs.
/// @throws ConfigError naming a pair without levels or with one outside 0 .. 2
inline std::vector<empathy::Levels> target_levels(std::span<data::Pair const> pairs) {
  std::vector<empathy::Levels> out;
  for (data::Pair const& pair : pairs) {
    if (!pair.levels) throw ConfigError("the pair " + pair.id + " has no levels; label it first.");
    for (int const level : *pair.levels) {
      if (level < 0 || level >= data::level_count) {
        throw ConfigError("the pair " + pair.id + " has a level outside 0 to 2.");
      }
    }
    out.push_back(*pair.levels);
  }
  return out;
}

/// Calls a scorer and looks at what came back.
/// @throws ShapeError for a wrong count, Error for numbers that are not probabilities
template <ResponseScorer Scorer>
std::vector<empathy::LevelProbabilities> checked_scores(std::span<std::string const> contexts,
                                                        std::span<std::string const> responses,
                                                        Scorer& scorer) {
  expects(contexts.size() == responses.size(), "there must be one response for each context.");
  std::vector<empathy::LevelProbabilities> p = scorer(contexts, responses);
  expects(p.size() == responses.size(), "a scorer must give one judgement for each response.");
  for (auto const& one : p) empathy::check_probabilities(one);
  return p;
}

/// Rewards towards the pairs' levels, and the likeliest levels.
struct ScoredResponses {
  std::vector<double> rewards;
  std::vector<empathy::Levels> levels;
  std::vector<empathy::Levels> targets;
};

/// Scores one response for each pair.
/// @throws ConfigError as target_levels, ShapeError and Error as checked_scores
template <ResponseScorer Scorer>
ScoredResponses score_responses(
    std::span<data::Pair const> pairs, std::span<std::string const> contexts,
    std::span<std::string const> responses, Scorer& scorer,
    empathy::MechanismMask const& mechanisms = empathy::every_mechanism) {
  expects(pairs.size() == responses.size(), "there must be one response for each pair.");
  ScoredResponses out;
  out.targets = target_levels(pairs);
  auto const p = checked_scores(contexts, responses, scorer);
  for (std::size_t i = 0; i < p.size(); ++i) {
    out.rewards.push_back(empathy::empathy_reward(p[i], out.targets[i], mechanisms));
    out.levels.push_back(empathy::most_probable(p[i]));
  }
  return out;
}

namespace detail {

/// An episode's (target, response) levels of all mechanisms as one number below 9^3, so that a
/// resample is a histogram.
inline std::vector<std::uint16_t> level_codes(std::span<empathy::Levels const> targets,
                                              std::span<empathy::Levels const> levels) {
  std::vector<std::uint16_t> codes;
  for (std::size_t i = 0; i < targets.size(); ++i) {
    int code = 0;
    for (std::size_t k = 0; k < 3; ++k) code = code * 9 + targets[i][k] * 3 + levels[i][k];
    codes.push_back(static_cast<std::uint16_t>(code));
  }
  return codes;
}

/// The confusion matrices of the rows of a resample.
inline std::array<metrics::Confusion, 3> confusions_of(std::span<std::uint16_t const> codes,
                                                       std::span<index_t const> rows) {
  std::array<index_t, 729> histogram{};
  for (index_t const row : rows) ++histogram[codes[static_cast<std::size_t>(row)]];
  std::array<std::array<index_t, 9>, 3> counts{};
  for (std::size_t code = 0; code < histogram.size(); ++code) {
    counts[0][code / 81] += histogram[code];
    counts[1][code / 9 % 9] += histogram[code];
    counts[2][code % 9] += histogram[code];
  }
  std::array<metrics::Confusion, 3> out{metrics::Confusion(3), metrics::Confusion(3),
                                        metrics::Confusion(3)};
  for (std::size_t k = 0; k < 3; ++k) {
    for (int cell = 0; cell < 9; ++cell) {
      index_t const times = counts[k][static_cast<std::size_t>(cell)];
      for (index_t i = 0; i < times; ++i) out[k].add(cell / 3, cell % 3);
    }
  }
  return out;
}

inline double mean_of(std::span<double const> x, std::span<index_t const> rows) {
  double sum = 0.0;
  for (index_t const row : rows) sum += x[static_cast<std::size_t>(row)];
  return sum / static_cast<double>(rows.size());
}

/// n-grams of each row: all, and those that no other row has.
struct OwnNgrams {
  std::vector<double> total;
  std::vector<double> own;
  double sum_total = 0.0;
  double unique = 0.0;

  /// 100 * unique / total of all rows but one.
  double without(std::size_t row) const {
    double const rest = sum_total - total[row];
    return rest <= 0.0 ? 0.0 : 100.0 * (unique - own[row]) / rest;
  }
};

inline OwnNgrams own_ngrams(RaggedView rows, std::size_t n) {
  constexpr index_t shared = -1;
  std::unordered_map<metrics::Ngram, index_t> owner;
  OwnNgrams out;
  out.total.assign(static_cast<std::size_t>(rows.rows()), 0.0);
  out.own = out.total;
  for (index_t i = 0; i < rows.rows(); ++i) {
    metrics::for_each_ngram(rows.row(i), n, [&](metrics::Ngram const& ngram) {
      out.total[static_cast<std::size_t>(i)] += 1.0;
      auto const [place, is_new] = owner.try_emplace(ngram, i);
      if (!is_new && place->second != i) place->second = shared;
      return true;
    });
  }
  for (auto const& [ngram, row] : owner) {
    if (row != shared) out.own[static_cast<std::size_t>(row)] += 1.0;
  }
  for (double const t : out.total) out.sum_total += t;
  out.unique = static_cast<double>(owner.size());
  return out;
}

/// value -+ 1.96 standard errors, by the jackknife: sqrt((n-1)/n * sum_i (x_i - mean)^2) of the
/// leave-one-out values.
inline metrics::Interval jackknife(double value, std::span<double const> leave_one_out) {
  double const n = static_cast<double>(leave_one_out.size());
  double mean = 0.0;
  for (double const x : leave_one_out) mean += x / n;
  double squares = 0.0;
  for (double const x : leave_one_out) squares += (x - mean) * (x - mean);
  double const half = 1.959963984540054 * std::sqrt((n - 1.0) / n * squares);
  return {value, value - half, value + half};
}

}  // namespace detail

/// Distinct-n of rows of words, with a 95 % interval by the jackknife over rows (clipped to 0 ..
/// 100). A bootstrap will not do: rows drawn twice bring no new n-gram, so its interval lies below
/// the value.
/// @throws ConfigError without rows
inline metrics::Interval distinct_interval(RaggedView rows, int n) {
  expects<ConfigError>(rows.rows() > 0, "an interval of Distinct needs at least one response.");
  detail::OwnNgrams const ngrams = detail::own_ngrams(rows, static_cast<std::size_t>(n));
  std::vector<double> without;
  for (std::size_t i = 0; i < ngrams.total.size(); ++i) without.push_back(ngrams.without(i));
  metrics::Interval interval = detail::jackknife(metrics::distinct(rows, n).value(), without);
  interval.low = std::max(interval.low, 0.0);
  interval.high = std::min(interval.high, 100.0);
  return interval;
}

/// Evaluates one response for each pair.
///   reward        mean over episodes of prod_k p_k(target level k), k over options.mechanisms
///   Emp-F1        mean over er, ip, ex of 100 * support-weighted F1 of the likeliest levels
///   against the targets' Distinct-n    100 * different n-grams / n-grams of all responses,
///   Treebank tokens, case kept BLEU, ROUGE-L against the pair's own response, Treebank tokens
/// Reward, Emp-F1, kappa and length have bootstrap intervals over episodes; the same seed and
/// number of pairs give the same resamples.
/// @throws ConfigError for no pairs, a pair without levels, bad options; ShapeError unless there is
/// one response for
///         each pair; Error if the scorer gives no probabilities
template <ResponseScorer Scorer>
SystemEvaluation evaluate_responses(std::string name, std::span<data::Pair const> pairs,
                                    std::span<std::string const> responses, Scorer& scorer,
                                    EvaluationOptions const& options = {}) {
  options.validate();
  expects<ConfigError>(!pairs.empty(), "there is nothing to evaluate: no pairs.");
  expects(pairs.size() == responses.size(), "there must be one response for each pair.");
  std::vector<std::string> contexts, references;
  for (data::Pair const& pair : pairs) {
    contexts.push_back(pair.context);
    references.push_back(pair.response);
  }
  ScoredResponses scored = score_responses(pairs, contexts, responses, scorer, options.mechanisms);

  SystemEvaluation out;
  out.name = std::move(name);
  out.n = static_cast<index_t>(pairs.size());
  out.options = options;
  out.responses.assign(responses.begin(), responses.end());
  out.rewards = std::move(scored.rewards);
  out.levels = std::move(scored.levels);
  out.targets = std::move(scored.targets);

  metrics::Interner words;
  Ragged const said = metrics::treebank_rows(responses, words);
  Ragged const wanted = metrics::treebank_rows(references, words);
  std::vector<double> lengths;
  for (index_t i = 0; i < out.n; ++i) {
    lengths.push_back(static_cast<double>(said.row(i).size()));
  }
  out.distinct_1 = distinct_interval(said.view(), 1);
  out.distinct_2 = distinct_interval(said.view(), 2);
  metrics::BleuStatistics const bleu = metrics::bleu_statistics(said.view(), wanted.view());
  for (int order = 1; order <= 4; ++order) {
    out.bleu[static_cast<std::size_t>(order - 1)] = bleu.bleu(order);
  }
  for (double const x : metrics::rouge_l(said.view(), wanted.view())) {
    out.rouge_l += x / static_cast<double>(out.n);
  }

  std::vector<std::uint16_t> const codes = detail::level_codes(out.targets, out.levels);
  auto const intervals = metrics::bootstrap_many(
      out.n, 6,
      [&](std::span<index_t const> rows, std::span<double> values) {
        auto const confusions = detail::confusions_of(codes, rows);
        values[0] = detail::mean_of(out.rewards, rows);
        values[1] = metrics::emp_f1(confusions);
        values[2] = detail::mean_of(lengths, rows);
        for (std::size_t k = 0; k < 3; ++k) values[3 + k] = metrics::cohen_kappa(confusions[k]);
      },
      options.bootstrap());
  out.reward = intervals[0];
  out.emp_f1 = intervals[1];
  out.mean_length = intervals[2];
  auto const confusions = metrics::level_confusions(out.targets, out.levels);
  for (std::size_t k = 0; k < 3; ++k) {
    MechanismEvaluation& m = out.mechanisms[k];
    m.weighted_f1 = 100.0 * metrics::weighted_f1(confusions[k]);
    m.accuracy = 100.0 * metrics::accuracy(confusions[k]);
    m.kappa = intervals[3 + k];
    metrics::Marginals const shares = metrics::marginals(confusions[k]);
    std::copy(shares.predicted.begin(), shares.predicted.end(), m.marginals.begin());
    std::copy(shares.truth.begin(), shares.truth.end(), m.target_marginals.begin());
    m.jensen_shannon = metrics::marginal_divergence(confusions[k]);
  }

  std::map<std::string, std::vector<index_t>> by_emotion;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    if (!pairs[i].emotion.empty()) by_emotion[pairs[i].emotion].push_back(static_cast<index_t>(i));
  }
  for (auto const& [emotion, rows] : by_emotion) {
    out.emotions.push_back({emotion, static_cast<index_t>(rows.size()),
                            detail::mean_of(out.rewards, rows),
                            metrics::emp_f1(detail::confusions_of(codes, rows))});
  }
  return out;
}

/// Two systems on the same episodes: second minus first, with paired 95 % intervals.
struct Comparison {
  std::string before, after;
  index_t n = 0;
  metrics::Interval reward;
  metrics::Interval emp_f1;
  std::array<metrics::Interval, 3> kappa;
  metrics::Interval mean_length;
  metrics::Interval distinct_2;  ///< by the jackknife

  /// Distinct-2 of both with every answer cut to the length of the shorter of the two, so that
  /// neither gains by its length or by its count of n-grams.
  double distinct_2_before_cut = 0.0;
  double distinct_2_after_cut = 0.0;
};

/// Compares two systems episode by episode; a resample holds the same episodes of both.
/// @throws ShapeError unless both were evaluated on as many episodes with the same targets
inline Comparison compare(SystemEvaluation const& before, SystemEvaluation const& after) {
  expects(before.n == after.n && before.targets == after.targets,
          "two systems can be compared only on the same episodes.");
  Comparison out;
  out.before = before.name;
  out.after = after.name;
  out.n = before.n;
  auto const a = detail::level_codes(before.targets, before.levels);
  auto const b = detail::level_codes(after.targets, after.levels);
  metrics::Interner words;
  Ragged const x = metrics::treebank_rows(before.responses, words);
  Ragged const y = metrics::treebank_rows(after.responses, words);
  std::vector<double> gain, longer;
  Ragged x_cut, y_cut;
  for (index_t i = 0; i < out.n; ++i) {
    auto const at = static_cast<std::size_t>(i);
    gain.push_back(after.rewards[at] - before.rewards[at]);
    std::size_t const nx = x.row(i).size(), ny = y.row(i).size();
    longer.push_back(static_cast<double>(ny) - static_cast<double>(nx));
    x_cut.push_back(x.row(i).first(std::min(nx, ny)));
    y_cut.push_back(y.row(i).first(std::min(nx, ny)));
  }
  auto const intervals = metrics::bootstrap_many(
      out.n, 6,
      [&](std::span<index_t const> rows, std::span<double> values) {
        auto const first = detail::confusions_of(a, rows);
        auto const second = detail::confusions_of(b, rows);
        values[0] = detail::mean_of(gain, rows);
        values[1] = metrics::emp_f1(second) - metrics::emp_f1(first);
        values[2] = detail::mean_of(longer, rows);
        for (std::size_t k = 0; k < 3; ++k) {
          values[3 + k] = metrics::cohen_kappa(second[k]) - metrics::cohen_kappa(first[k]);
        }
      },
      after.options.bootstrap());
  out.reward = intervals[0];
  out.emp_f1 = intervals[1];
  out.mean_length = intervals[2];
  std::copy(intervals.begin() + 3, intervals.end(), out.kappa.begin());

  auto const nx = detail::own_ngrams(x.view(), 2);
  auto const ny = detail::own_ngrams(y.view(), 2);
  std::vector<double> without;
  for (std::size_t i = 0; i < nx.total.size(); ++i) {
    without.push_back(ny.without(i) - nx.without(i));
  }
  out.distinct_2 = detail::jackknife(after.distinct_2.value - before.distinct_2.value, without);
  out.distinct_2_before_cut = metrics::distinct(x_cut.view(), 2).value();
  out.distinct_2_after_cut = metrics::distinct(y_cut.view(), 2).value();
  return out;
}

/// {"value", "low", "high"}.
inline io::Json interval_to_json(metrics::Interval const& x) {
  return {{"value", x.value}, {"low", x.low}, {"high", x.high}};
}

/// One system. NUMBER is a number or {"value", "low", "high"}, a 95 % interval.
///
///     {"name": "...", "kind": "system" | "control" | "floor", "note": "...", "n": 1000,
///      "values": {"reward": NUMBER, "emp_f1": NUMBER, "distinct_1": NUMBER, "distinct_2": NUMBER,
///                 "mean_length": NUMBER, "bleu_1" .. "bleu_4": number, "rouge_l": number,
///                 "er_weighted_f1": number, "er_accuracy": number, "er_kappa": NUMBER,
///                 "er_jensen_shannon": number, the same for ip and ex, where known "ppl",
///                 "bits_per_byte", "shuffled_bits_per_byte", "kl_per_sequence": number},
///      "marginals": {"er": [share of level 0, 1, 2], "ip": [...], "ex": [...]},
///      "target_marginals": {the same of the targets},
///      "emotions": [{"emotion": "proud", "n": 40, "reward": number, "emp_f1": number}]}
///
/// Rewards and kappas are fractions; F1, accuracy, Distinct, BLEU and ROUGE are percent; KL is in
/// nats.
inline io::Json evaluation_to_json(SystemEvaluation const& e) {
  io::Json values{{"reward", interval_to_json(e.reward)},
                  {"emp_f1", interval_to_json(e.emp_f1)},
                  {"distinct_1", interval_to_json(e.distinct_1)},
                  {"distinct_2", interval_to_json(e.distinct_2)},
                  {"mean_length", interval_to_json(e.mean_length)}};
  for (std::size_t n = 0; n < 4; ++n) values["bleu_" + std::to_string(n + 1)] = e.bleu[n];
  values["rouge_l"] = e.rouge_l;
  io::Json marginals = io::Json::object();
  io::Json target_marginals = io::Json::object();
  for (data::Mechanism const mechanism : data::all_mechanisms) {
    std::string const key(data::mechanism_name(mechanism));
    MechanismEvaluation const& m = e.mechanisms[static_cast<std::size_t>(mechanism)];
    values[key + "_weighted_f1"] = m.weighted_f1;
    values[key + "_accuracy"] = m.accuracy;
    values[key + "_kappa"] = interval_to_json(m.kappa);
    values[key + "_jensen_shannon"] = m.jensen_shannon;
    marginals[key] = m.marginals;
    target_marginals[key] = m.target_marginals;
  }
  auto const add = [&](char const* key, std::optional<double> const& x) {
    if (x) values[key] = *x;
  };
  add("ppl", e.likelihood.perplexity);
  add("bits_per_byte", e.likelihood.bits_per_byte);
  add("shuffled_bits_per_byte", e.likelihood.shuffled_bits_per_byte);
  add("kl_per_sequence", e.likelihood.kl_per_sequence);
  io::Json emotions = io::Json::array();
  for (EmotionEvaluation const& one : e.emotions) {
    emotions.push_back(
        {{"emotion", one.emotion}, {"n", one.n}, {"reward", one.reward}, {"emp_f1", one.emp_f1}});
  }
  return {{"name", e.name},
          {"kind", system_kind_name(e.kind)},
          {"note", e.note},
          {"n", e.n},
          {"values", std::move(values)},
          {"marginals", std::move(marginals)},
          {"target_marginals", std::move(target_marginals)},
          {"emotions", std::move(emotions)}};
}

/// One comparison: {"before", "after", "n", "reward": NUMBER, "emp_f1": NUMBER, "er_kappa": NUMBER,
/// "ip_kappa", "ex_kappa", "mean_length": NUMBER, "distinct_2": NUMBER, "distinct_2_equal_length":
/// {"before", "after"}}; every NUMBER is a difference, {"value", "low", "high"}.
inline io::Json comparison_to_json(Comparison const& c) {
  return {{"before", c.before},
          {"after", c.after},
          {"n", c.n},
          {"reward", interval_to_json(c.reward)},
          {"emp_f1", interval_to_json(c.emp_f1)},
          {"er_kappa", interval_to_json(c.kappa[0])},
          {"ip_kappa", interval_to_json(c.kappa[1])},
          {"ex_kappa", interval_to_json(c.kappa[2])},
          {"mean_length", interval_to_json(c.mean_length)},
          {"distinct_2", interval_to_json(c.distinct_2)},
          {"distinct_2_equal_length",
           {{"before", c.distinct_2_before_cut}, {"after", c.distinct_2_after_cut}}}};
}

/// What a report says of each key of "values": [{"key", "name", "better": "higher" | "lower",
/// "about"}]; "better" is absent where neither is.
inline io::Json metric_descriptions() {
  io::Json out = io::Json::array();
  auto const add = [&](std::string key, std::string name, char const* better, std::string about) {
    io::Json one{{"key", std::move(key)}, {"name", std::move(name)}};
    if (better != nullptr) one["better"] = better;
    one["about"] = std::move(about);
    out.push_back(std::move(one));
  };
  add("reward", "Empathy reward", "higher",
      "probability that the identifiers give to the target's levels, their product; mean over "
      "episodes");
  add("emp_f1", "Emp-F1", "higher",
      "weighted F1 of the response's levels against the target's, mean of three mechanisms, "
      "percent");
  for (data::Mechanism const mechanism : data::all_mechanisms) {
    add(std::string(data::mechanism_name(mechanism)) + "_kappa",
        "Kappa, " + std::string(data::mechanism_title(mechanism)), "higher",
        "agreement of the response's level with the target's beyond chance");
  }
  add("distinct_1", "Distinct-1", "higher", "different words among all words, percent");
  add("distinct_2", "Distinct-2", "higher", "different word pairs among all word pairs, percent");
  add("mean_length", "Length", nullptr, "words and marks in a response, mean");
  add("bleu_4", "BLEU-4", "higher", "overlap with the human reply, percent");
  add("rouge_l", "ROUGE-L", "higher", "longest common subsequence with the human reply, percent");
  add("ppl", "PPL", "lower", "perplexity of the human replies, per token");
  add("bits_per_byte", "Bits per byte", "lower",
      "of the human replies; comparable across tokenizers");
  add("shuffled_bits_per_byte", "Bits per byte, shuffled contexts", nullptr,
      "of the human replies after other dialogues' contexts; higher than unshuffled if contexts "
      "matter");
  add("kl_per_sequence", "KL per response", nullptr, "nats from the generator before PPO");
  return out;
}

/// Marginals of several systems on the same pairs, for the report page:
/// [{"name": "emotional reactions", "groups": [{"name": "target", "shares": [3]}, {"name": system,
/// "shares": [3]}]}].
inline io::Json marginals_to_json(std::span<SystemEvaluation const> systems) {
  io::Json out = io::Json::array();
  if (systems.empty()) return out;
  for (data::Mechanism const mechanism : data::all_mechanisms) {
    auto const k = static_cast<std::size_t>(mechanism);
    io::Json groups = io::Json::array();
    groups.push_back(
        {{"name", "target"}, {"shares", systems.front().mechanisms[k].target_marginals}});
    for (SystemEvaluation const& s : systems) {
      groups.push_back({{"name", s.name}, {"shares", s.mechanisms[k].marginals}});
    }
    out.push_back({{"name", data::mechanism_title(mechanism)}, {"groups", std::move(groups)}});
  }
  return out;
}

namespace detail {

inline std::string shares_text(std::array<double, 3> const& shares) {
  return fixed_text(100.0 * shares[0], 0) + "/" + fixed_text(100.0 * shares[1], 0) + "/" +
         fixed_text(100.0 * shares[2], 0);
}

inline std::string optional_text(std::optional<double> const& x, int decimals) {
  return x ? fixed_text(*x, decimals) : "-";
}

}  // namespace detail

/// Two systems side by side, with the paired gain.
/// @throws ShapeError as compare, if `gain` is not of these two
inline TextTable before_after_table(SystemEvaluation const& before, SystemEvaluation const& after,
                                    Comparison const& gain) {
  expects(gain.n == before.n && gain.n == after.n,
          "the comparison is not one of these two systems.");
  TextTable table;
  table.title = "Answers to " + std::to_string(after.n) + " contexts, [95 % interval]";
  table.header = {"", before.name, after.name, "gain"};
  auto const add = [&](std::string name, metrics::Interval const& x, metrics::Interval const& y,
                       metrics::Interval const& d, int decimals) {
    table.rows.push_back({std::move(name), interval_text(x, decimals), interval_text(y, decimals),
                          gain_text(d, decimals)});
  };
  auto const plain = [&](std::string name, std::string x, std::string y, std::string d = "") {
    table.rows.push_back({std::move(name), std::move(x), std::move(y), std::move(d)});
  };
  auto const optional = [&](char const* name, std::optional<double> LikelihoodNumbers::*field,
                            int decimals) {
    auto const& x = before.likelihood.*field;
    auto const& y = after.likelihood.*field;
    if (!x && !y) return;
    bool const both = x && y;
    double const difference = both ? *y - *x : 0.0;
    plain(name, detail::optional_text(x, decimals), detail::optional_text(y, decimals),
          both ? (difference > 0.0 ? "+" : "") + fixed_text(difference, decimals) : "");
  };
  add("empathy reward", before.reward, after.reward, gain.reward, 3);
  add("Emp-F1", before.emp_f1, after.emp_f1, gain.emp_f1, 1);
  constexpr std::array<char const*, 3> short_names{"ER", "IP", "EX"};
  for (std::size_t k = 0; k < 3; ++k) {
    add(std::string(short_names[k]) + " kappa", before.mechanisms[k].kappa,
        after.mechanisms[k].kappa, gain.kappa[k], 2);
  }
  for (std::size_t k = 0; k < 3; ++k) {
    auto const& x = before.mechanisms[k];
    auto const& y = after.mechanisms[k];
    plain(std::string(short_names[k]) + " F1 / acc.",
          fixed_text(x.weighted_f1, 1) + " / " + fixed_text(x.accuracy, 1),
          fixed_text(y.weighted_f1, 1) + " / " + fixed_text(y.accuracy, 1));
  }
  add("Distinct-1", before.distinct_1, after.distinct_1,
      {after.distinct_1.value - before.distinct_1.value, 0.0, 0.0}, 2);
  table.rows.back().back() = "";
  add("Distinct-2", before.distinct_2, after.distinct_2, gain.distinct_2, 2);
  plain("  equal length", fixed_text(gain.distinct_2_before_cut, 2),
        fixed_text(gain.distinct_2_after_cut, 2));
  add("mean length", before.mean_length, after.mean_length, gain.mean_length, 1);
  plain("BLEU-1/2/3/4",
        fixed_text(before.bleu[0], 1) + "/" + fixed_text(before.bleu[1], 1) + "/" +
            fixed_text(before.bleu[2], 1) + "/" + fixed_text(before.bleu[3], 1),
        fixed_text(after.bleu[0], 1) + "/" + fixed_text(after.bleu[1], 1) + "/" +
            fixed_text(after.bleu[2], 1) + "/" + fixed_text(after.bleu[3], 1));
  plain("ROUGE-L", fixed_text(before.rouge_l, 1), fixed_text(after.rouge_l, 1));
  optional("PPL of targets", &LikelihoodNumbers::perplexity, 2);
  optional("bits per byte", &LikelihoodNumbers::bits_per_byte, 3);
  optional("  shuffled", &LikelihoodNumbers::shuffled_bits_per_byte, 3);
  optional("KL / response", &LikelihoodNumbers::kl_per_sequence, 2);
  table.notes = {gain.reward.excludes_zero()
                     ? (gain.reward.value > 0.0
                            ? "The reward rose: its gain's interval excludes zero."
                            : "The reward fell: its gain's interval excludes zero.")
                     : "The reward's gain is not distinguishable from zero."};
  return table;
}

/// Many systems, one a line, with what each is below.
inline TextTable systems_table(std::span<SystemEvaluation const> systems) {
  TextTable table;
  table.title = "Systems and floors through the same identifiers, reward with 95 % interval";
  table.header = {"", "reward", "Emp-F1", "kappa ER/IP/EX", "Dist-2", "length"};
  for (SystemEvaluation const& s : systems) {
    std::string kappas;
    for (MechanismEvaluation const& m : s.mechanisms) {
      kappas += (kappas.empty() ? "" : "/") + fixed_text(m.kappa.value, 2);
    }
    table.rows.push_back({s.name, interval_text(s.reward, 3), fixed_text(s.emp_f1.value, 1), kappas,
                          fixed_text(s.distinct_2.value, 1), fixed_text(s.mean_length.value, 1)});
    if (!s.note.empty()) table.notes.push_back(s.name + ": " + s.note + ".");
  }
  return table;
}

/// How often each system's answers have level 0/1/2, in percent, and how far that is from the
/// targets (Jensen-Shannon, bits): a collapse shows here.
inline TextTable marginals_table(std::span<SystemEvaluation const> systems) {
  TextTable table;
  table.title = "Levels 0/1/2 of the answers in percent, divergence from the targets in bits";
  table.header = {"", "ER", "", "IP", "", "EX", ""};
  if (systems.empty()) return table;
  std::vector<std::string> targets{"target"};
  for (MechanismEvaluation const& m : systems.front().mechanisms) {
    targets.push_back(detail::shares_text(m.target_marginals));
    targets.emplace_back();
  }
  table.rows.push_back(std::move(targets));
  for (SystemEvaluation const& s : systems) {
    std::vector<std::string> row{s.name};
    for (MechanismEvaluation const& m : s.mechanisms) {
      row.push_back(detail::shares_text(m.marginals));
      row.push_back(fixed_text(m.jensen_shannon, 3));
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

/// Reward and Emp-F1 by emotion, two systems side by side.
/// @throws ShapeError unless both have the same emotions
inline TextTable emotions_table(SystemEvaluation const& before, SystemEvaluation const& after) {
  expects(before.emotions.size() == after.emotions.size(),
          "two systems can be compared by emotion only on the same episodes.");
  TextTable table;
  table.title = "By emotion: " + before.name + ", then " + after.name;
  table.header = {"emotion", "n", "reward", "reward", "Emp-F1", "Emp-F1"};
  for (std::size_t i = 0; i < after.emotions.size(); ++i) {
    EmotionEvaluation const& x = before.emotions[i];
    EmotionEvaluation const& y = after.emotions[i];
    expects(x.emotion == y.emotion && x.n == y.n,
            "two systems can be compared by emotion only on the same episodes.");
    table.rows.push_back({y.emotion, std::to_string(y.n), fixed_text(x.reward, 3),
                          fixed_text(y.reward, 3), fixed_text(x.emp_f1, 1),
                          fixed_text(y.emp_f1, 1)});
  }
  return table;
}

}  // namespace emprl::train
