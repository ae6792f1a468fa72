// SPDX-License-Identifier: Apache-2.0
#include "emprl/nn/feed_forward.hpp"

#include "emprl/ops/gemm_cpu.hpp"
#include "reference/activations.hpp"
#include "reference/linear.hpp"
#include "support/catch.hpp"
#include "support/flat_parameters.hpp"
#include "support/layer_contract.hpp"

using emprl::Cpu;
using emprl::index_t;
using emprl::nn::Activation;

namespace {

template <class T>
struct Fixture {
  using Layer = emprl::nn::FeedForward<T, Cpu>;

  explicit Fixture(Activation activation) : layer(activation), memory(3 * 9 * 13) {
    memory.matrix("wi", 13, 9, p.wi, g.wi);
    if (activation == Activation::gated_gelu) memory.matrix("wg", 13, 9, p.wg, g.wg);
    memory.matrix("wo", 9, 13, p.wo, g.wo);
  }

  Layer layer;
  support::FlatParameters<T> memory;
  typename Layer::Params p, g;
  typename Layer::Context context;
};

template <class T>
reference::Matrix<double> matrix(emprl::TensorView<T, 2, Cpu> x) {
  reference::Matrix<double> m(x.extent(0), x.extent(1));
  m.values = reference::convert<double>(support::values(x));
  return m;
}

}  // namespace

TEMPLATE_TEST_CASE("nn::FeedForward: keeps the layer contract", "[nn][feed_forward][contract]",
                   float, double) {
  using T = TestType;
  for (Activation const activation : {Activation::relu, Activation::gated_gelu}) {
    Fixture<T> f(activation);
    support::LayerUnderTest<T> test;
    test.name = activation == Activation::relu ? "relu" : "gated gelu";
    test.inputs = test.outputs = 9;
    test.has_dropout = true;
    test.parameters = f.memory.list();
    if (activation == Activation::relu) {
      // A step this short crosses no kink for these inputs, and rounds more.
      test.gradients.step = 1e-6;
      test.gradients.tolerance = 1e-7;
    }
    test.inference = [&](Cpu& dev, auto const& batch, auto y) {
      f.layer.inference(dev, f.p, batch.x, y);
    };
    test.forward = [&](Cpu& dev, auto const& batch, auto y, auto& sites) {
      f.layer.forward(dev, f.p, batch.x, y, f.context, sites);
    };
    test.backward = [&](Cpu& dev, auto dy, auto dx) {
      f.layer.backward(dev, f.p, f.g, dy, dx, f.context);
    };
    support::check_layer_contract(test, {1, 2, 31});
  }
}

TEST_CASE("nn::FeedForward: is the formula", "[nn][feed_forward][unit]") {
  Cpu dev;
  for (Activation const activation : {Activation::relu, Activation::gated_gelu}) {
    Fixture<double> f(activation);
    auto const x = support::random_matrix<double>(5, 9, 3);
    emprl::Tensor<double, 2, Cpu> y({5, 9});
    f.layer.inference(dev, f.p, support::to_tensor(x), y.view());
    auto hidden = reference::linear(x, matrix(f.p.wi));
    for (double& v : hidden.values) {
      v = activation == Activation::relu ? reference::relu(v) : reference::gelu_new(v);
    }
    if (activation == Activation::gated_gelu) {
      auto const gate = reference::linear(x, matrix(f.p.wg));
      for (std::size_t i = 0; i < gate.values.size(); ++i) hidden.values[i] *= gate.values[i];
    }
    support::check_error("y", support::values(y), reference::linear(hidden, matrix(f.p.wo)).values,
                         0.0, 256);
  }
}
