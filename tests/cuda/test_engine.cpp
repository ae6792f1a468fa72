// SPDX-License-Identifier: Apache-2.0
// What programs ask of a device, of the GPU's engine and of the CPU: the same answers.
#include "emprl/train/cuda_engine.cuh"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "emprl/rl/ppo.hpp"
#include "support/catch.hpp"
#include "support/t5_on_device.hpp"
// After the products that it is made of.
#include "emprl/train/cpu_engine.hpp"

using namespace emprl;
using train::CpuEngine;
using train::CudaEngine;
using train::EngineT5Training;
using train::T5TrainingOptions;

namespace {

/// New memory holds NaN.
template <class T>
std::unique_ptr<CudaEngine<T>> gpu() {
  auto engine = std::make_unique<CudaEngine<T>>();
  engine->context().scratch.poison(true);
  engine->context().saved.poison(true);
  return engine;
}

Ragged some_contexts() {
  return support::random_rows({5, 0, 9, 33}, support::device_config().vocab_size, 6);
}
Ragged some_responses() {
  return support::random_rows({2, 6, 1, 3}, support::device_config().vocab_size, 7);
}

std::vector<float> logprobs(train::EngineT5& model) {
  Ragged const from = some_contexts(), to = some_responses();
  std::vector<float> logp(to.ids.size());
  model.logprobs(from.view(), to.view(), logp);
  return logp;
}

std::vector<double> in_double(std::vector<float> const& x) {
  return {x.begin(), x.end()};
}

/// Adam divides a gradient by its own size: where that is rounding alone, the step would be its
/// sign. This epsilon is above it.
constexpr optim::AdamWConfig adam{.epsilon = 1e-3};

/// Random weights of an identifier, half as large as elsewhere.
empathy::IdentifierParameters<float, Cpu> identifier_weights(std::uint64_t seed) {
  empathy::IdentifierParameters<float, Cpu> p(support::device_config());
  auto const values = support::random_values<float>(p.size(), seed, 0.3);
  std::copy(values.begin(), values.end(), p.span().begin());
  for (auto const& info : p.infos()) {
    if (info.name.find("norm") == std::string::npos) continue;
    for (float& x : p.span(info)) x += 1.0f;
  }
  return p;
}

}  // namespace

TEST_CASE("engine: the GPU scores, decodes and generates as the CPU does",
          "[cuda][train][engine]") {
  auto const host = support::small_t5<float>(4, 2);
  CpuEngine cpu(2);
  auto const device = gpu<float>();
  CHECK(cpu.cpu() != nullptr);
  CHECK(cpu.device() == nullptr);
  CHECK(device->cpu() == nullptr);
  CHECK(device->device() == device.get());
  auto const here = cpu.load(host);
  auto const there = device->load(host);
  // Two layers in float, some forty ops with sums in another order: as test_model.cpp has it.
  support::check_error("log-probabilities", logprobs(*there), in_double(logprobs(*here)), 0.0, 128);

  Ragged const from = some_contexts();
  gen::SamplingConfig config;
  config.temperature = 1.5;
  config.top_k = 8;
  config.min_new_tokens = 3;
  config.max_new_tokens = 12;
  std::vector<std::uint32_t> const ids{4, 0, 9, 2};
  for (bool const greedy : {true, false}) {
    config.greedy = greedy;
    auto const expected = here->generate(from.view(), config, 11, 2, ids);
    auto const drawn = there->generate(from.view(), config, 11, 2, ids);
    CHECK(drawn.ids == expected.ids);
    CHECK(drawn.offsets == expected.offsets);
    // Decoding on the host with the device's logits.
    train::EngineDecoder decoder(*there);
    CHECK(gen::generate(decoder, from.view(), config, 11, 2, ids).ids == expected.ids);
  }
  static_assert(gen::Decoder<train::EngineDecoder>);
}

