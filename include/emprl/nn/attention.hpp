// SPDX-License-Identifier: Apache-2.0
#pragma once

// Multi-head attention with its four projections, each of which may have a LoRA beside it: over a
// sequence itself, and over another one.

#include "emprl/nn/lora.hpp"
#include "emprl/nn/parameters.hpp"
#include "emprl/ops/attention.hpp"
#include "emprl/ops/elementwise.hpp"
#include "emprl/ops/linear.hpp"

namespace emprl::nn {

/// Key and value vectors in front of a layer's own (Li & Liang 2021); the same for every batch row.
/// P positions.
template <class T, class D>
struct PrefixKeys {
  TensorView<T, 2, D> key;    // (P, H*Dh), empty for none
  TensorView<T, 2, D> value;  // (P, H*Dh)
};

/// What self-attention needs beside its input: the rows' extents, and what is added to their keys.
template <class T, class D>
struct SelfAttentionInputs {
  TensorView<index_t const, 1, D> offsets;      // (B+1)
  TensorView<Accumulator<T> const, 2, D> bias;  // (H, R), empty for none
  index_t bias_first = 0;
  PrefixKeys<T, D> prefix;
  index_t longest = 0;  // the longest row; 0 for not known, which costs time on a GPU
};

/// What cross-attention needs beside its query input.
template <class T, class D>
struct CrossAttentionInputs {
  TensorView<T const, 2, D> memory;         // (Nk, C): the sequence attended to
  TensorView<index_t const, 1, D> offsets;  // (B+1) of the queries
  TensorView<index_t const, 1, D> memory_offsets;
  PrefixKeys<T, D> prefix;
  index_t longest = 0;  // the longest row of queries, and of the memory; 0 for not known
  index_t memory_longest = 0;
};

/// The projections of an attention layer. T5's have no biases; the empathy identifier's have.
template <Element T, Device D>
struct AttentionParams {
  TensorView<T, 2, D> q, k, v;                      // (H*Dh, C), neighbours in memory
  TensorView<T, 2, D> o;                            // (C, H*Dh)
  TensorView<T, 1, D> q_bias, k_bias, v_bias;       // (H*Dh), neighbours in memory; empty for none
  TensorView<T, 1, D> o_bias;                       // (C)
  LoraParams<T, D> lora_q, lora_k, lora_v, lora_o;  // empty for none

  bool operator==(AttentionParams const&) const = default;
};

namespace detail {

/// The attention op's inputs, from the views of a layer.
template <class T, class D>
AttentionInputs<T, D> attention_inputs(In<T, 2, D> q, In<T, 2, D> k, In<T, 2, D> v, index_t heads,
                                       Accumulator<T> scale, PrefixKeys<T, D> const& prefix,
                                       DropoutKey dropout) {
  AttentionInputs<T, D> in;
  in.q = q;
  in.k = k;
  in.v = v;
  in.heads = heads;
  in.scale = scale;
  in.prefix_k = prefix.key;
  in.prefix_v = prefix.value;
  in.dropout = dropout;
  return in;
}

}  // namespace detail

/// y = W_o attention(W_q x, W_k x, W_v x).      N rows, C model, H heads of width Dh. A residual
/// that is given, which may be y, is added to y.
template <Element T, Device D>
class SelfAttention {
 public:
  using Params = AttentionParams<T, D>;
  using Gradients = AttentionParams<Accumulator<T>, D>;
  struct Context {
    TensorView<T const, 2, D> x;  // (N, C), borrowed
    SelfAttentionInputs<T, D> inputs;
    TensorView<T, 2, D> qkv;               // (N, 3*H*Dh)
    TensorView<T, 2, D> mixed;             // (N, H*Dh), before W_o
    TensorView<Accumulator<T>, 2, D> lse;  // (H, N)
    DropoutKey dropout;
    typename Lora<T, D>::Context lora_q, lora_k, lora_v, lora_o;
  };

  SelfAttention(index_t heads, Mask mask) : heads_(heads), mask_(mask) {}

  /// Queries, keys and values of x, side by side in qkv (N, 3*H*Dh).
  /// @param x  rows, or rows to be normalised
  template <class X>
  void project(D& dev, Params const& p, X&& x, TensorView<T, 2, D> qkv) const {
    index_t const width = p.q.extent(0);
    linear_forward(dev, qkv, x, stacked(p.q, p.k, p.v));
    lora_.inference(dev, p.lora_q, x, qkv.columns(0, width));
    lora_.inference(dev, p.lora_k, x, qkv.columns(width, 2 * width));
    lora_.inference(dev, p.lora_v, x, qkv.columns(2 * width, 3 * width));
  }

