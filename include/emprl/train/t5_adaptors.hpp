// SPDX-License-Identifier: Apache-2.0
#pragma once

// T5 as the roles that generation and PPO know: a Decoder, an ActorCritic, a ReferencePolicy, on
// any device. Those roles speak of numbers on the host, one a token: they come back from a device
// by one copy, for which the host waits, and gradients go up by one. On a GPU a program includes
// emprl.cuh besides.

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "emprl/core/transfer.hpp"
#include "emprl/gen/generate.hpp"
#include "emprl/ops/elementwise.hpp"
#include "emprl/ops/token_divergence.hpp"
#include "emprl/ops/token_logprob.hpp"
#include "emprl/rl/actor_critic.hpp"
#include "emprl/rl/concepts.hpp"
#include "emprl/train/t5_weights.hpp"

namespace emprl::train {

/// Rows of logits that exist at one time when nothing has to be kept: 512 rows of a vocabulary of
/// 32128 are 66 MB.
inline constexpr index_t logit_rows = 512;

namespace detail {

/// Row i of a matrix as a vector.
template <class T, class D>
TensorView<T, 1, D> vector_of_row(TensorView<T, 2, D> x, index_t i) {
  return {x.row(i), {x.extent(1)}};
}

/// Brings the rows of a matrix to host spans, in their order, by one copy. Empty spans take none.
template <class T, Device D, class... Spans>
void fetch_rows(D& dev, TensorView<T, 2, D> x, Spans... spans) {
  std::vector<T> host(static_cast<std::size_t>(x.size()));
  copy(dev, std::span<T>(host), x);
  auto from = host.begin();
  auto const take = [&](std::span<T> to) {
    if (to.empty()) return;
    std::copy_n(from, to.size(), to.begin());
    from += x.extent(1);
  };
  (take(spans), ...);
}

/// Logits in the format of sums, divided by a temperature, and log p of the targets.
/// @param entropy  written; empty if not needed
template <Element T, Device D>
void logits_and_logprobs(D& dev, T5Weights<T, D> const& g, In<T, 2, D> hidden,
                         TensorView<std::int32_t const, 1, D> targets, Accumulator<T> temperature,
                         TensorView<Accumulator<T>, 2, D> logits,
                         TensorView<Accumulator<T>, 1, D> logp,
                         TensorView<Accumulator<T>, 1, D> lse,
                         TensorView<Accumulator<T>, 1, D> entropy = {}) {
  using S = Accumulator<T>;
  g.model.logits(dev, g.weights.views(), hidden, logits);
  if (temperature != S(1)) scale(dev, logits, S(1) / temperature);
  token_logprob_forward<S>(dev, logp, lse, entropy, logits, targets);
}

}  // namespace detail

/// log p of each response token under a model's full softmax, without dropout and without keeping
/// anything.
/// @param logp         one number a response token, written
/// @param values       the value head's number for each token; empty if not needed
/// @param temperature  divides the logits; 1 is the model's own distribution
/// @param entropy      of the distribution that each token was chosen from, in nats; empty if not
/// needed
/// @throws ShapeError if the numbers are not as many as the tokens
template <Element T, Device D>
void token_logprobs(D& dev, T5Weights<T, D> const& g, RaggedView contexts, RaggedView responses,
                    std::span<Accumulator<T>> logp, std::span<Accumulator<T>> values = {},
                    Accumulator<T> temperature = Accumulator<T>(1),
                    std::span<Accumulator<T>> entropy = {}) {
  using S = Accumulator<T>;
  ArenaScope scope(dev.scratch);
  index_t const n = responses.tokens();
  auto const fits = [&](auto x) { return x.empty() || x.size() == logp.size(); };
  expects(static_cast<index_t>(logp.size()) == n && fits(values) && fits(entropy),
          "token_logprobs: one number for each response token");
  auto hidden = dev.scratch.template allocate<T, 2>({n, g.config().d_model});
  g.model.inference(dev, g.weights.views(), g.prefixes(), contexts, responses, hidden);
  auto results = dev.scratch.template allocate<S, 2>(
      {1 + (values.empty() ? 0 : 1) + (entropy.empty() ? 0 : 1), n});
  if (!values.empty()) {
    nn::ValueHead<T, D>{}.inference(dev, g.value_head.views(), hidden,
                                    detail::vector_of_row(results, 1));
  }
  auto const targets = on_device(dev, dev.scratch, responses.ids);
  index_t const chunk = std::min(n, logit_rows);
  auto logits = dev.scratch.template allocate<S, 2>({chunk, g.config().vocab_size});
  auto lse = dev.scratch.template allocate<S, 1>({chunk});
  for (index_t begin = 0; begin < n; begin += chunk) {
    index_t const rows = std::min(chunk, n - begin);
    detail::logits_and_logprobs<T>(
        dev, g, hidden.rows(begin, begin + rows), targets.rows(begin, begin + rows), temperature,
        logits.rows(0, rows), detail::vector_of_row(results, 0).rows(begin, begin + rows),
        lse.rows(0, rows),
        entropy.empty()
            ? TensorView<S, 1, D>{}
            : detail::vector_of_row(results, results.extent(0) - 1).rows(begin, begin + rows));
  }
  detail::fetch_rows(dev, results, logp, values, entropy);
}

/// Exact divergence of one model from another at each response token, kl[t] = sum_v p_v (log p_v -
/// log q_v), without dropout and without keeping anything.
/// @throws ShapeError if the two have not the same vocabulary
template <Element T, Device D>
void token_full_kl(D& dev, T5Weights<T, D> const& policy, T5Weights<T, D> const& reference,
                   RaggedView contexts, RaggedView responses, std::span<Accumulator<T>> kl,
                   Accumulator<T> temperature) {
  using S = Accumulator<T>;
  ArenaScope scope(dev.scratch);
  index_t const n = responses.tokens();
  index_t const vocabulary = policy.config().vocab_size;
  expects(static_cast<index_t>(kl.size()) == n, "token_full_kl: one number for each token");
  expects(reference.config().vocab_size == vocabulary,
          "token_full_kl: both models must have the same vocabulary");
  T5Weights<T, D> const* const models[2] = {&policy, &reference};
  TensorView<T, 2, D> hidden[2];
  TensorView<S, 2, D> logits[2];
  index_t const chunk = std::min(n, logit_rows);
  for (int k = 0; k < 2; ++k) {
    hidden[k] = dev.scratch.template allocate<T, 2>({n, models[k]->config().d_model});
    logits[k] = dev.scratch.template allocate<S, 2>({chunk, vocabulary});
    models[k]->model.inference(dev, models[k]->weights.views(), models[k]->prefixes(), contexts,
                               responses, hidden[k]);
  }
  auto const targets = on_device(dev, dev.scratch, responses.ids);
  auto lse = dev.scratch.template allocate<S, 2>({2, chunk});
  auto logp = dev.scratch.template allocate<S, 1>({chunk});
  auto results = dev.scratch.template allocate<S, 2>({1, n});
  for (index_t begin = 0; begin < n; begin += chunk) {
    index_t const rows = std::min(chunk, n - begin);
    auto const lse_of = [&](int k) { return detail::vector_of_row(lse, k).rows(0, rows); };
    for (int k = 0; k < 2; ++k) {
      detail::logits_and_logprobs<T>(dev, *models[k], hidden[k].rows(begin, begin + rows),
                                     targets.rows(begin, begin + rows), temperature,
                                     logits[k].rows(0, rows), logp.rows(0, rows), lse_of(k));
    }
    token_divergence(dev, detail::vector_of_row(results, 0).rows(begin, begin + rows),
                     logits[0].rows(0, rows), lse_of(0), logits[1].rows(0, rows), lse_of(1));
  }
  detail::fetch_rows(dev, results, kl);
}

template <Element T, Device D = Cpu>
class T5Reference;

/// T5 as a gen::BeamDecoder: cached, one token a row and step.
template <Element T, Device D = Cpu>
class T5Decoder {
 public:
  using value_type = Accumulator<T>;
  using State = t5::KvCache<T, D>;

