// SPDX-License-Identifier: Apache-2.0
// Steps of PPO with T5 on the GPU's kernels against the same steps on the CPU.
#include "emprl/rl/ppo.hpp"

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "emprl/optim/adamw.hpp"
#include "support/catch.hpp"
#include "support/t5_on_device.hpp"

using namespace emprl;
using train::T5ActorCritic;
using train::T5Decoder;
using train::T5Reference;
using train::T5Weights;

static_assert(rl::Optimizer<optim::ReportingCudaAdamW>);

namespace {

/// Adam divides a gradient by its own size: where that is rounding alone, the step would be its
/// sign. This epsilon is above it.
constexpr optim::AdamWConfig adam{.epsilon = 1e-3};

/// AdamW on the CPU as an rl::Optimizer.
template <class T>
struct OnCpu {
  Cpu& dev;
  optim::AdamW<T> adamw;
  void zero_gradients() { adamw.zero_gradients(); }
  double step(double learning_rate, double max_norm) {
    return adamw.step(dev, learning_rate, max_norm);
  }
};

/// What two steps come to.
template <class T>
struct Outcome {
  std::vector<std::int32_t> tokens;
  std::vector<index_t> offsets;
  std::vector<std::string> names;
  /// Statistics of the steps; after them log-probabilities of given tokens and every weight.
  support::Results<T> results;
};

/// Trains and samples on `dev`, whatever it is, a model whose units stand in that order;
/// make_optimizer(weights, gradients, head, its gradients) makes what moves the weights.
template <class T, class D, class MakeOptimizer>
Outcome<T> run(D& dev, std::uint64_t order, MakeOptimizer&& make_optimizer) {
  dev.scratch.poison(true);
  dev.saved.poison(true);
  support::UnitOrders const units(support::device_config(), order);
  auto const on_host = support::small_t5<T>(4, 0, units);
  t5::Config const& c = on_host.config();
  T5Weights<T, D> const model(dev, on_host);
  T5Weights<T, D> const frozen(dev, on_host);
  t5::Parameters<T, D> const gradients(dev, c);
  train::ValueHeadParameters<T, D> const value_gradients(dev, c.d_model);
  T5ActorCritic<T, D> actor(dev, model, gradients.views(), {}, value_gradients.views());
  T5Reference<T, D> reference(dev, frozen);
  T5Decoder<T, D> decoder(dev, model);
  auto optimizer = make_optimizer(model.weights, gradients, model.value_head, value_gradients);

  Outcome<T> outcome;
  gen::SamplingConfig sampling;
  sampling.max_new_tokens = 9;
  auto const generate = [&] {
    if constexpr (std::is_same_v<D, Cuda>) {
      // One graph for all steps of PPO, which move the weights that it reads.
      return [graphs = std::make_unique<gen::DecodingGraphs<T5Decoder<T, D>>>(dev, decoder)](
                 auto const&... of) {
        Ragged responses = graphs->generate(of...);
        CHECK(graphs->captures() == 1);
        return responses;
      };
    } else {
      return [&](auto const&... of) { return gen::generate(decoder, of...); };
    }
  }();
  auto sampler = [&](RaggedView contexts, std::uint32_t step) {
    Ragged responses = generate(contexts, sampling, 3, step);
    outcome.tokens.insert(outcome.tokens.end(), responses.ids.begin(), responses.ids.end());
    outcome.offsets.insert(outcome.offsets.end(), responses.offsets.begin(),
                           responses.offsets.end());
    return responses;
  };
  // The share of even tokens.
  auto reward = [](rl::EpisodeBatch const& episodes, std::span<float> scores) {
    for (std::size_t i = 0; i < episodes.size(); ++i) {
      float even = 0;
      for (auto const id : episodes[i].response_ids) even += id % 2 == 0 ? 1.0f : 0.0f;
      scores[i] = even / static_cast<float>(episodes[i].response_ids.size());
    }
  };
  auto decode = [](std::span<std::int32_t const>) { return std::string(); };
  rl::PpoConfig const config{.batch_size = 6,
                             .mini_batch_size = 2,
                             .gradient_accumulation = 2,
                             .epochs = 2,
                             .learning_rate = 1e-2};
  rl::PpoTrainer trainer(
      config, rl::make_ppo_spec(config, actor, reference, reward, sampler, decode, optimizer));
  rl::PromptBatch prompts;
  prompts.contexts = support::random_rows({5, 0, 9, 33, 2, 7}, c.vocab_size, 6);
  for (int step = 0; step < 2; ++step) {
    rl::PpoStats const stats = trainer.step(prompts);
    rl::for_each_number(stats, [&](std::string_view name, double value) {
      std::string const of_step = std::string(name) + " of step " + std::to_string(step);
      outcome.names.push_back(of_step);
      outcome.results[of_step] = {static_cast<T>(value)};
    });
  }
  auto const responses = support::random_rows({2, 6, 1, 3, 4, 5}, c.vocab_size, 8);
  std::vector<T> logp(responses.ids.size());
  train::token_logprobs(dev, model, prompts.contexts.view(), responses.view(), std::span<T>(logp));
  outcome.results["log-probabilities after"] = logp;
  auto const add = [&](auto const& store) {
    support::add_parts(outcome.results, "", store.infos(),
                       units.undo(support::to_host(dev, store), store.infos()));
  };
  add(model.weights);
  add(model.value_head);
  return outcome;
}

template <class T>
Outcome<T> on_cpu(std::uint64_t order) {
  Cpu dev(2);
  return run<T>(dev, order, [&](auto const& w, auto const& g, auto const& head, auto const& dhead) {
    return OnCpu<T>{dev, {adam, {{w.span(), g.span()}, {head.span(), dhead.span()}}}};
  });
}

Outcome<float> on_gpu() {
  Cuda dev;
  std::unique_ptr<optim::CudaAdamW> adamw;
  return run<float>(dev, 0, [&](auto const& w, auto const& g, auto const& head, auto const& dhead) {
    adamw = std::make_unique<optim::CudaAdamW>(
        dev, adam,
        std::vector<optim::CudaParameterSpan>{{w.all(), g.all(), {}},
                                              {head.all(), dhead.all(), {}}});
    return optim::ReportingCudaAdamW{*adamw};
  });
}

}  // namespace

