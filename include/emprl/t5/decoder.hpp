// SPDX-License-Identifier: Apache-2.0
#pragma once

// T5's decoder on packed rows: whole rows at once (scoring, training) and one token at a time
// against a cache (generation). N decoder tokens, Nk encoder tokens, C model, H heads.

#include <algorithm>
#include <array>
#include <span>
#include <utility>
#include <vector>

#include "emprl/ops/attention_decode.hpp"
#include "emprl/ops/running_lengths.hpp"
#include "emprl/t5/encoder.hpp"
#include "emprl/t5/kv_cache.hpp"

namespace emprl::t5 {

template <Element T, Device D>
class Decoder {
 public:
  struct BlockContext {
    typename nn::PreNorm<T, D>::Context self_norm, cross_norm, feed_forward_norm;
    typename nn::SelfAttention<T, D>::Context self_attention;
    typename nn::CrossAttention<T, D>::Context cross_attention;
    typename nn::FeedForward<T, D>::Context feed_forward;
  };
  struct Context {
    Tokens<D> tokens;
    DropoutKey embedding_dropout, final_dropout;
    ExpandedBias<T, D> bias;
    std::vector<BlockContext> blocks;
    TensorView<T, 2, D> last;               // (N, C), before the final norm
    TensorView<Accumulator<T>, 1, D> rstd;  // (N), of the final norm
  };

  explicit Decoder(Config const& config)
      : config_(config),
        norm_(config.layer_norm_epsilon),
        self_attention_(config.num_heads, Mask::causal),
        cross_attention_(config.num_heads, 1),
        feed_forward_(config.feed_forward) {}

  /// y (N, C) = the hidden state from which each token's successor is predicted, without dropout.
  /// @param memory (Nk, C), the encoder's output for the tokens of `source`
  void inference(D& dev, Params<T, D> const& p, Tokens<D> const& tokens, In<T, 2, D> memory,
                 Tokens<D> const& source, Prefixes<T, D> const& prefixes,
                 TensorView<T, 2, D> y) const {
    ArenaScope scope(dev.scratch);
    auto bias = expand_bias(dev, dev.scratch, p, tokens.longest);
    auto x = dev.scratch.template allocate<T, 2>({tokens.ids.extent(0), config_.d_model});
    embedding_forward(dev, x, p.shared, tokens.ids);
    for (std::size_t i = 0; i < p.decoder.blocks.size(); ++i) {
      BlockParams<T, D> const& block = p.decoder.blocks[i];
      auto const layer = static_cast<index_t>(i);
      norm_.inference(dev, block.self_norm, x, [&](auto n, auto added, auto out) {
        self_attention_.inference(dev, block.self_attention,
                                  self_inputs(tokens, bias, prefixes, layer), n, out, added);
      });
      norm_.inference(dev, block.cross_norm, x, [&](auto n, auto added, auto out) {
        cross_attention_.inference(dev, block.cross_attention,
                                   cross_inputs(tokens, memory, source, prefixes, layer), n, out,
                                   added);
      });
      norm_.inference(dev, block.feed_forward_norm, x, [&](auto n, auto added, auto out) {
        feed_forward_.inference(dev, block.feed_forward, n, out, added);
      });
    }
    rms_norm_forward(dev, y, {}, x, p.decoder.final_norm, config_.layer_norm_epsilon);
  }

