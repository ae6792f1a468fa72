// SPDX-License-Identifier: Apache-2.0
#pragma once

// Supervised learning of responses: cross-entropy of the target tokens, for all weights or for an
// adapter of frozen ones.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <numbers>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/data/dialogue.hpp"
#include "emprl/io/json.hpp"
#include "emprl/text/batching.hpp"
#include "emprl/train/engine.hpp"
#include "emprl/train/fingerprint.hpp"
#include "emprl/train/model_folder.hpp"
#include "emprl/train/prefix_training.hpp"
#include "emprl/train/sequence_loss.hpp"
#include "emprl/train/t5_adaptors.hpp"

namespace emprl::train {

/// Which weights are trained.
enum class Tuning { full, prefix, lora };

/// @throws ConfigError for a name that is none
inline Tuning tuning_of(std::string_view name) {
  if (name == "full") return Tuning::full;
  if (name == "prefix") return Tuning::prefix;
  if (name == "lora") return Tuning::lora;
  throw ConfigError("tuning \"" + std::string(name) +
                    "\" is unknown; full, prefix and lora are understood.");
}

/// Total cross-entropy of target tokens, and what it is divided by.
struct Likelihood {
  double nats = 0;  ///< -sum of log p over the tokens, </s> included
  index_t tokens = 0;
  index_t bytes = 0;  ///< of the targets' UTF-8 text, if known

  double loss() const { return tokens > 0 ? nats / static_cast<double>(tokens) : 0.0; }
  double perplexity() const { return std::exp(loss()); }
  /// nats / (ln 2 * bytes): comparable between tokenizers.
  double bits_per_byte() const {
    return bytes > 0 ? nats / (std::numbers::ln2 * static_cast<double>(bytes)) : 0.0;
  }
};

namespace detail {

/// The likelihood of given responses; logprobs(contexts, responses, logp) writes log p of a part's
/// tokens.
template <Scalar T, class LogProbabilities>
Likelihood likelihood(LogProbabilities&& logprobs, text::EncodedPairs const& pairs,
                      index_t rows_at_once, std::vector<double>* per_row) {
  Likelihood total;
  std::vector<index_t> rows;
  std::vector<T> logp;
  for (index_t begin = 0; begin < pairs.rows(); begin += rows_at_once) {
    rows.clear();
    for (index_t i = begin; i < std::min(pairs.rows(), begin + rows_at_once); ++i)
      rows.push_back(i);
    text::EncodedPairs const part = text::gather_pairs(pairs, rows);
    logp.assign(part.responses.ids.size(), T(0));
    logprobs(part.contexts.view(), part.responses.view(), std::span<T>(logp));
    for (index_t i = 0; i < part.rows(); ++i) {
      double row = 0;
      for (index_t t = part.responses.offsets[static_cast<std::size_t>(i)];
           t < part.responses.offsets[static_cast<std::size_t>(i) + 1]; ++t) {
        row += static_cast<double>(logp[static_cast<std::size_t>(t)]);
      }
      total.nats -= row;
      if (per_row != nullptr) per_row->push_back(row);
    }
    total.tokens += part.responses.tokens();
  }
  return total;
}

}  // namespace detail

/// The likelihood of given responses. `per_row`, if wanted, receives the log-probability of each
/// row.
template <Scalar T>
Likelihood likelihood(Cpu& dev, Generator<T> const& generator, text::EncodedPairs const& pairs,
                      index_t rows_at_once = rows_in_a_pass,
                      std::vector<double>* per_row = nullptr) {
  return detail::likelihood<T>(
      [&](RaggedView contexts, RaggedView responses, std::span<T> logp) {
        token_logprobs(dev, generator, contexts, responses, logp);
      },
      pairs, rows_at_once, per_row);
}

/// The same on an engine's device.
inline Likelihood likelihood(EngineT5& model, text::EncodedPairs const& pairs,
                             index_t rows_at_once = rows_in_a_pass,
                             std::vector<double>* per_row = nullptr) {
  return detail::likelihood<float>(
      [&](RaggedView contexts, RaggedView responses, std::span<float> logp) {
        model.logprobs(contexts, responses, logp);
      },
      pairs, rows_at_once, per_row);
}

/// Gives a generator a new LoRA, which changes nothing until it is trained.
/// @throws ConfigError as t5::lora_shape
template <Scalar T>
void start_lora(T5Weights<T, Cpu>& generator, t5::LoraConfig const& config, std::uint64_t seed) {
  t5::LoraShape shape = t5::lora_shape(generator.config(), config);
  t5::LoraParameters<T, Cpu> matrices(shape);
  t5::initialise_lora(matrices, seed);
  generator.attach_lora(std::move(shape), std::move(matrices));
}

/// @throws ConfigError if a model has an adapter that is not what is trained: it would not be saved
/// with it
template <Scalar T>
void expect_adapter_in_training(T5Weights<T, Cpu> const& model, Tuning tuning) {
  expects<ConfigError>(tuning == Tuning::lora || model.lora().size() == 0,
                       "the model has a LoRA; merge it before anything else is trained.");
  expects<ConfigError>(tuning == Tuning::prefix || model.prefix.size() == 0,
                       "the model has a prefix; take it away before anything else is trained.");
}

/// What a generator learns from: numbered pairs, which may be others at every step.
struct SequenceExamples {
  /// Pairs that stay as they are, and outlive this.
  SequenceExamples(text::EncodedPairs const& pairs)
      : rows(pairs.rows()), batch([&pairs](std::span<index_t const> some, std::uint32_t) {
          return text::gather_pairs(pairs, some);
        }) {}
  SequenceExamples(text::EncodedPairs const&&) = delete;

