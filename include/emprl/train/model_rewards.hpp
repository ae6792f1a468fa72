// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rewards that are models of their own: a frozen T5 that says how likely a response is, and a
// classifier that says how strongly it shows what the classifier was trained on. Both read text:
// the decoded context and response of an episode, encoded anew with their own tokenizer, which need
// not be the policy's. Neither needs a payload or a reference.
//
//   train::PerplexityReward fluent(dev, train::load_generator<float>("t5"));
//   train::ClassifierReward<float> warm(dev, "runs/identifiers/er", {.level = 2});
//   auto reward = rl::weighted_sum(1.0, rl::Named{"fluent", rl::Normalised{std::ref(fluent)}},
//                                  2.0, rl::Named{"warm", std::ref(warm)});
//
// Both can be moved, not copied: hand them over with std::move, or lend them with std::ref. They
// work on the device they are given, keep nothing between calls, and never train their model.

#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "emprl/rl/concepts.hpp"
#include "emprl/rl/types.hpp"
#include "emprl/text/batching.hpp"
#include "emprl/train/empathy_scorer.hpp"
#include "emprl/train/sequence_task.hpp"

namespace emprl::train {

namespace detail {

/// @throws ConfigError naming the setting
inline void validate_batching(text::TokenLimits const& limits, index_t rows_at_once) {
  auto const at_least_one = [](char const* name, index_t value) {
    expects<ConfigError>(
        value >= 1, std::string(name) + " is " + std::to_string(value) + "; it must be at least 1");
  };
  at_least_one("limits.context", limits.context);
  at_least_one("limits.response", limits.response);
  at_least_one("rows_at_once", rows_at_once);
}

}  // namespace detail

/// What a PerplexityReward reads of an episode.
struct PerplexityRewardSettings {
  /// Whether the response is judged as an answer to its context. If not, the model's encoder sees
  /// `</s>` alone.
  bool read_context = true;
  text::TokenLimits limits = {};
  index_t rows_at_once = 64;  ///< episodes in one pass of the model

  /// @throws ConfigError naming the setting
  void validate() const { detail::validate_batching(limits, rows_at_once); }
};

/// How likely a frozen T5 finds a response, as an rl::RewardModel:
///   score = 1/n sum_t log q(y_t | context, y_<t) = -log perplexity,   in nats a token, at most 0
/// over the n tokens of the response, `</s>` included, in q's full softmax at temperature 1. A long
/// response is not punished for its length, but nor is a common phrase that repeats itself: combine
/// it with a rule about repetition.
///
/// An empty response is the single token `</s>`, and its score log q(</s> | context): how likely
/// the model is to say nothing. A response of more than limits.response tokens is cut, and judged
/// as if `</s>` came after the cut.
template <Scalar T>
class PerplexityReward {
 public:
  /// @param judge with its prefix, if it has one; its value head is not used
  /// @throws ConfigError naming a setting out of range
  PerplexityReward(Cpu& dev, Generator<T> judge, PerplexityRewardSettings const& settings = {})
      : dev_(dev), judge_(std::move(judge)), settings_(settings) {
    settings_.validate();
  }

  /// @param folder a T5 folder
  /// @throws IoError naming the file, and the field or tensor in it, that is missing or wrong
  PerplexityReward(Cpu& dev, std::filesystem::path const& folder,
                   PerplexityRewardSettings const& settings = {})
      : PerplexityReward(dev, load_generator<T>(folder), settings) {}

  /// @throws ShapeError unless there is one score an episode to be written
  void operator()(rl::EpisodeBatch const& episodes, std::span<float> scores) const {
    expects(scores.size() == episodes.size(), "a reward writes one score an episode");
    text::TokenLimits limits = settings_.limits;
    if (!settings_.read_context) limits.context = 1;  // room for `</s>` alone
    auto const pairs = text::encode_pairs(judge_.tokenizer, episodes.episodes, limits);
    std::vector<double> logp;
    likelihood(dev_, judge_, pairs, settings_.rows_at_once, &logp);
    for (std::size_t i = 0; i < scores.size(); ++i) {
      auto const tokens = pairs.responses.view().length(static_cast<index_t>(i));
      scores[i] = static_cast<float>(logp[i] / static_cast<double>(tokens));
    }
  }

 private:
  Cpu& dev_;
  Generator<T> judge_;
  PerplexityRewardSettings settings_;
};

static_assert(rl::RewardModel<PerplexityReward<float>>);

/// What a ClassifierReward reads of an episode, and what it makes of the classifier's answer.
struct ClassifierRewardSettings {
  /// The level whose probability is the score, 0 .. 2; without one, the score is the expected
  /// level.
  std::optional<int> level = {};
  text::TokenLimits limits = {};
  index_t rows_at_once = 64;  ///< episodes in one pass of the model

  /// @throws ConfigError naming the setting
  void validate() const {
    expects<ConfigError>(!level || (*level >= 0 && *level < empathy::level_count),
                         "level is " + std::to_string(level.value_or(0)) +
                             "; a classifier has the levels 0, 1 and 2");
    detail::validate_batching(limits, rows_at_once);
  }
};

/// What a classifier of three levels says of a response to its context, as an rl::RewardModel:
///   score = p(level)               for a level of the settings, or
///   score = sum_l l p(l) / 2       without one: the expected level as a share of the highest
/// in [0, 1]. The classifier is any folder in the layout of an identifier, as `emprl identify`
/// trains one from posts with levels 0, 1 and 2, of whatever meaning.
template <Scalar T>
class ClassifierReward {
 public:
  /// @throws ConfigError naming a setting out of range
  ClassifierReward(Cpu& dev, IdentifierModel<T> classifier,
                   ClassifierRewardSettings const& settings = {})
      : dev_(dev), classifier_(std::move(classifier)), settings_(settings) {
    settings_.validate();
  }

  /// @param folder an identifier's: runs/identifiers/er, say
  /// @throws IoError naming the file, and the field or tensor in it, that is missing or wrong
  ClassifierReward(Cpu& dev, std::filesystem::path const& folder,
                   ClassifierRewardSettings const& settings = {})
      : ClassifierReward(dev, load_identifier<T>(folder), settings) {}

  /// @throws ShapeError unless there is one score an episode to be written
  void operator()(rl::EpisodeBatch const& episodes, std::span<float> scores) const {
    expects(scores.size() == episodes.size(), "a reward writes one score an episode");
    auto const pairs =
        text::encode_pairs(classifier_.tokenizer, episodes.episodes, settings_.limits);
    auto const p = level_probabilities(dev_, classifier_, pairs, settings_.rows_at_once);
    for (std::size_t i = 0; i < scores.size(); ++i) {
      double const score = settings_.level ? p[i][static_cast<std::size_t>(*settings_.level)]
                                           : (p[i][1] + 2.0 * p[i][2]) / 2.0;
      scores[i] = static_cast<float>(score);
    }
  }

 private:
  Cpu& dev_;
  IdentifierModel<T> classifier_;
  ClassifierRewardSettings settings_;
};

static_assert(rl::RewardModel<ClassifierReward<float>>);

}  // namespace emprl::train
