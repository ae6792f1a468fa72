// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the generation loop asks of a model.

#include <concepts>
#include <cstdint>
#include <span>

#include "emprl/core/config.hpp"
#include "emprl/core/device.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/core/tensor.hpp"

namespace emprl::gen {

/// A model that continues responses token by token, one response for each context of a batch.
///
/// * `M::value_type`: the scalar type of the logits.
/// * `M::State`: what decoding remembers of a batch (encoded contexts, key-value cache). Movable;
/// outlives the contexts.
/// * `m.vocabulary()`: the number of logits a row, constant.
/// * `m.start(contexts)`: reads the contexts and returns the state before the first token.
/// * `m.step(state, rows, tokens, logits)`: feeds `tokens[i]` to row `rows[i]` of the batch and
/// writes the logits of the
///   token that follows to row i of `logits` (rows.size(), vocabulary()). All rows of a call are at
///   the same position: the first call feeds the start token to every row. `rows` ascends, and each
///   call's rows are among those of the call before: a row that is left out has ended and never
///   comes back.
///
/// A row's logits depend on its context and its tokens alone, within the number format: not on the
/// other rows, nor on when they end.
///
/// A model of it, in full (the tests decode with one much like it):
///
///   struct Bigrams {
///     using value_type = float;
///     struct State {};
///     Tensor<float, 2, Cpu> table;                            // table(previous, next)
///     index_t vocabulary() const { return table.extent(1); }
///     State start(RaggedView) { return {}; }
///     void step(State&, std::span<index_t const> rows, std::span<std::int32_t const> tokens,
///               TensorView<float, 2, Cpu> logits) {
///       for (std::size_t i = 0; i < rows.size(); ++i)
///         std::copy_n(table.view().row(tokens[i]), vocabulary(), logits.row(index_t(i)));
///     }
///   };
template <class M>
concept Decoder = Scalar<typename M::value_type> && std::movable<typename M::State> &&
    requires(M& m, M const& cm, typename M::State& state, RaggedView contexts,
             std::span<index_t const> rows, std::span<std::int32_t const> tokens,
             TensorView<typename M::value_type, 2, Cpu> logits) {
  { cm.vocabulary() } -> std::convertible_to<index_t>;
  { m.start(contexts) } -> std::same_as<typename M::State>;
  { m.step(state, rows, tokens, logits) } -> std::same_as<void>;
};

/// A Decoder whose rows can be copied: what beam search and several samples of one context ask for.
///
/// * `m.reorder(state, sources)`: from now on the batch has sources.size() rows, and row i goes on
/// from where row sources[i] was: the same context, the same tokens so far. `sources` may name a
/// row once, several times or never, in any order; before the first step any row, later only rows
/// of the last step. A row that is not named is gone. The next step may feed all rows.
///
/// What belongs to a context alone (its encoding) need not be copied: rows of one context share it.
///
/// For the model above, whose state is empty, `void reorder(State&, std::span<index_t const>) {}`.
/// Models: train::T5Decoder; the hash model of tests/gen/hash_model.hpp.
template <class M>
concept BeamDecoder = Decoder<M> &&
    requires(M& m, typename M::State& state, std::span<index_t const> sources) {
  { m.reorder(state, sources) } -> std::same_as<void>;
};

}  // namespace emprl::gen