TEST_CASE("engine: an identifier on the GPU has the CPU's levels and learns with its gradients",
          "[cuda][train][engine]") {
  t5::Config const c = support::device_config();
  auto const host = identifier_weights(3);
  empathy::Identifier<float, Cpu> const model(c);
  Ragged const from = some_contexts(), to = some_responses();
  CpuEngine cpu(2);
  auto const device = gpu<float>();
  auto const logits = [&](train::EngineIdentifier& identifier) {
    Tensor<float, 2, Cpu> const out({to.rows(), empathy::level_count});
    identifier.logits(from.view(), to.view(), out.view());
    return std::vector<float>(out.span().begin(), out.span().end());
  };
  auto const expected = logits(*cpu.load(model, host));
  support::check_error("logits", logits(*device->load(model, host)), in_double(expected), 0.0, 128);

  // A step of the CPU, dropout included, by hand.
  std::vector<std::int32_t> const targets{0, 2, 1, 1};
  std::vector<float> const shares{0.1f, 0.4f, 0.2f, 0.3f};
  DropoutSites const sites(0.1, 8, 9);
  empathy::IdentifierParameters<float, Cpu> const gradients(c);
  double loss = 0;
  {
    Cpu& dev = *cpu.cpu();
    ArenaScope saved(dev.saved);
    empathy::Identifier<float, Cpu>::Context context;
    Tensor<float, 2, Cpu> const out({4, 3});
    Tensor<float, 1, Cpu> const logp({4}), lse({4}), dlogp({4});
    TensorView<std::int32_t const, 1, Cpu> const labels(targets.data(), {4});
    DropoutSites drawn = sites;
    model.forward(dev, host.views(), from.view(), to.view(), out.view(), context, drawn);
    token_logprob_forward<float>(dev, logp.view(), lse.view(), {}, out.view(), labels);
    for (index_t i = 0; i < 4; ++i) {
      dlogp(i) = -shares[static_cast<std::size_t>(i)];
      loss -= static_cast<double>(shares[static_cast<std::size_t>(i)] * logp(i));
    }
    token_logprob_backward<float>(dev, out.view(), dlogp.view(), lse.view(), labels);
    model.backward(dev, host.views(), gradients.views(), out.view(), context);
  }
  auto const training = device->device()->train(c, host, adam);
  training->zero_gradients();
  CHECK(training->loss(from.view(), to.view(), targets, shares, sites) ==
        Approx(loss).epsilon(1e-5));
  double squares = 0;
  for (float const g : gradients.span()) squares += static_cast<double>(g) * static_cast<double>(g);
  double const norm = training->step(1e-2, 1.0);
  CHECK(norm == Approx(std::sqrt(squares)).epsilon(1e-4));
  // The weights after the step are those of the CPU's AdamW.
  auto const after = identifier_weights(3);
  optim::AdamW<float> adamw(adam, after.span(), gradients.span());
  adamw.step(*cpu.cpu(), 1e-2);
  std::vector<float> moved(static_cast<std::size_t>(training->size()));
  training->fetch(moved);
  std::vector<double> const exact(after.span().begin(), after.span().end());
  // A gradient is right to 1e-5 of the largest or so, and epsilon makes that a hundredth of a step
  // at most.
  CHECK(support::max_difference(moved, exact) <= 1e-4);
  CHECK(support::max_difference(std::vector<float>(host.span().begin(), host.span().end()), exact) >
        5e-3);
  // The frozen face of what is trained has moved with it.
  support::check_error("logits after", logits(training->model()),
                       in_double(logits(*cpu.load(model, after))), 0.0, 4096);
}

TEST_CASE("engine: parameters and the optimiser's state go home and come back",
          "[cuda][train][engine]") {
  auto const host = support::small_t5<float>(4, 2);
  auto const device = gpu<Bf16>();
  T5TrainingOptions const options{
      .part = T5TrainingOptions::Part::prefix, .value_head = true, .optimizer = adam};
  auto const first = device->train(host, options, false);
  Ragged const from = some_contexts(), to = some_responses();
  auto const step = [&](EngineT5Training& training) {
    training.zero_gradients();
    training.sequence_loss(from.view(), to.view(), DropoutSites());
    training.step(1e-2, 1.0);
  };
  step(*first);
  CHECK(first->size() == host.prefix.size() + host.value_head.size());
  std::vector<float> values(static_cast<std::size_t>(first->size()));
  first->fetch(values);
  auto const second = device->train(host, options, false);
  second->put(values);
  second->restore(first->optimizer());
  CHECK(second->optimizer().steps == 1);
  CHECK(logprobs(second->model()) == logprobs(first->model()));
  step(*first);
  step(*second);
  std::vector<float> one(values.size()), other(values.size());
  first->fetch(one);
  second->fetch(other);
  CHECK(one == other);
  CHECK(one != values);
  CHECK_THROWS_AS(first->fetch(std::span<float>(one).first(3)), ShapeError);
  CHECK_THROWS_AS(first->reference_logprobs({from.view(), to.view()}, one), ConfigError);
  auto const none = support::small_t5<float>(4);
  CHECK_THROWS_AS(device->train(none, options, false), ConfigError);
  // A gradient that is no number moves nothing, and says so.
  second->zero_gradients();
  auto broken = values;
  broken[0] = std::numeric_limits<float>::quiet_NaN();
  second->put(broken);
  second->sequence_loss(from.view(), to.view(), DropoutSites());
  CHECK_THROWS_WITH(second->step(1e-2, 1.0),
                    Catch::Matchers::ContainsSubstring("is not finite at optimiser step 3"));
}

