// SPDX-License-Identifier: Apache-2.0
#pragma once

// T5 as the roles that generation and PPO know: a Decoder, an ActorCritic, a ReferencePolicy.

#include <algorithm>
#include <cmath>
#include <memory>
#include <span>
#include <vector>

#include "emprl/gen/generate.hpp"
#include "emprl/ops/elementwise.hpp"
#include "emprl/ops/token_logprob.hpp"
#include "emprl/rl/actor_critic.hpp"
#include "emprl/rl/concepts.hpp"
#include "emprl/train/model_folder.hpp"

namespace emprl::train {

/// Rows of logits that exist at one time when nothing has to be kept: 512 rows of a vocabulary of
/// 32128 are 66 MB.
inline constexpr index_t logit_rows = 512;

/// log p of each response token under a model's full softmax, without dropout and without keeping
/// anything.
/// @param logp         one number a response token, written
/// @param values       the value head's number for each token; empty if not needed
/// @param temperature  divides the logits; 1 is the model's own distribution
template <Scalar T>
void token_logprobs(Cpu& dev, Generator<T> const& g, RaggedView contexts, RaggedView responses,
                    std::span<T> logp, std::span<T> values = {}, T temperature = T(1)) {
  ArenaScope scope(dev.scratch);
  index_t const n = responses.tokens();
  expects(static_cast<index_t>(logp.size()) == n,
          "token_logprobs: one number for each response token");
  auto hidden = dev.scratch.template allocate<T, 2>({n, g.config().d_model});
  g.model.inference(dev, g.weights.views(), g.prefixes(), contexts, responses, hidden);
  if (!values.empty()) {
    nn::ValueHead<T, Cpu>{}.inference(dev, g.value_head.views(), hidden,
                                      TensorView<T, 1, Cpu>(values.data(), {n}));
  }
  index_t const chunk = std::min(n, logit_rows);
  auto logits = dev.scratch.template allocate<T, 2>({chunk, g.config().vocab_size});
  auto lse = dev.scratch.template allocate<T, 1>({chunk});
  for (index_t begin = 0; begin < n; begin += chunk) {
    index_t const rows = std::min(chunk, n - begin);
    auto const part = logits.rows(0, rows);
    g.model.logits(dev, g.weights.views(), hidden.rows(begin, begin + rows), part);
    if (temperature != T(1)) scale(dev, part, T(1) / temperature);
    token_logprob_forward(
        dev, TensorView<T, 1, Cpu>(logp.data() + begin, {rows}), lse.rows(0, rows), {}, part,
        TensorView<std::int32_t const, 1, Cpu>(responses.ids.data() + begin, {rows}));
  }
}

/// Exact divergence of one model from another at each response token, kl[t] = sum_v p_v (log p_v -
/// log q_v), without dropout and without keeping anything.
/// @throws ShapeError if the two have not the same vocabulary
template <Scalar T>
void token_full_kl(Cpu& dev, Generator<T> const& policy, Generator<T> const& reference,
                   RaggedView contexts, RaggedView responses, std::span<T> kl, T temperature) {
  ArenaScope scope(dev.scratch);
  index_t const n = responses.tokens();
  index_t const vocabulary = policy.config().vocab_size;
  expects(static_cast<index_t>(kl.size()) == n, "token_full_kl: one number for each token");
  expects(reference.config().vocab_size == vocabulary,
          "token_full_kl: both models must have the same vocabulary");
  Generator<T> const* const models[2] = {&policy, &reference};
  TensorView<T, 2, Cpu> hidden[2], logits[2];
  index_t const chunk = std::min(n, logit_rows);
  for (int k = 0; k < 2; ++k) {
    hidden[k] = dev.scratch.template allocate<T, 2>({n, models[k]->config().d_model});
    logits[k] = dev.scratch.template allocate<T, 2>({chunk, vocabulary});
    models[k]->model.inference(dev, models[k]->weights.views(), models[k]->prefixes(), contexts,
                               responses, hidden[k]);
  }
  auto lse = dev.scratch.template allocate<T, 2>({2, chunk});
  auto logp = dev.scratch.template allocate<T, 1>({chunk});
  for (index_t begin = 0; begin < n; begin += chunk) {
    index_t const rows = std::min(chunk, n - begin);
    for (int k = 0; k < 2; ++k) {
      auto const part = logits[k].rows(0, rows);
      models[k]->model.logits(dev, models[k]->weights.views(), hidden[k].rows(begin, begin + rows),
                              part);
      if (temperature != T(1)) scale(dev, part, T(1) / temperature);
      token_logprob_forward(
          dev, logp.rows(0, rows), TensorView<T, 1, Cpu>(&lse(k, 0), {rows}), {}, part,
          TensorView<std::int32_t const, 1, Cpu>(responses.ids.data() + begin, {rows}));
    }
    parallel_for(dev, rows, 1, [&](index_t first, index_t last) {
      for (index_t i = first; i < last; ++i) {
        // In double: the terms of both signs are larger than their sum.
        double sum = 0;
        for (index_t v = 0; v < vocabulary; ++v) {
          double const p = static_cast<double>(logits[0](i, v)) - static_cast<double>(lse(0, i));
          double const q = static_cast<double>(logits[1](i, v)) - static_cast<double>(lse(1, i));
          sum += std::exp(p) * (p - q);
        }
        kl[static_cast<std::size_t>(begin + i)] = static_cast<T>(sum);
      }
    });
  }
}

template <Scalar T>
class T5Reference;

/// T5 as a gen::Decoder: cached, one token a row and step.
template <Scalar T>
class T5Decoder {
 public:
  using value_type = T;
  using State = t5::KvCache<T, Cpu>;

