// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rewards that are models of their own: a frozen T5 that says how likely a response is, and a
// classifier that says how strongly it shows what the classifier was trained on. Both read text:
// the decoded context and response of an episode, encoded anew with their own tokenizer, which need
// not be the policy's. Neither needs a payload or a reference.
//
//   train::CpuEngine engine(2);  // or any other: a CudaEngine, what a program made of --device
//   train::PerplexityReward fluent(engine, train::load_generator<float>("t5"));
//   train::ClassifierReward<float> warm(engine, "runs/identifiers/er", {.level = 2});
//   auto reward = rl::weighted_sum(1.0, rl::Named{"fluent", rl::Normalised{std::ref(fluent)}},
//                                  2.0, rl::Named{"warm", std::ref(warm)});
//
// On an engine the model is where the engine's device computes, in the engine's precision; the host
// keeps the tokenizer alone where the device has a memory of its own. In place of an engine there
// may be a Cpu context, and then the numbers may be double. On the same threads both give the same
// bits.
//
// Both rewards can be moved, not copied: hand them over with std::move, or lend them with std::ref.
// They refer to the engine or context, which outlives them, keep nothing between calls, and never
// train their model.

#include <concepts>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "emprl/rl/concepts.hpp"
#include "emprl/rl/types.hpp"
#include "emprl/text/batching.hpp"
#include "emprl/train/empathy_scorer.hpp"
#include "emprl/train/engine.hpp"
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

/// log p of each row's response: the model and the device that it is on, in one function, which
/// owns the model.
using RowLikelihoods =
    std::function<std::vector<double>(text::EncodedPairs const& pairs, index_t rows_at_once)>;

template <Scalar T>
RowLikelihoods row_likelihoods(Cpu& dev, Generator<T> judge) {
  auto const model = std::make_shared<Generator<T> const>(std::move(judge));
  return [&dev, model](text::EncodedPairs const& pairs, index_t rows_at_once) {
    std::vector<double> logp;
    likelihood(dev, *model, pairs, rows_at_once, &logp);
    return logp;
  };
}

inline RowLikelihoods row_likelihoods(Engine& engine, Generator<float> judge) {
  auto model = std::make_shared<Generator<float> const>(std::move(judge));
  std::shared_ptr<EngineT5> const there = engine.load(*model);
  // The host's weights are those of the host's engine, and nobody's where they have gone up.
  if (engine.cpu() == nullptr) model = nullptr;
  return [model, there](text::EncodedPairs const& pairs, index_t rows_at_once) {
    std::vector<double> logp;
    likelihood(*there, pairs, rows_at_once, &logp);
    return logp;
  };
}

}  // namespace detail

/// What a PerplexityReward reads of an episode.
struct PerplexityRewardSettings {
  /// Whether the response is judged as an answer to its context. If not, the model's encoder sees
  /// `</s>` alone.
  bool read_context = true;
  text::TokenLimits limits = {};
  index_t rows_at_once = rows_in_a_pass;  ///< episodes in one pass of the model

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
  /// @param judge with its prefix or LoRA, if it has one; its value head is not used
  /// @throws ConfigError naming a setting out of range
  PerplexityReward(Cpu& dev, Generator<T> judge, PerplexityRewardSettings const& settings = {})
      : PerplexityReward(OnPlace{}, dev, std::move(judge), settings) {}

  /// The same on an engine's device.
  PerplexityReward(Engine& engine, Generator<T> judge,
                   PerplexityRewardSettings const& settings = {}) requires(std::same_as<T, float>)
      : PerplexityReward(OnPlace{}, engine, std::move(judge), settings) {}

  /// @param folder a T5 folder
  /// @throws IoError naming the file, and the field or tensor in it, that is missing or wrong
  PerplexityReward(Cpu& dev, std::filesystem::path const& folder,
                   PerplexityRewardSettings const& settings = {})
      : PerplexityReward(OnPlace{}, dev, load_generator<T>(folder), settings) {}

  /// The same on an engine's device.
  PerplexityReward(Engine& engine, std::filesystem::path const& folder,
                   PerplexityRewardSettings const& settings = {}) requires(std::same_as<T, float>)
      : PerplexityReward(OnPlace{}, engine, load_generator<T>(folder), settings) {}