  /// y (N, C) = residual + W_o mixed.
  void project_out(D& dev, Params const& p, In<T, 2, D> mixed, TensorView<T, 2, D> y,
                   In<T, 2, D> residual = {}) const {
    linear_forward(dev, y, mixed, p.o, {}, residual);
    lora_.inference(dev, p.lora_o, mixed, y);
  }

  void inference(D& dev, Params const& p, SelfAttentionInputs<T, D> const& inputs, In<T, 2, D> x,
                 TensorView<T, 2, D> y, In<T, 2, D> residual = {}) const {
    ArenaScope scope(dev.scratch);
    auto qkv = dev.scratch.template allocate<T, 2>({y.extent(0), 3 * p.q.extent(0)});
    auto mixed = dev.scratch.template allocate<T, 2>({y.extent(0), p.q.extent(0)});
    project(dev, p, x, qkv);
    attention_forward(dev, mixed, {}, op_inputs(inputs, qkv, {}));
    project_out(dev, p, mixed, y, residual);
  }

  void forward(D& dev, Params const& p, SelfAttentionInputs<T, D> const& inputs, In<T, 2, D> x,
               TensorView<T, 2, D> y, Context& context, DropoutSites& sites,
               In<T, 2, D> residual = {}) const {
    index_t const width = p.q.extent(0);
    context.x = x;
    context.inputs = inputs;
    context.dropout = sites.next();
    context.qkv = dev.saved.template allocate<T, 2>({x.extent(0), 3 * width});
    context.mixed = dev.saved.template allocate<T, 2>({x.extent(0), width});
    context.lse = dev.saved.template allocate<Accumulator<T>, 2>({heads_, x.extent(0)});
    linear_forward(dev, context.qkv, x, stacked(p.q, p.k, p.v));
    lora_.forward(dev, p.lora_q, x, context.qkv.columns(0, width), context.lora_q, sites);
    lora_.forward(dev, p.lora_k, x, context.qkv.columns(width, 2 * width), context.lora_k, sites);
    lora_.forward(dev, p.lora_v, x, context.qkv.columns(2 * width, 3 * width), context.lora_v,
                  sites);
    attention_forward(dev, context.mixed, context.lse,
                      op_inputs(inputs, context.qkv, context.dropout));
    linear_forward(dev, y, context.mixed, p.o, {}, residual);
    lora_.forward(dev, p.lora_o, context.mixed, y, context.lora_o, sites);
  }

  /// grads, dbias, dprefix += (empty views: not needed); dx = .
  void backward(D& dev, Params const& p, Gradients const& grads, In<T, 2, D> dy,
                TensorView<T, 2, D> dx, Context const& context,
                TensorView<Accumulator<T>, 2, D> dbias,
                PrefixKeys<Accumulator<T>, D> const& dprefix) const {
    ArenaScope scope(dev.scratch);
    index_t const width = p.q.extent(0);
    auto dmixed = dev.scratch.template allocate<T, 2>({dy.extent(0), width});
    auto dqkv = dev.scratch.template allocate<T, 2>({dy.extent(0), 3 * width});
    linear_backward(dev, dmixed, grads.o, {}, dy, context.mixed, p.o);
    lora_.backward(dev, p.lora_o, grads.lora_o, dy, dmixed, context.lora_o);
    AttentionGradients<T, D> out;
    out.dq = dqkv.columns(0, width);
    out.dk = dqkv.columns(width, 2 * width);
    out.dv = dqkv.columns(2 * width, 3 * width);
    out.dbias = dbias;
    out.dprefix_k = dprefix.key;
    out.dprefix_v = dprefix.value;
    attention_backward(dev, out, op_inputs(context.inputs, context.qkv, context.dropout),
                       context.mixed, context.lse, dmixed);
    linear_backward(dev, dx, stacked(grads.q, grads.k, grads.v), {}, dqkv, context.x,
                    stacked(p.q, p.k, p.v));
    lora_.backward(dev, p.lora_q, grads.lora_q, out.dq, dx, context.lora_q);
    lora_.backward(dev, p.lora_k, grads.lora_k, out.dk, dx, context.lora_k);
    lora_.backward(dev, p.lora_v, grads.lora_v, out.dv, dx, context.lora_v);
  }