  T5Decoder(D& dev, T5Weights<T, D> const& generator) : dev_(dev), generator_(generator) {}

  index_t vocabulary() const { return generator_.config().vocab_size; }

  State start(RaggedView contexts) {
    return generator_.model.start(dev_, generator_.weights.views(), generator_.prefixes(),
                                  contexts);
  }

  /// Waits for the logits, of a device.
  void step(State& state, std::span<index_t const> rows, std::span<std::int32_t const> tokens,
            TensorView<value_type, 2, Cpu> logits) {
    ArenaScope scope(dev_.scratch);
    auto const ids = on_device(dev_, dev_.scratch, tokens);
    if constexpr (std::same_as<D, Cpu>) {
      step_on_device(state, rows, ids, logits);
    } else {
      auto const there = dev_.scratch.template allocate<value_type, 2>(logits.extents());
      step_on_device(state, rows, ids, there);
      copy(dev_, logits.span(), there);
    }
  }

  /// The same with tokens (A) and logits (A, V) in the device's memory, in the order of its work.
  void step_on_device(State& state, std::span<index_t const> rows,
                      TensorView<std::int32_t const, 1, D> tokens,
                      TensorView<value_type, 2, D> logits) {
    ArenaScope scope(dev_.scratch);
    auto const active = static_cast<index_t>(rows.size());
    auto hidden = dev_.scratch.template allocate<T, 2>({active, generator_.config().d_model});
    generator_.model.decoder().step(dev_, generator_.weights.views(), generator_.prefixes(), state,
                                    rows, tokens, hidden);
    generator_.model.logits(dev_, generator_.weights.views(), hidden, logits);
  }

