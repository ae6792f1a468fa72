// SPDX-License-Identifier: Apache-2.0
#pragma once

// T5 for conditional generation: encoder, decoder and output embedding over one set of parameters.

#include <cmath>
#include <concepts>
#include <vector>

#include "emprl/core/ragged.hpp"
#include "emprl/t5/decoder.hpp"
#include "emprl/t5/encoder.hpp"

namespace emprl::t5 {

/// The decoder's inputs for given responses: each row shifted right behind the start token, its
/// last token left out. The rows keep their lengths, and so their offsets.
inline std::vector<std::int32_t> shift_right(RaggedView responses) {
  std::vector<std::int32_t> shifted(responses.ids.size());
  for (index_t b = 0; b < responses.rows(); ++b) {
    auto const row = responses.row(b);
    auto* const to = shifted.data() + responses.offsets[static_cast<std::size_t>(b)];
    for (std::size_t i = 0; i < row.size(); ++i) to[i] = i == 0 ? decoder_start_id : row[i - 1];
  }
  return shifted;
}

/// A T5 without parameters of its own: pure functions of (parameters, tokens). N response tokens, V
/// vocabulary, C model.
template <Element T, Device D>
class Model {
 public:
  struct Context {
    typename Encoder<T, D>::Context encoder;
    typename Decoder<T, D>::Context decoder;
    TensorView<T, 2, D> memory;        // (Nk, C)
    std::vector<std::int32_t> inputs;  // the decoder's input ids, which its tokens view
  };

  /// @throws ConfigError if a field of the configuration cannot be
  explicit Model(Config const& config)
      : config_((config.validate(), config)), encoder_(config), decoder_(config) {}

  Config const& config() const { return config_; }
  Encoder<T, D> const& encoder() const { return encoder_; }
  Decoder<T, D> const& decoder() const { return decoder_; }

  /// hidden (N, C): for each response token, the state that predicts it, without dropout.
  /// @throws ShapeError if contexts and responses differ in rows or an id is outside the vocabulary
  void inference(D& dev, Params<T, D> const& p, Prefixes<T, D> const& prefixes, RaggedView contexts,
                 RaggedView responses, TensorView<T, 2, D> hidden) const {
    check_rows(contexts, responses);
    ArenaScope scope(dev.scratch);
    auto const source = tokens_of(dev, dev.scratch, contexts);
    auto memory = dev.scratch.template allocate<T, 2>({contexts.tokens(), config_.d_model});
    encoder_.inference(dev, p, source, prefixes, memory);
    std::vector<std::int32_t> const inputs = shift_right(responses);
    auto const target = tokens_of(dev, dev.scratch, {inputs, responses.offsets});
    decoder_.inference(dev, p, target, memory, source, prefixes, hidden);
  }

  /// As inference, with dropout, keeping in dev.saved what backward needs. contexts and responses
  /// must outlive it: on the CPU they are not copied.
  void forward(D& dev, Params<T, D> const& p, Prefixes<T, D> const& prefixes, RaggedView contexts,
               RaggedView responses, TensorView<T, 2, D> hidden, Context& context,
               DropoutSites& sites) const {
    check_rows(contexts, responses);
    auto const source = tokens_of(dev, dev.saved, contexts);
    context.memory = dev.saved.template allocate<T, 2>({contexts.tokens(), config_.d_model});
    encoder_.forward(dev, p, source, prefixes, context.memory, context.encoder, sites);
    context.inputs = shift_right(responses);
    auto const target = tokens_of(dev, dev.saved, {context.inputs, responses.offsets});
    decoder_.forward(dev, p, target, context.memory, source, prefixes, hidden, context.decoder,
                     sites);
  }

  /// grads, dprefixes += (default-constructed Params: all weights frozen). dhidden (N, C) is used
  /// up.
  void backward(D& dev, Params<T, D> const& p, Params<Accumulator<T>, D> const& grads,
                Prefixes<Accumulator<T>, D> const& dprefixes, TensorView<T, 2, D> dhidden,
                Context const& context) const {
    ArenaScope scope(dev.scratch);
    auto dmemory = dev.scratch.template allocate<T, 2>(context.memory.extents());
    clear(dev, dmemory);
    decoder_.backward(dev, p, grads, dprefixes, dhidden, dmemory, context.decoder);
    encoder_.backward(dev, p, grads, dprefixes, dmemory, context.encoder);
  }

