// SPDX-License-Identifier: Apache-2.0
#pragma once

// LoRA (Hu et al. 2021): a product of two narrow matrices, trained beside a weight that stays as it
// is. Layers that can have one carry its views beside the weight's; empty views cost nothing.

#include <cstdint>

#include "emprl/core/arena.hpp"
#include "emprl/core/device.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/ops/dropout.hpp"
#include "emprl/ops/elementwise.hpp"
#include "emprl/ops/gemm.hpp"
#include "emprl/ops/normed_rows.hpp"
#include "emprl/ops/view.hpp"

namespace emprl::nn {

/// What is trained beside a weight (O, I), or its gradients. Empty views mean that there is
/// nothing. R rank.
template <Element T, Device D>
struct LoraParams {
  TensorView<T, 2, D> a;     // (R, I)
  TensorView<T, 2, D> b;     // (O, R)
  Accumulator<T> scale = 0;  // alpha / R; of gradients not used
  std::uint32_t site = 0;    // the number of its dropout's site

  bool empty() const { return a.empty(); }

  bool operator==(LoraParams const&) const = default;
};

/// y += scale * B A dropout(x), on what W x wrote.      N rows, I inputs, O outputs, R rank.
template <Element T, Device D>
class Lora {
 public:
  using Params = LoraParams<T, D>;
  using Gradients = LoraParams<Accumulator<T>, D>;
  struct Context {
    TensorView<T const, 2, D> x;     // (N, I), borrowed: must live until backward
    TensorView<T, 2, D> compressed;  // (N, R), A dropout(x)
    DropoutKey dropout;
  };

  /// y (N, O) += .     @param x  rows, or rows to be normalised
  /// @throws ShapeError if extents disagree
  template <class X>
  void inference(D& dev, Params const& p, X&& x, TensorView<T, 2, D> y) const {
    if (p.empty()) return;
    ArenaScope scope(dev.scratch);
    auto compressed = dev.scratch.template allocate<T, 2>({y.extent(0), p.a.extent(0)});
    apply(dev, p, rows_of<T, D>(dev, x), compressed, y);
  }

  /// y (N, O) += .     @throws ShapeError if extents disagree
  void forward(D& dev, Params const& p, In<T, 2, D> x, TensorView<T, 2, D> y, Context& context,
               DropoutSites const& sites) const {
    if (p.empty()) return;
    context.x = x;
    context.dropout = sites.adapter(p.site);
    context.compressed = dev.saved.template allocate<T, 2>({x.extent(0), p.a.extent(0)});
    ArenaScope scope(dev.scratch);
    apply(dev, p, dropped(dev, x, context.dropout), context.compressed, y);
  }

  /// grads += (empty views: not needed); dx += (empty: not needed).
  ///   dB += scale dy^T (A dropout(x)),  du = scale dy B,  dA += du^T dropout(x),
  ///   dx += dropout(du A)
  void backward(D& dev, Params const& p, Gradients const& grads, In<T, 2, D> dy,
                TensorView<T, 2, D> dx, Context const& context) const {
    if (p.empty()) return;
    ArenaScope scope(dev.scratch);
    auto du = dev.scratch.template allocate<T, 2>(context.compressed.extents());
    if (!grads.b.empty())
      gemm(dev, Trans::yes, Trans::no, p.scale, dy, context.compressed, 1, grads.b);
    gemm(dev, Trans::no, Trans::no, p.scale, dy, p.b, 0, du);
    if (!grads.a.empty()) {
      gemm(dev, Trans::yes, Trans::no, 1, du, dropped(dev, context.x, context.dropout), 1, grads.a);
    }
    if (dx.empty()) return;
    if (!context.dropout.active()) {
      gemm(dev, Trans::no, Trans::no, 1, du, p.a, 1, dx);
      return;
    }
    auto through = dev.scratch.template allocate<T, 2>(dx.extents());
    gemm(dev, Trans::no, Trans::no, 1, du, p.a, 0, through);
    dropout_add(dev, dx, through, dx, context.dropout);
  }

  /// weight (O, I) += scale B A: the layer alone then gives what both gave.
  void merge(D& dev, Params const& p, TensorView<T, 2, D> weight) const {
    if (!p.empty()) gemm(dev, Trans::no, Trans::no, p.scale, p.b, p.a, 1, weight);
  }

  /// weight (O, I) -= scale B A: takes back what `merge` did, but for rounding.
  void unmerge(D& dev, Params const& p, TensorView<T, 2, D> weight) const {
    if (!p.empty()) gemm(dev, Trans::no, Trans::no, -p.scale, p.b, p.a, 1, weight);
  }

 private:
  static void apply(D& dev, Params const& p, In<T, 2, D> x, TensorView<T, 2, D> compressed,
                    TensorView<T, 2, D> y) {
    gemm(dev, Trans::no, Trans::yes, 1, x, p.a, 0, compressed);
    gemm(dev, Trans::no, Trans::yes, p.scale, compressed, p.b, 1, y);
  }

  /// dropout(x) in scratch memory; x itself where nothing is dropped.
  static TensorView<T const, 2, D> dropped(D& dev, In<T, 2, D> x, DropoutKey const& key) {
    if (!key.active()) return x;
    auto copied = dev.scratch.template allocate<T, 2>(x.extents());
    dropout_forward(dev, copied, x, key);
    return copied;
  }
};

}  // namespace emprl::nn