  /// As inference, with dropout, keeping in dev.saved what backward needs.
  void forward(D& dev, Params<T, D> const& p, Tokens<D> const& tokens, In<T, 2, D> memory,
               Tokens<D> const& source, Prefixes<T, D> const& prefixes, TensorView<T, 2, D> y,
               Context& context, DropoutSites& sites) const {
    context.tokens = tokens;
    context.bias = expand_bias(dev, dev.saved, p, tokens.longest);
    context.blocks.resize(p.decoder.blocks.size());
    auto const allocate = [&] {
      return dev.saved.template allocate<T, 2>({tokens.ids.extent(0), config_.d_model});
    };
    auto x = allocate();
    embedding_forward(dev, x, p.shared, tokens.ids);
    context.embedding_dropout = sites.next();
    dropout_apply(dev, x, context.embedding_dropout);
    for (std::size_t i = 0; i < p.decoder.blocks.size(); ++i) {
      BlockParams<T, D> const& block = p.decoder.blocks[i];
      BlockContext& saved = context.blocks[i];
      auto const layer = static_cast<index_t>(i);
      auto after_self = allocate();
      norm_.forward(dev, block.self_norm, x, after_self, saved.self_norm, sites,
                    [&](auto n, auto added, auto out) {
                      self_attention_.forward(dev, block.self_attention,
                                              self_inputs(tokens, context.bias, prefixes, layer), n,
                                              out, saved.self_attention, sites, added);
                    });
      auto after_cross = allocate();
      norm_.forward(dev, block.cross_norm, after_self, after_cross, saved.cross_norm, sites,
                    [&](auto n, auto added, auto out) {
                      cross_attention_.forward(
                          dev, block.cross_attention,
                          cross_inputs(tokens, memory, source, prefixes, layer), n, out,
                          saved.cross_attention, sites, added);
                    });
      x = allocate();
      norm_.forward(dev, block.feed_forward_norm, after_cross, x, saved.feed_forward_norm, sites,
                    [&](auto n, auto added, auto out) {
                      feed_forward_.forward(dev, block.feed_forward, n, out, saved.feed_forward,
                                            sites, added);
                    });
    }
    context.last = x;
    context.rstd = dev.saved.template allocate<Accumulator<T>, 1>({tokens.ids.extent(0)});
    rms_norm_forward(dev, y, context.rstd, x, p.decoder.final_norm, config_.layer_norm_epsilon);
    context.final_dropout = sites.next();
    dropout_apply(dev, y, context.final_dropout);
  }

  /// grads, dprefixes, dmemory += (empty views: not needed). dy (N, C) is used up.
  void backward(D& dev, Params<T, D> const& p, Params<Accumulator<T>, D> const& grads,
                Prefixes<Accumulator<T>, D> const& dprefixes, TensorView<T, 2, D> dy,
                TensorView<T, 2, D> dmemory, Context const& context) const {
    ArenaScope scope(dev.scratch);
    dropout_apply(dev, dy, context.final_dropout);
    auto dx = dev.scratch.template allocate<T, 2>(dy.extents());
    rms_norm_backward(dev, dx, grads.decoder.final_norm, dy, context.last, p.decoder.final_norm,
                      context.rstd, Write::overwrite);
    TensorView<Accumulator<T>, 2, D> dbias;
    if (!grads.decoder.relative_bias.empty()) {
      dbias = dev.scratch.template allocate<Accumulator<T>, 2>(context.bias.bias.extents());
      clear(dev, dbias);
    }
    BlockParams<Accumulator<T>, D> const frozen;
    for (std::size_t i = p.decoder.blocks.size(); i-- > 0;) {
      BlockParams<T, D> const& block = p.decoder.blocks[i];
      BlockParams<Accumulator<T>, D> const& dblock =
          grads.decoder.blocks.empty() ? frozen : grads.decoder.blocks[i];
      BlockContext const& saved = context.blocks[i];
      auto const layer = static_cast<index_t>(i);
      norm_.backward(dev, block.feed_forward_norm, dblock.feed_forward_norm, dx,
                     saved.feed_forward_norm, [&](In<T, 2, D> dout, TensorView<T, 2, D> dn) {
                       feed_forward_.backward(dev, block.feed_forward, dblock.feed_forward, dout,
                                              dn, saved.feed_forward);
                     });
      norm_.backward(dev, block.cross_norm, dblock.cross_norm, dx, saved.cross_norm,
                     [&](In<T, 2, D> dout, TensorView<T, 2, D> dn) {
                       cross_attention_.backward(dev, block.cross_attention, dblock.cross_attention,
                                                 dout, dn, dmemory, saved.cross_attention,
                                                 Prefixes<Accumulator<T>, D>::layer(
                                                     dprefixes.cross, layer, config_.inner()));
                     });
      norm_.backward(dev, block.self_norm, dblock.self_norm, dx, saved.self_norm,
                     [&](In<T, 2, D> dout, TensorView<T, 2, D> dn) {
                       self_attention_.backward(dev, block.self_attention, dblock.self_attention,
                                                dout, dn, saved.self_attention, dbias,
                                                Prefixes<Accumulator<T>, D>::layer(
                                                    dprefixes.decoder, layer, config_.inner()));
                     });
    }
    if (!dbias.empty()) {
      relative_bias_backward(dev, grads.decoder.relative_bias, dbias, context.bias.first,
                             buckets());
    }
    if (!grads.shared.empty()) {
      dropout_apply(dev, dx, context.embedding_dropout);
      embedding_backward(dev, grads.shared, dx, context.tokens.ids);
    }
  }