  /// logits (N, V) = hidden E^T, scaled by d_model^-0.5 where the embedding is tied.
  void logits(D& dev, Params<T, D> const& p, In<T, 2, D> hidden, TensorView<T, 2, D> out) const {
    gemm(dev, Trans::no, Trans::yes, output_scale(), hidden, p.output_embedding(), 0, out);
  }

  /// The same in float where the model is in 16 bits, which would leave logits two digits.
  void logits(D& dev, Params<T, D> const& p, In<T, 2, D> hidden,
              TensorView<Accumulator<T>, 2, D> out) const
      requires(!std::same_as<T, Accumulator<T>>) {
    gemm(dev, Trans::no, Trans::yes, output_scale(), hidden, p.output_embedding(), 0, out);
  }

  /// dhidden (N, C) = ; the output embedding's gradient += (empty: not needed).
  void logits_backward(D& dev, Params<T, D> const& p, Params<Accumulator<T>, D> const& grads,
                       In<T, 2, D> dlogits, In<T, 2, D> hidden, TensorView<T, 2, D> dhidden) const {
    auto const dembedding = grads.output_embedding();
    if (!dembedding.empty()) {
      gemm(dev, Trans::yes, Trans::no, output_scale(), dlogits, hidden, 1, dembedding);
    }
    gemm(dev, Trans::no, Trans::no, output_scale(), dlogits, p.output_embedding(), 0, dhidden);
  }

  /// The same of a gradient in float where the model is in 16 bits: it is rounded to be multiplied.
  void logits_backward(D& dev, Params<T, D> const& p, Params<Accumulator<T>, D> const& grads,
                       In<Accumulator<T>, 2, D> dlogits, In<T, 2, D> hidden,
                       TensorView<T, 2, D> dhidden) const
      requires(!std::same_as<T, Accumulator<T>>) {
    ArenaScope scope(dev.scratch);
    auto const rounded = dev.scratch.template allocate<T, 2>(dlogits.extents());
    convert(dev, rounded, dlogits);
    logits_backward(dev, p, grads, rounded, hidden, dhidden);
  }

  /// Encodes contexts and prepares a cache for decoding them.
  KvCache<T, D> start(D& dev, Params<T, D> const& p, Prefixes<T, D> const& prefixes,
                      RaggedView contexts) const {
    ArenaScope scope(dev.scratch);
    return decoder_.start(dev, p, encode(dev, p, prefixes, contexts), contexts.offsets);
  }

  /// Encodes contexts into memory for decoding in place. @see Decoder::start_in_place
  void start_in_place(D& dev, Params<T, D> const& p, Prefixes<T, D> const& prefixes,
                      RaggedView contexts, InPlaceCache<T, D>& fixed) const {
    ArenaScope scope(dev.scratch);
    decoder_.start_in_place(dev, p, encode(dev, p, prefixes, contexts), contexts.offsets, fixed);
  }

 private:
  /// The encoder's output (Nk, C), in the caller's scope of dev.scratch.
  TensorView<T, 2, D> encode(D& dev, Params<T, D> const& p, Prefixes<T, D> const& prefixes,
                             RaggedView contexts) const {
    auto const memory = dev.scratch.template allocate<T, 2>({contexts.tokens(), config_.d_model});
    encoder_.inference(dev, p, tokens_of(dev, dev.scratch, contexts), prefixes, memory);
    return memory;
  }

  static void check_rows(RaggedView contexts, RaggedView responses) {
    expects(contexts.rows() == responses.rows(), "t5: there must be one response for each context");
    check_offsets(responses.offsets, responses.tokens());
  }

  Accumulator<T> output_scale() const {
    using S = Accumulator<T>;
    return config_.tie_word_embeddings ? S(1) / std::sqrt(static_cast<S>(config_.d_model)) : S(1);
  }

  Config config_;
  Encoder<T, D> encoder_;
  Decoder<T, D> decoder_;
};

}  // namespace emprl::t5