  /// Pairs that are made when they are needed: text::corrupt_windows makes some of running text.
  /// @param make   the pairs of some of the numbers 0 .. count-1, as a step of the run has them
  /// @param names  what they depend on, which a run that goes on must find again
  SequenceExamples(
      index_t count,
      std::function<text::EncodedPairs(std::span<index_t const>, std::uint32_t step)> make,
      io::Json names)
      : rows(count), batch(std::move(make)), identity(std::move(names)) {}

  index_t rows;
  std::function<text::EncodedPairs(std::span<index_t const>, std::uint32_t step)> batch;
  io::Json identity;  ///< null where the number of the examples and the seed are all
};

/// The task of train::fit that teaches a generator its responses.
template <Scalar T>
class SequenceTask {
 public:
  using Scalar = T;

  struct Options {
    Tuning tuning = Tuning::full;
    double dropout = 0.1;
    std::uint64_t seed = 42;
    index_t prefix_length = 20;
    index_t prefix_hidden = 512;
    t5::LoraConfig lora{};  ///< of a generator that has no LoRA yet
  };

  /// Prefix-tuning begins with a new prefix. LoRA goes on from the generator's, if it has one.
  /// @param train  encoded pairs, or what makes them
  /// @param valid  encoded pairs; may be empty
  /// @throws ConfigError for options out of range, a LoRA target that is no projection, or an
  /// adapter of the generator that is not what is trained, for it would not be saved with it
  SequenceTask(Cpu& dev, Generator<T>& generator, SequenceExamples train,
               text::EncodedPairs const& valid, Options const& options)
      : dev_(dev),
        generator_(generator),
        train_(std::move(train)),
        valid_(valid),
        options_(options) {
    expect_adapter_in_training(generator, options.tuning);
    if (options.tuning == Tuning::full) {
      gradients_ = t5::Parameters<T, Cpu>(generator.config());
      gradient_views_ = gradients_.views();
    } else if (options.tuning == Tuning::lora) {
      if (generator.lora().size() == 0) start_lora(generator, options.lora, options.seed);
      lora_gradients_ = t5::LoraParameters<T, Cpu>(generator.lora_shape());
      lora_gradients_.views().attach(generator.lora_shape(), gradient_views_);
    } else {
      expects<ConfigError>(options.prefix_length >= 1,
                           "prefix-tuning needs a prefix of at least one position.");
      generator.prefix = PrefixParameters<T>(
          typename t5::Prefixes<T, Cpu>::Shape{generator.config(), options.prefix_length});
      prefix_ = std::make_unique<PrefixTraining<T>>(
          typename PrefixTraining<T>::Shape{generator.config(), options.prefix_length,
                                            options.prefix_hidden},
          options.seed);
    }
  }