  /// An empty cache over the encoder's output of B rows: projects keys and values of every layer.
  KvCache<T, D> start(D& dev, Params<T, D> const& p, In<T, 2, D> memory,
                      std::span<index_t const> memory_offsets) const {
    KvCache<T, D> cache;
    cache.rows = static_cast<index_t>(memory_offsets.size()) - 1;
    cache.memory_offsets.assign(memory_offsets.begin(), memory_offsets.end());
    for (index_t b = 0; b < cache.rows; ++b) cache.context.push_back(b);
    for (BlockParams<T, D> const& block : p.decoder.blocks) {
      cache.memory.emplace_back(std::array<index_t, 2>{memory.extent(0), 2 * config_.inner()});
      cross_attention_.project_memory(dev, block.cross_attention, memory,
                                      cache.memory.back().view());
    }
    return cache;
  }

  /// One token for some rows of the cached batch: y[a] = the hidden state after row rows[a]'s token
  /// ids[a], which stands at the cache's position; then the position advances. Rows that are left
  /// out (finished ones) may not come back.
  /// @param y (A, C), written      @param rows, ids (A)
  void step(D& dev, Params<T, D> const& p, Prefixes<T, D> const& prefixes, KvCache<T, D>& cache,
            std::span<index_t const> rows, TensorView<std::int32_t const, 1, D> ids,
            TensorView<T, 2, D> y) const {
    ArenaScope scope(dev.scratch);
    auto const active = static_cast<index_t>(rows.size());
    index_t const position = cache.position;
    cache.reserve_next(dev, config_.num_decoder_layers, config_.inner());
    // The newest key stands at distance 0, the oldest at -position.
    auto bias = dev.scratch.template allocate<Accumulator<T>, 2>({config_.num_heads, position + 1});
    relative_bias_forward(dev, bias, p.decoder.relative_bias, -position, buckets());
    // For each active row where its own and its context's keys begin, and how many there are.
    std::vector<index_t> ranges(4 * rows.size());
    for (std::size_t a = 0; a < rows.size(); ++a) {
      index_t const row = rows[a];
      expects(row >= 0 && row < cache.rows, "decoding: a row is not in the cached batch");
      auto const u = static_cast<std::size_t>(cache.context[static_cast<std::size_t>(row)]);
      index_t* const to = ranges.data() + a;
      to[0] = row * cache.capacity;
      to[rows.size()] = position + 1;
      to[2 * rows.size()] = cache.memory_offsets[u];
      to[3 * rows.size()] = cache.memory_offsets[u + 1] - cache.memory_offsets[u];
    }
    auto const all_ranges = on_device(dev, dev.scratch, std::span<index_t const>(ranges));
    auto const range = [&](index_t i) { return all_ranges.rows(i * active, (i + 1) * active); };
    step_at(dev, p, prefixes, cache.self, cache.memory,
            {.begin = range(0),
             .length = range(1),
             .memory_begin = range(2),
             .memory_length = range(3),
             .bias = bias},
            ids, y);
    ++cache.position;
  }

