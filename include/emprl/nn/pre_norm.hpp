// SPDX-License-Identifier: Apache-2.0
#pragma once

// The residual branch of T5's sub-layers: y = x + dropout(f(rms_norm(x))).

#include "emprl/core/arena.hpp"
#include "emprl/core/device.hpp"
#include "emprl/ops/dropout.hpp"
#include "emprl/ops/elementwise.hpp"
#include "emprl/ops/normed_rows.hpp"
#include "emprl/ops/rms_norm.hpp"

namespace emprl::nn {

/// The residual branch around a sub-layer that its caller supplies as a function of (normalised
/// input, residual, output), output = residual + f(normalised input): the last product of a
/// sub-layer adds as it writes. The residual may be the output itself, or empty, which is nothing.
template <Element T, Device D>
class PreNorm {
 public:
  struct Params {
    TensorView<T, 1, D> weight;  // (C)

    bool operator==(Params const&) const = default;
  };
  using Gradients = typename PreNorm<Accumulator<T>, D>::Params;
  struct Context {
    TensorView<T const, 2, D> x;            // (N, C), borrowed
    TensorView<T, 2, D> normed;             // (N, C)
    TensorView<Accumulator<T>, 1, D> rstd;  // (N)
    DropoutKey dropout;
  };

  explicit PreNorm(double eps) : eps_(eps) {}

  /// x += f(rms_norm(x)), in place: the bits of forward without dropout.
  template <class F>
  void inference(D& dev, Params const& p, TensorView<T, 2, D> x, F&& f) const {
    step(dev, p, x, [&](auto& normed, In<T, 2, D> added, TensorView<T, 2, D> out) {
      f(normed.rows(dev), added, out);
    });
  }

  /// The same for the few rows of a decoded token: f gets its input as NormedRows, which the
  /// sub-layer's first product may take as they are, in one pass for two and with other roundings.
  template <class F>
  void step(D& dev, Params const& p, TensorView<T, 2, D> x, F&& f) const {
    ArenaScope scope(dev.scratch);
    NormedRows<T, D> normed(x, p.weight, eps_, dev.scratch.template allocate<T, 2>(x.extents()));
    f(normed, In<T, 2, D>(x), x);
  }

  /// y = x + dropout(f(rms_norm(x))); y (N, C) may not alias x.
  template <class F>
  void forward(D& dev, Params const& p, In<T, 2, D> x, TensorView<T, 2, D> y, Context& context,
               DropoutSites& sites, F&& f) const {
    context.x = x;
    context.normed = dev.saved.template allocate<T, 2>(x.extents());
    context.rstd = dev.saved.template allocate<Accumulator<T>, 1>({x.extent(0)});
    rms_norm_forward(dev, context.normed, context.rstd, x, p.weight, eps_);
    // What is dropped must be apart from x.
    bool const drops = sites.active();
    f(In<T, 2, D>(context.normed), drops ? In<T, 2, D>() : x, y);
    context.dropout = sites.next();
    if (drops) {
      dropout_add(dev, y, y, x, context.dropout);
    }
  }

  /// On entry dx holds dy; on return the gradient of x. f_backward(dbranch, dnormed) writes
  /// dnormed. grads += .
  template <class F>
  void backward(D& dev, Params const& p, Gradients const& grads, TensorView<T, 2, D> dx,
                Context const& context, F&& f_backward) const {
    ArenaScope scope(dev.scratch);
    In<T, 2, D> dbranch = dx;
    if (context.dropout.active()) {
      auto const dropped = dev.scratch.template allocate<T, 2>(dx.extents());
      dropout_forward(dev, dropped, dx, context.dropout);
      dbranch = dropped;
    }
    auto dnormed = dev.scratch.template allocate<T, 2>(dx.extents());
    f_backward(dbranch, dnormed);
    rms_norm_backward(dev, dx, grads.weight, dnormed, context.x, p.weight, context.rstd,
                      Write::accumulate);
  }

 private:
  double eps_;
};

}  // namespace emprl::nn
