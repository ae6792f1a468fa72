// SPDX-License-Identifier: Apache-2.0
#pragma once

// What cached decoding remembers of a batch: per layer the keys and values of the encoder's output
// (packed, true lengths) and of the tokens decoded so far.

#include <vector>

#include "emprl/core/device.hpp"
#include "emprl/core/tensor.hpp"
#include "emprl/ops/elementwise.hpp"

namespace emprl::t5 {

template <Element T, Device D>
struct KvCache {
  index_t rows = 0;                     // B
  index_t capacity = 0;                 // positions that fit without growing
  index_t position = 0;                 // tokens decoded so far
  std::vector<index_t> memory_offsets;  // (B+1)
  std::vector<Tensor<T, 2, D>> memory;  // per layer (Nk, 2*inner): keys beside values
  std::vector<Tensor<T, 2, D>> self;    // per layer (B*capacity, 2*inner); row b*capacity + t

  /// Makes room for at least one more position, doubling so that growth is rare: on a GPU it waits
  /// for the work so far.
  void reserve_next(D& dev, index_t layers, index_t inner) {
    if (position < capacity) return;
    index_t const larger = capacity == 0 ? 32 : 2 * capacity;
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
};

}  // namespace emprl::t5
