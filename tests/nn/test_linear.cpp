// SPDX-License-Identifier: Apache-2.0
#include "emprl/nn/linear.hpp"

#include "emprl/ops/gemm_cpu.hpp"
#include "support/catch.hpp"
#include "support/flat_parameters.hpp"
#include "support/layer_contract.hpp"

using emprl::Cpu;
using emprl::index_t;

TEMPLATE_TEST_CASE("nn::Linear: keeps the layer contract, with and without a bias",
                   "[nn][linear][contract]", float, double) {
  using T = TestType;
  using Layer = emprl::nn::Linear<T, Cpu>;
  for (bool const bias : {false, true}) {
    Layer const layer;
    support::FlatParameters<T> memory(10 * 7 + 7);
    typename Layer::Params p;
    typename Layer::Params g;
    typename Layer::Context context;
    memory.matrix("weight", 7, 10, p.weight, g.weight);
    if (bias) memory.vector("bias", 7, p.bias, g.bias);
    support::LayerUnderTest<T> test;
    test.name = bias ? "linear with bias" : "linear";
    test.inputs = 10;
    test.outputs = 7;
    test.parameters = memory.list();
    test.inference = [&](Cpu& dev, auto const& batch, auto y) {
      layer.inference(dev, p, batch.x, y);
    };
    test.forward = [&](Cpu& dev, auto const& batch, auto y, auto&) {
      layer.forward(dev, p, batch.x, y, context);
    };
    test.backward = [&](Cpu& dev, auto dy, auto dx) { layer.backward(dev, p, g, dy, dx, context); };
    support::check_layer_contract(test, {1, 2, 31});
  }
}
