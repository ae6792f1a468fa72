// SPDX-License-Identifier: Apache-2.0
// T5 on the GPU's kernels against T5 on the CPU. Without nvcc the host executor runs them.
#include "emprl/t5/model.hpp"

#include <cstdint>
#include <map>
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
#include "emprl/optim/adamw.cuh"
#include "emprl/optim/adamw.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/device_array.hpp"
#include "support/host_in_16_bits.hpp"
#include "support/random_t5.hpp"
#include "support/t5_orders.hpp"
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
template <class T, class From>
std::vector<T> converted(std::vector<From> const& x) {
  std::vector<T> y;
  for (From const v : x) y.push_back(static_cast<T>(v));
  return y;
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
  std::vector<T> weights, prefix;  // after a step of AdamW; empty in 16 bits
};

constexpr double learning_rate = 1e-2;

/// One step of AdamW with its usual settings on all weights.
template <class T>
void step_adamw(Cpu& dev, Parameters<T, Cpu> const& p, Parameters<T, Cpu> const& dp,
                PrefixStore<T, Cpu> const& prefix, PrefixStore<T, Cpu> const& dprefix) {
  emprl::optim::AdamW<T> adamw({}, {{p.span(), dp.span()}, {prefix.span(), dprefix.span()}});
  adamw.step(dev, learning_rate);
}

void step_adamw(Cuda& dev, Parameters<float, Cuda> const& p, Parameters<float, Cuda> const& dp,
                PrefixStore<float, Cuda> const& prefix, PrefixStore<float, Cuda> const& dprefix) {
  emprl::optim::CudaAdamW adamw(dev, {},
                                {{p.all(), dp.all(), {}}, {prefix.all(), dprefix.all(), {}}});
  adamw.step(learning_rate);
  dev.synchronize();
}

/// Forward, the mean cross-entropy, backward and a step of AdamW, in format T on device D.
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
  token_logprob_forward<S>(dev, logprobs, lse, {}, logits, targets);
  Outcome<S> outcome;
  for (T const x : to_host(dev, hidden)) outcome.hidden.push_back(static_cast<S>(x));
  outcome.logits = to_host(dev, logits);
  outcome.logprobs = to_host(dev, logprobs);
  token_logprob_backward<S>(dev, logits, dlogprobs, lse, targets);
  model.logits_backward(dev, p.views(), grads.views(), logits, hidden, dhidden);
  model.backward(dev, p.views(), grads.views(), dprefixes.views(), dhidden, context);
  outcome.gradients = to_host(dev, grads.all());
  outcome.prefix_gradients = to_host(dev, dprefixes.all());
  if constexpr (std::is_same_v<T, S>) {
    step_adamw(dev, p, grads, prefixes, dprefixes);
    outcome.weights = to_host(dev, p.all());
    outcome.prefix = to_host(dev, prefixes.all());
  }
  return outcome;
}

/// The numbers of a pass by name: each gradient and each weight one of its own.
template <class T>
support::Results<T> results(Case const& of, Outcome<T> const& x) {
  T loss = 0;
  for (T const logprob : x.logprobs) loss -= logprob / static_cast<T>(x.logprobs.size());
  support::Results<T> all{
      {"hidden", x.hidden}, {"logits", x.logits}, {"logprobs", x.logprobs}, {"loss", {loss}}};
  auto const add = [&all](std::string const& what, auto const& infos, std::vector<T> const& flat) {
    if (!flat.empty()) support::add_parts(all, what, infos, flat);
  };
  add("gradient of ", of.parameters.infos(), x.gradients);
  add("gradient of ", of.prefixes.infos(), x.prefix_gradients);
  add("after a step, ", of.parameters.infos(), x.weights);
  add("after a step, ", of.prefixes.infos(), x.prefix);
  return all;
}

/// The places of a case's units in an order of summation.
support::UnitOrders units_of(Case const& of, std::uint64_t order) {
  DropoutSites sites = of.sites;
  return {of.config, order, sites.next().active()};
}

/// The same model with its units in those places.
Case moved(Case const& of, support::UnitOrders const& units) {
  Case to{.config = of.config,
          .prefix = of.prefix,
          .contexts = of.contexts,
          .responses = of.responses,
          .sites = of.sites};
  auto const move = [&units](auto const& from, auto const& store) {
    auto const x =
        units.apply(std::vector<float>(from.span().begin(), from.span().end()), from.infos());
    std::copy(x.begin(), x.end(), store.span().begin());
  };
  move(of.parameters, to.parameters);
  move(of.prefixes, to.prefixes);
  return to;
}

