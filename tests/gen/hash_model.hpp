// SPDX-License-Identifier: Apache-2.0
#pragma once

// A decoder for tests whose logits depend on everything that a row has read.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "emprl/core/ragged.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/gen/decoder.hpp"
#include "support/catch.hpp"

namespace gen_tests {

using namespace emprl;

/// Logits are a hash of the context's sum and all tokens so far, so that a mix-up of rows or of
/// positions shows. Holds the caller to the rules of Decoder and BeamDecoder.
struct HashModel {
  using value_type = double;
  struct State {
    std::vector<std::uint32_t> memory;
    std::vector<index_t> last_rows;
    std::vector<index_t> tokens_fed;
  };
  static constexpr index_t size = 12;
  std::int32_t poison = -1;  // a token after which the logits are NaN
  int starts = 0;            // contexts that were read

  index_t vocabulary() const { return size; }

  State start(RaggedView contexts) {
    State state;
    for (index_t i = 0; i < contexts.rows(); ++i) {
      ++starts;
      std::uint32_t sum = 17;
      for (auto const id : contexts.row(i)) sum = sum * 31 + static_cast<std::uint32_t>(id);
      state.memory.push_back(sum);
      state.last_rows.push_back(i);
      state.tokens_fed.push_back(0);
    }
    return state;
  }

  void step(State& state, std::span<index_t const> rows, std::span<std::int32_t const> tokens,
            TensorView<double, 2, Cpu> logits) {
    REQUIRE(rows.size() == tokens.size());
    REQUIRE(logits.extent(0) == static_cast<index_t>(rows.size()));
    REQUIRE(logits.extent(1) == size);
    REQUIRE(std::is_sorted(rows.begin(), rows.end()));
    REQUIRE(
        std::includes(state.last_rows.begin(), state.last_rows.end(), rows.begin(), rows.end()));
    state.last_rows.assign(rows.begin(), rows.end());
    for (std::size_t i = 0; i < rows.size(); ++i) {
      auto const row = static_cast<std::size_t>(rows[i]);
      REQUIRE(state.tokens_fed[row] == state.tokens_fed[static_cast<std::size_t>(rows[0])]);
      std::uint32_t& memory = state.memory[row];
      memory = memory * 31 + static_cast<std::uint32_t>(tokens[i]);
      for (std::uint32_t v = 0; v < size; ++v) {
        double const noise = uniform({memory, Stream::initialise, v, 0, 0});
        logits(static_cast<index_t>(i), v) =
            tokens[i] == poison ? std::numeric_limits<double>::quiet_NaN() : 3.0 * noise;
      }
    }
    for (index_t const row : rows) ++state.tokens_fed[static_cast<std::size_t>(row)];
  }

  void reorder(State& state, std::span<index_t const> sources) {
    State next;
    for (std::size_t i = 0; i < sources.size(); ++i) {
      auto const from = static_cast<std::size_t>(sources[i]);
      REQUIRE(std::count(state.last_rows.begin(), state.last_rows.end(), sources[i]) == 1);
      next.memory.push_back(state.memory[from]);
      next.tokens_fed.push_back(state.tokens_fed[from]);
      next.last_rows.push_back(static_cast<index_t>(i));
    }
    state = std::move(next);
  }
};

static_assert(gen::BeamDecoder<HashModel>);

/// Rows of 0 to 3 tokens.
inline Ragged contexts_of(index_t rows) {
  Ragged contexts;
  for (index_t i = 0; i < rows; ++i) {
    std::vector<std::int32_t> const row(static_cast<std::size_t>(i % 4),
                                        static_cast<std::int32_t>(i + 2));
    contexts.push_back(row);
  }
  return contexts;
}

inline std::vector<std::int32_t> to_vector(std::span<std::int32_t const> row) {
  return {row.begin(), row.end()};
}

/// The logits after `seen` (start token first), of a context alone.
inline std::vector<double> logits_after(HashModel& model, RaggedView contexts, index_t row,
                                        std::span<std::int32_t const> seen) {
  std::vector<index_t> const only{row}, first{0};
  auto state = model.start(gather_rows(contexts, only).view());
  Tensor<double, 2, Cpu> const logits({1, HashModel::size});
  for (std::int32_t const token : seen) {
    std::vector<std::int32_t> const fed{token};
    model.step(state, first, fed, logits.view());
  }
  return {logits.span().begin(), logits.span().end()};
}

}  // namespace gen_tests
