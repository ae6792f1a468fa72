// SPDX-License-Identifier: Apache-2.0
#include "emprl/rl/reward_combinators.hpp"

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"

using namespace emprl;
using namespace emprl::rl;
using Catch::Matchers::ContainsSubstring;

namespace {

constexpr float no_number = std::numeric_limits<float>::quiet_NaN();
constexpr float infinity = std::numeric_limits<float>::infinity();

using Scores = std::vector<double>;

/// Episodes "talk:0", "talk:1", ... with responses of the given numbers of tokens.
struct Talks {
  explicit Talks(std::vector<std::size_t> const& lengths) {
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      names.push_back("talk:" + std::to_string(i));
      tokens.emplace_back(lengths[i], 7);
    }
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      Episode e;
      e.id = names[i];
      e.response_ids = tokens[i];
      episodes.push_back(e);
    }
  }

  EpisodeBatch batch() const { return {episodes, 5}; }

  std::vector<std::string> names;
  std::vector<std::vector<std::int32_t>> tokens;
  std::vector<Episode> episodes;
};

/// Gives episode "talk:i" the i-th number, whatever batch it comes in.
auto constant(std::vector<float> values) {
  return [values = std::move(values)](EpisodeBatch const& episodes, std::span<float> scores) {
    score_each(episodes, scores,
               [&](Episode const& e) { return values[std::stoul(std::string(e.id.substr(5)))]; });
  };
}

/// Remembers how many batches it saw, and scores by it. Neither copied nor moved.
struct Counter {
  Counter() = default;
  Counter(Counter const&) = delete;
  Counter& operator=(Counter const&) = delete;

  void operator()(EpisodeBatch const& episodes, std::span<float> scores) {
    ++seen;
    score_each(episodes, scores, [this](Episode const&) { return seen; });
  }
  std::vector<double> state() const { return {seen}; }
  void restore(std::span<double const> state) {
    expects<ConfigError>(state.size() == 1, "the saved state of a counter is one number");
    seen = state[0];
  }

  double seen = 0;
};

/// Moved, never copied.
struct Owner {
  void operator()(EpisodeBatch const& episodes, std::span<float> scores) const {
    score_each(episodes, scores, [this](Episode const&) { return *value; });
  }
  std::unique_ptr<double> value = std::make_unique<double>(4);
};

template <RewardModel R>
Scores ask(R&& reward, Talks const& talks) {
  ScoreLog log(talks.episodes.size());
  return score_episodes(reward, talks.batch(), log);
}

Scores logged(ScoreLog const& log, std::string const& name) {
  for (auto const& c : log.components()) {
    if (c.name == name) return c.values;
  }
  FAIL("no component is called " << name);
  return {};
}

using Rule = decltype(constant({}));
static_assert(LoggingRewardModel<WeightedSum<Rule, Named<Rule>>> &&
              LoggingRewardModel<Product<Rule>> && LoggingRewardModel<Minimum<Rule, Rule>> &&
              LoggingRewardModel<Clipped<Rule>> && LoggingRewardModel<Affine<Rule>> &&
              LoggingRewardModel<Normalised<Rule>> && LoggingRewardModel<LengthCapped<Rule>> &&
              LoggingRewardModel<Gated<Rule, Rule>>);
static_assert(RewardModel<Clipped<std::reference_wrapper<Counter>>>);
static_assert(StatefulRewardModel<Normalised<Rule>> && !StatefulRewardModel<Clipped<Rule>> &&
              !StatefulRewardModel<WeightedSum<Rule, Rule>> && !StatefulRewardModel<Named<Rule>> &&
              !StatefulRewardModel<Gated<Rule, Rule>>);
static_assert(StatefulRewardModel<Clipped<std::reference_wrapper<Counter>>> &&
              StatefulRewardModel<Named<Normalised<Rule>>> &&
              StatefulRewardModel<Product<Rule, Normalised<Rule>>> &&
              StatefulRewardModel<Gated<Normalised<Rule>, Rule>>);

}  // namespace

