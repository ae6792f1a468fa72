// SPDX-License-Identifier: Apache-2.0
#include "emprl/nn/prefix.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "emprl/ops/gemm_cpu.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/gradient_check.hpp"

using emprl::Cpu;
using emprl::index_t;
using emprl::Tensor;
using Network = emprl::nn::PrefixNetwork<double, Cpu>;

namespace {

/// A network of 5 positions, 7 hidden numbers, 12 outputs, in the flat memory that training uses.
struct Stored {
  struct Views {
    Network::Params network;
    template <class F>
    void visit(Network::Shape const& shape, F&& f) {
      network.visit("net", shape, f);
    }
  };
  emprl::nn::ParameterStore<Views, double, Cpu> store{Network::Shape{5, 7, 12}};

  Network::Params const& params() const { return store.views().network; }
};

}  // namespace

TEST_CASE("nn::PrefixNetwork: inference equals forward, gradients match central differences",
          "[nn][prefix][grad]") {
  Cpu dev;
  dev.scratch.poison(true);
  dev.saved.poison(true);
  Stored values;
  Stored grads;
  auto const numbers = support::random_values<double>(values.store.size(), 1, 0.5);
  std::copy(numbers.begin(), numbers.end(), values.store.span().begin());
  Network const network;
  Network::Context context;
  auto flat = support::poisoned<double, 2>({5, 12});
  network.forward(dev, values.params(), flat.view(), context);
  auto plain = support::poisoned<double, 2>({5, 12});
  network.inference(dev, values.params(), plain.view());
  CHECK(support::max_difference(support::values(flat), support::values(plain)) == 0.0);

  auto const dflat = support::to_tensor(support::random_matrix<double>(5, 12, 2));
  network.backward(dev, values.params(), grads.params(), dflat, context);
  std::vector<support::GradientInput> inputs;
  for (auto const& info : values.store.infos()) {
    auto const g = grads.store.span(info);
    inputs.push_back({info.name, values.store.span(info), {g.begin(), g.end()}});
  }
  CHECK(inputs.size() == 5);
  support::check_gradients(
      [&] {
        network.inference(dev, values.params(), plain.view());
        double sum = 0;
        for (index_t i = 0; i < plain.size(); ++i) sum += plain.data()[i] * dflat.data()[i];
        return sum;
      },
      inputs);

  auto const once = std::vector<double>(grads.store.span().begin(), grads.store.span().end());
  network.backward(dev, values.params(), grads.params(), dflat, context);
  std::vector<double> twice = once;
  for (double& v : twice) v *= 2;
  support::check_error("gradients after two passes",
                       std::vector<double>(grads.store.span().begin(), grads.store.span().end()),
                       twice, 0.0, 64);
}
