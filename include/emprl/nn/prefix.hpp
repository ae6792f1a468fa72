// SPDX-License-Identifier: Apache-2.0
#pragma once

// The reparameterisation of prefix-tuning (Li & Liang 2021): the prefix vectors are not trained
// themselves, but produced by a small network, which trains more steadily. Afterwards the vectors
// are stored flat and the network is thrown away.

#include "emprl/nn/linear.hpp"
#include "emprl/nn/parameters.hpp"
#include "emprl/ops/elementwise.hpp"

namespace emprl::nn {

/// flat = W_2 tanh(W_1 e + b_1) + b_2, with a trained e for each of P positions.      P positions,
/// M hidden, O outputs.
template <Scalar T, Device D>
class PrefixNetwork {
 public:
  struct Shape {
    index_t length = 0;   // P
    index_t hidden = 0;   // M
    index_t outputs = 0;  // O
  };
  struct Params {
    TensorView<T, 2, D> embedding;       // (P, M)
    typename Linear<T, D>::Params up;    // (M, M)
    typename Linear<T, D>::Params down;  // (O, M)

    template <class F>
    void visit(std::string const& prefix, Shape const& shape, F&& f) {
      f(prefix + ".embedding.weight", embedding,
        std::array<index_t, 2>{shape.length, shape.hidden});
      up.visit(prefix + ".up", shape.hidden, shape.hidden, f);
      down.visit(prefix + ".down", shape.outputs, shape.hidden, f);
    }
  };
  struct Context {
    TensorView<T, 2, D> activated;  // (P, M), after tanh
  };

  void inference(D& dev, Params const& p, TensorView<T, 2, D> flat) const {
    ArenaScope scope(dev.scratch);
    auto hidden = dev.scratch.template allocate<T, 2>(p.embedding.extents());
    apply(dev, p, hidden, flat);
  }

  /// @param flat (P, O), written
  void forward(D& dev, Params const& p, TensorView<T, 2, D> flat, Context& context) const {
    context.activated = dev.saved.template allocate<T, 2>(p.embedding.extents());
    apply(dev, p, context.activated, flat);
  }

  /// grads += .
  void backward(D& dev, Params const& p, Params const& grads, In<T, 2, D> dflat,
                Context const& context) const {
    ArenaScope scope(dev.scratch);
    auto dhidden = dev.scratch.template allocate<T, 2>(p.embedding.extents());
    linear_backward(dev, dhidden, grads.down.weight, grads.down.bias, dflat, context.activated,
                    p.down.weight);
    tanh_backward(dev, dhidden, dhidden, context.activated);
    linear_backward(dev, grads.embedding, grads.up.weight, grads.up.bias, dhidden, p.embedding,
                    p.up.weight, Write::accumulate);
  }

 private:
  static void apply(D& dev, Params const& p, TensorView<T, 2, D> hidden, TensorView<T, 2, D> flat) {
    linear_forward(dev, hidden, p.embedding, p.up.weight, p.up.bias);
    tanh_forward(dev, hidden, hidden);
    linear_forward(dev, flat, hidden, p.down.weight, p.down.bias);
  }
};

}  // namespace emprl::nn