/// The CPU's pass in float, with sums in another order. It is the plain implementation: each of its
/// ops is tested against naive loops.
Outcome<float> in_order(Cpu& dev, Case const& of, std::uint64_t order) {
  support::UnitOrders const units = units_of(of, order);
  Outcome<float> x = run<float>(dev, moved(of, units));
  x.hidden = units.undo_states(x.hidden);
  for (auto* flat : {&x.gradients, &x.weights}) *flat = units.undo(*flat, of.parameters.infos());
  for (auto* flat : {&x.prefix_gradients, &x.prefix})
    *flat = units.undo(*flat, of.prefixes.infos());
  return x;
}

/// The decoder's states at every position of those responses, by whole rows.
template <class T, class D>
std::vector<Accumulator<T>> whole_rows(D& dev, Case const& of, Ragged const& responses,
                                       std::uint64_t order = 0) {
  support::UnitOrders const units = units_of(of, order);
  Case const from = moved(of, units);
  Config const& c = of.config;
  Parameters<T, D> const p(dev, c);
  PrefixStore<T, D> const prefixes(dev, typename Prefixes<T, D>::Shape{c, of.prefix});
  copy(dev, p.all(), converted<T>(from.parameters.span()));
  copy(dev, prefixes.all(), converted<T>(from.prefixes.span()));
  emprl::Tensor<T, 2, D> const states({responses.tokens(), c.d_model});
  Model<T, D>(c).inference(dev, p.views(), prefixes.views(), of.contexts.view(), responses.view(),
                           states.view());
  return units.undo_states(converted<Accumulator<T>>(to_host(dev, states.view())));
}

/// Some of those states by decoding token after token, and which they are.
struct Decoded {
  std::vector<float> states;
  std::vector<index_t> positions;

  /// The same of all states, row after row.
  template <class S>
  std::vector<S> of(std::vector<S> const& whole, index_t width) const {
    std::vector<S> picked;
    for (index_t const n : positions) {
      auto const at = whole.begin() + n * width;
      picked.insert(picked.end(), at, at + width);
    }
    return picked;
  }
};

/// Decodes rows of `steps` tokens; one ends early.
template <class T>
Decoded decode(Cuda& dev, Case const& of, Ragged const& responses, index_t steps) {
  Config const& c = of.config;
  auto const inputs = emprl::t5::shift_right(responses.view());
  dev.scratch.poison(true);
  Parameters<T, Cuda> const p(dev, c);
  PrefixStore<T, Cuda> const prefixes(dev, typename Prefixes<T, Cuda>::Shape{c, of.prefix});
  copy(dev, p.all(), converted<T>(of.parameters.span()));
  copy(dev, prefixes.all(), converted<T>(of.prefixes.span()));
  Model<T, Cuda> const model(c);
  auto cache = model.start(dev, p.views(), prefixes.views(), of.contexts.view());
  Decoded decoded;
  for (index_t t = 0; t < steps; ++t) {
    std::vector<index_t> active{0, 1, 2, 3};
    if (t > steps / 2) active = {0, 2, 3};
    std::vector<std::int32_t> ids;
    for (index_t const row : active) {
      ids.push_back(inputs[static_cast<std::size_t>(row * steps + t)]);
    }
    emprl::ArenaScope const scope(dev.saved);
    auto const y =
        dev.saved.template allocate<T, 2>({static_cast<index_t>(active.size()), c.d_model});
    model.decoder().step(dev, p.views(), prefixes.views(), cache, active,
                         on_device(dev, dev.saved, std::span<std::int32_t const>(ids)), y);
    if (t % 5 != 0 && t < steps - 5) continue;
    auto const now = converted<float>(to_host(dev, y));
    decoded.states.insert(decoded.states.end(), now.begin(), now.end());
    for (index_t const row : active) decoded.positions.push_back(row * steps + t);
  }
  return decoded;
}

