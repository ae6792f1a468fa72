// SPDX-License-Identifier: Apache-2.0
#pragma once

// T5's encoder on packed rows. N tokens, C model, H heads.

#include <algorithm>
#include <vector>

#include "emprl/core/ragged.hpp"
#include "emprl/nn/attention.hpp"
#include "emprl/nn/feed_forward.hpp"
#include "emprl/nn/pre_norm.hpp"
#include "emprl/ops/embedding.hpp"
#include "emprl/ops/relative_bias.hpp"
#include "emprl/t5/parameters.hpp"
#include "emprl/t5/prefix.hpp"

namespace emprl::t5 {

/// Packed token rows on the device.
template <class D>
struct Tokens {
  TensorView<std::int32_t const, 1, D> ids;  // (N)
  TensorView<index_t const, 1, D> offsets;   // (B+1)
  index_t longest = 0;                       // the longest row
};

/// The longest row of a ragged batch.
inline index_t longest_row(std::span<index_t const> offsets) {
  index_t longest = 0;
  for (std::size_t i = 1; i < offsets.size(); ++i)
    longest = std::max(longest, offsets[i] - offsets[i - 1]);
  return longest;
}

/// Host rows where ops of the device read them: on the CPU a view, which the rows must outlive; on
/// a GPU a copy in `arena`, one of the device's.
/// @throws ShapeError if the offsets do not describe the ids
template <Device D, class A>
Tokens<D> tokens_of(D& dev, A& arena, RaggedView rows) {
  check_offsets(rows.offsets, rows.tokens());
  return {on_device(dev, arena, rows.ids), on_device(dev, arena, rows.offsets),
          longest_row(rows.offsets)};
}

/// The same on the CPU, where there is nothing to copy.
inline Tokens<Cpu> tokens_of(RaggedView rows) {
  check_offsets(rows.offsets, rows.tokens());
  return {{rows.ids.data(), {rows.tokens()}},
          {rows.offsets.data(), {static_cast<index_t>(rows.offsets.size())}},
          longest_row(rows.offsets)};
}

/// The bias of a stack, expanded for rows of up to `longest` tokens: one column a distance, the
/// first being `first`.
template <Element T, Device D>
struct ExpandedBias {
  TensorView<Accumulator<T>, 2, D> bias;  // (H, R)
  index_t first = 0;
};

/// Distances -(longest-1) .. longest-1, or up to 0 for a causal stack.
template <Element T, Device D, class A>
ExpandedBias<T, D> allocate_bias(A& arena, index_t heads, index_t longest, Direction direction) {
  index_t const reach = std::max<index_t>(longest - 1, 0);
  index_t const columns = direction == Direction::bidirectional ? 2 * reach + 1 : reach + 1;
  return {arena.template allocate<Accumulator<T>, 2>({heads, columns}), -reach};
}

template <Element T, Device D>
class Encoder {
 public:
  struct BlockContext {
    typename nn::PreNorm<T, D>::Context self_norm, feed_forward_norm;
    typename nn::SelfAttention<T, D>::Context self_attention;
    typename nn::FeedForward<T, D>::Context feed_forward;
  };
  struct Context {
    Tokens<D> tokens;
    DropoutKey embedding_dropout, final_dropout;
    ExpandedBias<T, D> bias;
    std::vector<BlockContext> blocks;
    TensorView<T, 2, D> last;               // (N, C), before the final norm
    TensorView<Accumulator<T>, 1, D> rstd;  // (N), of the final norm
    Prefixes<T, D> prefixes;
  };

  explicit Encoder(Config const& config)
      : config_(config),
        norm_(config.layer_norm_epsilon),
        attention_(config.num_heads, Mask::full),
        feed_forward_(config.feed_forward) {}

  /// y (N, C) = the encoder's output for each token, without dropout.
  void inference(D& dev, Params<T, D> const& p, Tokens<D> const& tokens,
                 Prefixes<T, D> const& prefixes, TensorView<T, 2, D> y) const {
    ArenaScope scope(dev.scratch);
    auto bias = expand_bias(dev, dev.scratch, p, tokens.longest);
    auto x = dev.scratch.template allocate<T, 2>({tokens.ids.extent(0), config_.d_model});
    embedding_forward(dev, x, p.shared, tokens.ids);
    for (std::size_t i = 0; i < p.encoder.blocks.size(); ++i) {
      BlockParams<T, D> const& block = p.encoder.blocks[i];
      auto const inputs = attention_inputs(tokens, bias, prefixes, static_cast<index_t>(i));
      norm_.inference(dev, block.self_norm, x, [&](auto n, auto added, auto out) {
        attention_.inference(dev, block.self_attention, inputs, n, out, added);
      });
      norm_.inference(dev, block.feed_forward_norm, x, [&](auto n, auto added, auto out) {
        feed_forward_.inference(dev, block.feed_forward, n, out, added);
      });
    }
    rms_norm_forward(dev, y, {}, x, p.encoder.final_norm, config_.layer_norm_epsilon);
  }

