// SPDX-License-Identifier: Apache-2.0
#pragma once

// The empathy identifier: how strongly a response shows one communication mechanism (emotional
// reaction, interpretation or exploration; Sharma et al. 2020), with T5 encoders as EmpRL uses
// them.
//
//   h = E_r(response),  a = attention(h, E_c(context)) of one head of width C, scaled by 1/sqrt(C)
//   pooled = mean over the response of (h + dropout(a))
//   logits = W_3 dropout(tanh(W_0 pooled + b_0)) + b_3
//
// Nc, Nr packed context and response tokens, B pairs, C model, 3 levels.

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>

#include "emprl/nn/attention.hpp"
#include "emprl/nn/linear.hpp"
#include "emprl/ops/dropout.hpp"
#include "emprl/ops/elementwise.hpp"
#include "emprl/ops/token_logprob.hpp"
#include "emprl/t5/encoder.hpp"
#include "emprl/t5/parameters.hpp"

namespace emprl::empathy {

/// Levels of a mechanism: none, weak, strong.
inline constexpr index_t level_count = 3;

/// An identifier's weights, under the names of the published EmpRL scripts.
template <Element T, Device D>
struct IdentifierParams {
  t5::Params<T, D> context_encoder;  // the encoder half only
  t5::Params<T, D> response_encoder;
  nn::AttentionParams<T, D> attention;       // (C, C) and biases
  typename nn::Linear<T, D>::Params hidden;  // classifier.0: (C/2, C)
  typename nn::Linear<T, D>::Params output;  // classifier.3: (3, C/2)

  template <class F>
  void visit(t5::Config const& c, F&& f) {
    using Matrix = std::array<index_t, 2>;
    using Vector = std::array<index_t, 1>;
    context_encoder.visit_encoder(c, "context_encoder.", f);
    response_encoder.visit_encoder(c, "response_encoder.", f);
    f("attn.q_linear.weight", attention.q, Matrix{c.d_model, c.d_model});
    f("attn.k_linear.weight", attention.k, Matrix{c.d_model, c.d_model});
    f("attn.v_linear.weight", attention.v, Matrix{c.d_model, c.d_model});
    f("attn.out.weight", attention.o, Matrix{c.d_model, c.d_model});
    f("attn.q_linear.bias", attention.q_bias, Vector{c.d_model});
    f("attn.k_linear.bias", attention.k_bias, Vector{c.d_model});
    f("attn.v_linear.bias", attention.v_bias, Vector{c.d_model});
    f("attn.out.bias", attention.o_bias, Vector{c.d_model});
    hidden.visit("classifier.0", c.d_model / 2, c.d_model, f);
    output.visit("classifier.3", level_count, c.d_model / 2, f);
  }
};

template <Element T, Device D>
using IdentifierParameters = nn::ParameterStore<IdentifierParams<T, D>, T, D>;

/// An identifier without parameters of its own.
template <Element T, Device D>
class Identifier {
 public:
  struct Context {
    typename t5::Encoder<T, D>::Context context_encoder, response_encoder;
    typename nn::CrossAttention<T, D>::Context attention;
    TensorView<T, 2, D> memory;     // (Nc, C)
    TensorView<T, 2, D> states;     // (Nr, C)
    TensorView<T, 2, D> pooled;     // (B, C)
    TensorView<T, 2, D> activated;  // (B, C/2), after tanh
    TensorView<T, 2, D> dropped;    // (B, C/2), after dropout
    DropoutKey attention_dropout, hidden_dropout;
    TensorView<index_t const, 1, D> response_offsets;
  };

  /// @throws ConfigError if a field of the configuration cannot be
  explicit Identifier(t5::Config const& config)
      : config_((config.validate(), config)),
        encoder_(config),
        attention_(1, Accumulator<T>(1) / std::sqrt(static_cast<Accumulator<T>>(config.d_model))) {}

  t5::Config const& config() const { return config_; }

  /// logits (B, 3), without dropout.
  void inference(D& dev, IdentifierParams<T, D> const& p, RaggedView contexts, RaggedView responses,
                 TensorView<T, 2, D> logits) const {
    ArenaScope scope(dev.scratch);
    auto const source = t5::tokens_of(dev, dev.scratch, contexts);
    auto const target = t5::tokens_of(dev, dev.scratch, responses);
    auto memory = dev.scratch.template allocate<T, 2>({contexts.tokens(), config_.d_model});
    auto states = dev.scratch.template allocate<T, 2>({responses.tokens(), config_.d_model});
    auto pooled = dev.scratch.template allocate<T, 2>({responses.rows(), config_.d_model});
    auto hidden = dev.scratch.template allocate<T, 2>({responses.rows(), config_.d_model / 2});
    encoder_.inference(dev, p.context_encoder, source, {}, memory);
    encoder_.inference(dev, p.response_encoder, target, {}, states);
    // In place: the queries are read before what they find is added.
    attention_.inference(
        dev, p.attention,
        {memory, target.offsets, source.offsets, {}, target.longest, source.longest}, states,
        states, states);
    segment_mean_forward(dev, pooled, states, target.offsets);
    linear_forward(dev, hidden, pooled, p.hidden.weight, p.hidden.bias);
    tanh_forward(dev, hidden, hidden);
    linear_forward(dev, logits, hidden, p.output.weight, p.output.bias);
  }

