// SPDX-License-Identifier: Apache-2.0
// PPO learns what it should on problems small enough to know the answer.

#include <cmath>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "emprl/rl/ppo.hpp"
#include "rl/tabular.hpp"
#include "support/catch.hpp"

using namespace emprl;
using namespace emprl::rl;
using namespace emprl::tests;

namespace {

/// Trains a tabular policy with a lambda reward and returns it.
template <class Reward>
Tabular<float> train(Reward reward, PpoConfig const& config, int steps, std::uint64_t seed,
                     Tabular<float> actor, Tabular<float> const& frozen) {
  auto sampler = [&](RaggedView c, std::uint32_t step) { return actor.sample(c, step, seed); };
  auto decode = spell;
  TabularOptimizer<float> optimizer{actor, true};
  PpoTrainer trainer(config,
                     make_ppo_spec(config, actor, frozen, reward, sampler, decode, optimizer));
  auto const prompts = prompts_of(std::vector<std::int32_t>(32, 0));
  for (int i = 0; i < steps; ++i) trainer.step(prompts);
  return actor;
}

PpoConfig quick(std::uint64_t seed) {
  PpoConfig config;
  config.seed = seed;
  config.learning_rate = 0.02;
  config.kl_coefficient = 0.01;
  return config;
}

}  // namespace

TEST_CASE("ppo: a two-armed bandit is learnt from a lambda", "[rl][ppo][probe]") {
  // Arm 2 pays on seven pulls of ten, arm 0 on three; one token a response.
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    auto reward = [seed](EpisodeBatch const& b, std::span<float> scores) {
      for (std::size_t i = 0; i < b.size(); ++i) {
        double const u =
            uniform({seed, Stream::bootstrap, b.step, static_cast<std::uint32_t>(i), 0});
        double const chance = b[i].response_ids[0] == 2 ? 0.7 : 0.3;
        scores[i] = u < chance ? 1.f : 0.f;
      }
    };
    Tabular<float> start(1, 1, 3);
    start.logits[1] = -30;  // no end token: two arms
    auto const policy = train(reward, quick(seed), 80, seed, start, start);
    CHECK(policy.probabilities(0)[2] > 0.9);
  }
}

TEST_CASE("ppo: the policy converges to a token that is rewarded", "[rl][ppo][probe]") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    auto reward = [](EpisodeBatch const& b, std::span<float> scores) {
      for (std::size_t i = 0; i < b.size(); ++i) {
        float n = 0;
        for (std::int32_t const y : b[i].response_ids) n += y == 3 ? 1.f : 0.f;
        scores[i] = n;
      }
    };
    Tabular<float> const start(1, 3, 5);
    auto const policy = train(reward, quick(seed), 80, seed, start, start);
    for (std::size_t t = 0; t < 3; ++t) CHECK(policy.probabilities(t)[3] > 0.9);
  }
}

TEST_CASE("ppo: without a reward the KL penalty brings the policy back", "[rl][ppo][probe]") {
  auto reward = [](EpisodeBatch const&, std::span<float> scores) {
    for (float& s : scores) s = 0;
  };
  Tabular<float> const frozen(1, 1, 4);
  Tabular<float> start = frozen;
  start.logits[2] = 2.3f;  // about half a nat away
  PpoConfig config = quick(3);
  config.whiten_rewards = false;
  config.whiten_advantages = false;
  config.kl_coefficient = 1.0;
  auto const divergence = [](Tabular<float> const& policy) {
    double kl = 0;
    for (double const p : policy.probabilities(0)) kl += p * std::log(4 * p);
    return kl;
  };
  REQUIRE(divergence(start) > 0.45);
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    config.seed = seed;
    CHECK(divergence(train(reward, config, 150, seed, start, frozen)) < 0.05);
  }
}

TEST_CASE("ppo: the value function learns a constant reward", "[rl][ppo][probe]") {
  auto reward = [](EpisodeBatch const&, std::span<float> scores) {
    for (float& s : scores) s = 0.7f;
  };
  PpoConfig config = quick(4);
  config.score_scaling = ScoreScaling::none;
  config.whiten_rewards = false;
  config.kl_coefficient = 0;
  Tabular<float> const start(1, 2, 3);
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    config.seed = seed;
    auto const policy = train(reward, config, 60, seed, start, start);
    CHECK(policy.values[0] == Approx(0.7).margin(0.05));
    CHECK(policy.values[1] == Approx(0.7).margin(0.05));
  }
}

