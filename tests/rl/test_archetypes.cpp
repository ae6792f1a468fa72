// SPDX-License-Identifier: Apache-2.0
// The trainer asks for nothing beyond its concepts: it is built and run with types that have
// exactly the expressions asked for, and can be neither copied nor moved where the concept does not
// say so.

#include <any>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "emprl/rl/ppo.hpp"
#include "support/catch.hpp"

using namespace emprl;
using namespace emprl::rl;

namespace {

struct Pinned {
  Pinned() = default;
  Pinned(Pinned const&) = delete;
  Pinned& operator=(Pinned const&) = delete;
};

struct MinimalContext : Pinned {};

struct MinimalPolicy : Pinned {
  using Scalar = double;
  using Context = MinimalContext;
  double gradient = 0;
  void forward(TokenBatch const&, std::span<double> logp, Context&) {
    for (double& x : logp) x = -1;
  }
  void backward(std::span<double const> d, Context&) {
    for (double const x : d) gradient += x;
  }
};

struct MinimalValue : Pinned {
  using Scalar = double;
  using Context = MinimalContext;
  double gradient = 0;
  void forward(TokenBatch const&, std::span<double> v, Context&) {
    for (double& x : v) x = 0.5;
  }
  void backward(std::span<double const> d, Context&) {
    for (double const x : d) gradient += x;
  }
};

struct MinimalActor : Pinned {
  using Scalar = float;
  using Context = MinimalContext;
  void forward(TokenBatch const&, std::span<float> logp, std::span<float> v, Context&) {
    for (float& x : logp) x = -1;
    for (float& x : v) x = 0;
  }
  void backward(std::span<float const>, std::span<float const>, Context&) {}
};

struct MinimalReference : Pinned {
  template <class T>
  void logprobs(TokenBatch const&, std::span<T> logp) {
    for (T& x : logp) x = T(-2);
  }
};

struct MinimalReward : Pinned {
  void operator()(EpisodeBatch const& b, std::span<float> scores) {
    for (std::size_t i = 0; i < b.size(); ++i) scores[i] = static_cast<float>(i);
  }
};

struct MinimalSampler : Pinned {
  Ragged operator()(RaggedView contexts, std::uint32_t) {
    Ragged out;
    for (index_t i = 0; i < contexts.rows(); ++i) out.push_back(std::vector<std::int32_t>{2, 1});
    return out;
  }
};

struct MinimalDecoder : Pinned {
  char const* operator()(std::span<std::int32_t const>) { return ""; }
};

struct MinimalOptimizer : Pinned {
  int steps = 0;
  void zero_gradients() {}
  double step(double, double) {
    ++steps;
    return 1.0;
  }
};

struct MinimalKl {
  float operator()(double, double) const { return 0.25f; }
};

struct MinimalController {
  double coefficient() const noexcept { return 0.1; }
  void update(double, std::int64_t) {}
};

struct MinimalAdvantages {
  void operator()(Rollout const& r, std::span<double> a, std::span<double> ret) {
    for (std::size_t t = 0; t < a.size(); ++t) a[t] = ret[t] = r.rewards[t];
  }
};

struct MinimalObjective {
  template <class S>
  S operator()(S logp, S value, TokenContext const& t) const {
    return S(-t.advantage) * logp + value * value;
  }
};

// The expressions that are used when they exist: one archetype each, of the base's and that one
// alone.

struct InferringMinimal : MinimalActor {
  int inferences = 0;
  void inference(TokenBatch const&, std::span<float> logp, std::span<float> v) {
    for (float& x : logp) x = -1;
    for (float& x : v) x = 0;
    ++inferences;
  }
};

struct EntropyMinimal : MinimalActor {
  void entropy(std::span<float> h, MinimalContext const&) {
    for (float& x : h) x = 0.75f;
  }
};

struct FullKlMinimal : MinimalActor {
  void full_kl(MinimalReference&, TokenBatch const&, std::span<float> kl) {
    for (float& x : kl) x = 0.5f;
  }
};

struct LoggingReward : Pinned {
  void operator()(EpisodeBatch const& b, std::span<float> scores, ScoreLog& log) {
    for (std::size_t i = 0; i < b.size(); ++i) scores[i] = static_cast<float>(i);
    log.add("row", scores);
  }
};

/// Remembers how often it was asked.
struct StatefulReward : MinimalReward {
  double asked = 0;
  void operator()(EpisodeBatch const& b, std::span<float> scores) {
    MinimalReward::operator()(b, scores);
    ++asked;
  }
  std::vector<double> state() const { return {asked}; }
  void restore(std::span<double const> s) { asked = s[0]; }
};

struct StatefulController : MinimalController {
  double updates = 0;
  void update(double, std::int64_t) { ++updates; }
  std::vector<double> state() const { return {updates}; }
  void restore(std::span<double const> s) { updates = s[0]; }
};

struct StatefulAdvantages : MinimalAdvantages {
  double calls = 0;
  void operator()(Rollout const& r, std::span<double> a, std::span<double> ret) {
    MinimalAdvantages::operator()(r, a, ret);
    ++calls;
  }
  std::vector<double> state() const { return {calls}; }
  void restore(std::span<double const> s) { calls = s[0]; }
};

struct ItemisedMinimal : MinimalObjective {
  double policy(double, TokenContext const&) const { return 3; }
  double value(double, TokenContext const&) const { return 5; }
  bool clipped(double, TokenContext const&) const { return true; }
};

static_assert(Policy<MinimalPolicy> && ValueFunction<MinimalValue> && ActorCritic<MinimalActor>);
static_assert(ActorCritic<SeparateActorCritic<MinimalPolicy, MinimalValue>>);
static_assert(!InferringActor<MinimalActor> && !ReportsEntropy<MinimalActor>);
static_assert(ReferencePolicy<MinimalReference, float> && RewardModel<MinimalReward> &&
              !LoggingRewardModel<MinimalReward>);
static_assert(Sampler<MinimalSampler> && TextDecoder<MinimalDecoder> &&
              Optimizer<MinimalOptimizer>);
static_assert(KlEstimator<MinimalKl> && KlController<MinimalController> &&
              !StatefulKlController<MinimalController>);
static_assert(AdvantageEstimator<MinimalAdvantages> && Objective<MinimalObjective> &&
              !ItemisedObjective<MinimalObjective>);
static_assert(InferringActor<InferringMinimal> && !ReportsEntropy<InferringMinimal>);
static_assert(ReportsEntropy<EntropyMinimal> && !InferringActor<EntropyMinimal>);
static_assert(ReportsFullKl<FullKlMinimal, MinimalReference> &&
              !ReportsFullKl<MinimalActor, MinimalReference>);
static_assert(LoggingRewardModel<LoggingReward> && RewardModel<LoggingReward> &&
              !StatefulRewardModel<LoggingReward>);
static_assert(StatefulRewardModel<StatefulReward> && !StatefulRewardModel<MinimalReward>);
static_assert(StatefulKlController<StatefulController>);
static_assert(StatefulAdvantageEstimator<StatefulAdvantages> &&
              !StatefulAdvantageEstimator<MinimalAdvantages>);
static_assert(ItemisedObjective<ItemisedMinimal>);

// What lacks an expression is not a model.
struct NoBackward {
  using Scalar = float;
  struct Context {};
  void forward(TokenBatch const&, std::span<float>, std::span<float>, Context&) {}
};
static_assert(!ActorCritic<NoBackward> && !ActorCritic<MinimalPolicy> && !Policy<MinimalActor>);
static_assert(!Objective<MinimalKl> && !RewardModel<MinimalSampler> && !Sampler<MinimalReward>);

PromptBatch three_prompts() {
  PromptBatch prompts;
  for (std::int32_t i = 0; i < 3; ++i) prompts.contexts.push_back(std::vector<std::int32_t>{i});
  return prompts;
}

struct Parts {
  MinimalReference reference;
  MinimalReward reward;
  MinimalSampler sampler;
  MinimalDecoder decode;
  MinimalOptimizer optimizer;
};

}  // namespace

