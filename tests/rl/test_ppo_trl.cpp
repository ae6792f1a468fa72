// SPDX-License-Identifier: Apache-2.0
// The mode trl_0_9_6 against what TRL 0.9.6 recorded, and each of its differences from the mode
// corrected: every test here fails if the two are swapped.

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "emprl/rl/ppo.hpp"
#include "rl/golden.hpp"
#include "rl/tabular.hpp"
#include "support/catch.hpp"

using namespace emprl;
using namespace emprl::rl;
using namespace emprl::tests;
using Catch::Matchers::ContainsSubstring;

namespace {

/// The fixture's three responses without the start token.
struct Replay {
  PromptBatch prompts = prompts_of({0, 1, 2});
  Rollout rollout;

  Replay() {
    rollout.responses = golden_responses();
    rollout.mask = trl_response_mask(rollout.responses.view(), prompts);
  }

  std::vector<double> packed(nlohmann::json const& padded) const {
    return pack(padded.get<Matrix>(), rollout.responses.offsets);
  }
};

/// An optimiser that moves nothing and remembers what it was asked.
struct Recorder {
  Tabular<double>& policy;
  std::vector<double> norms{};
  std::vector<std::vector<double>> gradients{};

  void zero_gradients() {
    std::fill(policy.dlogits.begin(), policy.dlogits.end(), 0.0);
    std::fill(policy.dvalues.begin(), policy.dvalues.end(), 0.0);
  }
  double step(double, double max_norm) {
    norms.push_back(max_norm);
    gradients.push_back(policy.dvalues);
    return 1.0;
  }
};

/// Two rows of one and three tokens whose values are all wrong by one, so that d loss / d value is
/// the value coefficient a token, divided by whatever the mode divides by.
struct Unequal {
  Tabular<double> actor{2, 3, 4};
  PromptBatch prompts = prompts_of({0, 1});
  Rollout rollout;

  Unequal() {
    rollout.responses.push_back(std::vector<std::int32_t>{2});
    rollout.responses.push_back(std::vector<std::int32_t>{2, 3, 2});
    rollout.mask = response_mask(rollout.responses.view());
    rollout.logp.assign(4, std::log(0.25));
    rollout.reference = rollout.logp;
    rollout.values.assign(4, 0.0);
    rollout.advantages.assign(4, 0.0);
    rollout.returns.assign(4, -1.0);
  }

  UpdateReport update(PpoConfig config, Recorder& recorder, bool clipped_before = false) {
    return update_policy(actor, PpoClipObjective{0.2, 0.2, 0.5}, recorder, prompts, rollout, config,
                         0, 0.1, clipped_before);
  }
};

PpoConfig of_mode(PpoMode mode) {
  PpoConfig config;
  config.mode = mode;
  config.batch_size = 2;
  config.mini_batch_size = 1;
  config.gradient_accumulation = 2;
  config.epochs = 1;
  return config;
}

}  // namespace

TEST_CASE("trl: the mask of the original", "[rl][ppo][trl][golden]") {
  Replay r;
  std::vector<double> expected = r.packed(golden()["encdec_forward"]["masks"]);
  REQUIRE(expected.size() == r.rollout.mask.size());
  for (std::size_t t = 0; t < expected.size(); ++t)
    CHECK((r.rollout.mask[t] != 0) == (expected[t] != 0));
  CHECK(std::vector<std::uint8_t>(r.rollout.mask) != response_mask(r.rollout.responses.view()));
}

TEST_CASE("trl: whitened padding leaks into real tokens as in the original, in double",
          "[rl][ppo][trl][golden]") {
  Replay replay;
  Rollout& r = replay.rollout;
  auto const& expected = golden()["f64_replay"];
  r.rewards = replay.packed(expected["rewards"]);
  clear_masked(r.rewards, r.mask);
  r.values = replay.packed(expected["values"]);
  r.padding_reward = whiten_rewards_trl(r.rewards, r.mask);
  check_close(r.rewards, replay.packed(golden()["f64_whiten_noleak"]["whitened_rewards_unmasked"]),
              1e-12);
  r.advantages.assign(r.rewards.size(), 0.0);
  r.returns.assign(r.rewards.size(), 0.0);
  Gae{1.0, 0.95}(r, r.advantages, r.returns);
  auto const returns = r.returns;
  masked_whiten(r.advantages, r.mask, WhitenMean::remove);
  check_close(r.returns, replay.packed(expected["returns"]), 1e-12);
  check_close(r.advantages, replay.packed(expected["advantages"]), 1e-12);

  // Corrected: nothing comes out of the padding, and the shorter rows' returns are others.
  r.rewards = replay.packed(expected["rewards"]);
  clear_masked(r.rewards, r.mask);
  whiten_rewards(r.rewards, r.mask);
  r.padding_reward = 0;
  Gae{1.0, 0.95}(r, r.advantages, r.returns);
  double apart = 0;
  for (std::size_t t = 0; t < returns.size(); ++t) {
    if (r.mask[t] != 0) apart = std::max(apart, std::abs(returns[t] - r.returns[t]));
  }
  CHECK(apart > 1e-3);
}

