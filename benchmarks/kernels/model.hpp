// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the benchmark of the model (model.cu) and its reference on the CPU (model_reference.cpp)
// have in common: shapes, random weights and tokens, one step of PPO on given responses, and how
// many flops and bytes a pass cannot do without.

#include <algorithm>
#include <any>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "emprl/core/half.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/empathy/identifier.hpp"
#include "emprl/empathy/levels.hpp"
#include "emprl/gen/sampling.hpp"
#include "emprl/optim/adamw.hpp"
#include "emprl/rl/ppo.hpp"
#include "emprl/train/t5_weights.hpp"

namespace emprl::bench {

/// A T5 that the CPU computes in double in no time, with heads of the least width that the kernels
/// take.
inline t5::Config tiny_model() {
  t5::Config c;
  c.vocab_size = 131;
  c.d_model = 64;
  c.d_kv = 32;
  c.d_ff = 96;
  c.num_heads = 2;
  c.num_layers = c.num_decoder_layers = 2;
  return c;
}

/// A T5 with a value head. Weights are uniform with the standard deviations of
/// t5::initial_deviation, and numbers that Bf16 holds, so that both formats begin with the same
/// model.
template <Scalar T>
train::T5Weights<T, Cpu> random_model(t5::Config const& c) {
  train::T5Weights<T, Cpu> model(nn::Unset{}, c);
  auto const fill = [](std::span<T> values, double deviation, std::uint32_t row) {
    RandomSequence random(1, Stream::initialise, 5, row);
    double const bound = std::sqrt(3.0) * deviation;
    for (T& x : values) {
      Bf16 const rounded(static_cast<float>(bound * (2.0 * random.uniform() - 1.0)));
      x = static_cast<T>(static_cast<float>(rounded));
    }
  };
  std::uint32_t row = 1;
  for (nn::ParameterInfo const& info : model.weights.infos()) {
    if (info.shape.size() == 1) {
      for (T& x : model.weights.span(info)) x = T(1);
    } else {
      fill(model.weights.span(info), t5::initial_deviation(info.name, c), row++);
    }
  }
  model.value_head = train::ValueHeadParameters<T>(c.d_model);
  fill(model.value_head.span(), 1.0 / std::sqrt(3.0 * static_cast<double>(c.d_model)), 0);
  return model;
}

/// Rows of random tokens, `</s>` the last of each.
inline Ragged random_tokens(std::span<index_t const> lengths, index_t vocabulary,
                            std::uint32_t seed) {
  RandomSequence random(2, Stream::initialise, seed);
  Ragged rows;
  for (index_t const n : lengths) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(n));
    for (auto& id : ids) id = static_cast<std::int32_t>(3 + random.below(vocabulary - 3));
    ids.back() = t5::end_id;
    rows.push_back(ids);
  }
  return rows;
}

/// The same, all rows of one length.
inline Ragged random_tokens(index_t rows, index_t length, index_t vocabulary, std::uint32_t seed) {
  return random_tokens(std::vector<index_t>(static_cast<std::size_t>(rows), length), vocabulary,
                       seed);
}

/// Contexts, each with some target levels.
inline rl::PromptBatch prompts_of(Ragged contexts) {
  rl::PromptBatch prompts;
  for (int i = 0; i < static_cast<int>(contexts.rows()); ++i) {
    prompts.payloads.emplace_back(data::Levels{i % 3, i / 3 % 3, i / 9 % 3});
  }
  prompts.contexts = std::move(contexts);
  return prompts;
}

/// The reward of METHOD 6 by three identifiers, which read the generator's own tokens: what is left
/// out is the way through text, which the host goes.
/// @param logits_of  logits_of(k, contexts, responses): the identifier k's logits, three a row
template <class LogitsOf>
void score_by_identifiers(rl::EpisodeBatch const& episodes, std::span<float> scores,
                          LogitsOf&& logits_of) {
  Ragged contexts, responses;
  for (rl::Episode const& e : episodes.episodes) {
    contexts.push_back(e.context_ids);
    responses.push_back(e.response_ids);
  }
  std::vector<empathy::LevelProbabilities> p(scores.size());
  for (std::size_t k = 0; k < 3; ++k) {
    auto const logits = logits_of(k, contexts.view(), responses.view());
    for (std::size_t i = 0; i < p.size(); ++i) {
      double sum = 0;
      for (std::size_t l = 0; l < 3; ++l) {
        p[i][k][l] = std::exp(static_cast<double>(logits[3 * i + l]));
        sum += p[i][k][l];
      }
      for (double& x : p[i][k]) x /= sum;
    }
  }
  for (std::size_t i = 0; i < scores.size(); ++i) {
    auto const& target = episodes.episodes[i].template payload_as<data::Levels>();
    scores[i] = static_cast<float>(empathy::empathy_reward(p[i], target));
  }
}

/// The weights of the identifier k: encoders of the generator, a head of its own.
template <Scalar T>
empathy::IdentifierParameters<T, Cpu> random_identifier(train::T5Weights<T, Cpu> const& generator,
                                                        std::uint64_t k) {
  empathy::IdentifierParameters<T, Cpu> identifier(nn::Unset{}, generator.config());
  empathy::initialise(identifier, generator.config(), generator.weights, 3 + k);
  return identifier;
}