  /// As inference, with dropout, keeping in dev.saved what backward needs.
  void forward(D& dev, Params<T, D> const& p, Tokens<D> const& tokens,
               Prefixes<T, D> const& prefixes, TensorView<T, 2, D> y, Context& context,
               DropoutSites& sites) const {
    context.tokens = tokens;
    context.prefixes = prefixes;
    context.bias = expand_bias(dev, dev.saved, p, tokens.longest);
    context.blocks.resize(p.encoder.blocks.size());
    auto const allocate = [&] {
      return dev.saved.template allocate<T, 2>({tokens.ids.extent(0), config_.d_model});
    };
    auto x = allocate();
    embedding_forward(dev, x, p.shared, tokens.ids);
    context.embedding_dropout = sites.next();
    dropout_apply(dev, x, context.embedding_dropout);
    for (std::size_t i = 0; i < p.encoder.blocks.size(); ++i) {
      BlockParams<T, D> const& block = p.encoder.blocks[i];
      BlockContext& saved = context.blocks[i];
      auto const inputs = attention_inputs(tokens, context.bias, prefixes, static_cast<index_t>(i));
      auto middle = allocate();
      norm_.forward(dev, block.self_norm, x, middle, saved.self_norm, sites,
                    [&](auto n, auto added, auto out) {
                      attention_.forward(dev, block.self_attention, inputs, n, out,
                                         saved.self_attention, sites, added);
                    });
      x = allocate();
      norm_.forward(dev, block.feed_forward_norm, middle, x, saved.feed_forward_norm, sites,
                    [&](auto n, auto added, auto out) {
                      feed_forward_.forward(dev, block.feed_forward, n, out, saved.feed_forward,
                                            sites, added);
                    });
    }
    context.last = x;
    context.rstd = dev.saved.template allocate<Accumulator<T>, 1>({tokens.ids.extent(0)});
    rms_norm_forward(dev, y, context.rstd, x, p.encoder.final_norm, config_.layer_norm_epsilon);
    context.final_dropout = sites.next();
    dropout_apply(dev, y, context.final_dropout);
  }

  /// grads, dprefixes += (empty views: not needed). dy (N, C) is used up.
  void backward(D& dev, Params<T, D> const& p, Params<Accumulator<T>, D> const& grads,
                Prefixes<Accumulator<T>, D> const& dprefixes, TensorView<T, 2, D> dy,
                Context const& context) const {
    ArenaScope scope(dev.scratch);
    dropout_apply(dev, dy, context.final_dropout);
    auto dx = dev.scratch.template allocate<T, 2>(dy.extents());
    rms_norm_backward(dev, dx, grads.encoder.final_norm, dy, context.last, p.encoder.final_norm,
                      context.rstd, Write::overwrite);
    TensorView<Accumulator<T>, 2, D> dbias;
    if (!grads.encoder.relative_bias.empty()) {
      dbias = dev.scratch.template allocate<Accumulator<T>, 2>(context.bias.bias.extents());
      clear(dev, dbias);
    }
    BlockParams<Accumulator<T>, D> const frozen;
    for (std::size_t i = p.encoder.blocks.size(); i-- > 0;) {
      BlockParams<T, D> const& block = p.encoder.blocks[i];
      BlockParams<Accumulator<T>, D> const& dblock =
          grads.encoder.blocks.empty() ? frozen : grads.encoder.blocks[i];
      BlockContext const& saved = context.blocks[i];
      norm_.backward(dev, block.feed_forward_norm, dblock.feed_forward_norm, dx,
                     saved.feed_forward_norm, [&](In<T, 2, D> dout, TensorView<T, 2, D> dn) {
                       feed_forward_.backward(dev, block.feed_forward, dblock.feed_forward, dout,
                                              dn, saved.feed_forward);
                     });
      norm_.backward(dev, block.self_norm, dblock.self_norm, dx, saved.self_norm,
                     [&](In<T, 2, D> dout, TensorView<T, 2, D> dn) {
                       attention_.backward(
                           dev, block.self_attention, dblock.self_attention, dout, dn,
                           saved.self_attention, dbias,
                           Prefixes<Accumulator<T>, D>::layer(
                               dprefixes.encoder, static_cast<index_t>(i), config_.inner()));
                     });
    }
    if (!dbias.empty()) {
      relative_bias_backward(dev, grads.encoder.relative_bias, dbias, context.bias.first,
                             buckets());
    }
    if (!grads.shared.empty()) {
      dropout_apply(dev, dx, context.embedding_dropout);
      embedding_backward(dev, grads.shared, dx, context.tokens.ids);
    }
  }

 private:
  RelativeBuckets buckets() const {
    return {Direction::bidirectional, config_.relative_attention_max_distance};
  }

  template <class A>
  ExpandedBias<T, D> expand_bias(D& dev, A& arena, Params<T, D> const& p, index_t longest) const {
    auto expanded =
        allocate_bias<T, D>(arena, config_.num_heads, longest, Direction::bidirectional);
    relative_bias_forward(dev, expanded.bias, p.encoder.relative_bias, expanded.first, buckets());
    return expanded;
  }

  nn::SelfAttentionInputs<T, D> attention_inputs(Tokens<D> const& tokens,
                                                 ExpandedBias<T, D> const& bias,
                                                 Prefixes<T, D> const& prefixes,
                                                 index_t layer) const {
    return {.offsets = tokens.offsets,
            .bias = bias.bias,
            .bias_first = bias.first,
            .prefix = Prefixes<T, D>::layer(prefixes.encoder, layer, config_.inner()),
            .longest = tokens.longest};
  }

  Config config_;
  nn::PreNorm<T, D> norm_;
  nn::SelfAttention<T, D> attention_;
  nn::FeedForward<T, D> feed_forward_;
};

}  // namespace emprl::t5
