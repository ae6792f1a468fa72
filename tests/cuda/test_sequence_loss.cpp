// SPDX-License-Identifier: Apache-2.0
// A step of supervised learning on the GPU's kernels against the same on the CPU.
#include "emprl/train/sequence_loss.hpp"

#include <cmath>
#include <type_traits>
#include <vector>

#include "emprl/optim/adamw.hpp"
#include "support/catch.hpp"
#include "support/t5_on_device.hpp"

using namespace emprl;

namespace {

template <class S>
struct Outcome {
  double first = 0, second = 0;  // the loss before and after a step down the gradient
  std::vector<S> gradients, prefix_gradients;
};

/// The loss with dropout and its gradients; then without dropout after a step of AdamW on the
/// device.
template <class T, class D>
Outcome<Accumulator<T>> run(D& dev) {
  using S = Accumulator<T>;
  dev.scratch.poison(true);
  dev.saved.poison(true);
  auto const on_host = support::small_t5<S>(4, 3);
  t5::Config const& c = on_host.config();
  train::T5Weights<T, D> const model(dev, on_host);
  t5::Parameters<S, D> const gradients(dev, c);
  train::PrefixParameters<S, D> const prefix_gradients(
      dev, typename t5::Prefixes<S, D>::Shape{c, on_host.prefix_length()});
  Ragged const from = support::random_rows({5, 0, 9, 33}, c.vocab_size, 6);
  // More tokens than logits exist at a time.
  Ragged const to = support::random_rows({2, 400, 0, 150}, c.vocab_size, 7);
  Outcome<S> o;
  o.first = train::sequence_loss(dev, model, from.view(), to.view(), gradients.views(),
                                 prefix_gradients.views(), DropoutSites(0.1, 8, 9));
  o.gradients = support::to_host(dev, gradients);
  o.prefix_gradients = support::to_host(dev, prefix_gradients);
  optim::AdamWConfig const adam{.epsilon = 1e-3};
  if constexpr (std::is_same_v<D, Cuda>) {
    optim::CudaAdamW(dev, adam, {{model.weights.all(), gradients.all(), {}}}).step(1e-2);
  } else {
    optim::AdamW<T>(adam, model.weights.span(), gradients.span()).step(dev, 1e-2);
  }
  o.second = train::sequence_loss(dev, model, from.view(), to.view(), {}, {}, DropoutSites());
  return o;
}

}  // namespace

TEST_CASE("cuda: a supervised step has the CPU's loss and gradients, and lowers the loss",
          "[cuda][train]") {
  Cpu host(2);
  auto const truth = run<double>(host);
  auto const plain = run<float>(host);
  Cuda dev;
  auto const cuda = run<float>(dev);
  // As test_model.cpp has it.
  auto const check = [](char const* what, double actual, double cpu, double exact) {
    support::check_error(what, std::vector<float>{static_cast<float>(actual)}, {exact},
                         std::abs(cpu - exact), 128);
  };
  check("loss", cuda.first, plain.first, truth.first);
  check("loss after a step", cuda.second, plain.second, truth.second);
  CHECK(truth.second < truth.first - 0.01);
  auto const weights = support::small_t5<float>(4, 3);
  support::check_parts("gradient of ", weights.weights.infos(), cuda.gradients, plain.gradients,
                       truth.gradients, 128);
  support::check_parts("gradient of ", weights.prefix.infos(), cuda.prefix_gradients,
                       plain.prefix_gradients, truth.prefix_gradients, 128);
  // Nothing is kept.
  CHECK(dev.saved.mark().used == 0);
  Ragged const none;
  CHECK(train::sequence_loss(dev, train::T5Weights<float, Cuda>(dev, weights), none.view(),
                             none.view(), {}, {}, DropoutSites()) == 0.0);
}