TEST_CASE("concepts: the trainer runs on archetypes alone", "[rl][concepts][contract]") {
  MinimalActor actor;
  Parts p;
  PpoTrainer trainer(PpoConfig{}, make_ppo_spec(actor, p.reference, p.reward, p.sampler, p.decode,
                                                p.optimizer, MinimalKl{}, MinimalController{},
                                                MinimalAdvantages{}, MinimalObjective{}));
  PpoStats const stats = trainer.step(three_prompts());
  CHECK(p.optimizer.steps == 4);
  CHECK(stats.kl == 0.5);
  CHECK(stats.kl_k1 == 2.0);
  CHECK(stats.kl_coefficient == 0.1);
  CHECK(!stats.policy_loss);
  CHECK(!stats.value_loss);
  CHECK(!stats.clip_fraction);
  CHECK(!stats.entropy);
}

TEST_CASE("concepts: policy and value function apart make an actor-critic",
          "[rl][concepts][contract]") {
  MinimalPolicy policy;
  MinimalValue value;
  SeparateActorCritic actor(policy, value);
  Parts p;
  PpoConfig const config;
  PpoTrainer trainer(config, make_ppo_spec(config, actor, p.reference, p.reward, p.sampler,
                                           p.decode, p.optimizer));
  PpoStats const stats = trainer.step(three_prompts());
  CHECK(stats.value_mean == 0.5);
  CHECK(stats.tokens == 6);
  CHECK(value.gradient != 0.0);
}

