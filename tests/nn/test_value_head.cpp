// SPDX-License-Identifier: Apache-2.0
#include "emprl/nn/value_head.hpp"

#include <string>
#include <vector>

#include "emprl/ops/gemm_cpu.hpp"
#include "support/catch.hpp"
#include "support/flat_parameters.hpp"
#include "support/layer_contract.hpp"

using emprl::Cpu;
using emprl::index_t;

TEMPLATE_TEST_CASE("nn::ValueHead: keeps the layer contract and adds to dx",
                   "[nn][value_head][contract]", float, double) {
  using T = TestType;
  using Layer = emprl::nn::ValueHead<T, Cpu>;
  Layer const layer;
  support::FlatParameters<T> memory(12);
  typename Layer::Params p;
  typename Layer::Params g;
  typename Layer::Context context;
  memory.matrix("weight", 1, 11, p.weight, g.weight);
  memory.vector("bias", 1, p.bias, g.bias);
  support::LayerUnderTest<T> test;
  test.name = "value head";
  test.inputs = 11;
  test.outputs = 1;
  test.adds_to_dx = true;
  test.parameters = memory.list();
  auto const flat = [](auto m) {
    return emprl::TensorView<std::remove_pointer_t<decltype(m.data())>, 1, Cpu>(m.data(),
                                                                                {m.extent(0)});
  };
  test.inference = [&](Cpu& dev, auto const& batch, auto y) {
    layer.inference(dev, p, batch.x, flat(y));
  };
  test.forward = [&](Cpu& dev, auto const& batch, auto y, auto&) {
    layer.forward(dev, p, batch.x, flat(y), context);
  };
  test.backward = [&](Cpu& dev, auto dy, auto dx) {
    layer.backward(dev, p, g, flat(dy), dx, context);
  };
  support::check_layer_contract(test, {1, 2, 33});
}

TEST_CASE("nn::ValueHead: parameters have TRL's names and shapes", "[nn][value_head][unit]") {
  emprl::nn::ValueHead<float, Cpu>::Params p;
  std::vector<std::string> seen;
  p.visit(128, [&](std::string const& name, auto&, auto extents) {
    for (index_t const e : extents) seen.push_back(name + " " + std::to_string(e));
  });
  CHECK(seen == std::vector<std::string>{"v_head.summary.weight 1", "v_head.summary.weight 128",
                                         "v_head.summary.bias 1"});
}