TEST_CASE("ppo: a token is credited for a reward that comes a step later, discounted",
          "[rl][ppo][probe]") {
  // Two tokens; the reward depends on the first alone. V before the first token must learn gamma
  // times V after it, and the first choice must be learnt, though it pays only at the second.
  PpoConfig config = quick(0);
  config.score_scaling = ScoreScaling::none;
  config.whiten_rewards = false;
  config.kl_coefficient = 0;
  config.gamma = 0.8;
  auto reward = [](EpisodeBatch const& b, std::span<float> scores) {
    for (std::size_t i = 0; i < b.size(); ++i) scores[i] = b[i].response_ids[0] == 2 ? 1.f : 0.f;
  };
  Tabular<float> start(1, 2, 3);
  start.logits[1] = start.logits[4] = -30;  // no end token: both tokens are drawn
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    config.seed = seed;
    auto const policy = train(reward, config, 120, seed, start, start);
    CHECK(policy.probabilities(0)[2] > 0.9);
    CHECK(policy.values[1] == Approx(1.0).margin(0.1));
    CHECK(policy.values[0] == Approx(0.8 * policy.values[1]).margin(0.1));
  }
}

namespace {

/// A tabular policy and nothing else: what is trained where there is no value function.
struct TabularPolicy {
  using Scalar = float;
  using Context = Tabular<float>::Context;
  Tabular<float>& table;

  void forward(TokenBatch const& batch, std::span<float> logp, Context& c) const {
    std::vector<float> unused(logp.size());
    table.forward(batch, logp, unused, c);
  }
  void backward(std::span<float const> dlogp, Context const& c) {
    std::vector<float> const none(dlogp.size(), 0.f);
    table.backward(dlogp, none, c);
  }
};

/// Trains without a value function, on 32 samples of one context, in groups of four.
template <class Advantages, class Kl>
Tabular<float> train_critic_free(Advantages advantages, Kl kl, double beta, auto reward,
                                 std::uint64_t seed, int steps, Tabular<float> table,
                                 Tabular<float> const& frozen) {
  TabularPolicy policy{table};
  PolicyOnly actor(policy);
  auto sampler = [&](RaggedView c, std::uint32_t step) { return table.sample(c, step, seed); };
  auto decode = spell;
  TabularOptimizer<float> optimizer{table, true};
  PpoConfig config = quick(seed);
  config.whiten_rewards = false;
  config.whiten_advantages = std::is_same_v<Advantages, RunningBaseline>;
  config.score_scaling = ScoreScaling::none;
  PpoTrainer trainer(config, make_ppo_spec(actor, frozen, reward, sampler, decode, optimizer, kl,
                                           FixedKl(beta), advantages, PpoClipObjective{}));
  auto const prompts = prompts_of(std::vector<std::int32_t>(32, 0));
  for (int i = 0; i < steps; ++i) trainer.step(prompts);
  // No value function: nothing may have reached the table's values.
  for (float const v : table.values) CHECK(v == 0.f);
  return table;
}

}  // namespace

TEMPLATE_TEST_CASE("ppo: advantages without a value function learn a bandit and a token",
                   "[rl][ppo][advantages][probe]", GroupRelative, LeaveOneOut, RunningBaseline) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    auto bandit = [seed](EpisodeBatch const& b, std::span<float> scores) {
      for (std::size_t i = 0; i < b.size(); ++i) {
        double const u =
            uniform({seed, Stream::bootstrap, b.step, static_cast<std::uint32_t>(i), 0});
        scores[i] = u < (b[i].response_ids[0] == 2 ? 0.8 : 0.2) ? 1.f : 0.f;
      }
    };
    Tabular<float> arms(1, 1, 3);
    arms.logits[1] = -30;  // no end token: two arms
    CHECK(train_critic_free(TestType{}, KlK1{}, 0.0, bandit, seed, 80, arms, arms)
              .probabilities(0)[2] > 0.9);

    auto token = [](EpisodeBatch const& b, std::span<float> scores) {
      for (std::size_t i = 0; i < b.size(); ++i) {
        scores[i] = 0;
        for (std::int32_t const y : b[i].response_ids) scores[i] += y == 3 ? 1.f : 0.f;
      }
    };
    Tabular<float> const start(1, 2, 4);
    auto const policy = train_critic_free(TestType{}, KlK1{}, 0.0, token, seed, 80, start, start);
    for (std::size_t t = 0; t < 2; ++t) CHECK(policy.probabilities(t)[3] > 0.9);
  }
}

TEMPLATE_TEST_CASE("ppo: without a reward a KL penalty in the loss brings the policy back",
                   "[rl][ppo][kl][probe]", KlK2, KlK3) {
  auto nothing = [](EpisodeBatch const&, std::span<float> scores) {
    for (float& s : scores) s = 0;
  };
  Tabular<float> const frozen(1, 1, 4);
  Tabular<float> start = frozen;
  start.logits[2] = 2.3f;  // about half a nat away
  auto const divergence = [](Tabular<float> const& policy) {
    double kl = 0;
    for (double const p : policy.probabilities(0)) kl += p * std::log(4 * p);
    return kl;
  };
  REQUIRE(divergence(start) > 0.45);
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    CHECK(divergence(train_critic_free(GroupRelative{}, KlInLoss<TestType>{}, 1.0, nothing, seed,
                                       100, start, frozen)) < 0.05);
  }
}
