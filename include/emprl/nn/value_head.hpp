// SPDX-License-Identifier: Apache-2.0
#pragma once

// A scalar value for each token, read off the decoder's last hidden state.

#include <array>

#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/nn/parameters.hpp"
#include "emprl/ops/linear.hpp"
#include "emprl/ops/view.hpp"

namespace emprl::nn {

/// value[n] = weight . x[n] + bias.      N rows, C model.
template <Scalar T, Device D>
class ValueHead {
 public:
  struct Params {
    TensorView<T, 2, D> weight;  // (1, C)
    TensorView<T, 1, D> bias;    // (1)

    /// Under TRL's names; `model` is C.
    template <class F>
    void visit(index_t model, F&& f) {
      f("v_head.summary.weight", weight, std::array<index_t, 2>{1, model});
      f("v_head.summary.bias", bias, std::array<index_t, 1>{1});
    }
  };
  struct Context {
    TensorView<T const, 2, D> x;  // (N, C), borrowed
  };

  void inference(D& dev, Params const& p, In<T, 2, D> x, TensorView<T, 1, D> value) const {
    linear_forward(dev, TensorView<T, 2, D>(value.data(), {value.extent(0), 1}), x, p.weight,
                   p.bias);
  }
  void forward(D& dev, Params const& p, In<T, 2, D> x, TensorView<T, 1, D> value,
               Context& context) const {
    context.x = x;
    inference(dev, p, x, value);
  }
  /// grads += ; dx += : the hidden state has another gradient from the policy.
  void backward(D& dev, Params const& p, Params const& grads, In<T, 1, D> dvalue,
                TensorView<T, 2, D> dx, Context const& context) const {
    In<T, 2, D> const column(dvalue.data(), {dvalue.extent(0), 1});
    linear_backward(dev, dx, grads.weight, grads.bias, column, context.x, p.weight,
                    Write::accumulate);
  }
};

}  // namespace emprl::nn