  T5Decoder(Cpu& dev, Generator<T> const& generator) : dev_(dev), generator_(generator) {}

  index_t vocabulary() const { return generator_.config().vocab_size; }

  State start(RaggedView contexts) {
    return generator_.model.start(dev_, generator_.weights.views(), generator_.prefixes(),
                                  contexts);
  }

  void step(State& state, std::span<index_t const> rows, std::span<std::int32_t const> tokens,
            TensorView<T, 2, Cpu> logits) {
    ArenaScope scope(dev_.scratch);
    auto const active = static_cast<index_t>(rows.size());
    auto hidden = dev_.scratch.template allocate<T, 2>({active, generator_.config().d_model});
    generator_.model.decoder().step(dev_, generator_.weights.views(), generator_.prefixes(), state,
                                    rows, {tokens.data(), {active}}, hidden);
    generator_.model.logits(dev_, generator_.weights.views(), hidden, logits);
  }

 private:
  Cpu& dev_;
  Generator<T> const& generator_;
};

static_assert(gen::Decoder<T5Decoder<float>>);

/// A sampling configuration that never draws an id that the tokenizer cannot decode.
template <Scalar T>
gen::SamplingConfig barred_beyond_tokenizer(gen::SamplingConfig config,
                                            Generator<T> const& generator) {
  for (index_t id = generator.tokenizer.size(); id < generator.config().vocab_size; ++id) {
    config.barred.push_back(static_cast<std::int32_t>(id));
  }
  return config;
}

/// T5 as an rl::Policy: log-probabilities of response tokens and their gradient. No dropout: PPO
/// compares log-probabilities of the same function.
template <Scalar T>
class T5Policy {
 public:
  using Scalar = T;
  using In = std::span<T const>;

  struct Context {
    std::unique_ptr<ArenaScope<>> scope;  // releases what forward kept
    typename t5::Model<T, Cpu>::Context model;
    TensorView<T, 2, Cpu> hidden, logits;
    TensorView<T, 1, Cpu> lse, entropy;
    std::span<std::int32_t const> targets;
  };

  /// @param gradients, prefix_gradients  accumulated by backward; empty views: frozen
  /// @param temperature  divides the logits that log-probabilities are taken of
  T5Policy(Cpu& dev, Generator<T> const& generator, t5::Params<T, Cpu> const& gradients,
           t5::Prefixes<T, Cpu> const& prefix_gradients, T temperature = T(1))
      : dev_(dev),
        generator_(generator),
        gradients_(gradients),
        prefix_gradients_(prefix_gradients),
        temperature_(temperature) {}

