// SPDX-License-Identifier: Apache-2.0
#pragma once

// A scalar value for each token, read off the decoder's last hidden state.

#include <array>
#include <concepts>

#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/nn/parameters.hpp"
#include "emprl/ops/linear.hpp"
#include "emprl/ops/view.hpp"

namespace emprl::nn {

/// value[n] = weight . x[n] + bias.      N rows, C model.
///
/// Where the model is in 16 bits, values and gradients of parameters are in float all the same: 16
/// bits would leave a value two digits.
template <Element T, Device D>
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
  using Gradients = typename ValueHead<Accumulator<T>, D>::Params;
  struct Context {
    TensorView<T const, 2, D> x;  // (N, C), borrowed
  };

  void inference(D& dev, Params const& p, In<T, 2, D> x,
                 TensorView<Accumulator<T>, 1, D> value) const {
    TensorView<Accumulator<T>, 2, D> const column(value.data(), {value.extent(0), 1});
    if constexpr (std::same_as<T, Accumulator<T>>) {
      linear_forward(dev, column, x, p.weight, p.bias);
    } else {
      ArenaScope scope(dev.scratch);
      auto const bias = dev.scratch.template allocate<Accumulator<T>, 2>({1, 1});
      convert(dev, bias, In<T, 2, D>(p.bias.data(), {1, 1}));
      gemm(dev, Trans::no, Trans::yes, 1, x, p.weight, 0, column);
      add_bias(dev, column, In<Accumulator<T>, 1, D>(bias.data(), {1}));
    }
  }
  void forward(D& dev, Params const& p, In<T, 2, D> x, TensorView<Accumulator<T>, 1, D> value,
               Context& context) const {
    context.x = x;
    inference(dev, p, x, value);
  }
  /// grads += ; dx += : the hidden state has another gradient from the policy.
  void backward(D& dev, Params const& p, Gradients const& grads, In<Accumulator<T>, 1, D> dvalue,
                TensorView<T, 2, D> dx, Context const& context) const {
    In<Accumulator<T>, 2, D> const column(dvalue.data(), {dvalue.extent(0), 1});
    if constexpr (std::same_as<T, Accumulator<T>>) {
      linear_backward(dev, dx, grads.weight, grads.bias, column, context.x, p.weight,
                      Write::accumulate);
    } else {
      // Rounded to be multiplied; the bias's gradient is their sum as they are.
      ArenaScope scope(dev.scratch);
      auto const rounded = dev.scratch.template allocate<T, 2>(column.extents());
      convert(dev, rounded, column);
      linear_backward(dev, dx, grads.weight, {}, rounded, context.x, p.weight, Write::accumulate);
      if (!grads.bias.empty()) sum_rows(dev, grads.bias, column);
    }
  }
};

}  // namespace emprl::nn