TEST_CASE("cuda: two steps of PPO sample the CPU's tokens and err at most twice as much as it does",
          "[cuda][train][ppo]") {
  auto const truth = on_cpu<double>(0);
  auto const cuda = on_gpu();
  REQUIRE(cuda.tokens == truth.tokens);
  REQUIRE(cuda.offsets == truth.offsets);
  REQUIRE(cuda.names == truth.names);
  support::check_in_orders<float>(cuda.results, truth.results, [&](std::uint64_t order) {
    auto const plain = on_cpu<float>(order);
    REQUIRE(plain.tokens == truth.tokens);
    return plain.results;
  });
  // The weights have moved by far more than they may differ.
  auto const before = support::small_t5<double>(4);
  std::string const shared = "shared.weight";
  auto const& now = truth.results.at(shared);
  CHECK(before.weights.infos().front().name == shared);
  CHECK(support::max_difference(
            now, std::vector<double>(before.weights.span().begin(),
                                     before.weights.span().begin() +
                                         static_cast<std::ptrdiff_t>(now.size()))) > 1e-3);
}

TEST_CASE("cuda: AdamW as an optimiser of PPO returns the norm, and moves nothing if it is none",
          "[cuda][optim]") {
  Cuda dev;
  Buffer<float, Cuda> const memory(4);
  TensorView<float, 1, Cuda> const p(memory.data(), {2});
  TensorView<float, 1, Cuda> const g(memory.data() + 2, {2});
  copy(dev, p, std::vector<float>{1, 2});
  copy(dev, g, std::vector<float>{3, -4});
  optim::CudaAdamW adamw(dev, {}, {{p, g, {}}});
  optim::ReportingCudaAdamW optimizer{adamw};
  auto const parameters = [&] {
    std::vector<float> x(2);
    copy(dev, std::span<float>(x), p);
    return x;
  };
  CHECK(optimizer.step(0.5, 1.0) == 5.0);
  // The first step of Adam is the sign, as far as float and epsilon go.
  std::vector<float> const moved = parameters();
  CHECK(moved[0] == Approx(0.5).epsilon(1e-6));
  CHECK(moved[1] == Approx(2.5).epsilon(1e-6));
  copy(dev, g, std::vector<float>{3, std::numeric_limits<float>::infinity()});
  CHECK(!std::isfinite(optimizer.step(0.5, 1.0)));
  CHECK(parameters() == moved);
  optimizer.zero_gradients();
  CHECK(optimizer.step(0.0, std::numeric_limits<double>::infinity()) == 0.0);
}