  /// @throws ShapeError unless there is one score an episode to be written
  void operator()(rl::EpisodeBatch const& episodes, std::span<float> scores) const {
    expects(scores.size() == episodes.size(), "a reward writes one score an episode");
    text::TokenLimits limits = settings_.limits;
    if (!settings_.read_context) limits.context = 1;  // room for `</s>` alone
    auto const pairs = text::encode_pairs(tokenizer_, episodes.episodes, limits);
    std::vector<double> const logp = likelihoods_(pairs, settings_.rows_at_once);
    for (std::size_t i = 0; i < scores.size(); ++i) {
      auto const tokens = pairs.responses.view().length(static_cast<index_t>(i));
      scores[i] = static_cast<float>(logp[i] / static_cast<double>(tokens));
    }
  }

 private:
  struct OnPlace {};  // tells the constructor of them all from the others

  template <class Place>
  PerplexityReward(OnPlace, Place& place, Generator<T> judge,
                   PerplexityRewardSettings const& settings)
      : settings_((settings.validate(), settings)),
        tokenizer_(std::move(judge.tokenizer)),
        likelihoods_(detail::row_likelihoods(place, std::move(judge))) {}

  PerplexityRewardSettings settings_;
  text::SentencePieceTokenizer tokenizer_;
  detail::RowLikelihoods likelihoods_;
};

static_assert(rl::RewardModel<PerplexityReward<float>>);

/// What a ClassifierReward reads of an episode, and what it makes of the classifier's answer.
struct ClassifierRewardSettings {
  /// The level whose probability is the score, 0 .. 2; without one, the score is the expected
  /// level.
  std::optional<int> level = {};
  text::TokenLimits limits = {};
  index_t rows_at_once = rows_in_a_pass;  ///< episodes in one pass of the model

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
      : ClassifierReward(OnPlace{}, dev, std::move(classifier), settings) {}

  /// The same on an engine's device.
  ClassifierReward(Engine& engine, IdentifierModel<T> classifier,
                   ClassifierRewardSettings const& settings = {}) requires(std::same_as<T, float>)
      : ClassifierReward(OnPlace{}, engine, std::move(classifier), settings) {}

  /// @param folder an identifier's: runs/identifiers/er, say
  /// @throws IoError naming the file, and the field or tensor in it, that is missing or wrong
  ClassifierReward(Cpu& dev, std::filesystem::path const& folder,
                   ClassifierRewardSettings const& settings = {})
      : ClassifierReward(OnPlace{}, dev, load_identifier<T>(folder), settings) {}

  /// The same on an engine's device.
  ClassifierReward(Engine& engine, std::filesystem::path const& folder,
                   ClassifierRewardSettings const& settings = {}) requires(std::same_as<T, float>)
      : ClassifierReward(OnPlace{}, engine, load_identifier<T>(folder), settings) {}

  /// @throws ShapeError unless there is one score an episode to be written
  void operator()(rl::EpisodeBatch const& episodes, std::span<float> scores) const {
    expects(scores.size() == episodes.size(), "a reward writes one score an episode");
    auto const pairs = text::encode_pairs(tokenizer_, episodes.episodes, settings_.limits);
    auto const p = levels_(pairs, settings_.rows_at_once);
    for (std::size_t i = 0; i < scores.size(); ++i) {
      double const score = settings_.level ? p[i][static_cast<std::size_t>(*settings_.level)]
                                           : (p[i][1] + 2.0 * p[i][2]) / 2.0;
      scores[i] = static_cast<float>(score);
    }
  }

 private:
  struct OnPlace {};  // tells the constructor of them all from the others

  template <class Place>
  ClassifierReward(OnPlace, Place& place, IdentifierModel<T> classifier,
                   ClassifierRewardSettings const& settings)
      : settings_((settings.validate(), settings)),
        tokenizer_(std::move(classifier.tokenizer)),
        levels_(level_function(place, std::move(classifier))) {}

  ClassifierRewardSettings settings_;
  text::SentencePieceTokenizer tokenizer_;
  LevelFunction levels_;
};

static_assert(rl::RewardModel<ClassifierReward<float>>);

}  // namespace emprl::train