  /// Memory for decoding batches in place: up to `rows` rows, whose contexts have `memory` tokens
  /// together and that read `tokens` tokens each.
  InPlaceCache<T, D> in_place(index_t rows, index_t memory, index_t tokens) const {
    InPlaceCache<T, D> fixed;
    fixed.rows = rows;
    fixed.capacity = tokens;
    for (index_t l = 0; l < config_.num_decoder_layers; ++l) {
      fixed.memory.emplace_back(std::array<index_t, 2>{memory, 2 * config_.inner()});
      fixed.self.emplace_back(std::array<index_t, 2>{rows * tokens, 2 * config_.inner()});
    }
    fixed.ranges = Tensor<index_t, 2, D>({4, rows});
    fixed.bias = Tensor<Accumulator<T>, 2, D>({config_.num_heads, tokens});
    return fixed;
  }

  /// Begins a batch over the encoder's output, a row for each context: projects keys and values of
  /// every layer, and expands the bias. Rows beyond have no context. Allocates nothing.
  /// @param memory (Nk, C)
  /// @throws ShapeError if the cache was made for fewer rows or tokens
  void start_in_place(D& dev, Params<T, D> const& p, In<T, 2, D> memory,
                      std::span<index_t const> memory_offsets, InPlaceCache<T, D>& fixed) const {
    auto const contexts = memory_offsets.size() - 1;
    auto const rows = static_cast<std::size_t>(fixed.rows);
    expects(contexts <= rows && memory.extent(0) <= fixed.memory.front().extent(0),
            "decoding in place: the batch is larger than its memory");
    for (std::size_t i = 0; i < p.decoder.blocks.size(); ++i) {
      cross_attention_.project_memory(dev, p.decoder.blocks[i].cross_attention, memory,
                                      fixed.memory[i].view().rows(0, memory.extent(0)));
    }
    std::vector<index_t> ranges(3 * rows, 0);
    for (std::size_t b = 0; b < rows; ++b) {
      ranges[b] = static_cast<index_t>(b) * fixed.capacity;
      if (b >= contexts) continue;
      ranges[rows + b] = memory_offsets[b];
      ranges[2 * rows + b] = memory_offsets[b + 1] - memory_offsets[b];
    }
    copy(dev, fixed.ranges.view().rows(0, 3), ranges);
    relative_bias_forward(dev, fixed.bias.view(), p.decoder.relative_bias, 1 - fixed.capacity,
                          buckets());
  }

  /// One token for all rows of the cache: y[b] = the hidden state after row b's token ids[b], the
  /// length[b]-th that it reads. Its launches are the same in every step; nothing is read on the
  /// host, and of memory there is scratch alone.
  /// @param length (B)  tokens that each row has read, this one included, at most as many as the
  /// cache was made for; 0 if the row has ended: then nothing is kept of it, and y[b] means nothing
  /// @param y (B, C), written      @param ids (B), tokens of the vocabulary, of ended rows as well
  void step_in_place(D& dev, Params<T, D> const& p, Prefixes<T, D> const& prefixes,
                     InPlaceCache<T, D>& fixed, In<index_t, 1, D> length,
                     TensorView<std::int32_t const, 1, D> ids, TensorView<T, 2, D> y) const {
    auto const of_running = fixed.range(3);
    running_lengths(dev, of_running, fixed.range(2), length);
    step_at(dev, p, prefixes, fixed.self, fixed.memory,
            {.begin = fixed.range(0),
             .length = length,
             .memory_begin = fixed.range(1),
             .memory_length = of_running,
             .bias = fixed.bias,
             .columns = DecodeBias::distance},
            ids, y);
  }

 private:
  RelativeBuckets buckets() const {
    return {Direction::unidirectional, config_.relative_attention_max_distance};
  }

