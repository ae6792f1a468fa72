// SPDX-License-Identifier: Apache-2.0

#include "emprl/train/empathy_reward.hpp"

#include <any>
#include <string>
#include <vector>

#include "emprl/ops/gemm_cpu.hpp"
#include "emprl/rl/rewards.hpp"
#include "support/catch.hpp"

using namespace emprl;
using empathy::RewardVariant;

namespace {

/// p of a response that is a digit: the k-th mechanism's level of that number has 0.5 + k / 10, the
/// other two share the rest.
std::vector<empathy::LevelProbabilities> judge(std::span<std::string const> contexts,
                                               std::span<std::string const> responses) {
  std::vector<empathy::LevelProbabilities> all(responses.size());
  for (std::size_t i = 0; i < responses.size(); ++i) {
    CHECK(contexts[i] == "context " + responses[i]);
    for (std::size_t k = 0; k < 3; ++k) {
      double const most = 0.5 + 0.1 * static_cast<double>(k);
      all[i][k].fill((1 - most) / 2);
      all[i][k][static_cast<std::size_t>(responses[i][0] - '0')] = most;
    }
  }
  return all;
}

/// Three episodes, whose targets' levels are payloads.
struct Talks {
  std::vector<std::string> contexts{"context 0", "context 1", "context 2"};
  std::vector<std::string> responses{"0", "1", "2"};
  std::vector<std::any> payloads{data::Levels{0, 0, 0}, data::Levels{1, 1, 2},
                                 data::Levels{0, 1, 0}};
  std::vector<rl::Episode> episodes;

  Talks() {
    for (std::size_t i = 0; i < responses.size(); ++i) {
      rl::Episode e;
      e.id = contexts[i];
      e.context = contexts[i];
      e.response = responses[i];
      e.payload = &payloads[i];
      episodes.push_back(e);
    }
  }
};

struct Outcome {
  std::vector<double> scores;
  rl::ScoreLog log;
};

Outcome score(Talks const& talks, empathy::MechanismMask const& mask, RewardVariant variant) {
  train::EmpathyReward reward(judge, mask, variant);
  Outcome outcome{{}, rl::ScoreLog(talks.episodes.size())};
  outcome.scores = rl::score_episodes(reward, {talks.episodes}, outcome.log);
  return outcome;
}

// Scores are floats: half a unit in the last place is 6e-8 of them.
Approx near(double x) {
  return Approx(x).epsilon(1.2e-7);
}

}  // namespace

TEST_CASE("empathy reward: each variant scores every episode against its own target",
          "[train][empathy][unit]") {
  Talks const talks;
  auto const all = empathy::every_mechanism;
  // The p of the targets' levels: (.5 .6 .7), (.5 .6 .15), (.25 .2 .15).
  auto const product = score(talks, all, RewardVariant::product).scores;
  CHECK(product[0] == near(0.5 * 0.6 * 0.7));
  CHECK(product[1] == near(0.5 * 0.6 * 0.15));
  CHECK(product[2] == near(0.25 * 0.2 * 0.15));
  auto const sum = score(talks, all, RewardVariant::sum).scores;
  CHECK(sum[0] == near(1.8 / 3));
  CHECK(sum[1] == near(1.25 / 3));
  CHECK(sum[2] == near(0.6 / 3));
  auto const match = score(talks, all, RewardVariant::match).scores;
  CHECK(match[0] == 1);
  CHECK(match[1] == near(2.0 / 3));
  CHECK(match[2] == 0);
  // Without being told, the published one.
  train::EmpathyReward published(judge);
  rl::ScoreLog log(3);
  CHECK(rl::score_episodes(published, {talks.episodes}, log) == product);
}

TEST_CASE("empathy reward: the log holds what each mechanism of the mask brings to the score",
          "[train][empathy][unit]") {
  Talks const talks;
  RewardVariant const variant =
      GENERATE(RewardVariant::product, RewardVariant::sum, RewardVariant::match);
  Outcome const outcome = score(talks, {true, false, true}, variant);
  auto const parts = outcome.log.components();
  REQUIRE(parts.size() == 2);
  CHECK(parts[0].name == "er");
  CHECK(parts[1].name == "ex");
  for (std::size_t i = 0; i < 3; ++i) {
    double const er = parts[0].values[i], ex = parts[1].values[i];
    CHECK(outcome.scores[i] ==
          Approx(variant == RewardVariant::product ? er * ex : (er + ex) / 2).epsilon(3e-7));
  }
  // The second response has the level 1 of its target in er, but not the 2 in ex.
  CHECK(parts[0].values[1] == near(variant == RewardVariant::match ? 1.0 : 0.5));
  CHECK(parts[1].values[1] == near(variant == RewardVariant::match ? 0.0 : 0.15));
}

TEST_CASE("empathy reward: an episode without levels is named, and a level that is none refused",
          "[train][empathy][unit]") {
  Talks talks;
  talks.payloads[1] = data::Levels{0, 3, 0};
  CHECK_THROWS_AS(score(talks, empathy::every_mechanism, RewardVariant::sum), ConfigError);
  talks.payloads[1] = std::string("warm");
  CHECK_THROWS_WITH(score(talks, empathy::every_mechanism, RewardVariant::product),
                    Catch::Matchers::ContainsSubstring("\"context 1\""));
  CHECK_THROWS_AS(score(Talks(), {false, false, false}, RewardVariant::match), ConfigError);
}
