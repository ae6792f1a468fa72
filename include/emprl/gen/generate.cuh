// SPDX-License-Identifier: Apache-2.0
#pragma once

// The generation loop on the GPU: tokens are drawn where the logits are, and the host looks at them
// every few steps only.

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "emprl/cuda/buffer.cuh"
#include "emprl/gen/generate.hpp"
#include "emprl/gen/sampling.cuh"

namespace emprl::gen {

/// A Decoder that can be fed on the device:
///   m.step_on_device(state, rows, tokens, logits)    as m.step, both views in the GPU's memory, in
///                                                    the order of its stream
template <class M>
concept DeviceDecoder = Decoder<M> && std::same_as<typename M::value_type, float> &&
    requires(M& m, typename M::State& state, std::span<index_t const> rows,
             TensorView<std::int32_t const, 1, Cuda> tokens, TensorView<float, 2, Cuda> logits) {
  { m.step_on_device(state, rows, tokens, logits) } -> std::same_as<void>;
};

/// Generates one response for each context: those of generate() of gen/generate.hpp, but for what
/// gen/sampling.cuh says of rounding. The host waits for the GPU once in `look_every` tokens; a row
/// that has ended stays in the batch until then, and what is drawn for it meanwhile is thrown away.
/// @param dev         the context whose stream `model` works on
/// @param look_every  how many tokens are drawn before the host looks at them
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
  auto const batch = static_cast<std::size_t>(contexts.rows());
  expects(row_ids.size() == batch, "generation needs one row id for each context");
  Ragged responses;
  if (batch == 0) return responses;

  ArenaScope const scope(dev.scratch);
  auto const logits = dev.scratch.allocate<float, 2>({contexts.rows(), model.vocabulary()});
  auto const barred = on_device(dev, dev.scratch, std::span<std::int32_t const>(config.barred));
  std::vector<std::vector<std::int32_t>> rows(batch);
  std::vector<index_t> active(batch), generated;
  for (std::size_t i = 0; i < batch; ++i) active[i] = static_cast<index_t>(i);
  std::vector<std::int32_t> tokens(batch, config.start), drawn;
  std::vector<std::uint32_t> ids(row_ids.begin(), row_ids.end());

  typename M::State state = model.start(contexts);
  for (index_t t = 0; t < config.max_new_tokens && !active.empty();) {
    auto const count = static_cast<index_t>(active.size());
    index_t const steps = std::min(look_every, config.max_new_tokens - t);
    generated.clear();
    for (index_t s = 0; s < steps; ++s) {
      generated.insert(generated.end(), active.size(), t + s);
    }
    ArenaScope const inner(dev.scratch);
    auto const their_ids = on_device(dev, dev.scratch, std::span<std::uint32_t const>(ids));
    auto const numbers = on_device(dev, dev.scratch, std::span<index_t const>(generated));
    auto const drawn_there = dev.scratch.allocate<std::int32_t, 1>({steps * count});
    TensorView<std::int32_t const, 1, Cuda> last =
        on_device(dev, dev.scratch, std::span<std::int32_t const>(tokens));
    for (index_t s = 0; s < steps; ++s) {
      auto const now = drawn_there.rows(s * count, (s + 1) * count);
      model.step_on_device(state, std::span<index_t const>(active), last, logits.rows(0, count));
      sample_tokens(dev, {.token = now, .logp = {}, .lse = {}, .entropy = {}},
                    logits.rows(0, count), config, barred,
                    {.seed = seed,
                     .step = step,
                     .row_ids = their_ids,
                     .generated = numbers.rows(s * count, (s + 1) * count)});
      last = now;
    }
    drawn.resize(static_cast<std::size_t>(steps * count));
    copy(dev, std::span<std::int32_t>(drawn), drawn_there);

    std::size_t kept = 0;
    for (std::size_t i = 0; i < active.size(); ++i) {
      auto const row = static_cast<std::size_t>(active[i]);
      std::int32_t token = config.eos;
      for (index_t s = 0; s < steps; ++s) {
        token = drawn[static_cast<std::size_t>(s * count) + i];
        if (token < 0) {
          throw Error("response " + std::to_string(row_ids[row]) + ", token " +
                      std::to_string(t + s) + ": " +
                      (token == sample_diverged ? "a logit is NaN or +inf; the model has diverged"
                                                : "no token is left to draw"));
        }
        rows[row].push_back(token);
        if (token == config.eos) break;
      }
      if (token == config.eos) continue;
      active[kept] = active[i];
      ids[kept] = ids[i];
      tokens[kept] = token;
      ++kept;
    }
    active.resize(kept);
    ids.resize(kept);
    tokens.resize(kept);
    t += steps;
  }
  for (auto const& row : rows) responses.push_back(row);
  return responses;
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
