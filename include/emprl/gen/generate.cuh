// SPDX-License-Identifier: Apache-2.0
#pragma once

// One batch of responses on the GPU. Who generates more than one keeps a DecodingGraphs.

#include <cstdint>
#include <span>

#include "emprl/gen/decoding_graphs.cuh"
#include "emprl/gen/generate.hpp"

namespace emprl::gen {

/// Generates one response for each context. @see DecodingGraphs::generate
template <DeviceDecoder M>
Ragged generate(Cuda& dev, M& model, RaggedView contexts, SamplingConfig const& config,
                std::uint64_t seed, std::uint32_t step, std::span<std::uint32_t const> row_ids,
                index_t look_every = 8) {
  return DecodingGraphs<M>(dev, model, 1)
      .generate(contexts, config, seed, step, row_ids, look_every);
}

/// As above; the ids of the rows are first_row, first_row + 1, ...
template <DeviceDecoder M>
Ragged generate(Cuda& dev, M& model, RaggedView contexts, SamplingConfig const& config,
                std::uint64_t seed, std::uint32_t step, std::uint32_t first_row = 0) {
  return DecodingGraphs<M>(dev, model, 1).generate(contexts, config, seed, step, first_row);
}

}  // namespace emprl::gen
