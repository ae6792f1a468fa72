// SPDX-License-Identifier: Apache-2.0
#include "emprl/train/floors.hpp"

#include <algorithm>
#include <cstddef>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "support/catch.hpp"
#include "train/toy_scorer.hpp"

namespace {

using namespace emprl;
using train_test::ToyScorer;

train::EvaluationOptions const quick{50, 7, empathy::every_mechanism};

data::Pair pair_of(std::string context, empathy::Levels const& levels) {
  return {"id", std::move(context), "reply", "", levels};
}

std::string const opening = "i won";
std::string const later =
    "one two three four five six seven eight nine ten one two three four five six seven eight nine "
    "ten";

}  // namespace

TEST_CASE("floors: a context of fewer than 20 words is an opening", "[train][floors][unit]") {
  CHECK(train::is_opening(opening));
  CHECK_FALSE(train::is_opening(later));
  CHECK(train::is_opening(later.substr(4)));
  CHECK(train::is_opening(""));
  CHECK(train::is_opening("  a \n b\t"));
}

TEST_CASE("floors: the constant and the two templates with the highest reward are chosen",
          "[train][floors][unit]") {
  // Openings want exploration, the rest wants a strong emotional reaction.
  std::vector<data::Pair> const pairs{pair_of(opening, {0, 0, 2}), pair_of(later, {2, 0, 0}),
                                      pair_of(later, {2, 0, 0})};
  std::vector<std::string_view> const constants{"nothing", "er1", "er2"};
  std::vector<std::string_view> const questions{"ex1", "ex2"};
  ToyScorer scorer;
  auto const t =
      train::choose_templates(pairs, scorer, empathy::every_mechanism, constants, questions);
  CHECK(t.constant == "er2");
  CHECK(t.other == "er2");
  CHECK(t.question == "ex2");
  CHECK(t.constant_reward == Approx((2 * 0.512 + 0.8 * 0.1 * 0.1) / 3));
  CHECK(t.pair_reward == Approx(0.512));
  CHECK(scorer.calls == constants.size() + questions.size());
  CHECK(train::constant_responses(pairs, t) == std::vector<std::string>{"er2", "er2", "er2"});
  CHECK(train::template_responses(pairs, t) == std::vector<std::string>{"ex2", "er2", "er2"});
  CHECK_THROWS_AS(train::choose_templates({}, scorer), ConfigError);
  CHECK_THROWS_AS(train::choose_templates(pairs, scorer, empathy::every_mechanism, {}, questions),
                  ConfigError);
}

TEST_CASE(
    "floors: another dialogue's reply is never of the same dialogue and every reply is used once",
    "[train][floors][unit]") {
  for (std::size_t const n : {6u, 7u, 31u, 97u}) {
    auto const pairs = train_test::toy_pairs(n);
    for (std::uint64_t const seed : {1u, 2u, 3u}) {
      auto const other = train::other_dialogue(pairs, seed);
      CHECK(other == train::other_dialogue(pairs, seed));
      std::set<std::size_t> const all(other.begin(), other.end());
      REQUIRE(all.size() == n);
      CHECK(*all.rbegin() == n - 1);
      for (std::size_t i = 0; i < n; ++i) {
        auto const dialogue = [&](std::size_t k) {
          return pairs[k].id.substr(0, pairs[k].id.rfind(':'));
        };
        CHECK(dialogue(i) != dialogue(other[i]));
      }
    }
  }
  auto const pairs = train_test::toy_pairs(31);
  CHECK(train::other_dialogue(pairs, 1) != train::other_dialogue(pairs, 2));
  auto const other = train::other_dialogue(pairs, 5);
  auto const replies = train::other_replies(pairs, 5);
  auto const shuffled = train::shuffled_contexts(pairs, 5);
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    CHECK(replies[i] == pairs[other[i]].response);
    CHECK(shuffled[i].context == pairs[other[i]].context);
    CHECK(shuffled[i].response == pairs[i].response);
  }
  // One dialogue with more than half of the pairs must meet itself.
  CHECK_THROWS_AS(train::other_dialogue(std::span(pairs).subspan(3, 3), 1), ConfigError);
}

