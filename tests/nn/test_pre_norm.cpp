// SPDX-License-Identifier: Apache-2.0
#include "emprl/nn/pre_norm.hpp"

#include "emprl/nn/linear.hpp"
#include "emprl/ops/gemm_cpu.hpp"
#include "support/catch.hpp"
#include "support/flat_parameters.hpp"
#include "support/layer_contract.hpp"

using emprl::Cpu;
using emprl::In;
using emprl::index_t;
using emprl::TensorView;

TEMPLATE_TEST_CASE("nn::PreNorm: keeps the layer contract around a linear layer",
                   "[nn][pre_norm][contract]", float, double) {
  using T = TestType;
  emprl::nn::PreNorm<T, Cpu> const norm(1e-6);
  emprl::nn::Linear<T, Cpu> const inner;
  support::FlatParameters<T> memory(9 + 81);
  typename emprl::nn::PreNorm<T, Cpu>::Params p, g;
  typename emprl::nn::PreNorm<T, Cpu>::Context context;
  typename emprl::nn::Linear<T, Cpu>::Params inner_p, inner_g;
  typename emprl::nn::Linear<T, Cpu>::Context inner_context;
  memory.vector("norm weight", 9, p.weight, g.weight);
  memory.matrix("inner weight", 9, 9, inner_p.weight, inner_g.weight);

  support::LayerUnderTest<T> test;
  test.name = "pre-norm";
  test.inputs = test.outputs = 9;
  test.has_dropout = true;
  test.parameters = memory.list();
  test.inference = [&](Cpu& dev, auto const& batch, TensorView<T, 2, Cpu> y) {
    emprl::copy<T>(dev, y, batch.x);
    norm.inference(dev, p, y, [&](auto n, auto residual, auto out) {
      inner.inference(dev, inner_p, n, out, residual);
    });
  };
  test.forward = [&](Cpu& dev, auto const& batch, TensorView<T, 2, Cpu> y, auto& sites) {
    norm.forward(dev, p, batch.x, y, context, sites, [&](auto n, auto residual, auto out) {
      inner.forward(dev, inner_p, n, out, inner_context, residual);
    });
  };
  test.backward = [&](Cpu& dev, auto dy, TensorView<T, 2, Cpu> dx) {
    emprl::copy<T>(dev, dx, dy);
    norm.backward(dev, p, g, dx, context, [&](In<T, 2, Cpu> dout, TensorView<T, 2, Cpu> dn) {
      inner.backward(dev, inner_p, inner_g, dout, dn, inner_context);
    });
  };
  support::check_layer_contract(test, {1, 2, 31});
}