  /// Decoding in steps whose launches do not change (gen::DeviceDecoder).
  using InPlaceState = t5::InPlaceCache<T, D>;

  /// Memory for up to `rows` contexts of `context_tokens` together, and `most` tokens a row.
  InPlaceState in_place(index_t rows, index_t context_tokens, index_t most) {
    return generator_.model.decoder().in_place(rows, context_tokens, most);
  }

  /// Reads the contexts of the next batch, one a row; the other rows stay unused.
  void start_in_place(InPlaceState& state, RaggedView contexts) {
    generator_.model.start_in_place(dev_, generator_.weights.views(), generator_.prefixes(),
                                    contexts, state);
  }

  /// What the launches of step_in_place are made from besides their arguments: the configuration,
  /// and where weights, adapters and prefixes are.
  struct Bindings {
    t5::Config config;
    t5::Params<T, D> weights;
    t5::Prefixes<T, D> prefixes;

    bool operator==(Bindings const&) const = default;
  };
  Bindings bindings() const {
    return {generator_.config(), generator_.weights.views(), generator_.prefixes()};
  }

  /// Feeds tokens (B) to all rows, of which row b has then read length[b]; 0: it has ended. logits
  /// (B, V), those of ended rows mean nothing. All in the device's memory, in the order of its
  /// work.
  void step_in_place(InPlaceState& state, TensorView<std::int32_t const, 1, D> tokens,
                     TensorView<index_t const, 1, D> length, TensorView<value_type, 2, D> logits) {
    ArenaScope scope(dev_.scratch);
    auto hidden =
        dev_.scratch.template allocate<T, 2>({tokens.extent(0), generator_.config().d_model});
    generator_.model.decoder().step_in_place(dev_, generator_.weights.views(),
                                             generator_.prefixes(), state, length, tokens, hidden);
    generator_.model.logits(dev_, generator_.weights.views(), hidden, logits);
  }

  /// Copies what the rows have decoded; the encoded contexts are shared by all rows of one.
  void reorder(State& state, std::span<index_t const> sources) {
    state.reorder(dev_, sources, generator_.config().inner());
  }

 private:
  D& dev_;
  T5Weights<T, D> const& generator_;
};

static_assert(gen::BeamDecoder<T5Decoder<float>>);

/// T5 as an rl::Policy: log-probabilities of response tokens and their gradient. No dropout: PPO
/// compares log-probabilities of the same function.
template <Element T, Device D = Cpu>
class T5Policy {
 public:
  using Scalar = Accumulator<T>;
  using In = std::span<Scalar const>;

  struct Context {
    std::unique_ptr<ArenaScope<decltype(D::saved)>> scope;  // releases what forward kept
    typename t5::Model<T, D>::Context model;
    TensorView<T, 2, D> hidden;
    TensorView<Scalar, 2, D> logits;
    TensorView<Scalar, 1, D> lse;
    /// (3, n): log-probabilities, the entropy, and room for a value head's numbers.
    TensorView<Scalar, 2, D> results;
    TensorView<std::int32_t const, 1, D> targets;
    std::vector<Scalar> entropy;  // on the host
  };

  /// @param gradients, prefix_gradients  accumulated by backward; empty views: frozen
  /// @param temperature  divides the logits that log-probabilities are taken of
  T5Policy(D& dev, T5Weights<T, D> const& generator, t5::Params<Scalar, D> const& gradients,
           t5::Prefixes<Scalar, D> const& prefix_gradients, Scalar temperature = Scalar(1))
      : dev_(dev),
        generator_(generator),
        gradients_(gradients),
        prefix_gradients_(prefix_gradients),
        temperature_(temperature) {}

