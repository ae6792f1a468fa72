// SPDX-License-Identifier: Apache-2.0
#pragma once

// What cached decoding remembers of a batch: per layer the keys and values of the encoder's output
// (packed, true lengths) and of the tokens decoded so far. Several rows may continue one context,
// whose keys and values they share.

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "emprl/core/device.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/tensor.hpp"
#include "emprl/core/transfer.hpp"
#include "emprl/ops/attention_decode.hpp"
#include "emprl/ops/elementwise.hpp"
#include "emprl/ops/embedding.hpp"

namespace emprl::t5 {

template <Element T, Device D>
struct KvCache {
  index_t rows = 0;                     // B
  index_t capacity = 0;                 // positions that fit without growing
  index_t position = 0;                 // tokens decoded so far
  std::vector<index_t> context;         // (B), the context that each row continues
  std::vector<index_t> memory_offsets;  // (contexts + 1)
  std::vector<Tensor<T, 2, D>> memory;  // per layer (Nk, 2*inner): keys beside values
  // Per layer (B*capacity, 2*inner) or more rows; row b*capacity + t.
  std::vector<Tensor<T, 2, D>> self;
  Tensor<T, 2, D> spare;  // one more layer's, which reorder gathers into

  /// Makes room for at least one more position, doubling so that growth is rare.
  void reserve_next(D& dev, index_t layers, index_t inner) {
    if (position == capacity) reserve(dev, capacity == 0 ? 32 : 2 * capacity, layers, inner);
  }

  /// Makes room for `larger` positions in all: on a GPU it waits for the work so far.
  void reserve(D& dev, index_t larger, index_t layers, index_t inner) {
    if (larger <= capacity) return;
    std::vector<Tensor<T, 2, D>> grown;
    for (index_t l = 0; l < layers; ++l) {
      grown.emplace_back(std::array<index_t, 2>{rows * larger, 2 * inner});
      // The rows as one matrix: what is decoded of each is the left part of it.
      if (position > 0) {
        index_t const width = 2 * inner;
        copy(
            dev,
            TensorView<T, 2, D>(grown.back().data(), {rows, position * width}, {larger * width, 1}),
            TensorView<T, 2, D>(self[static_cast<std::size_t>(l)].data(), {rows, position * width},
                                {capacity * width, 1}));
      }
    }
    self = std::move(grown);
    capacity = larger;
  }

  /// Row i becomes a copy of what row sources[i] was; there are sources.size() rows then. Copies
  /// the tokens decoded so far, of one layer after the other, and of the contexts nothing.
  /// @param inner  H*Dh
  /// @throws ShapeError if a source is not a row
  void reorder(D& dev, std::span<index_t const> sources, index_t inner) {
    std::vector<index_t> continued(sources.size());
    bool same = static_cast<index_t>(sources.size()) == rows;
    for (std::size_t i = 0; i < sources.size(); ++i) {
      expects(sources[i] >= 0 && sources[i] < rows,
              "decoding: a row of the new order is not in the cached batch");
      continued[i] = context[static_cast<std::size_t>(sources[i])];
      same = same && sources[i] == static_cast<index_t>(i);
    }
    if (same) return;
    auto const count = static_cast<index_t>(sources.size());
    if (position > 0 && count > 0) {
      ArenaScope const scope(dev.scratch);
      std::vector<std::int32_t> const narrow(sources.begin(), sources.end());
      auto const from = on_device(dev, dev.scratch, std::span<std::int32_t const>(narrow));
      index_t const width = 2 * inner;
      // The rows as one matrix: what is decoded of each is the left part of it.
      auto const decoded = [&](Tensor<T, 2, D> const& x, index_t n) {
        return TensorView<T, 2, D>(x.data(), {n, position * width}, {capacity * width, 1});
      };
      for (Tensor<T, 2, D>& layer : self) {
        if (spare.extent(0) < count * capacity) {
          spare = Tensor<T, 2, D>({count * capacity, width});
        }
        embedding_forward(dev, decoded(spare, count), decoded(layer, rows), from);
        std::swap(layer, spare);
      }
    }
    context = std::move(continued);
    rows = count;
  }
};

/// Where the rows of a step find their keys, and how they are biased. (A) each, in the device's
/// memory.
template <Element T, Device D>
struct StepInputs {
  TensorView<index_t const, 1, D> begin;          // of a row's own keys in the cache
  TensorView<index_t const, 1, D> length;         // how many, the new one included
  TensorView<index_t const, 1, D> memory_begin;   // of its context's keys
  TensorView<index_t const, 1, D> memory_length;  // how many
  TensorView<Accumulator<T>, 2, D> bias;          // (H, at least the longest length)
  DecodeBias columns = DecodeBias::position;
};

/// A cache of a fixed size, for steps whose launches are always the same, in one batch after the
/// other: what changes from step to step and from batch to batch is in the device's memory, and all
/// rows take part until the end. How many tokens a row has read its caller says.
template <Element T, Device D>
struct InPlaceCache {
  index_t rows = 0;                     // B
  index_t capacity = 0;                 // tokens that a row can read
  std::vector<Tensor<T, 2, D>> memory;  // per layer (Nk at most, 2*inner): keys beside values
  std::vector<Tensor<T, 2, D>> self;    // per layer (B*capacity, 2*inner); row b*capacity + t
  /// (4, B): begin, memory_begin and memory_length of StepInputs, and memory_length of the rows
  /// that have not ended, which each step writes.
  Tensor<index_t, 2, D> ranges;
  Tensor<Accumulator<T>, 2, D> bias;  // (H, capacity), its last column for the newest key

  TensorView<index_t, 1, D> range(index_t i) const {
    return {ranges.view().row(i), {ranges.extent(1)}};
  }
};

}  // namespace emprl::t5