  void forward(rl::TokenBatch const& batch, std::span<T> logp, Context& context) {
    context.scope.reset();
    context.scope = std::make_unique<ArenaScope<>>(dev_.saved);
    index_t const n = batch.tokens();
    context.hidden = dev_.saved.template allocate<T, 2>({n, generator_.config().d_model});
    context.logits = dev_.saved.template allocate<T, 2>({n, generator_.config().vocab_size});
    context.lse = dev_.saved.template allocate<T, 1>({n});
    context.entropy = dev_.saved.template allocate<T, 1>({n});
    context.targets = batch.responses.ids;
    DropoutSites no_dropout;
    generator_.model.forward(dev_, generator_.weights.views(), generator_.prefixes(),
                             batch.contexts, batch.responses, context.hidden, context.model,
                             no_dropout);
    generator_.model.logits(dev_, generator_.weights.views(), context.hidden, context.logits);
    if (temperature_ != T(1)) scale(dev_, context.logits, T(1) / temperature_);
    token_logprob_forward(dev_, TensorView<T, 1, Cpu>(logp.data(), {n}), context.lse,
                          context.entropy, context.logits, targets(context));
  }

  void inference(rl::TokenBatch const& batch, std::span<T> logp, std::span<T> values = {}) {
    token_logprobs(dev_, generator_, batch.contexts, batch.responses, logp, values, temperature_);
  }

  /// Exact divergence from a frozen T5 at every token.
  void full_kl(T5Reference<T> const& reference, rl::TokenBatch const& batch, std::span<T> kl) {
    token_full_kl(dev_, generator_, reference.generator(), batch.contexts, batch.responses, kl,
                  temperature_);
  }

  void entropy(std::span<T> out, Context const& context) const {
    std::copy_n(context.entropy.data(), out.size(), out.data());
  }

  /// Gradients += . The context is used up.
  void backward(In dlogp, Context& context) { backward(dlogp, {}, context); }

  /// The same with the gradient of the entropy.
  void backward(In dlogp, In dentropy, Context& context) {
    backward(dlogp, dentropy, context, [](auto const&) {});
  }

  /// The same for a trunk that is shared: others(dhidden) adds (+=) what else the decoder's last
  /// state (tokens, d_model) is used for.
  template <class Others>
  void backward(In dlogp, In dentropy, Context& context, Others&& others) {
    ArenaScope scope(dev_.scratch);
    auto dhidden = dev_.scratch.template allocate<T, 2>(context.hidden.extents());
    token_logprob_backward(dev_, context.logits, view(dlogp), context.lse, targets(context),
                           view(dentropy),
                           dentropy.empty() ? TensorView<T, 1, Cpu>{} : context.entropy);
    if (temperature_ != T(1)) scale(dev_, context.logits, T(1) / temperature_);
    generator_.model.logits_backward(dev_, generator_.weights.views(), gradients_, context.logits,
                                     context.hidden, dhidden);
    others(dhidden);
    generator_.model.backward(dev_, generator_.weights.views(), gradients_, prefix_gradients_,
                              dhidden, context.model);
    context.scope.reset();
  }

 private:
  static TensorView<T const, 1, Cpu> view(In x) {
    if (x.empty()) return {};
    return {x.data(), {static_cast<index_t>(x.size())}};
  }
  static TensorView<std::int32_t const, 1, Cpu> targets(Context const& context) {
    return {context.targets.data(), {static_cast<index_t>(context.targets.size())}};
  }

  Cpu& dev_;
  Generator<T> const& generator_;
  t5::Params<T, Cpu> gradients_;
  t5::Prefixes<T, Cpu> prefix_gradients_;
  T temperature_;
};

/// T5 with a value head as an rl::ActorCritic: one trunk, two heads, whose gradients add up at the
/// decoder's last state.
template <Scalar T>
class T5ActorCritic {
 public:
  using Scalar = T;
  using In = std::span<T const>;

