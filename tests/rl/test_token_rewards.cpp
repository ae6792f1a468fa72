// SPDX-License-Identifier: Apache-2.0
// Rewards with one number a generated token.

#include <cmath>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "emprl/rl/ppo.hpp"
#include "emprl/rl/reward_combinators.hpp"
#include "emprl/rl/reward_rules.hpp"
#include "rl/tabular.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using namespace emprl;
using namespace emprl::rl;
using namespace emprl::tests;

namespace {

/// Token id / 10 for every token.
auto tenths = [](EpisodeBatch const& episodes, TokenScores scores) {
  for (std::size_t i = 0; i < episodes.size(); ++i) {
    auto const ids = episodes[i].response_ids;
    for (std::size_t t = 0; t < ids.size(); ++t) {
      scores.row(i)[t] = static_cast<float>(ids[t]) / 10;
    }
  }
};

/// The same sum on the last token, and as one number a response.
auto at_end = [](EpisodeBatch const& episodes, TokenScores scores) {
  for (std::size_t i = 0; i < episodes.size(); ++i) {
    float sum = 0;
    for (float& s : scores.row(i)) s = 0;
    for (std::int32_t const id : episodes[i].response_ids) sum += static_cast<float>(id);
    if (!scores.row(i).empty()) scores.row(i).back() = sum;
  }
};
auto in_one = [](EpisodeBatch const& episodes, std::span<float> scores) {
  score_each(episodes, scores, [](Episode const& e) {
    float sum = 0;
    for (std::int32_t const id : e.response_ids) sum += static_cast<float>(id);
    return sum;
  });
};

static_assert(TokenReward<decltype(tenths)> && RewardModel<decltype(tenths)> &&
              !ResponseReward<decltype(tenths)> && !LoggingTokenReward<decltype(tenths)>);
static_assert(LoggingTokenReward<Named<decltype(tenths)>> &&
              !ResponseReward<Named<decltype(tenths)>>);
static_assert(ResponseReward<Named<decltype(in_one)>> && !TokenReward<Named<decltype(in_one)>>);
static_assert(LoggingTokenReward<Spread<RepetitionReward>> &&
              !ResponseReward<Spread<RepetitionReward>>);
static_assert(StatefulRewardModel<Spread<Normalised<RepetitionReward>>> &&
              StatefulRewardModel<Named<Spread<Normalised<RepetitionReward>>>> &&
              !StatefulRewardModel<Spread<RepetitionReward>>);

struct Batch {
  Ragged responses;
  std::vector<Episode> episodes;
  explicit Batch(std::vector<std::vector<std::int32_t>> const& rows) {
    for (auto const& row : rows) responses.push_back(row);
    for (index_t i = 0; i < responses.rows(); ++i) {
      Episode e;
      e.id = i == 0 ? "first" : "later";
      e.response_ids = responses.row(i);
      episodes.push_back(e);
    }
  }
  EpisodeBatch view() const { return {episodes, 0}; }
};

template <class Reward>
std::pair<Tabular<double>, PpoStats> step(Reward reward, PpoConfig const& config,
                                          Gae gae = {1.0, 0.95}) {
  Tabular<double> actor(2, 4, 5);
  RandomSequence random(3, Stream::initialise);
  for (double& x : actor.logits) x = 0.3 * random.normal();
  // The mode of the original needs two tokens: no end token at the first place.
  if (config.mode == PpoMode::trl_0_9_6) actor.logits[1] = actor.logits[21] = -30;
  Tabular<double> frozen(2, 4, 5);
  auto sampler = [&](RaggedView c, std::uint32_t k) { return actor.sample(c, k, 5); };
  auto decode = spell;
  TabularOptimizer<double> optimizer{actor};
  PpoTrainer trainer(config, make_ppo_spec(actor, frozen, reward, sampler, decode, optimizer,
                                           KlK1{}, FixedKl(0.1), gae, PpoClipObjective{}));
  trainer.step(prompts_of({0, 1, 1, 0, 1, 0}));
  PpoStats const stats = trainer.step(prompts_of({1, 1, 1, 0, 0, 0}));
  return {actor, stats};
}

}  // namespace

TEST_CASE("token rewards: a score a token, the log a sum a response", "[rl][rewards][unit]") {
  Batch const batch({{3, 5, 1}, {}, {2}});
  ScoreLog log(3);
  Named named{"tenths", tenths};
  auto const scores = score_tokens(named, batch.view(), batch.responses.offsets, log, "the reward");
  REQUIRE(scores.size() == 4);
  CHECK(scores[0] == Approx(0.3));
  CHECK(scores[1] == Approx(0.5));
  CHECK(scores[2] == Approx(0.1));
  CHECK(scores[3] == Approx(0.2));
  REQUIRE(log.components().size() == 1);
  CHECK(log.components()[0].name == "tenths");
  CHECK(log.components()[0].values[0] == Approx(0.9));
  CHECK(log.components()[0].values[1] == 0);
  CHECK(log.components()[0].values[2] == Approx(0.2));
}