void check_case(Case const& of, int schedules) {
  Cpu host(2);
  auto const truth = run<double>(host, of);
  std::vector<Outcome<float>> runs;
  support::for_each_schedule(schedules, [&] {
    Cuda dev;
    runs.push_back(run<float>(dev, of));
  });
  Outcome<float> const& cuda = runs.front();
  support::check_in_orders<float>(results(of, cuda), results(of, truth), [&](std::uint64_t order) {
    return results(of, in_order(host, of, order));
  });
  for (auto const& other : runs) {
    CHECK(other.logits == cuda.logits);
    CHECK(other.gradients == cuda.gradients);
    CHECK(other.prefix_gradients == cuda.prefix_gradients);
    CHECK(other.weights == cuda.weights);
    CHECK(other.prefix == cuda.prefix);
  }
}

/// @param batch  which random tokens
Case make_case(bool gated, index_t prefix, double dropout, std::uint64_t batch = 0) {
  Config const c = small_config(gated);
  // Some rows have no context, some no response.
  return {.config = c,
          .prefix = prefix,
          .contexts = support::random_rows({5, 0, 9, 33}, c.vocab_size, 2 * batch + 6),
          .responses = support::random_rows({2, 6, 0, 3}, c.vocab_size, 2 * batch + 7),
          .sites = DropoutSites(dropout, 8, 9)};
}

/// A response of `length` tokens for each context.
Ragged rows_of_length(Case const& of, index_t length, std::uint64_t seed) {
  return support::random_rows(
      std::vector<index_t>(static_cast<std::size_t>(of.contexts.rows()), length),
      of.config.vocab_size, seed);
}

}  // namespace

TEST_CASE(
    "cuda: a training step of T5 errs at most twice as much as the CPU's, the same bits always",
    "[cuda][t5]") {
  for (bool const gated : {false, true}) {
    INFO((gated ? "gated" : "relu"));
    check_case(make_case(gated, 0, 0.0), 3);
  }
}

TEST_CASE("cuda: T5 with prefixes and dropout draws the masks of the CPU's", "[cuda][t5]") {
  check_case(make_case(true, 3, 0.2), 1);
}

TEST_CASE(
    "cuda: T5 with dropout behind a ReLU that the product takes along has the CPU's gradients",
    "[cuda][t5]") {
  // Weights half as large as elsewhere: see case_in_16_bits.
  Case of = make_case(false, 0, 0.2);
  for (float& x : of.parameters.span()) x *= 0.5f;
  check_case(of, 1);
}

namespace {

/// With weights that 16 bits hold, half as large as elsewhere: scores of twenty and more, whose
/// softmax is one key, would make of every rounding a choice.
Case case_in_16_bits(double dropout, std::uint64_t batch) {
  Case of = make_case(true, 3, dropout, batch);
  for (float& x : of.parameters.span()) x = static_cast<float>(Bf16(0.5f * x));
  for (float& x : of.prefixes.span()) x = static_cast<float>(Bf16(0.5f * x));
  return of;
}

/// Those results that there are in 16 bits, too: a step is taken by weights in float.
support::Results<double> truth_in_16_bits(Cpu& dev, Case const& of) {
  auto all = results(of, run<double>(dev, of));
  std::erase_if(all, [](auto const& x) { return x.first.starts_with("after a step"); });
  return all;
}

}  // namespace

TEST_CASE("cuda: T5 in 16 bits errs at most twice as much as the CPU's ops on tensors in 16 bits",
          "[cuda][t5]") {
  for (double const dropout : {0.0, 0.2}) {
    INFO("dropout " << dropout);
    Case const of = case_in_16_bits(dropout, 0);
    Cpu host(2);
    support::HostIn16Bits plain;
    Cuda dev;
    auto const truth = truth_in_16_bits(host, of);
    // Another order of sums in float hardly changes a rounding to 8 bits, other tokens change all
    // of them: the plain implementation's error is the worst of 25 batches, relative to the largest
    // value of each.
    auto const errors = [&](std::uint64_t batch) {
      Case const other = case_in_16_bits(dropout, batch);
      auto const its_truth = truth_in_16_bits(host, other);
      auto all = support::largest_errors(results(other, run<Bf16>(plain, other)), its_truth);
      for (auto& [name, error] : all) {
        error *= support::max_abs(truth.at(name)) / support::max_abs(its_truth.at(name));
      }
      return all;
    };
    support::check_errors<float>(results(of, run<Bf16>(dev, of)), truth, errors, 0x1p-3);
  }
}

