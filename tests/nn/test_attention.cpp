// SPDX-License-Identifier: Apache-2.0
#include "emprl/nn/attention.hpp"

#include <string>
#include <vector>

#include "emprl/ops/gemm_cpu.hpp"
#include "emprl/ops/relative_bias.hpp"
#include "reference/attention.hpp"
#include "reference/linear.hpp"
#include "reference/relative_bucket.hpp"
#include "support/catch.hpp"
#include "support/flat_parameters.hpp"
#include "support/layer_contract.hpp"

using emprl::Cpu;
using emprl::index_t;
using emprl::Mask;
using emprl::Tensor;
using emprl::TensorView;

namespace {

constexpr index_t model = 10;
constexpr index_t heads = 2;
constexpr index_t inner = 6;
constexpr index_t longest = 33;
constexpr index_t distances = 2 * longest - 1;

/// Parameters of an attention layer, optional biases, an expanded relative bias, a prefix.
template <class T>
struct Parts {
  Parts(bool linear_bias, bool relative, index_t prefix_length) : memory(4000) {
    memory.matrix("q", inner, model, p.q, g.q);
    memory.matrix("k", inner, model, p.k, g.k);
    memory.matrix("v", inner, model, p.v, g.v);
    memory.matrix("o", model, inner, p.o, g.o);
    if (linear_bias) {
      memory.vector("q_bias", inner, p.q_bias, g.q_bias);
      memory.vector("k_bias", inner, p.k_bias, g.k_bias);
      memory.vector("v_bias", inner, p.v_bias, g.v_bias);
      memory.vector("o_bias", model, p.o_bias, g.o_bias);
    }
    if (relative) memory.matrix("relative bias", heads, distances, bias, dbias, 0.5);
    if (prefix_length > 0) {
      memory.matrix("prefix keys", prefix_length, inner, prefix.key, dprefix.key, 1.0);
      memory.matrix("prefix values", prefix_length, inner, prefix.value, dprefix.value, 1.0);
    }
  }

  support::FlatParameters<T> memory;
  emprl::nn::AttentionParams<T, Cpu> p, g;
  TensorView<T, 2, Cpu> bias, dbias;
  emprl::nn::PrefixKeys<T, Cpu> prefix, dprefix;
};

reference::Matrix<double> matrix(TensorView<double, 2, Cpu> x) {
  reference::Matrix<double> m(x.extent(0), x.extent(1));
  m.values = support::values(x);
  return m;
}

std::vector<double> vector(TensorView<double, 1, Cpu> x) {
  return support::values(x);
}

}  // namespace

TEMPLATE_TEST_CASE("nn::SelfAttention: keeps the layer contract", "[nn][attention][contract]",
                   float, double) {
  using T = TestType;
  for (Mask const mask : {Mask::full, Mask::causal}) {
    for (index_t const prefix : {0, 3}) {
      for (bool const relative : {false, true}) {
        Parts<T> parts(false, relative, prefix);
        emprl::nn::SelfAttention<T, Cpu> const layer(heads, mask);
        typename emprl::nn::SelfAttention<T, Cpu>::Context context;
        auto const inputs = [&](auto const& batch) {
          return emprl::nn::SelfAttentionInputs<T, Cpu>{batch.offsets_view(), parts.bias,
                                                        -(longest - 1), parts.prefix};
        };
        // The context borrows the offsets, so the batch of the last forward must live on.
        support::LayerBatch<T> kept;
        support::LayerUnderTest<T> test;
        test.name = std::string(mask == Mask::full ? "full" : "causal") +
                    (relative ? ", relative bias" : "") + (prefix > 0 ? ", prefix" : "");
        test.inputs = test.outputs = model;
        test.has_dropout = true;
        test.gradients.most = 20;
        test.parameters = parts.memory.list();
        test.inference = [&](Cpu& dev, auto const& batch, auto y) {
          layer.inference(dev, parts.p, inputs(batch), batch.x, y);
        };
        test.forward = [&](Cpu& dev, auto const& batch, auto y, auto& sites) {
          kept = batch;
          layer.forward(dev, parts.p, inputs(kept), kept.x, y, context, sites);
        };
        test.backward = [&](Cpu& dev, auto dy, auto dx) {
          layer.backward(dev, parts.p, parts.g, dy, dx, context, parts.dbias, parts.dprefix);
        };
        support::check_layer_contract(test, {5, 1, 9});
      }
    }
  }
}

