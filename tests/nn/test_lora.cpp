// SPDX-License-Identifier: Apache-2.0
#include "emprl/nn/lora.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "emprl/core/transfer.hpp"
#include "emprl/nn/linear.hpp"
#include "emprl/ops/gemm_cpu.hpp"
#include "reference/linear.hpp"
#include "support/catch.hpp"
#include "support/flat_parameters.hpp"
#include "support/layer_contract.hpp"

using emprl::Cpu;
using emprl::DropoutSites;
using emprl::index_t;
using emprl::Tensor;
using emprl::TensorView;

namespace {
namespace lora {

constexpr index_t inputs = 10;
constexpr index_t outputs = 7;
constexpr index_t rank = 3;

/// A pair of matrices, random, with their gradients.
template <class T>
struct Matrices {
  explicit Matrices(double alpha = 6) {
    memory.matrix("a", rank, inputs, p.a, g.a);
    memory.matrix("b", outputs, rank, p.b, g.b);
    p.scale = static_cast<T>(alpha / static_cast<double>(rank));
    p.site = 5;
  }

  support::FlatParameters<T> memory{rank * (inputs + outputs)};
  emprl::nn::LoraParams<T, Cpu> p, g;
};

double dot(std::vector<double> const& a, std::vector<double> const& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace lora
}  // namespace

TEMPLATE_TEST_CASE("nn::Lora: keeps the layer contract, with and without dropout",
                   "[nn][lora][contract]", float, double) {
  using T = TestType;
  emprl::nn::Lora<T, Cpu> const layer;
  lora::Matrices<T> m;
  typename emprl::nn::Lora<T, Cpu>::Context context;
  support::LayerUnderTest<T> test;
  test.name = "lora";
  test.inputs = lora::inputs;
  test.outputs = lora::outputs;
  test.parameters = m.memory.list();
  test.has_dropout = true;
  test.adds_to_dx = true;
  // It adds to what the projection wrote; alone it adds to nothing.
  test.inference = [&](Cpu& dev, auto const& batch, auto y) {
    clear(dev, y);
    layer.inference(dev, m.p, batch.x, y);
  };
  test.forward = [&](Cpu& dev, auto const& batch, auto y, DropoutSites& sites) {
    clear(dev, y);
    auto const key = sites.next();
    layer.forward(dev, m.p, batch.x, y, context,
                  DropoutSites(0, key.seed, key.step, key.probability));
  };
  test.backward = [&](Cpu& dev, auto dy, auto dx) {
    layer.backward(dev, m.p, m.g, dy, dx, context);
  };
  support::check_layer_contract(test, {1, 2, 31});
}

TEST_CASE("nn::Lora: adds scale B A x to what is there", "[nn][lora][unit]") {
  Cpu dev;
  lora::Matrices<double> const m;
  auto const x = support::random_matrix<double>(33, lora::inputs, 1);
  auto const before = support::random_matrix<double>(33, lora::outputs, 2);
  Tensor<double, 2, Cpu> const y = support::to_tensor(before);
  emprl::nn::Lora<double, Cpu>{}.inference(dev, m.p, support::to_tensor(x), y.view());
  std::vector<double> truth;
  for (index_t n = 0; n < 33; ++n) {
    for (index_t o = 0; o < lora::outputs; ++o) {
      double sum = 0;
      for (index_t r = 0; r < lora::rank; ++r) {
        double inner = 0;
        for (index_t i = 0; i < lora::inputs; ++i) inner += m.p.a(r, i) * x(n, i);
        sum += m.p.b(o, r) * inner;
      }
      truth.push_back(before(n, o) + 2.0 * sum);
    }
  }
  support::check_error("y", support::values(y), truth, 0.0, 64);
}

TEMPLATE_TEST_CASE("nn::Lora: with B = 0 not a bit of the output changes", "[nn][lora][contract]",
                   float, double) {
  using T = TestType;
  Cpu dev(2);
  lora::Matrices<T> const m;
  clear(dev, m.p.b);
  auto const before = support::random_matrix<T>(33, lora::outputs, 2);
  Tensor<T, 2, Cpu> const y = support::to_tensor(before);
  typename emprl::nn::Lora<T, Cpu>::Context context;
  emprl::nn::Lora<T, Cpu>{}.forward(
      dev, m.p, support::to_tensor(support::random_matrix<T>(33, lora::inputs, 1)), y.view(),
      context, DropoutSites(0, 1, 2, 0.5));
  CHECK(support::values(y) == before.values);
}

TEST_CASE("nn::Lora: empty matrices do nothing and ask for nothing", "[nn][lora][unit]") {
  Cpu dev;
  emprl::nn::LoraParams<double, Cpu> const none;
  emprl::nn::Lora<double, Cpu> const layer;
  emprl::nn::Lora<double, Cpu>::Context context;
  auto const saved = dev.saved.mark();
  Tensor<double, 2, Cpu> const x({3, 4}, 1.0);
  Tensor<double, 2, Cpu> const y({3, 5}, 2.0);
  layer.inference(dev, none, x, y.view());
  layer.forward(dev, none, x, y.view(), context, {});
  layer.backward(dev, none, none, y, x.view(), context);
  layer.merge(dev, none, y.view());
  CHECK(dev.saved.mark().used == saved.used);
  for (double const v : y.span()) CHECK(v == 2.0);
  for (double const v : x.span()) CHECK(v == 1.0);
}

TEMPLATE_TEST_CASE(
    "nn::Lora: merged it gives what it gave beside the weight, and can be taken back",
    "[nn][lora][unit]", float, double) {
  using T = TestType;
  Cpu dev;
  lora::Matrices<T> const m;
  emprl::nn::Lora<T, Cpu> const layer;
  auto const weight = support::random_matrix<T>(lora::outputs, lora::inputs, 3);
  auto const x = support::to_tensor(support::random_matrix<T>(33, lora::inputs, 1));
  Tensor<T, 2, Cpu> const w = support::to_tensor(weight);
  Tensor<T, 2, Cpu> const beside({33, lora::outputs});
  linear_forward(dev, beside.view(), x, w);
  layer.inference(dev, m.p, x, beside.view());
  layer.merge(dev, m.p, w.view());
  CHECK(support::max_difference(support::values(w), weight.values) > 0.01);
  Tensor<T, 2, Cpu> const merged({33, lora::outputs});
  linear_forward(dev, merged.view(), x, w);
  // The products are summed in another order.
  support::check_error("merged", support::values(merged),
                       reference::convert<double>(support::values(beside)), 0.0, 64);
  layer.unmerge(dev, m.p, w.view());
  // One rounding there and one back, each half a unit of a number twice as large at most.
  support::check_error("unmerged", support::values(w), reference::convert<double>(weight.values),
                       0.0, 4);
}

TEST_CASE("nn::Lora: dropout keeps the expectation, and backward draws the mask of forward",
          "[nn][lora][unit]") {
  Cpu dev;
  lora::Matrices<double> const m;
  emprl::nn::Lora<double, Cpu> const layer;
  auto const x = support::to_tensor(support::random_matrix<double>(4, lora::inputs, 1));
  auto const dy = support::to_tensor(support::random_matrix<double>(4, lora::outputs, 2));
  Tensor<double, 2, Cpu> const plain({4, lora::outputs}, 0.0);
  layer.inference(dev, m.p, x, plain.view());
  std::vector<double> mean(static_cast<std::size_t>(plain.size()), 0.0);
  std::vector<double> squares(mean);
  constexpr int draws = 4000;
  std::vector<std::vector<double>> first;
  for (std::uint32_t step = 0; step < draws; ++step) {
    emprl::ArenaScope const scope(dev.saved);
    emprl::nn::Lora<double, Cpu>::Context context;
    Tensor<double, 2, Cpu> const y({4, lora::outputs}, 0.0);
    layer.forward(dev, m.p, x, y.view(), context, DropoutSites(0.1, 7, step, 0.25));
    for (std::size_t i = 0; i < mean.size(); ++i) {
      mean[i] += y.span()[i] / draws;
      squares[i] += y.span()[i] * y.span()[i] / draws;
    }
    if (step >= 3) continue;
    first.push_back(support::values(y));
    // A linear function is its gradient times its argument, if both see the same mask.
    Tensor<double, 2, Cpu> const dx({4, lora::inputs}, 0.0);
    layer.backward(dev, m.p, m.g, dy, dx.view(), context);
    CHECK(lora::dot(support::values(dx), support::values(x)) ==
          Approx(lora::dot(support::values(dy), support::values(y))).epsilon(1e-12));
  }
  CHECK(first[0] != first[1]);
  for (std::size_t i = 0; i < mean.size(); ++i) {
    double const deviation = std::sqrt(squares[i] - mean[i] * mean[i]);
    CHECK(deviation > 0);
    CHECK(std::abs(mean[i] - plain.span()[i]) < 4.5 * deviation / std::sqrt(double{draws}));
  }
  // Another place has another mask.
  auto other = m.p;
  other.site = 6;
  Tensor<double, 2, Cpu> const y({4, lora::outputs}, 0.0);
  emprl::nn::Lora<double, Cpu>::Context context;
  layer.forward(dev, other, x, y.view(), context, DropoutSites(0.1, 7, 0, 0.25));
  CHECK(support::values(y) != first[0]);
}

TEST_CASE("nn::Lora: matrices that do not fit throw", "[nn][lora][unit]") {
  Cpu dev;
  lora::Matrices<double> const m;
  emprl::nn::Lora<double, Cpu> const layer;
  Tensor<double, 2, Cpu> const narrow({3, lora::inputs - 1}, 1.0);
  Tensor<double, 2, Cpu> const x({3, lora::inputs}, 1.0);
  Tensor<double, 2, Cpu> const y({3, lora::outputs}, 1.0);
  CHECK_THROWS_AS(layer.inference(dev, m.p, narrow, y.view()), emprl::ShapeError);
  CHECK_THROWS_AS(layer.inference(dev, m.p, x, narrow.view()), emprl::ShapeError);
  CHECK_THROWS_AS(layer.merge(dev, m.p, narrow.view()), emprl::ShapeError);
}