TEST_CASE("cuda: decoding with a cache gives the states of whole rows, beyond the first growth",
          "[cuda][t5]") {
  Case const of = make_case(false, 2, 0.0);
  index_t const steps = 35;  // the cache begins with 32 positions
  auto const responses = rows_of_length(of, steps, 11);
  Cuda dev;
  Decoded const decoded = decode<float>(dev, of, responses, steps);
  Cpu host(2);
  auto const states = [&](auto const& whole) { return decoded.of(whole, of.config.d_model); };
  support::check_in_orders<float>(
      {{"states", decoded.states}}, {{"states", states(whole_rows<double>(host, of, responses))}},
      [&](std::uint64_t order) {
        return support::Results<float>{
            {"states", states(whole_rows<float>(host, of, responses, order))}};
      });
}

TEST_CASE("cuda: a pass in 16 bits without gradients has the bits of one with, whatever its rows",
          "[cuda][t5][few_rows]") {
  // PPO's ratios begin at 1 for that. Few rows and many, whose products are others.
  for (bool const gated : {false, true}) {
    for (index_t const length : {3, 40}) {
      Case of = make_case(gated, 2, 0.0);
      of.config.d_model = 40;
      of.config.d_ff = 64;
      of.parameters = support::random_parameters<float>(of.config, 4);
      Ragged const responses = rows_of_length(of, length, 11);
      Cuda dev;
      Parameters<Bf16, Cuda> const p(dev, of.config);
      PrefixStore<Bf16, Cuda> const prefixes(dev,
                                             Prefixes<Bf16, Cuda>::Shape{of.config, of.prefix});
      copy(dev, p.all(), converted<Bf16>(of.parameters.span()));
      copy(dev, prefixes.all(), converted<Bf16>(of.prefixes.span()));
      Model<Bf16, Cuda> const model(of.config);
      emprl::ArenaScope const scope(dev.saved);
      auto const hidden = [&] {
        return dev.saved.allocate<Bf16, 2>({responses.tokens(), of.config.d_model});
      };
      auto const one = hidden(), other = hidden();
      model.inference(dev, p.views(), prefixes.views(), of.contexts.view(), responses.view(), one);
      Model<Bf16, Cuda>::Context context;
      DropoutSites none;
      model.forward(dev, p.views(), prefixes.views(), of.contexts.view(), responses.view(), other,
                    context, none);
      CHECK(converted<float>(to_host(dev, one)) == converted<float>(to_host(dev, other)));
    }
  }
}

TEST_CASE("cuda: decoding in 16 bits errs at most twice as much as whole rows on the CPU's ops",
          "[cuda][t5][few_rows]") {
  for (bool const gated : {false, true}) {
    INFO((gated ? "gated" : "relu"));
    index_t const steps = 11;
    Cpu host(2);
    support::HostIn16Bits plain;
    // All rows begin at multiples of 16 bytes, as those of T5 do: products take the norms along.
    auto const make = [&](std::uint64_t batch) {
      Case of = make_case(gated, 2, 0.0, batch);
      of.config.d_model = 40;
      of.config.d_ff = 64;
      of.parameters = support::random_parameters<float>(of.config, 4);
      for (float& x : of.parameters.span()) x = static_cast<float>(Bf16(0.5f * x));
      for (float& x : of.prefixes.span()) x = static_cast<float>(Bf16(0.5f * x));
      return of;
    };
    Case const of = make(0);
    auto const responses = rows_of_length(of, steps, 11);
    Cuda dev;
    Decoded const decoded = decode<Bf16>(dev, of, responses, steps);
    auto const states = [&](auto const& whole) { return decoded.of(whole, of.config.d_model); };
    auto const truth = states(whole_rows<double>(host, of, responses));
    // The worst of 25 batches, as above.
    auto const errors = [&](std::uint64_t batch) {
      Case const other = make(batch);
      auto const its = rows_of_length(other, steps, 11 + batch);
      auto const its_truth = states(whole_rows<double>(host, other, its));
      double const error =
          support::max_difference(states(whole_rows<Bf16>(plain, other, its)), its_truth);
      return std::map<std::string, double>{
          {"states", error * support::max_abs(truth) / support::max_abs(its_truth)}};
    };
    support::check_errors<float>({{"states", decoded.states}}, {{"states", truth}}, errors, 0x1p-3);
  }
}
