// SPDX-License-Identifier: Apache-2.0
#pragma once

// Where the vectors of prefix-tuning lie: one flat matrix for each kind of attention, one row a
// position, and in its columns the layers' keys and values: key 0, value 0, key 1, value 1, ...

#include <array>

#include "emprl/nn/attention.hpp"
#include "emprl/t5/config.hpp"

namespace emprl::t5 {

/// Prefixes of all layers (or their gradients). P positions; empty views mean no prefix.
template <Element T, Device D>
struct Prefixes {
  TensorView<T, 2, D> encoder;  // (P, num_layers * 2 * inner)
  TensorView<T, 2, D> decoder;  // (P, num_decoder_layers * 2 * inner)
  TensorView<T, 2, D> cross;    // (P, num_decoder_layers * 2 * inner)

  /// The same views, whatever is there.
  bool operator==(Prefixes const&) const = default;

  struct Shape {
    Config model;
    index_t length = 0;
  };

  template <class F>
  void visit(Shape const& s, F&& f) {
    using Matrix = std::array<index_t, 2>;
    f("prefix.encoder", encoder, Matrix{s.length, s.model.num_layers * 2 * s.model.inner()});
    f("prefix.decoder", decoder,
      Matrix{s.length, s.model.num_decoder_layers * 2 * s.model.inner()});
    f("prefix.cross", cross, Matrix{s.length, s.model.num_decoder_layers * 2 * s.model.inner()});
  }

  /// The keys and values of one layer.
  static nn::PrefixKeys<T, D> layer(TensorView<T, 2, D> flat, index_t layer, index_t inner) {
    if (flat.empty()) return {};
    index_t const at = layer * 2 * inner;
    return {flat.columns(at, at + inner), flat.columns(at + inner, at + 2 * inner)};
  }
};

}  // namespace emprl::t5
