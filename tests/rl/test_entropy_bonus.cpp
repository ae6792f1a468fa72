// SPDX-License-Identifier: Apache-2.0
// The entropy as a third input of the objective, from the loss to the weights.

#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

#include "emprl/rl/ppo.hpp"
#include "rl/tabular.hpp"
#include "support/catch.hpp"
#include "support/gradient_check.hpp"

using Catch::Matchers::ContainsSubstring;
using namespace emprl;
using namespace emprl::rl;
using namespace emprl::tests;

namespace {

auto nothing = [](EpisodeBatch const&, std::span<float> scores) {
  for (float& s : scores) s = 0;
};

/// A table as a policy without values, that offers all that a policy may.
struct TablePolicy {
  using Scalar = double;
  using Context = Tabular<double>::Context;
  Tabular<double>& table;
  void forward(TokenBatch const& b, std::span<double> logp, Context& c) {
    std::vector<double> v(logp.size());
    table.forward(b, logp, v, c);
  }
  void inference(TokenBatch const& b, std::span<double> logp) {
    Context c;
    forward(b, logp, c);
  }
  void backward(std::span<double const> d, Context& c) {
    table.backward(d, std::vector<double>(d.size()), c);
  }
  void backward(std::span<double const> d, std::span<double const> dh, Context& c) {
    table.backward(d, std::vector<double>(d.size()), dh, c);
  }
  void entropy(std::span<double> out, Context const& c) const { table.entropy(out, c); }
  void full_kl(Tabular<double> const& r, TokenBatch const& b, std::span<double> kl) {
    table.full_kl(r, b, kl);
  }
};
using Alone = PolicyOnly<TablePolicy>;
using Joined = SeparateActorCritic<TablePolicy, TablePolicy>;
static_assert(InferringActor<Alone> && TrainsEntropy<Alone> &&
              ReportsFullKl<Alone, Tabular<double>>);
static_assert(TrainsEntropy<Joined> && ReportsFullKl<Joined, Tabular<double>>);

/// A policy that offers no more than it must.
struct Plain {
  using Scalar = double;
  struct Context {};
  void forward(TokenBatch const&, std::span<double>, Context&) {}
  void backward(std::span<double const>, Context&) {}
};
static_assert(ActorCritic<PolicyOnly<Plain>> && !InferringActor<PolicyOnly<Plain>> &&
              !ReportsEntropy<PolicyOnly<Plain>> &&
              !ReportsFullKl<PolicyOnly<Plain>, Tabular<double>>);

PpoConfig undisturbed() {
  PpoConfig config;
  config.batch_size = 32;
  config.epochs = 1;
  config.score_scaling = ScoreScaling::none;
  config.whiten_rewards = config.whiten_advantages = false;
  config.max_gradient_norm = std::numeric_limits<double>::max();
  return config;
}

}  // namespace

