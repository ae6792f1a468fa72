// SPDX-License-Identifier: Apache-2.0
#pragma once

// T5's weights, under Hugging Face's names, and their initialisation from scratch.

#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/core/rng.hpp"
#include "emprl/nn/attention.hpp"
#include "emprl/nn/feed_forward.hpp"
#include "emprl/nn/parameters.hpp"
#include "emprl/nn/pre_norm.hpp"
#include "emprl/t5/config.hpp"

namespace emprl::t5 {

/// One layer of a stack. The encoder's layers have no cross-attention.
template <Element T, Device D>
struct BlockParams {
  typename nn::PreNorm<T, D>::Params self_norm;
  nn::AttentionParams<T, D> self_attention;
  typename nn::PreNorm<T, D>::Params cross_norm;
  nn::AttentionParams<T, D> cross_attention;
  typename nn::PreNorm<T, D>::Params feed_forward_norm;
  typename nn::FeedForward<T, D>::Params feed_forward;

  bool operator==(BlockParams const&) const = default;
};

/// A stack: its layers, the bias table that they share, and the norm at its end.
template <Element T, Device D>
struct StackParams {
  std::vector<BlockParams<T, D>> blocks;
  TensorView<T, 2, D> relative_bias;  // (buckets, H)
  TensorView<T, 1, D> final_norm;     // (C)

  bool operator==(StackParams const&) const = default;
};

/// All weights of a model. Two are equal if they are the same views: in the same places, whatever
/// is there.
template <Element T, Device D>
struct Params {
  TensorView<T, 2, D> shared;  // (V, C)
  StackParams<T, D> encoder;
  StackParams<T, D> decoder;
  TensorView<T, 2, D> lm_head;  // (V, C); empty when tied

  bool operator==(Params const&) const = default;

  /// The matrix that makes logits of hidden states.
  TensorView<T, 2, D> output_embedding() const { return lm_head.empty() ? shared : lm_head; }

  /// Calls f(name, view, extents) for every weight. @see nn::ParameterStore
  template <class F>
  void visit(Config const& c, F&& f) {
    visit_encoder(c, "", f);
    visit_stack(c, decoder, "decoder", true, f, weights_to(f));
    if (!c.tie_word_embeddings)
      f("lm_head.weight", lm_head, std::array<index_t, 2>{c.vocab_size, c.d_model});
  }

  /// The weights of an encoder alone, each name behind `prefix`; the rest stay empty.
  template <class F>
  void visit_encoder(Config const& c, std::string const& prefix, F&& f) {
    f(prefix + "shared.weight", shared, std::array<index_t, 2>{c.vocab_size, c.d_model});
    visit_stack(c, encoder, prefix + "encoder", false, f, weights_to(f));
  }

  /// Calls f(name, weight, lora, extents) for every projection in the layers: the matrices that can
  /// have a LoRA beside them. The name is the module's, without ".weight"; extents are the
  /// weight's, (outputs, inputs).
  template <class F>
  void visit_projections(Config const& c, F&& f) {
    auto const nothing = [](auto const&...) {};
    visit_stack(c, encoder, "encoder", false, nothing, f);
    visit_stack(c, decoder, "decoder", true, nothing, f);
  }

 private:
  /// Of a projection, f sees the weight alone.
  template <class F>
  static auto weights_to(F& f) {
    return [&f](std::string const& name, TensorView<T, 2, D>& weight, auto const&,
                std::array<index_t, 2> extents) { f(name + ".weight", weight, extents); };
  }

