// SPDX-License-Identifier: Apache-2.0
#pragma once

// Supervised learning of responses: cross-entropy of the target tokens, for all weights or for an
// adapter of frozen ones.

#include <algorithm>
#include <cmath>
#include <memory>
#include <numbers>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/data/dialogue.hpp"
#include "emprl/io/json.hpp"
#include "emprl/nn/prefix.hpp"
#include "emprl/text/batching.hpp"
#include "emprl/train/fingerprint.hpp"
#include "emprl/train/model_folder.hpp"
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

/// The likelihood of given responses. `per_row`, if wanted, receives the log-probability of each
/// row.
template <Scalar T>
Likelihood likelihood(Cpu& dev, Generator<T> const& generator, text::EncodedPairs const& pairs,
                      index_t rows_at_once = 64, std::vector<double>* per_row = nullptr) {
  Likelihood total;
  std::vector<index_t> rows;
  std::vector<T> logp;
  for (index_t begin = 0; begin < pairs.rows(); begin += rows_at_once) {
    rows.clear();
    for (index_t i = begin; i < std::min(pairs.rows(), begin + rows_at_once); ++i)
      rows.push_back(i);
    text::EncodedPairs const part = text::gather_pairs(pairs, rows);
    logp.assign(part.responses.ids.size(), T(0));
    token_logprobs(dev, generator, part.contexts.view(), part.responses.view(), std::span<T>(logp));
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

/// What makes the prefixes of one model in training: a network for each kind of attention (Li &
/// Liang 2021).
template <Scalar T>
class PrefixTraining {
 public:
  struct Params {
    typename nn::PrefixNetwork<T, Cpu>::Params encoder, decoder, cross;

    struct Shape {
      t5::Config model;
      index_t length = 0;
      index_t hidden = 0;
    };

    template <class F>
    void visit(Shape const& s, F&& f) {
      index_t const layer = 2 * s.model.inner();
      encoder.visit("prefix.encoder", {s.length, s.hidden, s.model.num_layers * layer}, f);
      decoder.visit("prefix.decoder", {s.length, s.hidden, s.model.num_decoder_layers * layer}, f);
      cross.visit("prefix.cross", {s.length, s.hidden, s.model.num_decoder_layers * layer}, f);
    }
  };
  using Shape = typename Params::Shape;

  PrefixTraining(Shape const& shape, std::uint64_t seed)
      : parameters(shape),
        gradients(shape),
        flat_gradients_(typename t5::Prefixes<T, Cpu>::Shape{shape.model, shape.length}) {
    // Uniform in +-1/sqrt(inputs) for the layers, standard normal for the embedding, as PyTorch
    // does.
    std::uint32_t row = 0;
    for (nn::ParameterInfo const& info : parameters.infos()) {
      RandomSequence random(seed, Stream::initialise, 2, row++);
      bool const embedding = std::string_view(info.name).ends_with("embedding.weight");
      double const bound = 1.0 / std::sqrt(static_cast<double>(shape.hidden));
      for (T& x : parameters.span(info)) {
        x = static_cast<T>(embedding ? random.normal() : bound * (2.0 * random.uniform() - 1.0));
      }
    }
  }

  /// Writes the prefixes that the networks make now.
  void inference(Cpu& dev, t5::Prefixes<T, Cpu> const& out) const {
    network_.inference(dev, parameters.views().encoder, out.encoder);
    network_.inference(dev, parameters.views().decoder, out.decoder);
    network_.inference(dev, parameters.views().cross, out.cross);
  }

  /// The same, keeping in dev.saved what backward needs, and clears the prefixes' gradients.
  void forward(Cpu& dev, t5::Prefixes<T, Cpu> const& out) {
    network_.forward(dev, parameters.views().encoder, out.encoder, contexts_[0]);
    network_.forward(dev, parameters.views().decoder, out.decoder, contexts_[1]);
    network_.forward(dev, parameters.views().cross, out.cross, contexts_[2]);
    for (T& x : flat_gradients_.span()) x = T(0);
  }

  /// Where the model's backward pass adds the prefixes' gradients.
  t5::Prefixes<T, Cpu> const& prefix_gradients() const { return flat_gradients_.views(); }

  /// Carries them on to `gradients` (+=).
  void backward(Cpu& dev) {
    auto const& d = flat_gradients_.views();
    network_.backward(dev, parameters.views().encoder, gradients.views().encoder, d.encoder,
                      contexts_[0]);
    network_.backward(dev, parameters.views().decoder, gradients.views().decoder, d.decoder,
                      contexts_[1]);
    network_.backward(dev, parameters.views().cross, gradients.views().cross, d.cross,
                      contexts_[2]);
  }

  nn::ParameterStore<Params, T, Cpu> parameters;
  nn::ParameterStore<Params, T, Cpu> gradients;

 private:
  nn::PrefixNetwork<T, Cpu> network_;
  typename nn::PrefixNetwork<T, Cpu>::Context contexts_[3];
  PrefixParameters<T> flat_gradients_;
};

/// Gives a generator a new LoRA, which changes nothing until it is trained.
/// @throws ConfigError as t5::lora_shape
template <Scalar T>
void start_lora(T5Weights<T, Cpu>& generator, t5::LoraConfig const& config, std::uint64_t seed) {
  t5::LoraShape shape = t5::lora_shape(generator.config(), config);
  t5::LoraParameters<T, Cpu> matrices(shape);
  t5::initialise_lora(matrices, seed);
  generator.attach_lora(std::move(shape), std::move(matrices));
}

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
  /// @param train, valid encoded pairs; valid may be empty
  /// @throws ConfigError for options out of range, a LoRA target that is no projection, or an
  /// adapter of the generator that is not what is trained, for it would not be saved with it
  SequenceTask(Cpu& dev, Generator<T>& generator, text::EncodedPairs const& train,
               text::EncodedPairs const& valid, Options const& options)
      : dev_(dev), generator_(generator), train_(train), valid_(valid), options_(options) {
    expects<ConfigError>(options.tuning == Tuning::lora || generator.lora().size() == 0,
                         "the model has a LoRA; merge it before anything else is trained.");
    expects<ConfigError>(options.tuning == Tuning::prefix || generator.prefix.size() == 0,
                         "the model has a prefix; take it away before anything else is trained.");
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

  index_t examples() const { return train_.rows(); }
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
    text::EncodedPairs const batch = text::gather_pairs(train_, rows);
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
  io::Json identity() const {
    switch (options_.tuning) {
      case Tuning::full:
        return {{"tuning", "full"}, {"dropout", options_.dropout}};
      case Tuning::prefix:
        return {{"tuning", "prefix"},
                {"dropout", options_.dropout},
                {"prefix_length", options_.prefix_length},
                {"prefix_hidden", options_.prefix_hidden},
                {"base_fingerprint", base_fingerprint()}};
      case Tuning::lora:
        return {{"tuning", "lora"},
                {"dropout", options_.dropout},
                {"lora", detail::lora_config_to_json(generator_.lora_shape(), "")},
                {"base_fingerprint", base_fingerprint()}};
    }
    return {};
  }

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
  std::string base_fingerprint() const {
    Fingerprint f;
    f.numbers(std::span<T const>(generator_.weights.span()));
    return f.name();
  }

  Cpu& dev_;
  Generator<T>& generator_;
  text::EncodedPairs const& train_;
  text::EncodedPairs const& valid_;
  Options options_;
  t5::Parameters<T, Cpu> gradients_;
  t5::LoraParameters<T, Cpu> lora_gradients_;
  t5::Params<T, Cpu> gradient_views_;  // of what is trained; empty where frozen
  std::unique_ptr<PrefixTraining<T>> prefix_;
};

}  // namespace emprl::train