TEST_CASE("entropy bonus: the step's gradient is that of the mean loss, entropy included",
          "[rl][ppo][grad]") {
  // One optimiser step with rate 1 and plain descent: the weights move by minus the gradient. With
  // ratio 1 and GAE the policy's part is -A d logp; here A is 0 (no reward, no KL, values 0), so
  // that what moves is the entropy's gradient alone.
  double const coefficient = 0.3;
  Tabular<double> start(2, 3, 4);
  RandomSequence random(3, Stream::initialise);
  for (double& x : start.logits) x = random.normal();
  Tabular<double> actor = start;
  PpoConfig config = undisturbed();
  config.batch_size = 6;
  config.mini_batch_size = 2;
  config.gradient_accumulation = 3;
  config.learning_rate = 1;
  config.kl_coefficient = 0;
  auto sampler = [&](RaggedView c, std::uint32_t step) { return start.sample(c, step, 5); };
  auto decode = spell;
  TabularOptimizer<double> optimizer{actor};
  TablePolicy policy{actor};
  Alone alone(policy);
  bool const without_values = GENERATE(false, true);
  auto const run = [&](auto& subject) {
    PpoTrainer trainer(
        config, make_ppo_spec(subject, start, nothing, sampler, decode, optimizer, KlK1{},
                              FixedKl(0), Gae{}, EntropyBonus{PpoClipObjective{}, coefficient}));
    PpoStats const stats = trainer.step(prompts_of({0, 1, 1, 0, 1, 0}));
    return std::pair{stats, trainer.rollout().responses};
  };
  auto const outcome = without_values ? run(alone) : run(actor);
  PpoStats const& stats = outcome.first;
  Ragged const& responses = outcome.second;

  auto const loss = [&](Tabular<double> const& table) {
    double sum = 0;
    std::vector<std::size_t> const contexts{0, 1, 1, 0, 1, 0};
    for (std::size_t i = 0; i < 6; ++i) {
      auto const length = responses.row(static_cast<index_t>(i)).size();
      for (std::size_t t = 0; t < length; ++t) {
        for (double const p : table.probabilities(contexts[i] * 3 + t)) {
          sum += coefficient * p * std::log(p);
        }
      }
    }
    return sum / static_cast<double>(responses.tokens());
  };
  CHECK(stats.total_loss == Approx(loss(start)).epsilon(1e-12));
  REQUIRE(stats.entropy);
  CHECK(*stats.entropy == Approx(-loss(start) / coefficient).epsilon(1e-12));
  std::vector<double> moved;
  for (std::size_t i = 0; i < start.logits.size(); ++i) {
    moved.push_back(start.logits[i] - actor.logits[i]);
  }
  support::check_gradients([&] { return loss(start); }, {{"logits", start.logits, moved}});
}

TEST_CASE("entropy bonus: without a reward a decided policy becomes undecided",
          "[rl][ppo][probe]") {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Tabular<float> actor(1, 1, 4);
    actor.logits[2] = 3;  // p = .87, entropy .53 of log 4 = 1.39
    Tabular<float> const frozen = actor;
    PpoConfig config = undisturbed();
    config.seed = seed;
    config.epochs = 4;
    config.learning_rate = 0.02;
    auto sampler = [&](RaggedView c, std::uint32_t step) { return actor.sample(c, step, seed); };
    auto decode = spell;
    TabularOptimizer<float> optimizer{actor, true};
    auto reward = nothing;
    PpoTrainer trainer(
        config, make_ppo_spec(actor, frozen, reward, sampler, decode, optimizer, KlK1{}, FixedKl(0),
                              Gae{}, EntropyBonus{PpoClipObjective{}, 0.1}));
    PpoStats stats;
    for (int i = 0; i < 80; ++i) stats = trainer.step(prompts_of(std::vector<std::int32_t>(32, 0)));
    CHECK(*stats.entropy > 1.35);
  }
}

TEST_CASE("ppo: a strategy's number that is out of range is named before the first step",
          "[rl][ppo][unit]") {
  Tabular<double> actor(1, 2, 4);
  auto sampler = [&](RaggedView c, std::uint32_t step) { return actor.sample(c, step, 1); };
  auto decode = spell;
  TabularOptimizer<double> optimizer{actor};
  auto const build = [&](auto advantages, auto objective) {
    PpoTrainer trainer(undisturbed(),
                       make_ppo_spec(actor, actor, nothing, sampler, decode, optimizer, KlK1{},
                                     FixedKl(0), advantages, objective));
  };
  build(Gae{}, PpoClipObjective{});
  CHECK_THROWS_WITH(build(Gae{1.5, 0.95}, PpoClipObjective{}), ContainsSubstring("gamma"));
  CHECK_THROWS_WITH(build(Gae{1.0, -1}, PpoClipObjective{}), ContainsSubstring("lambda"));
  CHECK_THROWS_WITH(build(GroupRelative{1}, PpoClipObjective{}), ContainsSubstring("group_size"));
  CHECK_THROWS_WITH(build(LeaveOneOut{0}, PpoClipObjective{}), ContainsSubstring("group_size"));
  CHECK_THROWS_WITH(build(Gae{}, PpoClipObjective{.policy_clip = 0}),
                    ContainsSubstring("policy_clip"));
  CHECK_THROWS_WITH(build(Gae{}, EntropyBonus{PpoClipObjective{}, NAN}),
                    ContainsSubstring("entropy bonus"));
}