TEST_CASE("concepts: an actor's inference is what rollouts are evaluated with, and forward trains",
          "[rl][concepts][contract]") {
  InferringMinimal actor;
  Parts p;
  PpoTrainer trainer(PpoConfig{}, make_ppo_spec(actor, p.reference, p.reward, p.sampler, p.decode,
                                                p.optimizer, MinimalKl{}, MinimalController{},
                                                MinimalAdvantages{}, MinimalObjective{}));
  trainer.step(three_prompts());
  CHECK(actor.inferences == 1);
  CHECK(p.optimizer.steps == 4);
}

TEST_CASE("concepts: an actor's entropy and its full KL reach the statistics",
          "[rl][concepts][contract]") {
  Parts p;
  EntropyMinimal tells_entropy;
  PpoTrainer first(
      PpoConfig{},
      make_ppo_spec(tells_entropy, p.reference, p.reward, p.sampler, p.decode, p.optimizer,
                    MinimalKl{}, MinimalController{}, MinimalAdvantages{}, MinimalObjective{}));
  CHECK(first.step(three_prompts()).entropy == 0.75);
  FullKlMinimal tells_kl;
  PpoTrainer second(PpoConfig{}, make_ppo_spec(tells_kl, p.reference, p.reward, p.sampler, p.decode,
                                               p.optimizer, KlFull{}, MinimalController{},
                                               MinimalAdvantages{}, MinimalObjective{}));
  // Two tokens a response.
  CHECK(second.step(three_prompts()).kl == 1.0);
}

TEST_CASE("concepts: a reward's parts and an objective's terms are reported",
          "[rl][concepts][contract]") {
  MinimalActor actor;
  Parts p;
  LoggingReward reward;
  PpoTrainer trainer(PpoConfig{}, make_ppo_spec(actor, p.reference, reward, p.sampler, p.decode,
                                                p.optimizer, MinimalKl{}, MinimalController{},
                                                MinimalAdvantages{}, ItemisedMinimal{}));
  PpoStats const stats = trainer.step(three_prompts());
  REQUIRE(stats.components.size() == 1);
  CHECK(stats.components[0].name == "row");
  CHECK(stats.components[0].mean == 1.0);
  CHECK(stats.policy_loss == 3.0);
  CHECK(stats.value_loss == 5.0);
  CHECK(stats.clip_fraction == 1.0);
}

TEST_CASE("concepts: what reward, controller and advantages remember is saved and given back",
          "[rl][concepts][contract]") {
  MinimalActor actor;
  Parts p;
  StatefulReward reward;
  auto const make = [&] {
    return PpoTrainer(PpoConfig{}, make_ppo_spec(actor, p.reference, reward, p.sampler, p.decode,
                                                 p.optimizer, MinimalKl{}, StatefulController{},
                                                 StatefulAdvantages{}, MinimalObjective{}));
  };
  auto trainer = make();
  trainer.step(three_prompts());
  trainer.step(three_prompts());
  PpoState const state = trainer.state();
  CHECK(state.reward == std::vector<double>{2});
  CHECK(state.kl_controller == std::vector<double>{2});
  CHECK(state.advantages == std::vector<double>{2});
  auto resumed = make();
  reward.asked = 0;
  resumed.restore(state);
  CHECK(reward.asked == 2);
  resumed.step(three_prompts());
  trainer.restore(state);
  trainer.step(three_prompts());
  CHECK(resumed.state() == trainer.state());
  CHECK(resumed.state().advantages == std::vector<double>{3});
}