  void forward(rl::TokenBatch const& batch, std::span<Scalar> logp, Context& context) {
    forward(batch, logp, {}, context, [](auto const&) {});
  }

  /// The same for a trunk that is shared: others(values) writes what else is read off
  /// context.hidden, one number a token, which goes to `values`.
  template <class Others>
  void forward(rl::TokenBatch const& batch, std::span<Scalar> logp, std::span<Scalar> values,
               Context& context, Others&& others) {
    context.scope.reset();
    context.scope = std::make_unique<ArenaScope<decltype(D::saved)>>(dev_.saved);
    index_t const n = batch.tokens();
    context.hidden = dev_.saved.template allocate<T, 2>({n, generator_.config().d_model});
    context.logits = dev_.saved.template allocate<Scalar, 2>({n, generator_.config().vocab_size});
    context.lse = dev_.saved.template allocate<Scalar, 1>({n});
    context.results = dev_.saved.template allocate<Scalar, 2>({3, n});
    context.targets = on_device(dev_, dev_.saved, batch.responses.ids);
    DropoutSites no_dropout;
    generator_.model.forward(dev_, generator_.weights.views(), generator_.prefixes(),
                             batch.contexts, batch.responses, context.hidden, context.model,
                             no_dropout);
    detail::logits_and_logprobs<T>(dev_, generator_, context.hidden, context.targets, temperature_,
                                   context.logits, detail::vector_of_row(context.results, 0),
                                   context.lse, detail::vector_of_row(context.results, 1));
    others(detail::vector_of_row(context.results, 2));
    context.entropy.resize(static_cast<std::size_t>(n));
    detail::fetch_rows(dev_, context.results.rows(0, values.empty() ? 2 : 3), logp,
                       std::span<Scalar>(context.entropy), values);
  }

  void inference(rl::TokenBatch const& batch, std::span<Scalar> logp,
                 std::span<Scalar> values = {}) {
    token_logprobs(dev_, generator_, batch.contexts, batch.responses, logp, values, temperature_);
  }

  /// Exact divergence from a frozen T5 at every token.
  void full_kl(T5Reference<T, D> const& reference, rl::TokenBatch const& batch,
               std::span<Scalar> kl) {
    token_full_kl(dev_, generator_, reference.generator(), batch.contexts, batch.responses, kl,
                  temperature_);
  }

  void entropy(std::span<Scalar> out, Context const& context) const {
    std::copy_n(context.entropy.data(), out.size(), out.data());
  }

  /// Gradients += . The context is used up.
  void backward(In dlogp, Context& context) { backward(dlogp, {}, context); }

  /// The same with the gradient of the entropy.
  void backward(In dlogp, In dentropy, Context& context) {
    backward(dlogp, dentropy, {}, context, [](auto const&, auto const&) {});
  }

  /// The same for a trunk that is shared: others(dvalues, dhidden) adds (+=) to the gradient of the
  /// decoder's last state (tokens, d_model) what the other numbers' gradients are to it.
  template <class Others>
  void backward(In dlogp, In dentropy, In dvalues, Context& context, Others&& others) {
    ArenaScope scope(dev_.scratch);
    std::vector<Scalar> all;
    for (In const part : {dlogp, dentropy, dvalues})
      all.insert(all.end(), part.begin(), part.end());
    auto const gradients = on_device(dev_, dev_.scratch, std::span<Scalar const>(all));
    index_t at = 0;
    auto const next = [&](In part) {
      auto const begin = at;
      at += static_cast<index_t>(part.size());
      return part.empty() ? TensorView<Scalar const, 1, D>{} : gradients.rows(begin, at);
    };
    auto const of_logp = next(dlogp);
    auto const of_entropy = next(dentropy);
    auto const of_values = next(dvalues);
    auto dhidden = dev_.scratch.template allocate<T, 2>(context.hidden.extents());
    token_logprob_backward<Scalar>(
        dev_, context.logits, of_logp, context.lse, context.targets, of_entropy,
        dentropy.empty() ? TensorView<Scalar, 1, D>{} : detail::vector_of_row(context.results, 1));
    if (temperature_ != Scalar(1)) scale(dev_, context.logits, Scalar(1) / temperature_);
    generator_.model.logits_backward(dev_, generator_.weights.views(), gradients_, context.logits,
                                     context.hidden, dhidden);
    others(of_values, dhidden);
    generator_.model.backward(dev_, generator_.weights.views(), gradients_, prefix_gradients_,
                              dhidden, context.model);
    context.scope.reset();
  }