TEST_CASE("reward combinators: a weighted sum is the sum of its parts, weighted",
          "[rl][reward_combinators][unit]") {
  Talks const talks({1, 1, 1});
  // 0.5 * 2 - 3 * 1, 0.5 * 4 - 3 * 0, 0.5 * -6 - 3 * -1
  CHECK(ask(weighted_sum(0.5, constant({2, 4, -6}), -3, constant({1, 0, -1})), talks) ==
        Scores{-2, 2, 0});
  CHECK(ask(WeightedSum{Weighted{0.5, constant({2, 4, -6})}, Weighted{-3, constant({1, 0, -1})}},
            talks) == Scores{-2, 2, 0});
  CHECK(ask(weighted_sum(2.0, constant({2, 4, -6})), talks) == Scores{4, 8, -12});
}

TEST_CASE("reward combinators: a product multiplies and a minimum takes the worst",
          "[rl][reward_combinators][unit]") {
  Talks const talks({1, 1, 1});
  auto const a = constant({0.5, 2, -1});
  auto const b = constant({0.5, 0, -3});
  auto const c = constant({4, 5, -2});
  CHECK(ask(product(a, b, c), talks) == Scores{1, 0, -6});
  CHECK(ask(minimum(a, b, c), talks) == Scores{0.5, 0, -3});
  CHECK(ask(product(c), talks) == Scores{4, 5, -2});
  CHECK(ask(minimum(c), talks) == Scores{4, 5, -2});
  CHECK(ask(product(product(a), minimum(minimum(b), c)), talks) == Scores{0.25, 0, 3});
}

TEST_CASE("reward combinators: a clipped reward stays between its bounds",
          "[rl][reward_combinators][unit]") {
  Talks const talks({1, 1, 1});
  auto const r = constant({-3, 0.25, 8});
  CHECK(ask(Clipped{r, -1, 2}, talks) == Scores{-1, 0.25, 2});
  CHECK(ask(Clipped{r, -infinity, 2}, talks) == Scores{-3, 0.25, 2});
  CHECK(ask(Clipped{r, 1, 1}, talks) == Scores{1, 1, 1});
}

TEST_CASE("reward combinators: an affine reward is scaled, then shifted",
          "[rl][reward_combinators][unit]") {
  Talks const talks({1, 1});
  CHECK(ask(Affine{constant({-3, 0.25}), -2, 1}, talks) == Scores{7, 0.5});
  CHECK(ask(Affine{constant({-3, 0.25}), 4}, talks) == Scores{-12, 1});
}

TEST_CASE("reward combinators: a normalised reward uses the moments of all scores so far",
          "[rl][reward_combinators][unit]") {
  Talks const talks({1, 1});
  std::vector<float> values{1, 3};
  auto changing = [&values](EpisodeBatch const& episodes, std::span<float> scores) {
    constant(values)(episodes, scores);
  };
  Normalised reward{std::ref(changing)};
  // Mean 2, unbiased deviation sqrt(2).
  auto const first = ask(reward, talks);
  CHECK(first[0] == Approx(-1 / std::sqrt(2.0)));
  CHECK(first[1] == Approx(1 / std::sqrt(2.0)));
  // 1, 3, 5, 7: mean 4, unbiased variance 20 / 3.
  values = {5, 7};
  auto const second = ask(reward, talks);
  CHECK(second[0] == Approx(1 / std::sqrt(20.0 / 3)));
  CHECK(second[1] == Approx(3 / std::sqrt(20.0 / 3)));
  CHECK(reward.moments().mean == Approx(4));
  CHECK(reward.moments().count == Approx(4));
}

TEST_CASE("reward combinators: a normalised reward whose part fails has learnt nothing",
          "[rl][reward_combinators][unit]") {
  Talks const talks({1, 1});
  Normalised reward{constant({1, no_number})};
  auto const before = reward.state();
  CHECK_THROWS_WITH(ask(reward, talks), ContainsSubstring("the part of a normalised reward"));
  CHECK(reward.state() == before);
}

TEST_CASE("reward combinators: a length cap takes the score of longer responses",
          "[rl][reward_combinators][unit]") {
  Talks const talks({0, 2, 3, 33});
  CHECK(ask(LengthCapped{constant({4, 5, 6, 7}), 2, -1}, talks) == Scores{4, 5, -1, -1});
  CHECK(ask(LengthCapped{constant({4, 5, 6, 7}), 33, -1}, talks) == Scores{4, 5, 6, 7});
}