TEST_CASE("trl: one trained token cannot be whitened, corrected defines it",
          "[rl][ppo][trl][unit]") {
  std::vector<double> rewards{0.0, 0.7};
  std::vector<std::uint8_t> const mask{0, 1};
  CHECK_THROWS_AS(whiten_rewards_trl(rewards, mask), Error);
  CHECK(rewards == std::vector<double>{0.0, 0.7});
  whiten_rewards(rewards, mask);
  CHECK(rewards == std::vector<double>{0.0, 0.7});
}

TEST_CASE("trl: float32 advantages and returns of the original, both lambdas",
          "[rl][ppo][trl][golden]") {
  for (double const lambda : {0.95, 1.0}) {
    Replay replay;
    Rollout& r = replay.rollout;
    auto const& expected = golden()[lambda == 1.0 ? "gae_whiten1_lam1.0" : "gae_whiten1_lam0.95"];
    r.rewards = replay.packed(golden()["rewards_kl"]["rewards"]);
    clear_masked(r.rewards, r.mask);
    r.values = replay.packed(expected["values"]);
    r.padding_reward = whiten_rewards_trl(r.rewards, r.mask);
    r.advantages.assign(r.rewards.size(), 0.0);
    r.returns.assign(r.rewards.size(), 0.0);
    Gae{1.0, lambda}(r, r.advantages, r.returns);
    masked_whiten(r.advantages, r.mask, WhitenMean::remove);
    check_close(r.returns, replay.packed(expected["returns"]), 1e-6);
    check_close(r.advantages, replay.packed(expected["advantages"]), 1e-6);
  }
}

TEST_CASE("trl: a loss is the mean of the mini-batches' means, corrected the mean over tokens",
          "[rl][ppo][trl][unit]") {
  // d loss / d value = 0.5 (v - ret) = 0.5 a token before it is divided.
  Unequal u;
  Recorder recorder{u.actor};
  u.update(of_mode(PpoMode::trl_0_9_6), recorder);
  REQUIRE(recorder.gradients.size() == 1);
  CHECK(recorder.gradients[0][0] == Approx(0.5 / (1 * 2)).epsilon(1e-14));
  for (std::size_t t = 3; t < 6; ++t) {
    CHECK(recorder.gradients[0][t] == Approx(0.5 / (3 * 2)).epsilon(1e-14));
  }
  u.update(of_mode(PpoMode::corrected), recorder);
  REQUIRE(recorder.gradients.size() == 2);
  CHECK(recorder.gradients[1][0] == Approx(0.5 / 4).epsilon(1e-14));
  CHECK(recorder.gradients[1][3] == Approx(0.5 / 4).epsilon(1e-14));
}

TEST_CASE("trl: gradients are clipped in the run's first optimiser step only",
          "[rl][ppo][trl][unit]") {
  double const never = std::numeric_limits<double>::infinity();
  for (bool const before : {false, true}) {
    for (PpoMode const mode : {PpoMode::trl_0_9_6, PpoMode::corrected}) {
      Unequal u;
      Recorder recorder{u.actor};
      PpoConfig config = of_mode(mode);
      config.epochs = 3;
      u.update(config, recorder, before);
      bool const trl = mode == PpoMode::trl_0_9_6;
      CHECK(recorder.norms ==
            std::vector<double>{trl && before ? never : 1.0, trl ? never : 1.0, trl ? never : 1.0});
    }
  }
}