 private:
  AttentionInputs<T, D> op_inputs(SelfAttentionInputs<T, D> const& inputs, In<T, 2, D> qkv,
                                  DropoutKey dropout) const {
    index_t const width = qkv.extent(1) / 3;
    auto in = detail::attention_inputs<T, D>(qkv.columns(0, width), qkv.columns(width, 2 * width),
                                             qkv.columns(2 * width, 3 * width), heads_, 1,
                                             inputs.prefix, dropout);
    in.q_offsets = inputs.offsets;
    in.k_offsets = inputs.offsets;
    in.longest_queries = inputs.longest;
    in.longest_keys = inputs.longest;
    in.mask = mask_;
    in.bias = inputs.bias;
    in.bias_first = inputs.bias_first;
    return in;
  }

  index_t heads_;
  Mask mask_;
  Lora<T, D> lora_;
};

/// y = W_o attention(W_q x, W_k memory, W_v memory) (+ biases).      Nq, Nk rows, C model, H heads
/// of width Dh. A residual that is given, which may be y, is added to y.
template <Element T, Device D>
class CrossAttention {
 public:
  using Params = AttentionParams<T, D>;
  using Gradients = AttentionParams<Accumulator<T>, D>;
  struct Context {
    TensorView<T const, 2, D> x;  // (Nq, C), borrowed
    CrossAttentionInputs<T, D> inputs;
    TensorView<T, 2, D> q;                 // (Nq, H*Dh)
    TensorView<T, 2, D> kv;                // (Nk, 2*H*Dh)
    TensorView<T, 2, D> mixed;             // (Nq, H*Dh), before W_o
    TensorView<Accumulator<T>, 2, D> lse;  // (H, Nq)
    DropoutKey dropout;
    typename Lora<T, D>::Context lora_q, lora_k, lora_v, lora_o;
  };

  CrossAttention(index_t heads, Accumulator<T> scale) : heads_(heads), scale_(scale) {}

  /// Keys and values of the memory, side by side in kv (Nk, 2*H*Dh). Decoding computes them once
  /// and caches them.
  void project_memory(D& dev, Params const& p, In<T, 2, D> memory, TensorView<T, 2, D> kv) const {
    index_t const width = p.k.extent(0);
    linear_forward(dev, kv, memory, stacked(p.k, p.v), stacked(p.k_bias, p.v_bias));
    lora_.inference(dev, p.lora_k, memory, kv.columns(0, width));
    lora_.inference(dev, p.lora_v, memory, kv.columns(width, 2 * width));
  }

  /// The queries of x in q (Nq, H*Dh).
  /// @param x  rows, or rows to be normalised
  template <class X>
  void project_queries(D& dev, Params const& p, X&& x, TensorView<T, 2, D> q) const {
    linear_forward(dev, q, x, p.q, p.q_bias);
    lora_.inference(dev, p.lora_q, x, q);
  }

  /// y (Nq, C) = residual + W_o mixed (+ bias).
  void project_out(D& dev, Params const& p, In<T, 2, D> mixed, TensorView<T, 2, D> y,
                   In<T, 2, D> residual = {}) const {
    linear_forward(dev, y, mixed, p.o, p.o_bias, residual);
    lora_.inference(dev, p.lora_o, mixed, y);
  }

  void inference(D& dev, Params const& p, CrossAttentionInputs<T, D> const& inputs, In<T, 2, D> x,
                 TensorView<T, 2, D> y, In<T, 2, D> residual = {}) const {
    ArenaScope scope(dev.scratch);
    index_t const width = p.q.extent(0);
    auto q = dev.scratch.template allocate<T, 2>({y.extent(0), width});
    auto kv = dev.scratch.template allocate<T, 2>({inputs.memory.extent(0), 2 * width});
    auto mixed = dev.scratch.template allocate<T, 2>({y.extent(0), width});
    project_queries(dev, p, x, q);
    project_memory(dev, p, inputs.memory, kv);
    attention_forward(dev, mixed, {}, op_inputs(inputs, q, kv, {}));
    project_out(dev, p, mixed, y, residual);
  }