TEST_CASE("token rewards: a missing or non-finite score names episode and token",
          "[rl][rewards][unit]") {
  Batch const batch({{3, 5, 1}, {2, 2}});
  for (float const bad : {std::nanf(""), INFINITY}) {
    auto broken = [bad](EpisodeBatch const& b, TokenScores scores) {
      tenths(b, scores);
      scores.row(1)[1] = bad;
    };
    ScoreLog log(2);
    CHECK_THROWS_WITH(score_tokens(broken, batch.view(), batch.responses.offsets, log),
                      ContainsSubstring("token 1 of episode \"later\""));
  }
  auto lazy = [](EpisodeBatch const&, TokenScores) {};
  ScoreLog log(2);
  CHECK_THROWS_WITH(score_tokens(lazy, batch.view(), batch.responses.offsets, log),
                    ContainsSubstring("token 0 of episode \"first\""));
}

TEST_CASE("token rewards: a spread reward gives equal shares that add up", "[rl][rewards][unit]") {
  Batch const batch({{3, 5, 1, 3}, {}, {2}});
  ScoreLog log(3);
  Spread spread{Named{"sum", in_one}};
  auto const scores = score_tokens(spread, batch.view(), batch.responses.offsets, log);
  CHECK(scores == std::vector<double>{3, 3, 3, 3, 2});
  CHECK(log.components()[0].name == "sum");
  auto broken = [](EpisodeBatch const&, std::span<float>) {};
  Spread silent{Named{"quiet", broken}};
  CHECK_THROWS_WITH(score_tokens(silent, batch.view(), batch.responses.offsets, log),
                    ContainsSubstring("quiet") && ContainsSubstring("spread"));
}

TEST_CASE("token rewards: on the last token they are a reward of responses",
          "[rl][ppo][contract]") {
  auto const scaling = GENERATE(ScoreScaling::none, ScoreScaling::scale, ScoreScaling::normalise);
  bool const trl = GENERATE(false, true);
  PpoConfig config = trl ? PpoConfig::trl_0_9_6() : PpoConfig{};
  config.batch_size = 6;
  config.mini_batch_size = 3;
  config.gradient_accumulation = 2;
  config.learning_rate = 0.1;
  config.score_scaling = scaling;
  auto const [one, one_stats] = step(in_one, config);
  auto const [many, many_stats] = step(at_end, config);
  CHECK(many_stats.score_mean == one_stats.score_mean);
  CHECK(many_stats.reward_mean == Approx(one_stats.reward_mean).epsilon(1e-12).margin(1e-12));
  for (std::size_t i = 0; i < one.logits.size(); ++i) {
    CHECK(std::abs(many.logits[i] - one.logits[i]) <= 1e-12);
  }
}

TEST_CASE("token rewards: each row's rewards add up to the scaled score less the KL penalty",
          "[rl][reward_shaping][unit]") {
  std::vector<index_t> const offsets{0, 3, 3, 5};
  std::vector<double> const kl{0.1, 0.2, 0.3, 0.4, 0.5}, tokens{1, 2, 3, 4, 5};
  std::vector<std::uint8_t> const mask{0, 1, 1, 1, 1};
  std::vector<double> const scores{(6 - 2.5) / 2, (0 - 2.5) / 2, (9 - 2.5) / 2};  // mean 2.5, dev 2
  std::vector<double> rewards(5);
  shape_token_rewards(offsets, kl, scores, tokens, 0.5, mask, 0.1, rewards);
  CHECK(rewards[0] == 0);  // masked: what it was given goes to the row's last token
  CHECK(rewards[1] == Approx(-0.02 + 1.0));
  CHECK(rewards[1] + rewards[2] == Approx(1.75 - 0.05));
  CHECK(rewards[3] == Approx(-0.04 + 2.0));
  CHECK(rewards[3] + rewards[4] == Approx(3.25 - 0.09));
  CHECK_THROWS_AS(
      shape_token_rewards(offsets, kl, scores, std::vector<double>(4), 1, mask, 0, rewards),
      ShapeError);
}

TEST_CASE("token rewards: with gamma 0 a token is credited for its own score alone",
          "[rl][ppo][probe]") {
  // Token 2 pays at the first place and costs at the second, where token 3 pays.
  auto reward = [](EpisodeBatch const& b, TokenScores scores) {
    for (std::size_t i = 0; i < b.size(); ++i) {
      auto const ids = b[i].response_ids;
      for (std::size_t t = 0; t < ids.size(); ++t) {
        std::int32_t const wanted = t == 0 ? 2 : 3;
        scores.row(i)[t] = ids[t] == wanted ? 1.0F : 0.0F;
      }
    }
  };
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Tabular<float> actor(1, 2, 4);
    actor.logits[1] = actor.logits[5] = -30;  // no end token
    Tabular<float> const frozen = actor;
    PpoConfig config;
    config.seed = seed;
    config.learning_rate = 0.02;
    auto sampler = [&](RaggedView c, std::uint32_t k) { return actor.sample(c, k, seed); };
    auto decode = spell;
    TabularOptimizer<float> optimizer{actor, true};
    PpoTrainer trainer(config,
                       make_ppo_spec(actor, frozen, reward, sampler, decode, optimizer, KlK1{},
                                     FixedKl(0.01), Gae{0.0, 0.95}, PpoClipObjective{}));
    auto const prompts = prompts_of(std::vector<std::int32_t>(32, 0));
    for (int i = 0; i < 80; ++i) trainer.step(prompts);
    CHECK(actor.probabilities(0)[2] > 0.9);
    CHECK(actor.probabilities(1)[3] > 0.9);
  }
}