TEST_CASE("reward combinators: a gate lets only episodes above 0 reach the reward",
          "[rl][reward_combinators][unit]") {
  Talks const talks({1, 1, 1, 1});
  std::vector<std::string> asked;
  std::uint32_t step = 0;
  auto spy = [&](EpisodeBatch const& episodes, std::span<float> scores) {
    step = episodes.step;
    for (Episode const& e : episodes) asked.emplace_back(e.id);
    constant({1, 2, 3, 4})(episodes, scores);
  };
  CHECK(ask(Gated{constant({1, 0, -1, 0.5}), spy, -9}, talks) == Scores{1, -9, -9, 4});
  CHECK(asked == std::vector<std::string>{"talk:0", "talk:3"});
  CHECK(step == 5);
}

TEST_CASE("reward combinators: a gate logs 0 for the episodes it did not ask about",
          "[rl][reward_combinators][unit]") {
  Talks const talks({1, 1, 1});
  ScoreLog log(3);
  Named reward{"all",
               Gated{Named{"gate", constant({1, 0, 1})}, Named{"inside", constant({5, 6, 7})}, -9}};
  CHECK(score_episodes(reward, talks.batch(), log) == Scores{5, -9, 7});
  CHECK(logged(log, "gate") == Scores{1, 0, 1});
  CHECK(logged(log, "inside") == Scores{5, 0, 7});
  CHECK(logged(log, "all") == Scores{5, -9, 7});
}

TEST_CASE("reward combinators: a gate that nothing passes does not ask the reward",
          "[rl][reward_combinators][unit]") {
  Talks const talks({1, 1});
  auto refuses = [](EpisodeBatch const&, std::span<float>) { throw Error("asked"); };
  Gated reward{constant({0, -1}), Named{"inside", refuses}, 2};
  ScoreLog log(2);
  CHECK(score_episodes(reward, talks.batch(), log) == Scores{2, 2});
  CHECK(log.components().empty());
}

TEST_CASE("reward combinators: named parts are logged as they scored alone, in order",
          "[rl][reward_combinators][unit]") {
  Talks const talks({1, 3});
  auto reward = weighted_sum(
      2, Named{"a", constant({1, 2})}, 1,
      Named{"b", product(Named{"c", Clipped{Named{"d", constant({8, 9})}, 0, 1}},
                         LengthCapped{Affine{Named{"e", constant({4, 5})}, 2}, 2, 0})});
  ScoreLog log(2);
  CHECK(score_episodes(reward, talks.batch(), log) == Scores{10, 4});
  std::vector<std::string> names;
  for (auto const& c : log.components()) names.push_back(c.name);
  CHECK(names == std::vector<std::string>{"a", "d", "c", "e", "b"});
  CHECK(logged(log, "a") == Scores{1, 2});
  CHECK(logged(log, "d") == Scores{8, 9});
  CHECK(logged(log, "c") == Scores{1, 1});
  CHECK(logged(log, "e") == Scores{4, 5});
  CHECK(logged(log, "b") == Scores{8, 0});
}