TEST_CASE("floors: best of n takes the best sample that the budget allows",
          "[train][floors][unit]") {
  std::vector<data::Pair> const pairs{pair_of("a", {1, 0, 0}), pair_of("b", {0, 0, 2})};
  std::vector<empathy::Levels> const targets = train::target_levels(pairs);
  train::AnswerSamples const samples{{{"x", "er1", "er2"}, {"ex2", "ex1", "ex2 again", "more"}},
                                     {{1, 2, 3}, {4, 5, 6, 7}}};
  ToyScorer scorer;
  auto const all = train::best_of_n(pairs, targets, samples, scorer);
  CHECK(all.responses == std::vector<std::string>{"er1", "ex2"});
  CHECK(all.generated_tokens == 21);
  CHECK(all.mean_n == Approx(3.0));
  auto const some = train::best_of_n(pairs, targets, samples, scorer, empathy::every_mechanism, 11);
  CHECK(some.generated_tokens == 5);
  CHECK(some.responses == std::vector<std::string>{"x", "ex2"});
  auto const two = train::best_of_n(pairs, targets, samples, scorer, empathy::every_mechanism, 12);
  CHECK(two.mean_n == Approx(2.0));
  CHECK(two.responses[0] == "er1");
  // The first round counts even where it costs more than the budget.
  CHECK(train::best_of_n(pairs, targets, samples, scorer, empathy::every_mechanism, 1).mean_n ==
        1.0);
  CHECK_THROWS_AS(train::best_of_n(pairs, targets, {{{"x"}, {}}, {{1}, {}}}, scorer), ConfigError);
  CHECK_THROWS_AS(train::best_of_n(pairs, targets, {{{"x"}}, {{1}}}, scorer), ConfigError);

  auto const e = train::evaluate_best_of_n(pairs, samples, scorer, quick);
  CHECK(e.name == "oracle best of 3");
  CHECK(e.reward.value == Approx(0.512));
  CHECK(e.kind == train::SystemKind::floor);
}

TEST_CASE("floors: best of n is never below one sample", "[train][floors][unit]") {
  auto const pairs = train_test::toy_pairs(33);
  train::AnswerSamples samples;
  std::vector<std::string> first;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    samples.texts.push_back(
        {pairs[(i + 5) % 33].response, pairs[(i + 7) % 33].response, "er1 ex1"});
    samples.tokens.push_back({3, 3, 2});
    first.push_back(samples.texts.back().front());
  }
  ToyScorer scorer;
  auto const one = train::evaluate_responses("one", pairs, first, scorer, quick);
  auto const best = train::evaluate_best_of_n(pairs, samples, scorer, quick);
  for (std::size_t i = 0; i < pairs.size(); ++i) CHECK(best.rewards[i] >= one.rewards[i]);
}

TEST_CASE("floors: probes count the replies that an edit lifts above level 0",
          "[train][floors][unit]") {
  // Identifiers that are fooled: a question mark is exploration, "sorry" an emotional reaction.
  auto naive = [](std::span<std::string const> c, std::span<std::string const> r) {
    std::vector<empathy::LevelProbabilities> out;
    for (std::size_t i = 0; i < c.size(); ++i) {
      double const er = r[i].find("sorry") != std::string::npos ? 0.9 : 0.1;
      double const ex = r[i].find('?') != std::string::npos ? 0.9 : 0.1;
      out.push_back({{{1 - er, er, 0}, {1, 0, 0}, {1 - ex, ex, 0}}});
    }
    return out;
  };
  std::vector<data::Pair> pairs(4, pair_of("a", {0, 0, 0}));
  pairs[0].response = "why?";
  pairs[1].response = "so sorry";
  pairs[2].response = "sorry";
  auto const probes = train::probe_identifiers(pairs, naive);
  REQUIRE(probes.size() == 2);
  CHECK(probes[0].mechanism == data::Mechanism::ex);
  CHECK(probes[0].before == Approx(0.25));
  CHECK(probes[0].after == Approx(1.0));
  CHECK(probes[1].mechanism == data::Mechanism::er);
  CHECK(probes[1].before == Approx(0.5));
  CHECK(probes[1].after == Approx(1.0));
  CHECK(train::probes_to_json(probes)[1]["mechanism"] == "er");
  for (auto const& row : train::probes_table(probes).rows) CHECK(row.size() == 4);
  CHECK_THROWS_AS(train::probe_identifiers({}, naive), ConfigError);
}

TEST_CASE("floors: all floors go through the same evaluation", "[train][floors][unit]") {
  auto const pairs = train_test::toy_pairs(31);
  ToyScorer scorer;
  train::Templates t;
  t.constant = "er1";
  t.other = "er2";
  t.question = "ex1?";
  auto const floors = train::evaluate_floors(pairs, t, scorer, quick);
  REQUIRE(floors.size() == 4);
  CHECK(floors[0].kind == train::SystemKind::floor);
  CHECK(floors[0].mechanisms[0].marginals[1] == Approx(1.0));
  CHECK(floors[2].responses == train::other_replies(pairs, quick.seed));
  CHECK(floors[3].emp_f1.value == Approx(100.0));
  CHECK(floors[3].kind == train::SystemKind::control);
  for (auto const& floor : floors) {
    CHECK(floor.n == 31);
    CHECK_FALSE(floor.note.empty());
    CHECK(train::compare(floor, floors[3]).n == 31);
  }
}
