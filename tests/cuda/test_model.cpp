// SPDX-License-Identifier: Apache-2.0
// T5 on the GPU's kernels against T5 on the CPU. Without nvcc the host executor runs them.
#include "emprl/t5/model.hpp"

#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "emprl/cuda/buffer.cuh"
#include "emprl/ops/attention.cuh"
#include "emprl/ops/attention_decode.cuh"
#include "emprl/ops/convert.cuh"
#include "emprl/ops/dropout.cuh"
#include "emprl/ops/elementwise.cuh"
#include "emprl/ops/embedding.cuh"
#include "emprl/ops/linear.cuh"
#include "emprl/ops/relative_bias.cuh"
#include "emprl/ops/rms_norm.cuh"
#include "emprl/ops/token_logprob.cuh"
#include "emprl/ops/token_logprob.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/device_array.hpp"
#include "support/random_t5.hpp"
#if defined(__CUDACC__)
#include "support/plain_gemm.hpp"
#else
#include "emprl/ops/gemm_cpu.hpp"
#endif

using emprl::Accumulator;
using emprl::Bf16;
using emprl::Cpu;
using emprl::Cuda;
using emprl::DropoutSites;
using emprl::index_t;
using emprl::Ragged;
using emprl::TensorView;
using emprl::t5::Config;
using emprl::t5::Model;
using emprl::t5::Parameters;
using emprl::t5::Prefixes;