TEST_CASE("reward combinators: a missing or non-finite part score names episode and part",
          "[rl][reward_combinators][unit]") {
  Talks const talks({1, 1, 1});
  auto const good = constant({1, 1, 1});
  auto const bad = constant({1, no_number, 1});
  auto const large = constant({1, 1, infinity});
  auto const forgets = [](EpisodeBatch const&, std::span<float> scores) { scores[0] = 1; };
  CHECK_THROWS_WITH(ask(weighted_sum(1, good, 0, bad), talks),
                    ContainsSubstring("part 2 of a weighted sum") && ContainsSubstring("talk:1"));
  CHECK_THROWS_WITH(ask(product(forgets, good), talks),
                    ContainsSubstring("part 1 of a product") && ContainsSubstring("talk:1"));
  // The minimum would be 1.
  CHECK_THROWS_WITH(
      ask(minimum(good, Named{"large", large}), talks),
      ContainsSubstring("part 2 (\"large\") of a minimum") && ContainsSubstring("talk:2"));
  CHECK_THROWS_WITH(
      ask(Clipped{large, 0, 1}, talks),
      ContainsSubstring("the part of a clipped reward") && ContainsSubstring("talk:2"));
  CHECK_THROWS_WITH(ask(Affine{bad, 0, 1}, talks), ContainsSubstring("of an affine reward"));
  CHECK_THROWS_WITH(ask(LengthCapped{bad, 9, 0}, talks),
                    ContainsSubstring("of a length-capped reward"));
  CHECK_THROWS_WITH(ask(Gated{bad, good, 0}, talks),
                    ContainsSubstring("the gate of a gated reward") && ContainsSubstring("talk:1"));
  Named infinite{"infinite", large};
  CHECK_THROWS_WITH(ask(Gated{constant({0, 0, 1}), std::ref(infinite), 0}, talks),
                    ContainsSubstring("the part (\"infinite\") of a gated reward") &&
                        ContainsSubstring("talk:2") && ContainsSubstring("number 2"));
  // What is not asked about cannot be wrong.
  CHECK(ask(Gated{constant({1, 0, 1}), bad, 7}, talks) == Scores{1, 7, 1});
}

TEST_CASE("reward combinators: arguments out of range are refused by name",
          "[rl][reward_combinators][unit]") {
  auto const r = constant({1});
  CHECK_THROWS_AS(weighted_sum(1, r, no_number, r), ConfigError);
  CHECK_THROWS_WITH(weighted_sum(1, r, infinity, r), ContainsSubstring("weight 2"));
  CHECK_THROWS_AS((Clipped{r, 1, 0}), ConfigError);
  CHECK_THROWS_WITH((Clipped{r, no_number, 0}), ContainsSubstring("bounds"));
  CHECK_THROWS_AS((Clipped{r, infinity, infinity}), ConfigError);
  CHECK_THROWS_AS((Clipped{r, -infinity, -infinity}), ConfigError);
  CHECK_THROWS_WITH((Affine{r, no_number, 0}), ContainsSubstring("scale"));
  CHECK_THROWS_WITH((Affine{r, 1, infinity}), ContainsSubstring("shift"));
  CHECK_THROWS_WITH((LengthCapped{r, 0, 0}), ContainsSubstring("tokens"));
  CHECK_THROWS_WITH((LengthCapped{r, 1, no_number}), ContainsSubstring("score_beyond"));
  CHECK_THROWS_WITH((LengthCapped{r, 1, -1e39}), ContainsSubstring("score_beyond"));
  CHECK_THROWS_WITH((Gated{r, r, no_number}), ContainsSubstring("otherwise"));
  CHECK_THROWS_WITH((Gated{r, r, 1e39}), ContainsSubstring("otherwise"));
}

TEST_CASE("reward combinators: an empty batch has no scores", "[rl][reward_combinators][unit]") {
  Talks const none({});
  auto const r = constant({});
  CHECK(ask(weighted_sum(1, r, 2, r), none).empty());
  CHECK(ask(product(r, r), none).empty());
  CHECK(ask(minimum(r, r), none).empty());
  CHECK(ask(Clipped{r, 0, 1}, none).empty());
  CHECK(ask(Affine{r, 2, 1}, none).empty());
  CHECK(ask(LengthCapped{r, 2, 1}, none).empty());
  CHECK(ask(Gated{r, r, 1}, none).empty());
  Normalised normalised{r};
  auto const before = normalised.state();
  CHECK(ask(normalised, none).empty());
  CHECK(normalised.state() == before);
}

TEST_CASE("reward combinators: the wrong number of scores to write is refused",
          "[rl][reward_combinators][unit]") {
  Talks const talks({1, 1});
  ScoreLog log(2);
  std::vector<float> one(1);
  Product sum{constant({1, 2})};
  CHECK_THROWS_AS(sum(talks.batch(), one, log), ShapeError);
  Gated gated{constant({1, 2}), constant({1, 2}), 0};
  CHECK_THROWS_AS(gated(talks.batch(), one, log), ShapeError);
}

