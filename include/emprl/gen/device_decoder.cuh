// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the GPU's generation loop asks of a model.

#include <concepts>
#include <cstdint>

#include "emprl/cuda/context.cuh"
#include "emprl/gen/decoder.hpp"

namespace emprl::gen {

/// A Decoder that can be fed on the device, in steps that launch the same work every time, in one
/// batch after the other.
///
/// * `M::InPlaceState`: the memory of such decoding. Movable.
/// * `m.in_place(rows, context_tokens, most)`: memory for batches of up to `rows` contexts, which
///   have up to `context_tokens` tokens together, and for `most` tokens a response.
/// * `m.start_in_place(state, contexts)`: reads the contexts of the next batch, in the order of the
///   stream. Rows beyond those of `contexts` are unused.
/// * `m.step_in_place(state, tokens, length, logits)`: feeds tokens (B) to all rows that there is
///   memory for, in the order of the stream; row b has then read length[b] tokens, the first call's
///   included. Writes the logits of the token that follows (B, vocabulary()). A length of 0: the
///   row is unused or has ended and does not come back; its logits mean nothing. All views are in
///   the GPU's memory. From the second call on it launches kernels and products alone, the same
///   with the same arguments, in every batch: no copy from or to the host, no allocation but of
///   dev.scratch, no waiting.
/// * `m.bindings()`: all that those launches are made from besides the arguments of step_in_place,
///   such as the places of the weights, as a value. While it compares equal to an earlier one,
///   launches recorded then are those that step_in_place would make now, and what they read is
///   still there. What stands in the weights does not belong to it.
///
/// Models: train::T5Decoder on the GPU; the bigrams of tests/cuda/test_decoding_graphs.cpp.
template <class M>
concept DeviceDecoder = Decoder<M> && std::same_as<typename M::value_type, float> &&
    std::movable<typename M::InPlaceState> && std::movable<typename M::Bindings> &&
    std::equality_comparable<typename M::Bindings> &&
    requires(M& m, M const& cm, typename M::InPlaceState& state, RaggedView contexts, index_t n,
             TensorView<std::int32_t const, 1, Cuda> tokens,
             TensorView<index_t const, 1, Cuda> length, TensorView<float, 2, Cuda> logits) {
  { m.in_place(n, n, n) } -> std::same_as<typename M::InPlaceState>;
  { m.start_in_place(state, contexts) } -> std::same_as<void>;
  { m.step_in_place(state, tokens, length, logits) } -> std::same_as<void>;
  { cm.bindings() } -> std::same_as<typename M::Bindings>;
};

}  // namespace emprl::gen
