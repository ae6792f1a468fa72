// SPDX-License-Identifier: Apache-2.0
#pragma once

// T5's feed-forward sub-layers: ReLU (v1.0) and gated GELU (v1.1, Flan). Each of their matrices may
// have a LoRA beside it.

#include <cstdint>

#include "emprl/nn/lora.hpp"
#include "emprl/nn/parameters.hpp"
#include "emprl/ops/dropout.hpp"
#include "emprl/ops/elementwise.hpp"
#include "emprl/ops/linear.hpp"

namespace emprl::nn {

enum class Activation { relu, gated_gelu };

/// y = W_o dropout(relu(W_i x))   or   y = W_o dropout(gelu_new(W_i0 x) * W_i1 x).      N rows, C
/// model, F feed-forward. A residual that is given, which may be y, is added to y.
template <Element T, Device D>
class FeedForward {
 public:
  struct Params {
    TensorView<T, 2, D> wi;  // (F, C); of the gated form the part that passes through GELU
    TensorView<T, 2, D> wg;  // (F, C), the linear part of the gated form; empty for ReLU
    TensorView<T, 2, D> wo;  // (C, F)
    LoraParams<T, D> lora_wi, lora_wg, lora_wo;  // empty for none

    bool operator==(Params const&) const = default;
  };
  using Gradients = typename FeedForward<Accumulator<T>, D>::Params;
  struct Context {
    TensorView<T const, 2, D> x;              // (N, C), borrowed
    TensorView<T, 2, D> projected;            // (N, 2F) before the activation, gated form only
    TensorView<T, 2, D> hidden;               // (N, F) after activation and dropout
    TensorView<std::uint8_t, 2, D> positive;  // the ReLU's mask, where the device keeps one
    DropoutKey dropout;
    typename Lora<T, D>::Context lora_wi, lora_wg, lora_wo;
  };

  explicit FeedForward(Activation activation) : activation_(activation) {}

  /// @param x (N, C), rows, or rows to be normalised
  template <class X>
  void inference(D& dev, Params const& p, X&& x, TensorView<T, 2, D> y,
                 In<T, 2, D> residual = {}) const {
    ArenaScope scope(dev.scratch);
    index_t const f = p.wi.extent(0);
    auto hidden = dev.scratch.template allocate<T, 2>({y.extent(0), f});
    bool const plain = p.lora_wi.empty() && p.lora_wg.empty();
    if (activation_ == Activation::relu && plain) {
      linear_relu_forward(dev, hidden, x, p.wi);
    } else if (activation_ == Activation::gated_gelu && plain) {
      linear_gated_gelu_forward(dev, hidden, x, stacked(p.wi, p.wg));
    } else if (activation_ == Activation::relu) {
      linear_forward(dev, hidden, x, p.wi);
      lora_.inference(dev, p.lora_wi, x, hidden);
      relu_forward(dev, hidden, hidden);
    } else {
      auto projected = dev.scratch.template allocate<T, 2>({y.extent(0), 2 * f});
      linear_forward(dev, projected, x, stacked(p.wi, p.wg));
      lora_.inference(dev, p.lora_wi, x, projected.columns(0, f));
      lora_.inference(dev, p.lora_wg, x, projected.columns(f, 2 * f));
      gated_gelu_forward(dev, hidden, projected);
    }
    linear_forward(dev, y, hidden, p.wo, {}, residual);
    lora_.inference(dev, p.lora_wo, hidden, y);
  }

  void forward(D& dev, Params const& p, In<T, 2, D> x, TensorView<T, 2, D> y, Context& context,
               DropoutSites& sites, In<T, 2, D> residual = {}) const {
    index_t const n = x.extent(0);
    index_t const f = p.wi.extent(0);
    context.x = x;
    context.dropout = sites.next();
    context.hidden = dev.saved.template allocate<T, 2>({n, f});
    context.positive = {};
    if (activation_ == Activation::relu && p.lora_wi.empty()) {
      context.positive = dev.saved.template allocate<std::uint8_t, 2>(relu_mask_extents(dev, n, f));
      linear_relu_forward(dev, context.hidden, x, p.wi, context.positive);
    } else if (activation_ == Activation::relu) {
      linear_forward(dev, context.hidden, x, p.wi);
      lora_.forward(dev, p.lora_wi, x, context.hidden, context.lora_wi, sites);
      relu_forward(dev, context.hidden, context.hidden);
    } else {
      context.projected = dev.saved.template allocate<T, 2>({n, 2 * f});
      linear_forward(dev, context.projected, x, stacked(p.wi, p.wg));
      lora_.forward(dev, p.lora_wi, x, context.projected.columns(0, f), context.lora_wi, sites);
      lora_.forward(dev, p.lora_wg, x, context.projected.columns(f, 2 * f), context.lora_wg, sites);
      gated_gelu_forward(dev, context.hidden, context.projected);
    }
    // ReLU's gradient asks only which outputs are positive; a dropped one is zero and passes
    // nothing back either way, so that the values before dropout need not be kept.
    dropout_apply(dev, context.hidden, context.dropout);
    linear_forward(dev, y, context.hidden, p.wo, {}, residual);
    lora_.forward(dev, p.lora_wo, context.hidden, y, context.lora_wo, sites);
  }

  /// grads += ; dx = .
  void backward(D& dev, Params const& p, Gradients const& grads, In<T, 2, D> dy,
                TensorView<T, 2, D> dx, Context const& context) const {
    ArenaScope scope(dev.scratch);
    index_t const n = dy.extent(0);
    index_t const f = p.wi.extent(0);
    auto dhidden = dev.scratch.template allocate<T, 2>({n, f});
    if (activation_ == Activation::relu && p.lora_wo.empty()) {
      linear_relu_backward(dev, dhidden, grads.wo, dy, context.hidden, p.wo, context.positive);
    } else {
      linear_backward(dev, dhidden, grads.wo, {}, dy, context.hidden, p.wo);
      lora_.backward(dev, p.lora_wo, grads.lora_wo, dy, dhidden, context.lora_wo);
      if (activation_ == Activation::relu) relu_backward(dev, dhidden, dhidden, context.hidden);
    }
    dropout_apply(dev, dhidden, context.dropout);
    if (activation_ == Activation::relu) {
      linear_backward(dev, dx, grads.wi, {}, dhidden, context.x, p.wi);
      lora_.backward(dev, p.lora_wi, grads.lora_wi, dhidden, dx, context.lora_wi);
    } else {
      auto dprojected = dev.scratch.template allocate<T, 2>({n, 2 * f});
      gated_gelu_backward(dev, dprojected, dhidden, context.projected);
      linear_backward(dev, dx, stacked(grads.wi, grads.wg), {}, dprojected, context.x,
                      stacked(p.wi, p.wg));
      lora_.backward(dev, p.lora_wi, grads.lora_wi, dprojected.columns(0, f), dx, context.lora_wi);
      lora_.backward(dev, p.lora_wg, grads.lora_wg, dprojected.columns(f, 2 * f), dx,
                     context.lora_wg);
    }
  }

 private:
  Activation activation_;
  Lora<T, D> lora_;
};

}  // namespace emprl::nn