namespace {

template <class T, class D>
using PrefixStore = emprl::nn::ParameterStore<Prefixes<T, D>, T, D>;

/// A T5 with heads as wide as the kernels take and little else that is round.
Config small_config(bool gated) {
  Config c = support::small_config(gated);
  c.d_model = 20;
  c.d_kv = 32;
  // Of ReLU as wide as its mask is kept for.
  c.d_ff = gated ? 33 : 128;
  return c;
}

template <class T>
std::vector<T> converted(std::span<float const> x) {
  return {x.begin(), x.end()};
}

template <class D, class T, int Rank>
std::vector<T> to_host(D& dev, TensorView<T, Rank, D> x) {
  std::vector<T> values(static_cast<std::size_t>(x.size()));
  copy(dev, std::span<T>(values), x);
  return values;
}

/// What a pass is made of, in float on the host.
struct Case {
  Config config;
  index_t prefix = 0;
  Ragged contexts, responses;
  DropoutSites sites;
  Parameters<float, Cpu> parameters = support::random_parameters<float>(config, 4);
  PrefixStore<float, Cpu> prefixes = support::random_prefixes<float>(config, prefix, 5);
};

template <class T>
struct Outcome {
  std::vector<T> hidden, logits, logprobs, gradients, prefix_gradients;
};

/// Forward, the mean cross-entropy and backward, in format T on device D.
template <class T, class D>
Outcome<Accumulator<T>> run(D& dev, Case const& of) {
  using S = Accumulator<T>;
  emprl::ArenaScope const scope(dev.saved);
  dev.scratch.poison(true);
  dev.saved.poison(true);
  Config const& c = of.config;
  Parameters<T, D> const p(dev, c);
  Parameters<S, D> const grads(dev, c);
  PrefixStore<T, D> const prefixes(dev, typename Prefixes<T, D>::Shape{c, of.prefix});
  PrefixStore<S, D> const dprefixes(dev, typename Prefixes<S, D>::Shape{c, of.prefix});
  copy(dev, p.all(), converted<T>(of.parameters.span()));
  copy(dev, prefixes.all(), converted<T>(of.prefixes.span()));
  index_t const n = of.responses.tokens();
  auto const hidden = dev.saved.template allocate<T, 2>({n, c.d_model});
  auto const logits = dev.saved.template allocate<S, 2>({n, c.vocab_size});
  auto const logprobs = dev.saved.template allocate<S, 1>({n});
  auto const lse = dev.saved.template allocate<S, 1>({n});
  auto const dlogprobs = dev.saved.template allocate<S, 1>({n});
  auto const dhidden = dev.saved.template allocate<T, 2>({n, c.d_model});
  auto const targets = on_device(dev, dev.saved, std::span<std::int32_t const>(of.responses.ids));
  copy(dev, dlogprobs, std::vector<S>(static_cast<std::size_t>(n), S(-1) / static_cast<S>(n)));

  Model<T, D> const model(c);
  typename Model<T, D>::Context context;
  DropoutSites sites = of.sites;
  model.forward(dev, p.views(), prefixes.views(), of.contexts.view(), of.responses.view(), hidden,
                context, sites);
  model.logits(dev, p.views(), hidden, logits);
  emprl::token_logprob_forward<S>(dev, logprobs, lse, {}, logits, targets);
  Outcome<S> outcome;
  for (T const x : to_host(dev, hidden)) outcome.hidden.push_back(static_cast<S>(x));
  outcome.logits = to_host(dev, logits);
  outcome.logprobs = to_host(dev, logprobs);
  emprl::token_logprob_backward<S>(dev, logits, dlogprobs, lse, targets);
  model.logits_backward(dev, p.views(), grads.views(), logits, hidden, dhidden);
  model.backward(dev, p.views(), grads.views(), dprefixes.views(), dhidden, context);
  outcome.gradients = to_host(dev, grads.all());
  outcome.prefix_gradients = to_host(dev, dprefixes.all());
  return outcome;
}

template <class T>
std::vector<T> part(std::vector<T> const& x, emprl::nn::ParameterInfo const& info) {
  return {x.begin() + info.offset, x.begin() + info.offset + info.size};
}

/// The two-times rule, with the CPU's float as the plain implementation. Where it is exact by luck,
/// 128 units of the largest number are what some forty ops with sums in another order differ by.
void check_close(std::string const& what, std::vector<float> const& cuda,
                 std::vector<float> const& cpu, std::vector<double> const& truth) {
  support::check_error(what, cuda, truth, support::max_difference(cpu, truth), 128);
}

void check_case(Case const& of, int schedules) {
  Cpu host(2);
  auto const truth = run<double>(host, of);
  auto const cpu = run<float>(host, of);
  std::vector<Outcome<float>> runs;
  support::for_each_schedule(schedules, [&] {
    Cuda dev;
    runs.push_back(run<float>(dev, of));
  });
  Outcome<float> const& cuda = runs.front();
  check_close("hidden", cuda.hidden, cpu.hidden, truth.hidden);
  check_close("logits", cuda.logits, cpu.logits, truth.logits);
  check_close("logprobs", cuda.logprobs, cpu.logprobs, truth.logprobs);
  for (auto const& info : of.parameters.infos()) {
    check_close("gradient of " + info.name, part(cuda.gradients, info), part(cpu.gradients, info),
                part(truth.gradients, info));
  }
  for (auto const& info : of.prefixes.infos()) {
    check_close("gradient of " + info.name, part(cuda.prefix_gradients, info),
                part(cpu.prefix_gradients, info), part(truth.prefix_gradients, info));
  }
  for (auto const& other : runs) {
    CHECK(other.logits == cuda.logits);
    CHECK(other.gradients == cuda.gradients);
    CHECK(other.prefix_gradients == cuda.prefix_gradients);
  }
}

Case make_case(bool gated, index_t prefix, double dropout) {
  Config const c = small_config(gated);
  // Some rows have no context, some no response.
  return {.config = c,
          .prefix = prefix,
          .contexts = support::random_rows({5, 0, 9, 33}, c.vocab_size, 6),
          .responses = support::random_rows({2, 6, 0, 3}, c.vocab_size, 7),
          .sites = DropoutSites(dropout, 8, 9)};
}

}  // namespace

TEST_CASE("cuda: T5 has the logits and gradients of the CPU's, the same bits in every schedule",
          "[cuda][t5]") {
  for (bool const gated : {false, true}) {
    INFO((gated ? "gated" : "relu"));
    check_case(make_case(gated, 0, 0.0), 3);
  }
}

TEST_CASE("cuda: T5 with prefixes and dropout draws the masks of the CPU's", "[cuda][t5]") {
  check_case(make_case(true, 3, 0.2), 1);
}