/// The work by which model.cu is compared with the CPU: rows of awkward lengths on tiny_model().
struct TinyWork {
  Ragged contexts, responses;
  gen::SamplingConfig decoding;
  rl::PpoConfig ppo;
  /// Adam divides a gradient by its own size: where that is rounding alone, the step would be its
  /// sign. This epsilon is above it.
  optim::AdamWConfig adam{.epsilon = 1e-3};
  double learning_rate = 1e-3;

  TinyWork() {
    index_t const vocabulary = tiny_model().vocab_size;
    contexts = random_tokens(std::vector<index_t>{33, 1, 7, 20}, vocabulary, 1);
    responses = random_tokens(std::vector<index_t>{5, 9, 1, 6}, vocabulary, 2);
    decoding.greedy = true;
    decoding.min_new_tokens = decoding.max_new_tokens = 10;
    ppo = {.batch_size = 4,
           .mini_batch_size = 2,
           .gradient_accumulation = 2,
           .epochs = 2,
           .learning_rate = learning_rate};
  }
};

/// The numbers that a step of PPO on given responses reports.
template <class Actor, class Reference, class Reward, class Optimizer>
std::vector<double> ppo_numbers(TinyWork const& work, Actor& actor, Reference& reference,
                                Reward& reward, Optimizer& optimizer) {
  auto sampler = [&](RaggedView, std::uint32_t) { return work.responses; };
  auto decode = [](std::span<std::int32_t const>) { return std::string(); };
  rl::PpoTrainer trainer(
      work.ppo, rl::make_ppo_spec(work.ppo, actor, reference, reward, sampler, decode, optimizer));
  std::vector<double> numbers;
  rl::for_each_number(trainer.step(prompts_of(work.contexts)),
                      [&](auto const&, double x) { numbers.push_back(x); });
  return numbers;
}

/// What the CPU comes to in double.
struct TinyTruth {
  Ragged decoded;                      ///< greedily
  std::vector<double> logprobs;        ///< of the work's responses
  std::array<double, 2> losses{};      ///< of two training steps with dropout
  std::vector<double> after_training;  ///< log-probabilities
  std::vector<double> ppo;             ///< the numbers of a step of PPO
  std::vector<double> after_ppo;       ///< log-probabilities
};

TinyTruth tiny_truth(TinyWork const& work);

/// How far greedily decoded tokens of tiny_model() are from the likeliest, token by token: log p of
/// that less log p of the one taken, in double.
std::vector<double> regrets(TinyWork const& work, RaggedView decoded);

/// Flops and bytes of a T5's passes. Products of a token with a weight matrix take two flops a
/// weight, attention four a query, key and column: the scores and the weighted sum. Norms,
/// activations and softmax are not counted.
struct ModelCost {
  t5::Config c;
  double rows, context, response;  ///< tokens in a row

  double columns() const { return static_cast<double>(c.inner()); }
  double square() const { return static_cast<double>(c.d_model) * columns(); }
  double feed_forward() const {
    double const matrices = c.feed_forward == nn::Activation::gated_gelu ? 3 : 2;
    return matrices * static_cast<double>(c.d_model * c.d_ff);
  }
  double layers() const { return static_cast<double>(c.num_layers); }
  double decoder_layers() const { return static_cast<double>(c.num_decoder_layers); }
  double embedding() const { return static_cast<double>(c.vocab_size * c.d_model); }

  /// The encoder over rows of n tokens.
  double encoder(double n) const {
    return layers() * rows * (2 * n * (4 * square() + feed_forward()) + 4 * n * n * columns());
  }
  double encoder() const { return encoder(context); }
  /// The keys and values of all layers' cross-attention.
  double cross_keys() const { return decoder_layers() * rows * 2 * context * 2 * square(); }
  /// The decoder over the responses with the logits; its own attention is causal.
  double decoder() const {
    double const pairs = response * (response + 1) / 2 + response * context;
    return decoder_layers() * rows *
               (2 * response * (6 * square() + feed_forward()) + 4 * pairs * columns()) +
           2 * rows * response * embedding();
  }
  double forward() const { return encoder() + cross_keys() + decoder(); }
  /// A gradient takes two products for each of the forward pass.
  double training() const { return 3 * forward(); }
  /// An identifier: encoders of context and response, attention from the one to the other in one
  /// head of the model's width.
  double identifier() const {
    double const width = static_cast<double>(c.d_model);
    double const attention =
        2 * (2 * context + 2 * response) * width * width + 4 * response * context * width;
    return encoder(context) + encoder(response) + rows * attention;
  }
  /// One step of PPO: generation; the reference; three identifiers; forward and backward in every
  /// epoch, the first of which can have the encoder's states and the old log-probabilities from the
  /// generation.
  double ppo(double epochs) const {
    return decoder() + forward() + 3 * identifier() + epochs * training();
  }

  /// The numbers that the decoder's step of one token reads: weights and embedding once, keys and
  /// values of contexts and of `before` tokens of each response.
  double step_numbers(double before) const {
    return decoder_layers() * (6 * square() + feed_forward()) + embedding() +
           decoder_layers() * rows * 2 * (context + before) * columns();
  }
  /// The flops of that step.
  double step(double before) const {
    return rows * (2 * (decoder_layers() * (6 * square() + feed_forward()) + embedding()) +
                   decoder_layers() * 4 * (context + before) * columns());
  }
  /// All that generation reads: the encoder's weights, those of the cross-attention's keys and
  /// values, and every step, half of the response before it on the average.
  double generation_numbers() const {
    return layers() * (4 * square() + feed_forward()) + decoder_layers() * 2 * square() +
           response * step_numbers(response / 2);
  }
};

}  // namespace emprl::bench
