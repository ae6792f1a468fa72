// SPDX-License-Identifier: Apache-2.0
// PPO learns what it should on problems small enough to know the answer, each over twenty seeds.
//
//                                    Gae  GroupRelative  undivided  LeaveOneOut  RunningBaseline
//   a two-armed bandit                x         x            x           x              x
//   a token that is rewarded          x         x            x           x              x
//   a constant reward is learnt       x        (a)          (a)         (a)            (a)
//   a constant reward moves nothing  (b)        x            x           x              x
//   KL alone, in the reward           x         x            x           x              x
//   KL alone, in the loss            (c)        x           (c)         (c)            (c)
//   two steps, discounted             x        (d)          (d)         (d)             x
//   two steps, undiscounted          (e)        x            x           x             (e)
//
// What makes no sense, or nothing new:
//   (a) a constant is learnt by a value function, and these have none;
//   (b) Gae's advantages are 0 only once the value function has learnt the constant: until then,
//       without whitening, every token is pushed alike;
//   (c) a penalty in the loss reaches no advantage, all of which are 0 here: one is enough, with
//       every estimator of KL that may stand in the loss;
//   (d) the groups credit a whole row and have no gamma;
//   (e) gamma 1 is what the two problems above it have.

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

PpoConfig quick(std::uint64_t seed) {
  PpoConfig config;
  config.seed = seed;
  config.learning_rate = 0.02;
  config.kl_coefficient = 0.01;
  return config;
}

/// Trains a tabular policy with PPO's own strategies, on 32 samples of one context a step.
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

/// GroupRelative as Dr. GRPO has it.
struct Undivided : GroupRelative {
  Undivided() : GroupRelative{.group_size = 4, .divide = false} {}
};

enum class Whiten { no, yes };

/// The groups are their own normalisation; the running baseline is REINFORCE++ with whitening.
template <class Advantages>
inline constexpr Whiten usual =
    std::is_same_v<Advantages, RunningBaseline> ? Whiten::yes : Whiten::no;

/// Trains without a value function, on 32 samples of one context, in groups of four.
template <class Advantages, class Kl>
Tabular<float> train_critic_free(Advantages advantages, Kl kl, double beta, auto reward,
                                 std::uint64_t seed, int steps, Tabular<float> table,
                                 Tabular<float> const& frozen, Whiten whiten = usual<Advantages>) {
  TabularPolicy policy{table};
  PolicyOnly actor(policy);
  auto sampler = [&](RaggedView c, std::uint32_t step) { return table.sample(c, step, seed); };
  auto decode = spell;
  TabularOptimizer<float> optimizer{table, true};
  PpoConfig config = quick(seed);
  config.whiten_rewards = false;
  config.whiten_advantages = whiten == Whiten::yes;
  config.score_scaling = ScoreScaling::none;
  PpoTrainer trainer(config, make_ppo_spec(actor, frozen, reward, sampler, decode, optimizer, kl,
                                           FixedKl(beta), advantages, PpoClipObjective{}));
  auto const prompts = prompts_of(std::vector<std::int32_t>(32, 0));
  for (int i = 0; i < steps; ++i) trainer.step(prompts);
  // No value function: nothing may have reached the table's values.
  for (float const v : table.values) CHECK(v == 0.f);
  return table;
}

/// Arm 2 pays with the one chance, arm 0 with the other; one token a response.
auto bandit(std::uint64_t seed, double good, double bad) {
  return [=](EpisodeBatch const& b, std::span<float> scores) {
    for (std::size_t i = 0; i < b.size(); ++i) {
      double const u = uniform({seed, Stream::bootstrap, b.step, static_cast<std::uint32_t>(i), 0});
      scores[i] = u < (b[i].response_ids[0] == 2 ? good : bad) ? 1.f : 0.f;
    }
  };
}

/// Two arms: no end token.
Tabular<float> arms() {
  Tabular<float> start(1, 1, 3);
  start.logits[1] = -30;
  return start;
}

void count_threes(EpisodeBatch const& b, std::span<float> scores) {
  for (std::size_t i = 0; i < b.size(); ++i) {
    scores[i] = 0;
    for (std::int32_t const y : b[i].response_ids) scores[i] += y == 3 ? 1.f : 0.f;
  }
}

auto always(float score) {
  return [score](EpisodeBatch const&, std::span<float> scores) {
    for (float& s : scores) s = score;
  };
}

/// The first of two tokens decides, though the score comes with the second.
void first_is_two(EpisodeBatch const& b, std::span<float> scores) {
  for (std::size_t i = 0; i < b.size(); ++i) scores[i] = b[i].response_ids[0] == 2 ? 1.f : 0.f;
}

/// Both tokens are drawn: no end token.
Tabular<float> two_steps() {
  Tabular<float> start(1, 2, 3);
  start.logits[1] = start.logits[4] = -30;
  return start;
}

/// A reference of four equal tokens, and a policy about half a nat away from it.
struct Apart {
  Tabular<float> frozen{1, 1, 4};
  Tabular<float> start = frozen;
  Apart() { start.logits[2] = 2.3f; }

  static double divergence(Tabular<float> const& policy) {
    double kl = 0;
    for (double const p : policy.probabilities(0)) kl += p * std::log(4 * p);
    return kl;
  }
};

}  // namespace