TEST_CASE("cuda: T5 in 16 bits is that in double, but for the rounding of what layers hand on",
          "[cuda][t5]") {
  Case of = make_case(true, 3, 0.2);
  // The same weights in both, half as large as elsewhere: scores of twenty and more, whose softmax
  // is one key, would make of every rounding a choice.
  for (float& x : of.parameters.span()) x = static_cast<float>(Bf16(0.5f * x));
  for (float& x : of.prefixes.span()) x = static_cast<float>(Bf16(0.5f * x));
  Cpu host(2);
  auto const truth = run<double>(host, of);
  Cuda dev;
  auto const cuda = run<Bf16>(dev, of);
  // A result is rounded to 8 bits when it is stored. On the longest way some forty roundings follow
  // each other, each of half a unit and of either sign: 6 units of 2^-8 for their root, and as much
  // again for what a gradient amplifies.
  auto const check = [](std::string const& what, std::vector<float> const& actual,
                        std::vector<double> const& expected) {
    INFO(what << ": largest value " << support::max_abs(expected));
    CHECK(support::max_difference(actual, expected) <= 12 * 0x1p-8 * support::max_abs(expected));
  };
  check("hidden", cuda.hidden, truth.hidden);
  check("logits", cuda.logits, truth.logits);
  check("logprobs", cuda.logprobs, truth.logprobs);
  for (auto const& info : of.parameters.infos()) {
    check("gradient of " + info.name, part(cuda.gradients, info), part(truth.gradients, info));
  }
  for (auto const& info : of.prefixes.infos()) {
    check("gradient of " + info.name, part(cuda.prefix_gradients, info),
          part(truth.prefix_gradients, info));
  }
}

TEST_CASE("cuda: decoding with a cache gives the states of whole rows, beyond the first growth",
          "[cuda][t5]") {
  Case const of = make_case(false, 2, 0.0);
  Config const& c = of.config;
  index_t const rows = of.contexts.rows();
  index_t const steps = 35;  // the cache begins with 32 positions
  auto const responses = support::random_rows(
      std::vector<index_t>(static_cast<std::size_t>(rows), steps), c.vocab_size, 11);
  auto const inputs = emprl::t5::shift_right(responses.view());
  Cpu host(2);
  Model<float, Cpu> const on_cpu(c);
  emprl::Tensor<float, 2, Cpu> const whole({rows * steps, c.d_model});
  on_cpu.inference(host, of.parameters.views(), of.prefixes.views(), of.contexts.view(),
                   responses.view(), whole.view());

  Cuda dev;
  dev.scratch.poison(true);
  Parameters<float, Cuda> const p(dev, c);
  PrefixStore<float, Cuda> const prefixes(dev, Prefixes<float, Cuda>::Shape{c, of.prefix});
  copy(dev, p.all(), of.parameters.span());
  copy(dev, prefixes.all(), of.prefixes.span());
  Model<float, Cuda> const model(c);
  auto cache = model.start(dev, p.views(), prefixes.views(), of.contexts.view());
  for (index_t t = 0; t < steps; ++t) {
    // One row ends early.
    std::vector<index_t> active{0, 1, 2, 3};
    if (t > 20) active = {0, 2, 3};
    std::vector<std::int32_t> ids;
    for (index_t const row : active) {
      ids.push_back(inputs[static_cast<std::size_t>(row * steps + t)]);
    }
    emprl::ArenaScope const scope(dev.saved);
    auto const y = dev.saved.allocate<float, 2>({static_cast<index_t>(active.size()), c.d_model});
    model.decoder().step(dev, p.views(), prefixes.views(), cache, active,
                         on_device(dev, dev.saved, std::span<std::int32_t const>(ids)), y);
    if (t % 5 != 0 && t < 30) continue;
    auto const states = to_host(dev, y);
    for (std::size_t a = 0; a < active.size(); ++a) {
      auto const expected =
          support::values(whole.view().rows(active[a] * steps + t, active[a] * steps + t + 1));
      INFO("step " << t << ", row " << active[a]);
      // Two layers in float, sums in other orders.
      support::check_error(
          "state",
          std::vector<float>(states.begin() + static_cast<index_t>(a) * c.d_model,
                             states.begin() + static_cast<index_t>(a + 1) * c.d_model),
          reference::convert<double>(expected), 0.0, 64);
    }
  }
}