  /// f takes what is no projection, `projection` what is one.
  template <class F, class G>
  static void visit_stack(Config const& c, StackParams<T, D>& stack, std::string const& name,
                          bool decoder_stack, F&& f, G&& projection) {
    using Matrix = std::array<index_t, 2>;
    using Vector = std::array<index_t, 1>;
    stack.blocks.resize(
        static_cast<std::size_t>(decoder_stack ? c.num_decoder_layers : c.num_layers));
    for (std::size_t i = 0; i < stack.blocks.size(); ++i) {
      BlockParams<T, D>& b = stack.blocks[i];
      std::string const layer = name + ".block." + std::to_string(i) + ".layer.";
      auto const visit_attention = [&](auto& a, std::string const& at) {
        projection(at + ".q", a.q, a.lora_q, Matrix{c.inner(), c.d_model});
        projection(at + ".k", a.k, a.lora_k, Matrix{c.inner(), c.d_model});
        projection(at + ".v", a.v, a.lora_v, Matrix{c.inner(), c.d_model});
        projection(at + ".o", a.o, a.lora_o, Matrix{c.d_model, c.inner()});
      };
      visit_attention(b.self_attention, layer + "0.SelfAttention");
      if (i == 0) {
        f(layer + "0.SelfAttention.relative_attention_bias.weight", stack.relative_bias,
          Matrix{c.relative_attention_num_buckets, c.num_heads});
      }
      f(layer + "0.layer_norm.weight", b.self_norm.weight, Vector{c.d_model});
      if (decoder_stack) {
        visit_attention(b.cross_attention, layer + "1.EncDecAttention");
        f(layer + "1.layer_norm.weight", b.cross_norm.weight, Vector{c.d_model});
      }
      std::string const last = layer + (decoder_stack ? "2" : "1");
      bool const gated = c.feed_forward == nn::Activation::gated_gelu;
      auto& dense = b.feed_forward;
      projection(last + (gated ? ".DenseReluDense.wi_0" : ".DenseReluDense.wi"), dense.wi,
                 dense.lora_wi, Matrix{c.d_ff, c.d_model});
      if (gated) {
        projection(last + ".DenseReluDense.wi_1", dense.wg, dense.lora_wg,
                   Matrix{c.d_ff, c.d_model});
      }
      projection(last + ".DenseReluDense.wo", dense.wo, dense.lora_wo, Matrix{c.d_model, c.d_ff});
      f(last + ".layer_norm.weight", b.feed_forward_norm.weight, Vector{c.d_model});
    }
    f(name + ".final_layer_norm.weight", stack.final_norm, Vector{c.d_model});
  }
};

template <Element T, Device D>
using Parameters = nn::ParameterStore<Params<T, D>, T, D>;

/// The standard deviation with which Mesh TensorFlow draws a weight of T5: 1 for embeddings,
/// (d_model d_kv)^-0.5 for queries, d_model^-0.5 for keys, values, feed-forward inputs, the
/// relative bias and an untied output embedding, (heads d_kv)^-0.5 for attention outputs, d_ff^-0.5
/// for feed-forward outputs.
inline double initial_deviation(std::string_view name, Config const& c) {
  auto const d = static_cast<double>(c.d_model);
  if (name.ends_with("shared.weight")) return 1.0;
  if (name.ends_with(".q.weight")) return 1.0 / std::sqrt(d * static_cast<double>(c.d_kv));
  if (name.ends_with("Attention.o.weight")) return 1.0 / std::sqrt(static_cast<double>(c.inner()));
  if (name.ends_with(".wo.weight")) return 1.0 / std::sqrt(static_cast<double>(c.d_ff));
  return 1.0 / std::sqrt(d);
}

/// Fills the weights with normal numbers of those deviations, norms with ones. Each weight has its
/// own stream of numbers, so that none depends on another's size.
template <Scalar T>
void initialise(Parameters<T, Cpu>& parameters, Config const& c, std::uint64_t seed) {
  std::uint32_t row = 0;
  for (nn::ParameterInfo const& info : parameters.infos()) {
    std::span<T> const values = parameters.span(info);
    RandomSequence random(seed, Stream::initialise, 0, row++);
    if (info.shape.size() == 1) {
      for (T& x : values) x = T(1);
    } else {
      double const sigma = initial_deviation(info.name, c);
      for (T& x : values) x = static_cast<T>(sigma * random.normal());
    }
  }
}

}  // namespace emprl::t5
