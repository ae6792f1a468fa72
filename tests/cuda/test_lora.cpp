// SPDX-License-Identifier: Apache-2.0
// A LoRA on the GPU's kernels against the same on the CPU: its gradients, decoding, merging.
#include "emprl/t5/lora.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "emprl/train/sequence_loss.hpp"
#include "support/catch.hpp"
#include "support/t5_on_device.hpp"

using namespace emprl;

namespace {
namespace cuda_lora {

/// The same numbers in every format: a small T5 with a LoRA on every projection, of ranks that are
/// no multiple of anything.
template <class S>
train::T5Weights<S> adapted() {
  auto g = support::small_t5<S>(4);
  t5::LoraConfig config;
  config.rank = 3;
  config.alpha = 6;
  config.targets = {"all-linear"};
  t5::LoraShape shape = t5::lora_shape(g.config(), config);
  shape.modules[1].rank = 1;
  t5::LoraParameters<S, Cpu> matrices(shape);
  auto const numbers = support::random_values<float>(matrices.size(), 9, 0.2);
  std::transform(numbers.begin(), numbers.end(), matrices.span().begin(),
                 [](float x) { return static_cast<S>(static_cast<float>(Bf16(x))); });
  g.attach_lora(std::move(shape), std::move(matrices));
  return g;
}

template <class S>
struct Outcome {
  double loss = 0, merged_loss = 0;
  std::vector<S> gradients, hidden;
};

/// The loss with dropout and the gradient of the LoRA alone; states of cached decoding; the loss
/// after merging.
template <class T, class D>
Outcome<Accumulator<T>> run(D& dev) {
  using S = Accumulator<T>;
  dev.scratch.poison(true);
  dev.saved.poison(true);
  auto const on_host = adapted<S>();
  t5::Config const& c = on_host.config();
  train::T5Weights<T, D> model(dev, on_host);
  t5::LoraParameters<S, D> const gradients(dev, on_host.lora_shape());
  t5::Params<S, D> views;
  gradients.views().attach(on_host.lora_shape(), views);
  Ragged const from = support::random_rows({5, 0, 9, 33}, c.vocab_size, 6);
  Ragged const to = support::random_rows({2, 7, 0, 3}, c.vocab_size, 7);
  Outcome<S> o;
  o.loss = train::sequence_loss(dev, model, from.view(), to.view(), views, {},
                                DropoutSites(0.1, 8, 9, 0.2));
  o.gradients = support::to_host(dev, gradients);

  auto cache = model.model.start(dev, model.weights.views(), {}, from.view());
  for (std::int32_t t = 0; t < 3; ++t) {
    ArenaScope const scope(dev.saved);
    std::vector<index_t> const rows{0, 1, 2, 3};
    std::vector<std::int32_t> const ids{t, t + 1, t + 2, t + 3};
    auto const y = dev.saved.template allocate<T, 2>({4, c.d_model});
    model.model.decoder().step(dev, model.weights.views(), {}, cache, rows,
                               on_device(dev, dev.saved, std::span<std::int32_t const>(ids)), y);
    std::vector<T> values(static_cast<std::size_t>(y.size()));
    copy(dev, std::span<T>(values), y);
    for (T const x : values) o.hidden.push_back(static_cast<S>(x));
  }
  train::merge_lora(dev, model);
  o.merged_loss = train::sequence_loss(dev, model, from.view(), to.view(), {}, {}, DropoutSites());
  return o;
}

std::vector<double> alone(double x) {
  return {x};
}

}  // namespace cuda_lora
}  // namespace

TEST_CASE("cuda: a LoRA has the CPU's loss, gradients, decoded states and merged weights",
          "[cuda][t5][lora]") {
  Cpu host(2);
  auto const truth = cuda_lora::run<double>(host);
  auto const plain = cuda_lora::run<float>(host);
  Cuda dev;
  auto const cuda = cuda_lora::run<float>(dev);
  auto const check = [](char const* what, double actual, double cpu, double exact) {
    support::check_error(what, std::vector<float>{static_cast<float>(actual)},
                         cuda_lora::alone(exact), std::abs(cpu - exact), 128);
  };
  // As test_model.cpp has it.
  check("loss", cuda.loss, plain.loss, truth.loss);
  check("loss of the merged model", cuda.merged_loss, plain.merged_loss, truth.merged_loss);
  support::check_error("decoded states", cuda.hidden, truth.hidden,
                       support::max_difference(plain.hidden, truth.hidden), 128);
  auto const on_host = cuda_lora::adapted<float>();
  support::check_parts("gradient of ", on_host.lora().infos(), cuda.gradients, plain.gradients,
                       truth.gradients, 128);
}

TEST_CASE("cuda: a LoRA in 16 bits is that in double, but for the rounding of what layers hand on",
          "[cuda][t5][lora]") {
  Cpu host(2);
  auto const truth = cuda_lora::run<double>(host);
  Cuda dev;
  auto const cuda = cuda_lora::run<Bf16>(dev);
  // As test_model.cpp has it, and two products and sums more at every projection.
  double const rounding = 16 * 0x1p-8;
  CHECK(std::abs(cuda.loss - truth.loss) <= rounding * truth.loss);
  CHECK(std::abs(cuda.merged_loss - truth.merged_loss) <= rounding * truth.merged_loss);
  CHECK(support::max_difference(cuda.hidden, truth.hidden) <=
        rounding * support::max_abs(truth.hidden));
  auto const on_host = cuda_lora::adapted<float>();
  for (auto const& info : on_host.lora().infos()) {
    INFO(info.name);
    auto const part = [&](auto const& x) {
      return std::vector<double>(x.begin() + info.offset, x.begin() + info.offset + info.size);
    };
    CHECK(support::max_difference(part(cuda.gradients), part(truth.gradients)) <=
          rounding * support::max_abs(part(truth.gradients)));
  }
}