TEST_CASE("reward combinators: parts are moved in, or referred to by std::ref",
          "[rl][reward_combinators][unit]") {
  Talks const talks({1});
  CHECK(ask(weighted_sum(2, Owner{}, 1, product(Clipped{Owner{}, 0, 3}, Owner{})), talks) ==
        Scores{20});
  CHECK(ask(Gated{Owner{}, minimum(Owner{}, Affine{Owner{}, 1, 1}), 0}, talks) == Scores{4});
  Counter counter;
  auto reward = weighted_sum(1, std::ref(counter), 10, Named{"again", std::ref(counter)});
  CHECK(ask(reward, talks) == Scores{21});
  CHECK(counter.seen == 2);
}

TEST_CASE("reward combinators: a restored reward goes on as if never stopped",
          "[rl][reward_combinators][unit]") {
  Talks const talks({1, 1});
  auto const build = [](Counter& counter) {
    return Named{
        "all",
        weighted_sum(1, constant({1, 2}), 0.5, Normalised{Affine{std::ref(counter), -3, 1}}, 2,
                     Gated{constant({1, 0}), Normalised{constant({4, 9})}, -1}, 1,
                     product(minimum(std::ref(counter)), LengthCapped{std::ref(counter), 3, 0}))};
  };
  Counter first_counter;
  auto first = build(first_counter);
  ask(first, talks);
  ask(first, talks);
  std::vector<double> const saved = first.state();

  Counter second_counter;
  auto second = build(second_counter);
  second.restore(saved);
  CHECK(second.state() == saved);
  CHECK(second_counter.seen == first_counter.seen);
  for (int i = 0; i < 3; ++i) CHECK(ask(second, talks) == ask(first, talks));
}

TEST_CASE("reward combinators: a state that is not the reward's own is refused",
          "[rl][reward_combinators][unit]") {
  auto const r = constant({1});
  Normalised normalised{r};
  auto const state = normalised.state();
  CHECK(state.size() == 4);
  CHECK_THROWS_AS(normalised.restore(std::vector<double>{1, 1, 1}), ConfigError);
  CHECK_THROWS_AS(normalised.restore(std::vector<double>{1, 1, 1, 1, 1}), ConfigError);
  CHECK_THROWS_AS(normalised.restore(std::vector<double>{1, -1, 1, 1}), ConfigError);
  CHECK_THROWS_AS(normalised.restore(std::vector<double>{no_number, 1, 1, 1}), ConfigError);
  CHECK(normalised.state() == state);

  auto sum = weighted_sum(1, r, 1, normalised);
  CHECK_THROWS_AS(sum.restore(std::vector<double>{}), ConfigError);
  CHECK_THROWS_AS(sum.restore(std::vector<double>{0}), ConfigError);
  CHECK_THROWS_AS(sum.restore(std::vector<double>{0, 4, 1, 1, 1}), ConfigError);
  CHECK_THROWS_AS(sum.restore(std::vector<double>{0, 0.5, 1, 1, 1, 1}), ConfigError);
  CHECK_THROWS_AS(sum.restore(std::vector<double>{0, no_number, 1, 1, 1, 1}), ConfigError);
  CHECK_THROWS_AS(sum.restore(std::vector<double>{0, 4, 1, 1, 1, 1, 0}), ConfigError);
  sum.restore(std::vector<double>{0, 4, 1, 2, 3, 4});
  CHECK(sum.state() == std::vector<double>{0, 4, 1, 2, 3, 4});
}

TEST_CASE("reward combinators: any reward's state can be asked for, and is empty if it has none",
          "[rl][reward_combinators][unit]") {
  auto rule = constant({1});
  CHECK(reward_state(rule).empty());
  restore_reward(rule, {});
  CHECK_THROWS_AS(restore_reward(rule, std::vector<double>{1}), ConfigError);
  Counter counter;
  auto reference = std::ref(counter);
  restore_reward(reference, std::vector<double>{3});
  CHECK(counter.seen == 3);
  CHECK(reward_state(reference) == std::vector<double>{3});
  CHECK(reward_state(counter) == std::vector<double>{3});
}