TEST_CASE("trl: the last batch of a pass takes a step a mini-batch, each gradient still divided",
          "[rl][ppo][trl][unit]") {
  Unequal u;
  u.prompts.last_of_pass = true;
  Recorder recorder{u.actor};
  u.update(of_mode(PpoMode::trl_0_9_6), recorder);
  REQUIRE(recorder.gradients.size() == 2);
  CHECK(recorder.gradients[0][0] + recorder.gradients[1][0] ==
        Approx(0.5 / (1 * 2)).epsilon(1e-14));
  CHECK(recorder.gradients[0][3] + recorder.gradients[1][3] ==
        Approx(0.5 / (3 * 2)).epsilon(1e-14));
  u.update(of_mode(PpoMode::corrected), recorder);
  CHECK(recorder.gradients.size() == 3);
}

TEST_CASE("trl: the optimiser steps with zero gradients where every mini-batch is skipped",
          "[rl][ppo][trl][unit]") {
  for (PpoMode const mode : {PpoMode::trl_0_9_6, PpoMode::corrected}) {
    Unequal u;
    for (double& logp : u.rollout.logp) logp -= std::log(20.0);  // every ratio is 20
    Recorder recorder{u.actor};
    PpoConfig config = of_mode(mode);
    config.ratio_tolerance = 100.0;
    UpdateReport const report = u.update(config, recorder);
    bool const trl = mode == PpoMode::trl_0_9_6;
    CHECK(report.skipped_batches == 2);
    CHECK(report.optimizer_steps == (trl ? 1 : 0));
    CHECK(recorder.gradients.size() == (trl ? 1u : 0u));
    if (trl) CHECK(recorder.gradients[0] == std::vector<double>(6, 0.0));
  }
}

TEST_CASE("trl: a response of one token is an error that names it, corrected trains it",
          "[rl][ppo][trl][unit]") {
  for (PpoMode const mode : {PpoMode::trl_0_9_6, PpoMode::corrected}) {
    Tabular<double> actor(2, 3, 4);
    Tabular<double> const reference = actor;
    auto reward = [](EpisodeBatch const& b, std::span<float> s) {
      for (std::size_t i = 0; i < b.size(); ++i) s[i] = static_cast<float>(i);
    };
    auto sampler = [](RaggedView, std::uint32_t) {
      Ragged out;
      out.push_back(std::vector<std::int32_t>{2, 3, 1});
      out.push_back(std::vector<std::int32_t>{1});
      return out;
    };
    auto decode = spell;
    TabularOptimizer<double> optimizer{actor};
    PpoConfig const config = of_mode(mode);
    PpoTrainer trainer(config,
                       make_ppo_spec(config, actor, reference, reward, sampler, decode, optimizer));
    if (mode == PpoMode::corrected) {
      CHECK(trainer.step(prompts_of({0, 1})).tokens == 4);
      CHECK_FALSE(trainer.state().clipped);
    } else {
      CHECK_THROWS_WITH(trainer.step(prompts_of({0, 1})), ContainsSubstring("prompt:1"));
      CHECK(trainer.state().step == 0);
    }
  }
}

TEST_CASE("trl: a whole step trains all but first tokens, and that it clipped is remembered",
          "[rl][ppo][trl][unit]") {
  Tabular<double> actor(2, 3, 4);
  Tabular<double> const reference = actor;
  auto reward = [](EpisodeBatch const& b, std::span<float> s) {
    for (std::size_t i = 0; i < b.size(); ++i) s[i] = static_cast<float>(i);
  };
  auto sampler = [](RaggedView, std::uint32_t) {
    Ragged out;
    out.push_back(std::vector<std::int32_t>{2, 3, 1});
    out.push_back(std::vector<std::int32_t>{3, 1});
    return out;
  };
  auto decode = spell;
  TabularOptimizer<double> optimizer{actor};
  PpoConfig config = PpoConfig::trl_0_9_6();
  config.batch_size = config.mini_batch_size = 2;
  config.learning_rate = 0.1;
  auto const make = [&] {
    return PpoTrainer(config,
                      make_ppo_spec(config, actor, reference, reward, sampler, decode, optimizer));
  };
  auto trainer = make();
  CHECK(trainer.step(prompts_of({0, 1})).tokens == 3);
  CHECK(trainer.state().clipped);
  auto resumed = make();
  resumed.restore(trainer.state());
  CHECK(resumed.state() == trainer.state());
  // Position 0 predicts first tokens: nothing there has moved. Position 1 has.
  for (std::size_t k = 0; k < 4; ++k) CHECK(actor.logits[k] == 0.0);
  CHECK(actor.logits[4] != 0.0);
}
