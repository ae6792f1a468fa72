// SPDX-License-Identifier: Apache-2.0
#pragma once

// The generation loop on the GPU. Tokens are drawn where the logits are, and rows are moved on
// there (gen/decoding_rows.cuh): a step does not depend on anything that the host knows. So its
// launches are captured once as a CUDA graph (cuda/graph.cuh) and replayed, one call a token, and
// the host looks every few tokens only, whether a row is left that goes on.

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "emprl/cuda/buffer.cuh"
#include "emprl/cuda/graph.cuh"
#include "emprl/cuda/host_copy.cuh"
#include "emprl/gen/decoding_rows.cuh"
#include "emprl/gen/generate.hpp"
#include "emprl/gen/sampling.cuh"

namespace emprl::gen {

/// A Decoder that can be fed on the device, in steps that launch the same work every time.
///
/// * `M::InPlaceState`: what such decoding remembers of a batch. Movable.
/// * `m.start_in_place(contexts, most)`: reads the contexts and returns the state before the first
///   token, with all memory that `most` tokens a row need.
/// * `m.step_in_place(state, tokens, length, logits)`: feeds tokens (B) to all rows of the batch,
///   in the order of the stream; row b has then read length[b] tokens, the first call's included.
///   Writes the logits of the token that follows (B, vocabulary()). A length of 0: the row has
///   ended and does not come back; its logits mean nothing. All views are in the GPU's memory. From
///   the second call on it launches kernels and products alone, the same with the same arguments:
///   no copy from or to the host, no allocation but of dev.scratch, no waiting.
template <class M>
concept DeviceDecoder = Decoder<M> && std::same_as<typename M::value_type, float> &&
    std::movable<typename M::InPlaceState> &&
    requires(M& m, typename M::InPlaceState& state, RaggedView contexts, index_t most,
             TensorView<std::int32_t const, 1, Cuda> tokens,
             TensorView<index_t const, 1, Cuda> length, TensorView<float, 2, Cuda> logits) {
  { m.start_in_place(contexts, most) } -> std::same_as<typename M::InPlaceState>;
  { m.step_in_place(state, tokens, length, logits) } -> std::same_as<void>;
};

/// Generates one response for each context: those of generate() of gen/generate.hpp, but for what
/// gen/sampling.cuh says of rounding. Memory for max_new_tokens of every row is taken before the
/// first. The first token is launched step by step, which also chooses the algorithms of its
/// products; with dev.decoding_graphs the second is captured, and it and all others are replays.
/// The host waits for the GPU once in `look_every` tokens and stops when all rows have ended: up to
/// look_every - 1 tokens are drawn for nobody. A row that has ended stays in the batch; attention
/// and sampling skip it.
/// @param dev         the context whose stream `model` works on
/// @param look_every  how many tokens are drawn before the host looks whether rows are left
/// @throws ConfigError if the configuration or look_every is out of range, or if the configuration
/// asks which tokens came before (repetition_penalty, no_repeat_ngram), which the GPU's draw does
/// not know; ShapeError if the number of ids is not the number of contexts, Error if a logit is NaN
/// or +inf, naming the row
/// @throws CudaError
template <DeviceDecoder M>
Ragged generate(Cuda& dev, M& model, RaggedView contexts, SamplingConfig const& config,
                std::uint64_t seed, std::uint32_t step, std::span<std::uint32_t const> row_ids,
                index_t look_every = 8) {
  config.validate();
  expects<ConfigError>(look_every >= 1, "look_every must be at least 1");
  expects(static_cast<index_t>(row_ids.size()) == contexts.rows(),
          "generation needs one row id for each context");
  if (row_ids.empty()) return {};

  ArenaScope const scope(dev.scratch);
  auto const barred = on_device(dev, dev.scratch, std::span<std::int32_t const>(config.barred));
  auto const logits = dev.scratch.allocate<float, 2>({contexts.rows(), model.vocabulary()});
  DecodingRows const rows = start_rows(dev, dev.scratch, row_ids, config);
  typename M::InPlaceState state = model.start_in_place(contexts, config.max_new_tokens);
  auto const launch_step = [&] {
    model.step_in_place(state, rows.newest, rows.length, logits);
    sample_tokens(dev, {.token = rows.drawn, .logp = {}, .lse = {}, .entropy = {}}, logits, config,
                  barred,
                  {.seed = seed, .step = step, .row_ids = rows.ids, .generated = rows.generated});
    advance_rows(dev, rows, config.eos);
  };

  cuda::CudaGraph graph;
  cuda::HostCopy<std::int32_t> left(1);
  index_t t = 0;
  while (t < config.max_new_tokens) {
    if (t == 0 || !dev.decoding_graphs) {
      launch_step();
    } else {
      if (t == 1) graph = cuda::CudaGraph::capture(dev, launch_step);
      graph.replay(dev);
    }
    ++t;
    if (t % look_every == 0 && t < config.max_new_tokens) {
      left.begin(dev, rows.left);
      if (left.wait()[0] == 0) break;
    }
  }
  return fetch_responses(dev, rows, row_ids, config.eos, t);
}

/// As above; the ids of the rows are first_row, first_row + 1, ...
template <DeviceDecoder M>
Ragged generate(Cuda& dev, M& model, RaggedView contexts, SamplingConfig const& config,
                std::uint64_t seed, std::uint32_t step, std::uint32_t first_row = 0) {
  std::vector<std::uint32_t> ids(static_cast<std::size_t>(contexts.rows()));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = first_row + static_cast<std::uint32_t>(i);
  return generate(dev, model, contexts, config, seed, step, std::span<std::uint32_t const>(ids));
}

}  // namespace emprl::gen
