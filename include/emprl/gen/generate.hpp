// SPDX-License-Identifier: Apache-2.0
#pragma once

// The generation loop: contexts in, responses out, for any Decoder.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/device.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/core/tensor.hpp"
#include "emprl/gen/decoder.hpp"
#include "emprl/gen/sampling.hpp"

namespace emprl::gen {

/// Generates one response for each context. A response ends with `</s>`, which is part of it, or is
/// cut at `config.max_new_tokens`. Rows that have ended leave the batch. Token t of a row is drawn
/// at {seed, Stream::sample, step, row_ids[row], t}: the draw belongs to the row's id, whatever the
/// order or the composition of the batch.
/// @param row_ids  one id a context; two rows with the same id and context get the same response
/// @throws ConfigError if the configuration is out of range, ShapeError if the number of ids is not
/// the number of contexts,
///         Error if a logit is NaN or +inf, naming the row
template <Decoder M>
Ragged generate(M& model, RaggedView contexts, SamplingConfig const& config, std::uint64_t seed,
                std::uint32_t step, std::span<std::uint32_t const> row_ids) {
  using T = typename M::value_type;
  config.validate();
  auto const batch = static_cast<std::size_t>(contexts.rows());
  expects(row_ids.size() == batch, "generation needs one row id for each context");
  Ragged responses;
  if (batch == 0) return responses;

  index_t const vocabulary = model.vocabulary();
  Tensor<T, 2, Cpu> const logits({contexts.rows(), vocabulary});
  SamplerWorkspace<T> workspace;
  std::vector<std::vector<std::int32_t>> rows(batch);
  std::vector<index_t> active(batch);
  for (std::size_t i = 0; i < batch; ++i) active[i] = static_cast<index_t>(i);
  std::vector<std::int32_t> tokens(batch, config.start);

  typename M::State state = model.start(contexts);
  for (index_t t = 0; t < config.max_new_tokens && !active.empty(); ++t) {
    auto const count = static_cast<index_t>(active.size());
    model.step(state, std::span<index_t const>(active), std::span<std::int32_t const>(tokens),
               logits.view().rows(0, count));
    std::size_t kept = 0;
    for (std::size_t i = 0; i < active.size(); ++i) {
      auto const row = static_cast<std::size_t>(active[i]);
      std::span<T const> const scores(logits.view().row(static_cast<index_t>(i)),
                                      static_cast<std::size_t>(vocabulary));
      RngAddress const at{seed, Stream::sample, step, row_ids[row], static_cast<std::uint32_t>(t)};
      std::int32_t token = 0;
      try {
        token = sample_token(scores, config, t, at, workspace);
      } catch (Error const& error) {
        throw Error("response " + std::to_string(row_ids[row]) + ", token " + std::to_string(t) +
                    ": " + error.what());
      }
      rows[row].push_back(token);
      if (token == config.eos) continue;
      active[kept] = active[i];
      tokens[kept] = token;
      ++kept;
    }
    active.resize(kept);
    tokens.resize(kept);
  }
  for (auto const& row : rows) responses.push_back(row);
  return responses;
}

/// As above; the ids of the rows are first_row, first_row + 1, ...
template <Decoder M>
Ragged generate(M& model, RaggedView contexts, SamplingConfig const& config, std::uint64_t seed,
                std::uint32_t step, std::uint32_t first_row = 0) {
  std::vector<std::uint32_t> ids(static_cast<std::size_t>(contexts.rows()));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = first_row + static_cast<std::uint32_t>(i);
  return generate(model, contexts, config, seed, step, std::span<std::uint32_t const>(ids));
}

}  // namespace emprl::gen