TEST_CASE("engine: in 16 bits the optimiser moves float32 weights, whose rounding the model has",
          "[cuda][train][engine]") {
  auto host = support::small_t5<float>(4);
  std::vector<float> const before(host.weights.span().begin(), host.weights.span().end());
  auto const device = gpu<Bf16>();
  CHECK(device->precision() == train::Precision::bf16);
  auto const training = device->train(host, {.optimizer = adam}, false);
  Ragged const from = some_contexts(), to = some_responses();
  // A weight of 0.1 has a unit of 2^-11 in 16 bits, and begins as such a number: steps of 2e-5 are
  // lost there, and not in float32.
  double const rate = 2e-5;
  int const steps = 4;
  for (int i = 0; i < steps; ++i) {
    training->zero_gradients();
    training->sequence_loss(from.view(), to.view(), DropoutSites());
    training->step(rate, 1.0);
  }
  training->bring_home(host);
  std::vector<float> const after(host.weights.span().begin(), host.weights.span().end());
  std::size_t moved = 0, moved_in_16_bits = 0;
  float furthest = 0;
  for (std::size_t i = 0; i < after.size(); ++i) {
    moved += after[i] != before[i] ? 1u : 0u;
    moved_in_16_bits += Bf16(after[i]).bits != Bf16(before[i]).bits ? 1u : 0u;
    furthest = std::max(furthest, std::abs(after[i] - before[i]));
  }
  CHECK(moved > after.size() / 2);
  CHECK(moved_in_16_bits < moved / 2);
  // A step of Adam is hardly more than its rate.
  CHECK(static_cast<double>(furthest) <= 1.1 * steps * rate);
  // What the model computes with is what came home, rounded.
  CHECK(logprobs(training->model()) == logprobs(*device->load(host)));
}

namespace {

/// A step of PPO on given responses; the numbers that it reports.
struct PpoOutcome {
  std::vector<std::string> names;
  std::vector<double> numbers;
  std::vector<float> logprobs;  // afterwards
};

template <class Actor, class Reference, class Optimizer>
PpoOutcome step_of_ppo(Actor& actor, Reference& reference, Optimizer& optimizer) {
  Ragged const responses = some_responses();
  auto sampler = [&](RaggedView, std::uint32_t) { return responses; };
  auto reward = [](rl::EpisodeBatch const& episodes, std::span<float> scores) {
    for (std::size_t i = 0; i < episodes.size(); ++i) {
      scores[i] = episodes[i].response_ids.front() % 2 == 0 ? 1.0f : 0.25f;
    }
  };
  auto decode = [](std::span<std::int32_t const>) { return std::string(); };
  rl::PpoConfig const config{.batch_size = 4,
                             .mini_batch_size = 2,
                             .gradient_accumulation = 2,
                             .epochs = 2,
                             .learning_rate = 1e-3};
  rl::PpoTrainer trainer(
      config, rl::make_ppo_spec(config, actor, reference, reward, sampler, decode, optimizer));
  rl::PromptBatch prompts;
  prompts.contexts = some_contexts();
  PpoOutcome outcome;
  rl::for_each_number(trainer.step(prompts), [&](std::string_view name, double value) {
    outcome.names.emplace_back(name);
    outcome.numbers.push_back(value);
  });
  return outcome;
}

template <class T>
PpoOutcome ppo_on_gpu(bool value_head) {
  auto const device = gpu<T>();
  auto const training = device->train(support::small_t5<float>(4),
                                      {.value_head = value_head, .optimizer = adam}, true);
  train::EngineActor actor(*training);
  train::EngineReference reference(*training);
  train::EngineTraining& optimizer = *training;
  PpoOutcome outcome = step_of_ppo(actor, reference, optimizer);
  outcome.logprobs = logprobs(training->model());
  return outcome;
}

PpoOutcome ppo_on_cpu() {
  struct OnCpu {
    Cpu& dev;
    optim::AdamW<float> adamw;
    void zero_gradients() { adamw.zero_gradients(); }
    double step(double rate, double max_norm) { return adamw.step(dev, rate, max_norm); }
  };
  CpuEngine engine(2);
  Cpu& dev = *engine.cpu();
  auto const model = support::small_t5<float>(4), frozen = support::small_t5<float>(4);
  t5::Parameters<float, Cpu> const gradients(model.config());
  train::ValueHeadParameters<float> const head(model.config().d_model);
  train::T5ActorCritic<float> actor(dev, model, gradients.views(), {}, head.views());
  train::T5Reference<float> reference(dev, frozen);
  OnCpu optimizer{
      dev,
      {adam, {{model.weights.span(), gradients.span()}, {model.value_head.span(), head.span()}}}};
  PpoOutcome outcome = step_of_ppo(actor, reference, optimizer);
  outcome.logprobs = logprobs(*engine.load(model));
  return outcome;
}

void check_ppo(PpoOutcome const& actual, PpoOutcome const& expected, double share) {
  REQUIRE(actual.names == expected.names);
  for (std::size_t i = 0; i < expected.numbers.size(); ++i) {
    INFO(expected.names[i] << ": " << actual.numbers[i] << ", CPU " << expected.numbers[i]);
    CHECK(std::abs(actual.numbers[i] - expected.numbers[i]) <=
          share * std::max(1.0, std::abs(expected.numbers[i])));
  }
  auto const exact = in_double(expected.logprobs);
  CHECK(support::max_difference(actual.logprobs, exact) <= share * support::max_abs(exact));
}

}  // namespace