TEMPLATE_TEST_CASE("nn::CrossAttention: keeps the layer contract", "[nn][attention][contract]",
                   float, double) {
  using T = TestType;
  std::vector<index_t> const memory_lengths{7, 2, 1};
  for (bool const biases : {false, true}) {
    for (index_t const prefix : {0, 2}) {
      Parts<T> parts(biases, false, prefix);
      // One memory for each row, trained like a parameter, so that its gradient is checked too.
      auto const memory_offsets = support::offsets_of(memory_lengths);
      TensorView<T, 2, Cpu> memory, dmemory;
      parts.memory.matrix("memory", memory_offsets.back(), model, memory, dmemory, 1.0);
      emprl::nn::CrossAttention<T, Cpu> const layer(heads, static_cast<T>(0.6));
      typename emprl::nn::CrossAttention<T, Cpu>::Context context;
      // The memory of the batch's rows in the batch's order.
      Tensor<T, 2, Cpu> chosen;
      std::vector<index_t> chosen_offsets;
      support::LayerBatch<T> kept;
      auto const inputs = [&](support::LayerBatch<T> const& batch) {
        std::vector<index_t> lengths;
        for (index_t const id : batch.ids)
          lengths.push_back(memory_lengths[static_cast<std::size_t>(id)]);
        chosen_offsets = support::offsets_of(lengths);
        chosen = Tensor<T, 2, Cpu>({chosen_offsets.back(), model});
        for (std::size_t r = 0; r < batch.ids.size(); ++r) {
          for (index_t i = 0; i < lengths[r]; ++i) {
            index_t const from = memory_offsets[static_cast<std::size_t>(batch.ids[r])] + i;
            for (index_t c = 0; c < model; ++c) chosen(chosen_offsets[r] + i, c) = memory(from, c);
          }
        }
        return emprl::nn::CrossAttentionInputs<T, Cpu>{
            chosen.view(),
            batch.offsets_view(),
            {chosen_offsets.data(), {static_cast<index_t>(chosen_offsets.size())}},
            parts.prefix};
      };
      support::LayerUnderTest<T> test;
      test.name =
          std::string("cross") + (biases ? ", biases" : "") + (prefix > 0 ? ", prefix" : "");
      test.inputs = test.outputs = model;
      test.has_dropout = true;
      test.gradients.most = 20;
      test.parameters = parts.memory.list();
      test.inference = [&](Cpu& dev, auto const& batch, auto y) {
        layer.inference(dev, parts.p, inputs(batch), batch.x, y);
      };
      test.forward = [&](Cpu& dev, auto const& batch, auto y, auto& sites) {
        kept = batch;
        layer.forward(dev, parts.p, inputs(kept), kept.x, y, context, sites);
      };
      test.backward = [&](Cpu& dev, auto dy, auto dx) {
        // Only the full batch in order has a gradient for all of the memory.
        auto const wanted =
            kept.ids.size() == memory_lengths.size() ? dmemory : TensorView<T, 2, Cpu>{};
        layer.backward(dev, parts.p, parts.g, dy, dx, wanted, context, parts.dprefix);
      };
      // The gradient of the keys' bias is zero without a prefix: adding q . b to every score
      // changes nothing.
      if (biases && prefix == 0) {
        std::erase_if(test.parameters,
                      [](auto const& parameter) { return parameter.name == "k_bias"; });
      }
      support::check_layer_contract(test, {5, 1, 9});
    }
  }
}

TEST_CASE("nn::SelfAttention: is T5's attention, not scaled", "[nn][attention][unit]") {
  Cpu dev;
  Parts<double> parts(false, true, 2);
  emprl::nn::SelfAttention<double, Cpu> const layer(heads, Mask::causal);
  auto const offsets = support::offsets_of({5, 1, 33});
  auto const x = support::random_matrix<double>(39, model, 5);
  Tensor<double, 2, Cpu> y({39, model});
  layer.inference(dev, parts.p, {{offsets.data(), {4}}, parts.bias, -(longest - 1), parts.prefix},
                  support::to_tensor(x), y.view());
  reference::AttentionShape shape;
  shape.heads = heads;
  shape.query_offsets = shape.key_offsets = offsets;
  shape.causal = true;
  shape.bucket = [](index_t relative) { return relative + longest - 1; };
  reference::AttentionInputs<double> in{reference::linear(x, matrix(parts.p.q)),
                                        reference::linear(x, matrix(parts.p.k)),
                                        reference::linear(x, matrix(parts.p.v)),
                                        reference::transpose(matrix(parts.bias)),
                                        matrix(parts.prefix.key),
                                        matrix(parts.prefix.value)};
  auto const truth = reference::linear(reference::attention(shape, in), matrix(parts.p.o));
  support::check_error("y", support::values(y), truth.values, 0.0, 256);
}

TEST_CASE("nn::CrossAttention: projections with biases, then the scale", "[nn][attention][unit]") {
  Cpu dev;
  Parts<double> parts(true, false, 0);
  emprl::nn::CrossAttention<double, Cpu> const layer(heads, 0.25);
  auto const offsets = support::offsets_of({5, 1});
  auto const memory_offsets = support::offsets_of({2, 31});
  auto const x = support::random_matrix<double>(6, model, 5);
  auto const memory = support::random_matrix<double>(33, model, 6);
  auto const memory_tensor = support::to_tensor(memory);
  Tensor<double, 2, Cpu> y({6, model});
  layer.inference(dev, parts.p,
                  {memory_tensor.view(), {offsets.data(), {3}}, {memory_offsets.data(), {3}}, {}},
                  support::to_tensor(x), y.view());
  reference::AttentionShape shape;
  shape.heads = heads;
  shape.query_offsets = offsets;
  shape.key_offsets = memory_offsets;
  shape.scale = 0.25;
  reference::AttentionInputs<double> in;
  in.q = reference::linear(x, matrix(parts.p.q), vector(parts.p.q_bias));
  in.k = reference::linear(memory, matrix(parts.p.k), vector(parts.p.k_bias));
  in.v = reference::linear(memory, matrix(parts.p.v), vector(parts.p.v_bias));
  auto const truth =
      reference::linear(reference::attention(shape, in), matrix(parts.p.o), vector(parts.p.o_bias));
  support::check_error("y", support::values(y), truth.values, 0.0, 256);
}