  void forward(D& dev, Params const& p, CrossAttentionInputs<T, D> const& inputs, In<T, 2, D> x,
               TensorView<T, 2, D> y, Context& context, DropoutSites& sites,
               In<T, 2, D> residual = {}) const {
    index_t const width = p.q.extent(0);
    context.x = x;
    context.inputs = inputs;
    context.dropout = sites.next();
    context.q = dev.saved.template allocate<T, 2>({x.extent(0), width});
    context.kv = dev.saved.template allocate<T, 2>({inputs.memory.extent(0), 2 * width});
    context.mixed = dev.saved.template allocate<T, 2>({x.extent(0), width});
    context.lse = dev.saved.template allocate<Accumulator<T>, 2>({heads_, x.extent(0)});
    linear_forward(dev, context.q, x, p.q, p.q_bias);
    lora_.forward(dev, p.lora_q, x, context.q, context.lora_q, sites);
    linear_forward(dev, context.kv, inputs.memory, stacked(p.k, p.v), stacked(p.k_bias, p.v_bias));
    lora_.forward(dev, p.lora_k, inputs.memory, context.kv.columns(0, width), context.lora_k,
                  sites);
    lora_.forward(dev, p.lora_v, inputs.memory, context.kv.columns(width, 2 * width),
                  context.lora_v, sites);
    attention_forward(dev, context.mixed, context.lse,
                      op_inputs(inputs, context.q, context.kv, context.dropout));
    linear_forward(dev, y, context.mixed, p.o, p.o_bias, residual);
    lora_.forward(dev, p.lora_o, context.mixed, y, context.lora_o, sites);
  }

  /// grads, dprefix += ; dx = ; dmemory += (empty views: not needed).
  void backward(D& dev, Params const& p, Gradients const& grads, In<T, 2, D> dy,
                TensorView<T, 2, D> dx, TensorView<T, 2, D> dmemory, Context const& context,
                PrefixKeys<Accumulator<T>, D> const& dprefix) const {
    ArenaScope scope(dev.scratch);
    index_t const width = p.q.extent(0);
    auto dmixed = dev.scratch.template allocate<T, 2>({dy.extent(0), width});
    auto dq = dev.scratch.template allocate<T, 2>({dy.extent(0), width});
    auto dkv = dev.scratch.template allocate<T, 2>({context.kv.extent(0), 2 * width});
    linear_backward(dev, dmixed, grads.o, grads.o_bias, dy, context.mixed, p.o);
    lora_.backward(dev, p.lora_o, grads.lora_o, dy, dmixed, context.lora_o);
    AttentionGradients<T, D> out;
    out.dq = dq;
    out.dk = dkv.columns(0, width);
    out.dv = dkv.columns(width, 2 * width);
    out.dprefix_k = dprefix.key;
    out.dprefix_v = dprefix.value;
    attention_backward(dev, out, op_inputs(context.inputs, context.q, context.kv, context.dropout),
                       context.mixed, context.lse, dmixed);
    linear_backward(dev, dx, grads.q, grads.q_bias, dq, context.x, p.q);
    linear_backward(dev, dmemory, stacked(grads.k, grads.v), stacked(grads.k_bias, grads.v_bias),
                    dkv, context.inputs.memory, stacked(p.k, p.v), Write::accumulate);
    lora_.backward(dev, p.lora_q, grads.lora_q, dq, dx, context.lora_q);
    lora_.backward(dev, p.lora_k, grads.lora_k, out.dk, dmemory, context.lora_k);
    lora_.backward(dev, p.lora_v, grads.lora_v, out.dv, dmemory, context.lora_v);
  }

 private:
  AttentionInputs<T, D> op_inputs(CrossAttentionInputs<T, D> const& inputs, In<T, 2, D> q,
                                  In<T, 2, D> kv, DropoutKey dropout) const {
    index_t const width = q.extent(1);
    auto in = detail::attention_inputs<T, D>(q, kv.columns(0, width), kv.columns(width, 2 * width),
                                             heads_, scale_, inputs.prefix, dropout);
    in.q_offsets = inputs.offsets;
    in.k_offsets = inputs.memory_offsets;
    in.longest_queries = inputs.longest;
    in.longest_keys = inputs.memory_longest;
    return in;
  }

  index_t heads_;
  Accumulator<T> scale_;
  Lora<T, D> lora_;
};

}  // namespace emprl::nn