  index_t examples() const { return train_.rows; }
  std::span<T> parameters() const {
    if (prefix_) return prefix_->parameters.span();
    return options_.tuning == Tuning::lora ? generator_.lora().span() : generator_.weights.span();
  }
  std::span<T> gradients() const {
    if (prefix_) return prefix_->gradients.span();
    return options_.tuning == Tuning::lora ? lora_gradients_.span() : gradients_.span();
  }

  /// Mean cross-entropy over the tokens of some training rows; its gradient is added to
  /// gradients().
  double loss(std::span<index_t const> rows, std::uint32_t step) {
    ArenaScope saved(dev_.saved);
    text::EncodedPairs const batch = train_.batch(rows, step);
    tokens_ += batch.tokens();
    if (prefix_) prefix_->forward(dev_, generator_.prefixes());
    double const mean = sequence_loss(
        dev_, generator_, batch.contexts.view(), batch.responses.view(), gradient_views_,
        prefix_ ? prefix_->prefix_gradients() : t5::Prefixes<T, Cpu>{},
        DropoutSites(options_.dropout, options_.seed, step, generator_.lora_shape().dropout));
    if (prefix_) prefix_->backward(dev_);
    return mean;
  }

  /// What the numbers depend on besides the parameters: how it is tuned, and, of an adapter, the
  /// frozen weights.
  io::Json identity() const { return identity(generator_, train_, options_); }

  /// The same of a generator that is trained with these options, wherever that is.
  static io::Json identity(Generator<T> const& generator, SequenceExamples const& train,
                           Options const& options) {
    io::Json identity = tuning_identity(generator, options);
    if (!train.identity.is_null()) identity["examples"] = train.identity;
    return identity;
  }

  /// Tokens of contexts and responses that loss has read.
  index_t tokens() const { return tokens_; }

  /// Mean cross-entropy a token on the validation pairs: lower is better.
  double validate() {
    finish();
    return likelihood(dev_, generator_, valid_).loss();
  }
  bool has_validation() const { return valid_.rows() > 0; }

  /// Brings the generator in line with the trained parameters.
  void finish() {
    if (prefix_) prefix_->inference(dev_, generator_.prefixes());
  }

 private:
  static io::Json tuning_identity(Generator<T> const& generator, Options const& options) {
    switch (options.tuning) {
      case Tuning::full:
        return {{"tuning", "full"}, {"dropout", options.dropout}};
      case Tuning::prefix:
        return {{"tuning", "prefix"},
                {"dropout", options.dropout},
                {"prefix_length", options.prefix_length},
                {"prefix_hidden", options.prefix_hidden},
                {"base_fingerprint", base_fingerprint(generator)}};
      case Tuning::lora:
        return {{"tuning", "lora"},
                {"dropout", options.dropout},
                {"lora", detail::lora_config_to_json(generator.lora_shape(), "")},
                {"base_fingerprint", base_fingerprint(generator)}};
    }
    return {};
  }

  static std::string base_fingerprint(Generator<T> const& generator) {
    Fingerprint f;
    f.numbers(std::span<T const>(generator.weights.span()));
    return f.name();
  }

  Cpu& dev_;
  Generator<T>& generator_;
  SequenceExamples train_;
  text::EncodedPairs const& valid_;
  Options options_;
  index_t tokens_ = 0;
  t5::Parameters<T, Cpu> gradients_;
  t5::LoraParameters<T, Cpu> lora_gradients_;
  t5::Params<T, Cpu> gradient_views_;  // of what is trained; empty where frozen
  std::unique_ptr<PrefixTraining<T>> prefix_;
};

}  // namespace emprl::train