  struct Context {
    typename T5Policy<T>::Context policy;
    typename nn::ValueHead<T, Cpu>::Context value;
  };

  /// @param gradients, prefix_gradients, value_gradients  accumulated by backward; empty views:
  /// frozen
  /// @param temperature  divides the logits that log-probabilities are taken of
  /// @throws ConfigError if the generator has no value head
  T5ActorCritic(Cpu& dev, Generator<T> const& generator, t5::Params<T, Cpu> const& gradients,
                t5::Prefixes<T, Cpu> const& prefix_gradients,
                typename nn::ValueHead<T, Cpu>::Params const& value_gradients, T temperature = T(1))
      : dev_(dev),
        generator_(generator),
        policy_(dev, generator, gradients, prefix_gradients, temperature),
        value_gradients_(value_gradients) {
    expects<ConfigError>(generator.value_head.size() > 0,
                         "an actor-critic needs a model with a value head.");
  }

  void forward(rl::TokenBatch const& batch, std::span<T> logp, std::span<T> values,
               Context& context) {
    policy_.forward(batch, logp, context.policy);
    value_head_.forward(dev_, generator_.value_head.views(), context.policy.hidden,
                        TensorView<T, 1, Cpu>(values.data(), {batch.tokens()}), context.value);
  }

  void inference(rl::TokenBatch const& batch, std::span<T> logp, std::span<T> values) {
    policy_.inference(batch, logp, values);
  }

  void full_kl(T5Reference<T> const& reference, rl::TokenBatch const& batch, std::span<T> kl) {
    policy_.full_kl(reference, batch, kl);
  }

  void entropy(std::span<T> out, Context const& context) const {
    policy_.entropy(out, context.policy);
  }

  /// Gradients += . The context is used up.
  void backward(In dlogp, In dvalues, Context& context) { backward(dlogp, dvalues, {}, context); }

  /// The same with the gradient of the entropy.
  void backward(In dlogp, In dvalues, In dentropy, Context& context) {
    policy_.backward(dlogp, dentropy, context.policy, [&](TensorView<T, 2, Cpu> const& dhidden) {
      auto const n = static_cast<index_t>(dvalues.size());
      value_head_.backward(dev_, generator_.value_head.views(), value_gradients_,
                           TensorView<T const, 1, Cpu>(dvalues.data(), {n}), dhidden,
                           context.value);
    });
  }

 private:
  Cpu& dev_;
  Generator<T> const& generator_;
  T5Policy<T> policy_;
  nn::ValueHead<T, Cpu> value_head_;
  typename nn::ValueHead<T, Cpu>::Params value_gradients_;
};

static_assert(rl::Policy<T5Policy<float>> && rl::InferringActor<rl::PolicyOnly<T5Policy<float>>> &&
              rl::TrainsEntropy<rl::PolicyOnly<T5Policy<float>>>);
static_assert(rl::InferringActor<T5ActorCritic<float>> && rl::TrainsEntropy<T5ActorCritic<float>>);

/// A frozen T5 as an rl::ReferencePolicy.
template <Scalar T>
class T5Reference {
 public:
  T5Reference(Cpu& dev, Generator<T> const& generator, T temperature = T(1))
      : dev_(dev), generator_(generator), temperature_(temperature) {}

  void logprobs(rl::TokenBatch const& batch, std::span<T> logp) {
    token_logprobs(dev_, generator_, batch.contexts, batch.responses, logp, {}, temperature_);
  }

  Generator<T> const& generator() const { return generator_; }

 private:
  Cpu& dev_;
  Generator<T> const& generator_;
  T temperature_;
};

static_assert(rl::ReportsFullKl<T5ActorCritic<float>, T5Reference<float>> &&
              rl::ReportsFullKl<rl::PolicyOnly<T5Policy<float>>, T5Reference<float>>);
static_assert(rl::ReferencePolicy<T5Reference<float>, float>);

}  // namespace emprl::train