 private:
  D& dev_;
  T5Weights<T, D> const& generator_;
  t5::Params<Scalar, D> gradients_;
  t5::Prefixes<Scalar, D> prefix_gradients_;
  Scalar temperature_;
};

/// T5 with a value head as an rl::ActorCritic: one trunk, two heads, whose gradients add up at the
/// decoder's last state.
template <Element T, Device D = Cpu>
class T5ActorCritic {
 public:
  using Scalar = Accumulator<T>;
  using In = std::span<Scalar const>;

  struct Context {
    typename T5Policy<T, D>::Context policy;
    typename nn::ValueHead<T, D>::Context value;
  };

  /// @param gradients, prefix_gradients, value_gradients  accumulated by backward; empty views:
  /// frozen
  /// @param temperature  divides the logits that log-probabilities are taken of
  /// @throws ConfigError if the generator has no value head
  T5ActorCritic(D& dev, T5Weights<T, D> const& generator, t5::Params<Scalar, D> const& gradients,
                t5::Prefixes<Scalar, D> const& prefix_gradients,
                typename nn::ValueHead<Scalar, D>::Params const& value_gradients,
                Scalar temperature = Scalar(1))
      : dev_(dev),
        generator_(generator),
        policy_(dev, generator, gradients, prefix_gradients, temperature),
        value_gradients_(value_gradients) {
    expects<ConfigError>(generator.value_head.size() > 0,
                         "an actor-critic needs a model with a value head.");
  }

  void forward(rl::TokenBatch const& batch, std::span<Scalar> logp, std::span<Scalar> values,
               Context& context) {
    policy_.forward(batch, logp, values, context.policy,
                    [&](TensorView<Scalar, 1, D> const& result) {
                      value_head_.forward(dev_, generator_.value_head.views(),
                                          context.policy.hidden, result, context.value);
                    });
  }

  void inference(rl::TokenBatch const& batch, std::span<Scalar> logp, std::span<Scalar> values) {
    policy_.inference(batch, logp, values);
  }

  void full_kl(T5Reference<T, D> const& reference, rl::TokenBatch const& batch,
               std::span<Scalar> kl) {
    policy_.full_kl(reference, batch, kl);
  }

  void entropy(std::span<Scalar> out, Context const& context) const {
    policy_.entropy(out, context.policy);
  }

  /// Gradients += . The context is used up.
  void backward(In dlogp, In dvalues, Context& context) { backward(dlogp, dvalues, {}, context); }

  /// The same with the gradient of the entropy.
  void backward(In dlogp, In dvalues, In dentropy, Context& context) {
    policy_.backward(
        dlogp, dentropy, dvalues, context.policy,
        [&](TensorView<Scalar const, 1, D> const& gradient, TensorView<T, 2, D> const& dhidden) {
          value_head_.backward(dev_, generator_.value_head.views(), value_gradients_, gradient,
                               dhidden, context.value);
        });
  }

 private:
  D& dev_;
  T5Weights<T, D> const& generator_;
  T5Policy<T, D> policy_;
  nn::ValueHead<T, D> value_head_;
  typename nn::ValueHead<Scalar, D>::Params value_gradients_;
};

static_assert(rl::Policy<T5Policy<float>> && rl::InferringActor<rl::PolicyOnly<T5Policy<float>>> &&
              rl::TrainsEntropy<rl::PolicyOnly<T5Policy<float>>>);
static_assert(rl::InferringActor<T5ActorCritic<float>> && rl::TrainsEntropy<T5ActorCritic<float>>);

/// A frozen T5 as an rl::ReferencePolicy.
template <Element T, Device D>
class T5Reference {
 public:
  using Scalar = Accumulator<T>;

  T5Reference(D& dev, T5Weights<T, D> const& generator, Scalar temperature = Scalar(1))
      : dev_(dev), generator_(generator), temperature_(temperature) {}

  void logprobs(rl::TokenBatch const& batch, std::span<Scalar> logp) {
    token_logprobs(dev_, generator_, batch.contexts, batch.responses, logp, {}, temperature_);
  }

  T5Weights<T, D> const& generator() const { return generator_; }

 private:
  D& dev_;
  T5Weights<T, D> const& generator_;
  Scalar temperature_;
};

static_assert(rl::ReportsFullKl<T5ActorCritic<float>, T5Reference<float>> &&
              rl::ReportsFullKl<rl::PolicyOnly<T5Policy<float>>, T5Reference<float>>);
static_assert(rl::ReferencePolicy<T5Reference<float>, float>);

}  // namespace emprl::train
