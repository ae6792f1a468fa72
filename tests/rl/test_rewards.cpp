// SPDX-License-Identifier: Apache-2.0
#include "emprl/rl/rewards.hpp"

#include <any>
#include <cmath>
#include <string>
#include <vector>

#include "support/catch.hpp"

using namespace emprl;
using namespace emprl::rl;
using Catch::Matchers::ContainsSubstring;

namespace {

std::vector<Episode> two_episodes() {
  std::vector<Episode> episodes(2);
  episodes[0].id = "talk:1";
  episodes[0].response = "why?";
  episodes[1].id = "talk:2";
  episodes[1].response = "I see.";
  return episodes;
}

}  // namespace

TEST_CASE("rewards: a lambda is a reward", "[rl][rewards][unit]") {
  auto const episodes = two_episodes();
  auto asks = [](EpisodeBatch const& b, std::span<float> scores) {
    for (std::size_t i = 0; i < b.size(); ++i) scores[i] = b[i].response.ends_with('?') ? 1.f : 0.f;
  };
  ScoreLog log(2);
  CHECK(score_episodes(asks, {episodes, 0}, log) == std::vector<double>{1, 0});
  CHECK(log.components().empty());
}

TEST_CASE("rewards: parts are logged by name, a named reward by its own", "[rl][rewards][unit]") {
  auto const episodes = two_episodes();
  auto parts = [](EpisodeBatch const&, std::span<float> scores, ScoreLog& log) {
    scores[0] = 3;
    scores[1] = 4;
    log.add("length", std::vector<float>{1, 2});
  };
  Named reward{"both", parts};
  ScoreLog log(2);
  CHECK(score_episodes(reward, {episodes, 0}, log) == std::vector<double>{3, 4});
  REQUIRE(log.components().size() == 2);
  CHECK(log.components()[0].name == "length");
  CHECK(log.components()[0].values == std::vector<double>{1, 2});
  CHECK(log.components()[1].name == "both");
  CHECK(log.components()[1].values == std::vector<double>{3, 4});
}

TEST_CASE("rewards: a missing or non-finite score names the episode", "[rl][rewards][unit]") {
  auto const episodes = two_episodes();
  ScoreLog log(2);
  auto forgets = [](EpisodeBatch const&, std::span<float> scores) { scores[0] = 1; };
  CHECK_THROWS_WITH(score_episodes(forgets, EpisodeBatch{episodes, 0}, log),
                    ContainsSubstring("talk:2"));
  auto overflows = [](EpisodeBatch const&, std::span<float> scores) {
    scores[0] = INFINITY;
    scores[1] = 1;
  };
  CHECK_THROWS_WITH(score_episodes(overflows, EpisodeBatch{episodes, 0}, log),
                    ContainsSubstring("talk:1"));
}

TEST_CASE("rewards: a log refuses the wrong length and a name used twice", "[rl][rewards][unit]") {
  ScoreLog log(2);
  CHECK_THROWS_WITH(log.add("a", std::vector<float>{1}), ContainsSubstring("\"a\""));
  log.add("a", std::vector<float>{1, 2});
  CHECK_THROWS_WITH(log.add("a", std::vector<float>{1, 2}), ContainsSubstring("both called"));
}

TEST_CASE("rewards: a payload comes back as the type it was stored with", "[rl][rewards][unit]") {
  std::any const payload = std::vector<int>{1, 2};
  Episode e;
  e.id = "talk:3";
  CHECK_THROWS_WITH(e.payload_as<int>(), ContainsSubstring("talk:3"));
  e.payload = &payload;
  CHECK(e.payload_as<std::vector<int>>() == std::vector<int>{1, 2});
  CHECK_THROWS_WITH(e.payload_as<int>(), ContainsSubstring("talk:3"));
}
