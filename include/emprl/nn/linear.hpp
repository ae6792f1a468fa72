// SPDX-License-Identifier: Apache-2.0
#pragma once

// y = x W^T + b as a layer.

#include <array>
#include <string>

#include "emprl/ops/linear.hpp"

namespace emprl::nn {

/// A linear layer; without a bias, `bias` is empty. N rows, I inputs, O outputs.
template <Element T, Device D>
class Linear {
 public:
  struct Params {
    TensorView<T, 2, D> weight;  // (O, I)
    TensorView<T, 1, D> bias;    // (O)

    /// Visits a layer with a bias under the names prefix.weight and prefix.bias.
    template <class F>
    void visit(std::string const& prefix, index_t outputs, index_t inputs, F&& f) {
      f(prefix + ".weight", weight, std::array<index_t, 2>{outputs, inputs});
      f(prefix + ".bias", bias, std::array<index_t, 1>{outputs});
    }
  };
  using Gradients = typename Linear<Accumulator<T>, D>::Params;
  struct Context {
    TensorView<T const, 2, D> x;  // (N, I), borrowed: must live until backward
  };

  /// y = residual + W x + b, the residual empty for none.
  void inference(D& dev, Params const& p, In<T, 2, D> x, TensorView<T, 2, D> y,
                 In<T, 2, D> residual = {}) const {
    linear_forward(dev, y, x, p.weight, p.bias, residual);
  }
  void forward(D& dev, Params const& p, In<T, 2, D> x, TensorView<T, 2, D> y, Context& context,
               In<T, 2, D> residual = {}) const {
    context.x = x;
    inference(dev, p, x, y, residual);
  }
  /// grads += ; dx = (empty: not needed).
  void backward(D& dev, Params const& p, Gradients const& grads, In<T, 2, D> dy,
                TensorView<T, 2, D> dx, Context const& context) const {
    linear_backward(dev, dx, grads.weight, grads.bias, dy, context.x, p.weight);
  }
};

}  // namespace emprl::nn