TEST_CASE("ppo: a two-armed bandit is learnt from a lambda", "[rl][ppo][probe]") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    auto const policy = train(bandit(seed, 0.7, 0.3), quick(seed), 80, seed, arms(), arms());
    CHECK(policy.probabilities(0)[2] > 0.9);
  }
}

TEST_CASE("ppo: the policy converges to a token that is rewarded", "[rl][ppo][probe]") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Tabular<float> const start(1, 3, 5);
    auto const policy = train(count_threes, quick(seed), 80, seed, start, start);
    for (std::size_t t = 0; t < 3; ++t) CHECK(policy.probabilities(t)[3] > 0.9);
  }
}

TEST_CASE("ppo: without a reward the KL penalty brings the policy back", "[rl][ppo][probe]") {
  Apart const apart;
  REQUIRE(Apart::divergence(apart.start) > 0.45);
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    PpoConfig config = quick(seed);
    config.whiten_rewards = false;
    config.whiten_advantages = false;
    config.kl_coefficient = 1.0;
    CHECK(Apart::divergence(train(always(0), config, 150, seed, apart.start, apart.frozen)) < 0.05);
  }
}

TEST_CASE("ppo: the value function learns a constant reward", "[rl][ppo][probe]") {
  Tabular<float> const start(1, 2, 3);
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    PpoConfig config = quick(seed);
    config.score_scaling = ScoreScaling::none;
    config.whiten_rewards = false;
    config.kl_coefficient = 0;
    auto const policy = train(always(0.7f), config, 60, seed, start, start);
    CHECK(policy.values[0] == Approx(0.7).margin(0.05));
    CHECK(policy.values[1] == Approx(0.7).margin(0.05));
  }
}

TEST_CASE("ppo: a token is credited for a reward that comes a step later, discounted",
          "[rl][ppo][probe]") {
  // V before the first token must learn gamma times V after it, and the first choice must be
  // learnt.
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    PpoConfig config = quick(seed);
    config.score_scaling = ScoreScaling::none;
    config.whiten_rewards = false;
    config.kl_coefficient = 0;
    config.gamma = 0.8;
    auto const policy = train(first_is_two, config, 120, seed, two_steps(), two_steps());
    CHECK(policy.probabilities(0)[2] > 0.9);
    CHECK(policy.values[1] == Approx(1.0).margin(0.1));
    CHECK(policy.values[0] == Approx(0.8 * policy.values[1]).margin(0.1));
  }
}

TEMPLATE_TEST_CASE("ppo: advantages without a value function learn a bandit and a token",
                   "[rl][ppo][advantages][probe]", GroupRelative, Undivided, LeaveOneOut,
                   RunningBaseline) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    CHECK(
        train_critic_free(TestType{}, KlK1{}, 0.0, bandit(seed, 0.8, 0.2), seed, 80, arms(), arms())
            .probabilities(0)[2] > 0.9);
    Tabular<float> const start(1, 2, 4);
    auto const policy =
        train_critic_free(TestType{}, KlK1{}, 0.0, count_threes, seed, 80, start, start);
    for (std::size_t t = 0; t < 2; ++t) CHECK(policy.probabilities(t)[3] > 0.9);
  }
}

TEMPLATE_TEST_CASE("ppo: without a value function a constant reward moves nothing, not by a bit",
                   "[rl][ppo][advantages][probe]", GroupRelative, Undivided, LeaveOneOut,
                   RunningBaseline) {
  // A half, so that means and baselines of it are exact.
  Tabular<float> start(1, 2, 3);
  start.logits = {0.5f, -0.25f, 0.f, 1.f, -1.f, 0.125f};
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    CHECK(train_critic_free(TestType{}, KlK1{}, 0.0, always(0.5f), seed, 10, start, start).logits ==
          start.logits);
  }
}

TEMPLATE_TEST_CASE("ppo: without a value function the KL penalty alone brings the policy back",
                   "[rl][ppo][advantages][kl][probe]", GroupRelative, Undivided, LeaveOneOut,
                   RunningBaseline) {
  Apart const apart;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    auto const policy = train_critic_free(TestType{}, KlK1{}, 1.0, always(0), seed, 150,
                                          apart.start, apart.frozen, Whiten::no);
    CHECK(Apart::divergence(policy) < 0.05);
  }
}

TEMPLATE_TEST_CASE("ppo: a group credits the first token for what comes a step later",
                   "[rl][ppo][advantages][probe]", GroupRelative, Undivided, LeaveOneOut) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    CHECK(train_critic_free(TestType{}, KlK1{}, 0.0, first_is_two, seed, 120, two_steps(),
                            two_steps())
              .probabilities(0)[2] > 0.9);
  }
}

TEST_CASE("ppo: a running baseline credits the first token for a discounted reward",
          "[rl][ppo][advantages][probe]") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    CHECK(train_critic_free(RunningBaseline{0.8}, KlK1{}, 0.0, first_is_two, seed, 120, two_steps(),
                            two_steps())
              .probabilities(0)[2] > 0.9);
  }
}

TEMPLATE_TEST_CASE("ppo: without a reward a KL penalty in the loss brings the policy back",
                   "[rl][ppo][kl][probe]", KlAbs, KlK2, KlK3) {
  Apart const apart;
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    CHECK(Apart::divergence(train_critic_free(GroupRelative{}, KlInLoss<TestType>{}, 1.0, always(0),
                                              seed, 100, apart.start, apart.frozen)) < 0.05);
  }
}
