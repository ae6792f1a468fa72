// SPDX-License-Identifier: Apache-2.0
#include "emprl/rl/reward_rules.hpp"

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "support/catch.hpp"

using namespace emprl;
using namespace emprl::rl;
using Catch::Matchers::ContainsSubstring;

namespace {

template <RewardModel R>
double score(R reward, Episode const& episode) {
  std::vector<Episode> const one{episode};
  ScoreLog log(1);
  return score_episodes(reward, {one, 0}, log)[0];
}

double of_tokens(auto const& reward, std::vector<std::int32_t> const& ids) {
  Episode e;
  e.response_ids = ids;
  return score(reward, e);
}

double of_length(auto const& reward, std::size_t length) {
  return of_tokens(reward, std::vector<std::int32_t>(length, 7));
}

double overlap(std::string const& response, std::string const& reference) {
  Episode e;
  e.id = "talk:1";
  e.response = response;
  e.reference = reference;
  return score(OverlapReward{}, e);
}

double contains(std::string const& text, std::string const& response) {
  Episode e;
  e.response = response;
  return score(ContainsReward{text}, e);
}

}  // namespace

TEST_CASE("reward rules: the repetition reward is the share of distinct n-grams",
          "[rl][reward_rules][unit]") {
  // Bigrams 12 21 12 22 22: three of five.
  CHECK(of_tokens(RepetitionReward{2}, {1, 2, 1, 2, 2, 2}) == Approx(0.6));
  CHECK(of_tokens(RepetitionReward{1}, {1, 2, 1, 2, 2, 2}) == Approx(2.0 / 6));
  // Trigrams 121 212 122 222.
  CHECK(of_tokens(RepetitionReward{3}, {1, 2, 1, 2, 2, 2}) == 1);
  CHECK(of_length(RepetitionReward{2}, 33) == Approx(1.0 / 32));
  std::vector<std::int32_t> all(257);
  std::iota(all.begin(), all.end(), -128);
  CHECK(of_tokens(RepetitionReward{1}, all) == 1);
}

TEST_CASE("reward rules: a response of fewer than n tokens repeats nothing",
          "[rl][reward_rules][unit]") {
  CHECK(of_tokens(RepetitionReward{3}, {}) == 1);
  CHECK(of_tokens(RepetitionReward{3}, {4, 4}) == 1);
  CHECK(of_tokens(RepetitionReward{3}, {4, 4, 4}) == 1);
  CHECK(of_tokens(RepetitionReward{3}, {4, 4, 4, 4}) == 0.5);
}

TEST_CASE("reward rules: the length reward is 1 at the target and falls to 0 on either side",
          "[rl][reward_rules][unit]") {
  LengthReward const reward{10, 4};
  CHECK(of_length(reward, 10) == 1);
  CHECK(of_length(reward, 9) == 0.75);
  CHECK(of_length(reward, 13) == 0.25);
  CHECK(of_length(reward, 6) == 0);
  CHECK(of_length(reward, 14) == 0);
  CHECK(of_length(reward, 0) == 0);
  CHECK(of_length(reward, 257) == 0);
  CHECK(of_length(LengthReward{0, 2}, 0) == 1);
  CHECK(of_length(LengthReward{0, 2}, 1) == 0.5);
}

TEST_CASE("reward rules: the overlap reward is the F1 of shared words",
          "[rl][reward_rules][unit]") {
  CHECK(overlap("I see.", "i SEE!") == 1);
  // i m sorry | i am so sorry: i and sorry of 3 and 4.
  CHECK(overlap("I'm sorry", "I am so sorry...") == Approx(2 * 2.0 / 7));
  // Order is nothing; "no" counts once, as it is once in the response.
  CHECK(overlap("no way", "way, no, no") == Approx(2 * 2.0 / 5));
  // ... and once where it is once in the reference.
  CHECK(overlap("no no no no", "no") == Approx(2 * 1.0 / 5));
  CHECK(overlap("yes", "no") == 0);
  CHECK(overlap("", "no") == 0);
  CHECK(overlap("?!", "no") == 0);
  CHECK(overlap("no", "?!") == 0);
  CHECK(overlap("ROOM 101", "room-101") == 1);
  CHECK(overlap("caf\xc3\xa9", "CAF\xc3\xa9!") == 1);
  CHECK(overlap("caf\xc3\xa9", "cafe") == 0);
}

TEST_CASE("reward rules: an overlap without a reference names the episode",
          "[rl][reward_rules][unit]") {
  CHECK_THROWS_WITH(overlap("hello", ""), ContainsSubstring("talk:1"));
}

TEST_CASE("reward rules: the contains reward is 1 where the text is in the response",
          "[rl][reward_rules][unit]") {
  CHECK(contains("sorry", "I am sorry.") == 1);
  CHECK(contains("sorry", "sorry") == 1);
  CHECK(contains("sorry", "Sorry") == 0);
  CHECK(contains("sorry", "sorr") == 0);
  CHECK(contains("sorry", "") == 0);
}

TEST_CASE("reward rules: arguments out of range are refused by name", "[rl][reward_rules][unit]") {
  CHECK_THROWS_AS(RepetitionReward{0}, ConfigError);
  CHECK_THROWS_AS(RepetitionReward{-1}, ConfigError);
  CHECK_THROWS_WITH((LengthReward{-1, 1}), ContainsSubstring("target"));
  CHECK_THROWS_WITH((LengthReward{1, 0}), ContainsSubstring("width"));
  CHECK_THROWS_AS((LengthReward{1, 0}), ConfigError);
  CHECK_THROWS_AS(ContainsReward{""}, ConfigError);
}

TEST_CASE("reward rules: a rule scores every episode of a batch, and none of an empty one",
          "[rl][reward_rules][unit]") {
  std::vector<Episode> episodes(2);
  episodes[0].response = "why?";
  episodes[1].response = "because";
  ContainsReward reward{"?"};
  ScoreLog log(2);
  CHECK(score_episodes(reward, {episodes, 0}, log) == std::vector<double>{1, 0});
  ScoreLog empty(0);
  CHECK(score_episodes(reward, {{}, 0}, empty).empty());
  std::vector<float> one(1);
  CHECK_THROWS_AS(reward({episodes, 0}, one), ShapeError);
}