  /// The launches of a step: y[a] = the hidden state after token ids[a], whose keys `at` finds.
  void step_at(D& dev, Params<T, D> const& p, Prefixes<T, D> const& prefixes,
               std::span<Tensor<T, 2, D> const> self_keys,
               std::span<Tensor<T, 2, D> const> memory_keys, StepInputs<T, D> const& at,
               TensorView<std::int32_t const, 1, D> ids, TensorView<T, 2, D> y) const {
    ArenaScope scope(dev.scratch);
    index_t const active = ids.extent(0);
    index_t const inner = config_.inner();
    auto x = dev.scratch.template allocate<T, 2>({active, config_.d_model});
    embedding_forward(dev, x, p.shared, ids);
    // Of what the launches below read, only states and the newest keys are written by one of them.
    LaunchChain<D> const chain(dev);
    for (std::size_t i = 0; i < p.decoder.blocks.size(); ++i) {
      BlockParams<T, D> const& block = p.decoder.blocks[i];
      auto const layer = static_cast<index_t>(i);
      auto const self = self_keys[i].view();
      auto const memory = memory_keys[i].view();
      norm_.step(dev, block.self_norm, x, [&](auto& n, auto added, auto out) {
        ArenaScope inner_scope(dev.scratch);
        auto const& attention = block.self_attention;
        auto qkv = dev.scratch.template allocate<T, 2>({active, 3 * inner});
        auto mixed = dev.scratch.template allocate<T, 2>({active, inner});
        self_attention_.project(dev, attention, n, qkv);
        auto const prefix = Prefixes<T, D>::layer(prefixes.decoder, layer, inner);
        GrowingKeys<T, D> const keys{self.columns(0, inner), self.columns(inner, 2 * inner),
                                     at.begin, at.length};
        attention_decode_append(dev, mixed, qkv.columns(0, inner), qkv.columns(inner, 2 * inner),
                                qkv.columns(2 * inner, 3 * inner), keys, config_.num_heads, at.bias,
                                prefix.key, prefix.value, at.columns);
        self_attention_.project_out(dev, attention, mixed, out, added);
      });
      norm_.step(dev, block.cross_norm, x, [&](auto& n, auto added, auto out) {
        ArenaScope inner_scope(dev.scratch);
        auto const& attention = block.cross_attention;
        auto q = dev.scratch.template allocate<T, 2>({active, inner});
        auto mixed = dev.scratch.template allocate<T, 2>({active, inner});
        cross_attention_.project_queries(dev, attention, n, q);
        auto const prefix = Prefixes<T, D>::layer(prefixes.cross, layer, inner);
        CachedKeys<T, D> const keys{memory.columns(0, inner), memory.columns(inner, 2 * inner),
                                    at.memory_begin, at.memory_length};
        attention_decode(dev, mixed, q, keys, config_.num_heads, {}, prefix.key, prefix.value);
        cross_attention_.project_out(dev, attention, mixed, out, added);
      });
      norm_.step(dev, block.feed_forward_norm, x, [&](auto& n, auto added, auto out) {
        feed_forward_.inference(dev, block.feed_forward, n, out, added);
      });
    }
    rms_norm_forward(dev, y, {}, x, p.decoder.final_norm, config_.layer_norm_epsilon);
  }

  template <class A>
  ExpandedBias<T, D> expand_bias(D& dev, A& arena, Params<T, D> const& p, index_t longest) const {
    auto expanded =
        allocate_bias<T, D>(arena, config_.num_heads, longest, Direction::unidirectional);
    relative_bias_forward(dev, expanded.bias, p.decoder.relative_bias, expanded.first, buckets());
    return expanded;
  }

  nn::SelfAttentionInputs<T, D> self_inputs(Tokens<D> const& tokens, ExpandedBias<T, D> const& bias,
                                            Prefixes<T, D> const& prefixes, index_t layer) const {
    return {.offsets = tokens.offsets,
            .bias = bias.bias,
            .bias_first = bias.first,
            .prefix = Prefixes<T, D>::layer(prefixes.decoder, layer, config_.inner()),
            .longest = tokens.longest};
  }

  nn::CrossAttentionInputs<T, D> cross_inputs(Tokens<D> const& tokens, In<T, 2, D> memory,
                                              Tokens<D> const& source,
                                              Prefixes<T, D> const& prefixes, index_t layer) const {
    return {.memory = memory,
            .offsets = tokens.offsets,
            .memory_offsets = source.offsets,
            .prefix = Prefixes<T, D>::layer(prefixes.cross, layer, config_.inner()),
            .longest = tokens.longest,
            .memory_longest = source.longest};
  }

  Config config_;
  nn::PreNorm<T, D> norm_;
  nn::SelfAttention<T, D> self_attention_;
  nn::CrossAttention<T, D> cross_attention_;
  nn::FeedForward<T, D> feed_forward_;
};

}  // namespace emprl::t5