TEST_CASE("engine: a step of PPO through the engine is the CPU's, in float32 and in 16 bits",
          "[cuda][train][ppo][engine]") {
  PpoOutcome const cpu = ppo_on_cpu();
  check_ppo(ppo_on_gpu<float>(true), cpu, 512 * 0x1p-24);
  // A dozen roundings to 8 bits follow each other, as test_model.cpp has it.
  check_ppo(ppo_on_gpu<Bf16>(true), cpu, 12 * 0x1p-8);
  // The step has moved the model by far more than float32 errs.
  auto const before = logprobs(*CpuEngine(2).load(support::small_t5<float>(4)));
  CHECK(support::max_difference(cpu.logprobs, in_double(before)) > 1e-2);
}

TEST_CASE("engine: a policy without a value head has values of zero", "[cuda][train][engine]") {
  auto const device = gpu<float>();
  auto const host = support::small_t5<float>(4);
  auto const training = device->train(host, {.optimizer = adam}, true);
  Ragged const from = some_contexts(), to = some_responses();
  rl::TokenBatch const batch{from.view(), to.view()};
  std::vector<float> logp(to.ids.size()), values(to.ids.size(), 5.0f), kl(to.ids.size(), 5.0f);
  auto const pass = training->forward(batch, logp, values);
  CHECK(values == std::vector<float>(values.size(), 0.0f));
  support::check_error("log-probabilities", logp, in_double(logprobs(*CpuEngine(2).load(host))),
                       0.0, 128);
  training->full_kl(batch, kl);
  CHECK(support::max_abs(in_double(kl)) <= 1e-5);  // from itself
  training->zero_gradients();
  std::vector<float> const ones(logp.size(), 1.0f);
  training->backward(ones, {}, {}, *pass);
  CHECK(training->step(1e-3, 0.0) > 0);
}

TEST_CASE("engine: prefix-tuning on the GPU is the CPU's", "[cuda][train][engine]") {
  auto const host = support::small_t5<float>(4);
  t5::Config const& c = host.config();
  Ragged const from = some_contexts(), to = some_responses();
  // By hand on the CPU: what SequenceTask does.
  CpuEngine cpu(2);
  Cpu& dev = *cpu.cpu();
  auto tuned = support::small_t5<float>(4, 3);
  train::PrefixTraining<float> network({c, 3, 6}, 42);
  optim::AdamW<float> adamw(adam, network.parameters.span(), network.gradients.span());
  double losses[2] = {};
  for (double& loss : losses) {
    ArenaScope saved(dev.saved);
    adamw.zero_gradients();
    network.forward(dev, tuned.prefixes());
    loss = train::sequence_loss(dev, tuned, from.view(), to.view(), {}, network.prefix_gradients(),
                                DropoutSites(0.1, 5, 1));
    network.backward(dev);
    adamw.step(dev, 1e-2);
  }
  network.inference(dev, tuned.prefixes());

  T5TrainingOptions options{.part = T5TrainingOptions::Part::prefix_network,
                            .prefix_length = 3,
                            .prefix_hidden = 6,
                            .optimizer = adam};
  auto const check = [&](train::DeviceEngine& device, double share) {
    auto const training = device.train(host, options, false);
    for (double const loss : losses) {
      training->zero_gradients();
      CHECK(training->sequence_loss(from.view(), to.view(), DropoutSites(0.1, 5, 1)) ==
            Approx(loss).epsilon(share));
      training->step(1e-2, 1.0);
    }
    auto home = support::small_t5<float>(4, 3);
    training->bring_home(home);
    std::vector<float> const prefix(home.prefix.span().begin(), home.prefix.span().end());
    std::vector<double> const exact(tuned.prefix.span().begin(), tuned.prefix.span().end());
    CHECK(support::max_difference(prefix, exact) <= share * support::max_abs(exact));
    auto const expected = in_double(logprobs(*cpu.load(tuned)));
    CHECK(support::max_difference(logprobs(training->model()), expected) <=
          share * support::max_abs(expected));
  };
  check(*gpu<float>(), 512 * 0x1p-24);
  // The network is float32 in either.
  check(*gpu<Bf16>(), 12 * 0x1p-8);
  CHECK(losses[1] < losses[0]);
  options.prefix_length = 0;
  CHECK_THROWS_AS(gpu<float>()->train(host, options, false), ConfigError);
}