  /// As inference, with dropout, keeping in dev.saved what backward needs. contexts and responses
  /// must outlive it.
  void forward(D& dev, IdentifierParams<T, D> const& p, RaggedView contexts, RaggedView responses,
               TensorView<T, 2, D> logits, Context& context, DropoutSites& sites) const {
    auto const source = t5::tokens_of(dev, dev.saved, contexts);
    auto const target = t5::tokens_of(dev, dev.saved, responses);
    auto const saved = [&dev](index_t rows, index_t columns) {
      return dev.saved.template allocate<T, 2>({rows, columns});
    };
    context.memory = saved(contexts.tokens(), config_.d_model);
    context.states = saved(responses.tokens(), config_.d_model);
    context.pooled = saved(responses.rows(), config_.d_model);
    context.activated = saved(responses.rows(), config_.d_model / 2);
    context.dropped = saved(responses.rows(), config_.d_model / 2);
    context.response_offsets = target.offsets;
    encoder_.forward(dev, p.context_encoder, source, {}, context.memory, context.context_encoder,
                     sites);
    encoder_.forward(dev, p.response_encoder, target, {}, context.states, context.response_encoder,
                     sites);
    // The identifier's dropout falls on what attention adds, not on its probabilities.
    DropoutSites none;
    bool const drops = sites.active();
    auto attended = saved(responses.tokens(), config_.d_model);
    attention_.forward(
        dev, p.attention,
        {context.memory, target.offsets, source.offsets, {}, target.longest, source.longest},
        context.states, attended, context.attention, none,
        drops ? In<T, 2, D>() : In<T, 2, D>(context.states));
    context.attention_dropout = sites.next();
    if (drops) {
      dropout_add(dev, attended, attended, context.states, context.attention_dropout);
    }
    segment_mean_forward(dev, context.pooled, attended, target.offsets);
    linear_forward(dev, context.activated, context.pooled, p.hidden.weight, p.hidden.bias);
    tanh_forward(dev, context.activated, context.activated);
    context.hidden_dropout = sites.next();
    dropout_forward(dev, context.dropped, context.activated, context.hidden_dropout);
    linear_forward(dev, logits, context.dropped, p.output.weight, p.output.bias);
  }

  /// grads += .     dlogits (B, 3)
  void backward(D& dev, IdentifierParams<T, D> const& p,
                IdentifierParams<Accumulator<T>, D> const& grads, In<T, 2, D> dlogits,
                Context const& context) const {
    ArenaScope scope(dev.scratch);
    auto dhidden = dev.scratch.template allocate<T, 2>(context.activated.extents());
    auto dpooled = dev.scratch.template allocate<T, 2>(context.pooled.extents());
    auto dstates = dev.scratch.template allocate<T, 2>(context.states.extents());
    auto dquery = dev.scratch.template allocate<T, 2>(context.states.extents());
    auto dmemory = dev.scratch.template allocate<T, 2>(context.memory.extents());
    linear_backward(dev, dhidden, grads.output.weight, grads.output.bias, dlogits, context.dropped,
                    p.output.weight);
    dropout_apply(dev, dhidden, context.hidden_dropout);
    tanh_backward(dev, dhidden, dhidden, context.activated);
    linear_backward(dev, dpooled, grads.hidden.weight, grads.hidden.bias, dhidden, context.pooled,
                    p.hidden.weight);
    segment_mean_backward(dev, dstates, dpooled, context.response_offsets);
    In<T, 2, D> dattended = dstates;
    if (context.attention_dropout.active()) {
      auto const dropped = dev.scratch.template allocate<T, 2>(dstates.extents());
      dropout_forward(dev, dropped, dstates, context.attention_dropout);
      dattended = dropped;
    }
    clear(dev, dmemory);
    attention_.backward(dev, p.attention, grads.attention, dattended, dquery, dmemory,
                        context.attention, {});
    add(dev, dstates, dquery);
    encoder_.backward(dev, p.response_encoder, grads.response_encoder, {}, dstates,
                      context.response_encoder);
    encoder_.backward(dev, p.context_encoder, grads.context_encoder, {}, dmemory,
                      context.context_encoder);
  }

 private:
  t5::Config config_;
  t5::Encoder<T, D> encoder_;
  nn::CrossAttention<T, D> attention_;
};

/// Fills a new identifier: both encoders with the weights of a T5 (the published identifiers start
/// from a pre-trained one; without one, the fine-tuned generator's encoder serves), the head as
/// PyTorch initialises linear layers: uniform in +-1/sqrt(inputs).
/// @throws ShapeError if the encoder has another shape
template <Scalar T>
void initialise(IdentifierParameters<T, Cpu>& parameters, t5::Config const& config,
                t5::Parameters<T, Cpu> const& from, std::uint64_t seed) {
  std::uint32_t row = 0;
  for (nn::ParameterInfo const& info : parameters.infos()) {
    std::span<T> const values = parameters.span(info);
    RandomSequence random(seed, Stream::initialise, 1, row++);
    std::string_view name = info.name;
    bool const encoder =
        name.starts_with("context_encoder.") || name.starts_with("response_encoder.");
    if (!encoder) {
      // Biases draw from the range of the weights beside them, whose inputs are C or, for the last
      // layer, C/2.
      index_t const inputs = name.starts_with("classifier.3") ? config.d_model / 2 : config.d_model;
      double const bound = 1.0 / std::sqrt(static_cast<double>(inputs));
      for (T& x : values) x = static_cast<T>(bound * (2.0 * random.uniform() - 1.0));
      continue;
    }
    name.remove_prefix(name.find('.') + 1);
    bool found = false;
    for (nn::ParameterInfo const& source : from.infos()) {
      if (source.name != name) continue;
      expects(source.shape == info.shape,
              "the identifier and the encoder it starts from differ in shape");
      auto const weights = from.span(source);
      std::copy(weights.begin(), weights.end(), values.begin());
      found = true;
    }
    expects(found, "the model that an identifier starts from lacks a weight of its encoder");
  }
}

}  // namespace emprl::empathy
