// SPDX-License-Identifier: Apache-2.0
#include "emprl/train/evaluation.hpp"

#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "train/toy_scorer.hpp"

namespace {

using namespace emprl;
using train_test::ToyScorer;

train::EvaluationOptions const quick{200, 7, empathy::every_mechanism};

std::vector<std::string> targets_of(std::vector<data::Pair> const& pairs) {
  std::vector<std::string> out;
  for (auto const& pair : pairs) out.push_back(pair.response);
  return out;
}

}  // namespace

TEST_CASE("evaluation: values worked by hand", "[train][evaluation][unit]") {
  std::vector<data::Pair> const pairs{
      {"a:2", "i won", "nice one er1", "proud", empathy::Levels{1, 0, 0}},
      {"b:2", "i lost", "why ? ex1", "sad", empathy::Levels{0, 0, 1}},
  };
  // Levels of the responses: (1,0,0) and (0,0,0); every level is given 0.8 by the scorer, others
  // 0.1.
  std::vector<std::string> const responses{"nice one er1", "nice one"};
  ToyScorer scorer;
  auto const e = train::evaluate_responses("toy", pairs, responses, scorer, quick);
  CHECK(e.n == 2);
  CHECK(e.rewards[0] == Approx(0.512));
  CHECK(e.rewards[1] == Approx(0.8 * 0.8 * 0.1));
  CHECK(e.reward.value == Approx((0.512 + 0.064) / 2));
  // ER and IP agree everywhere; EX has targets 0, 1 against 0, 0: F1 of level 0 is 2/3 with half of
  // the weight.
  CHECK(e.mechanisms[0].weighted_f1 == Approx(100.0));
  CHECK(e.mechanisms[2].weighted_f1 == Approx(100.0 / 3));
  CHECK(e.mechanisms[2].accuracy == Approx(50.0));
  CHECK(e.emp_f1.value == Approx((100.0 + 100.0 + 100.0 / 3) / 3));
  CHECK(e.mechanisms[0].kappa.value == Approx(1.0));
  CHECK(e.mechanisms[2].kappa.value == Approx(0.0));
  CHECK(e.mechanisms[2].target_marginals[1] == Approx(0.5));
  CHECK(e.mechanisms[2].marginals[0] == Approx(1.0));
  // 5 words of which 3 differ; 3 pairs of words of which 2 differ.
  CHECK(e.distinct_1.value == Approx(60.0));
  CHECK(e.distinct_2.value == Approx(200.0 / 3));
  CHECK(e.mean_length.value == Approx(2.5));
  CHECK(e.rouge_l == Approx(50.0));
  REQUIRE(e.emotions.size() == 2);
  CHECK(e.emotions[0].emotion == "proud");
  CHECK(e.emotions[0].n == 1);
  CHECK(e.emotions[0].reward == Approx(0.512));
  CHECK(e.emotions[0].emp_f1 == Approx(100.0));
  CHECK(e.emotions[1].emp_f1 == Approx(200.0 / 3));
}

TEST_CASE("evaluation: answering with the target gives Emp-F1 100 and kappa 1",
          "[train][evaluation][unit]") {
  auto const pairs = train_test::toy_pairs(31);
  ToyScorer scorer;
  auto const e = train::evaluate_responses("target", pairs, targets_of(pairs), scorer, quick);
  CHECK(e.emp_f1.value == Approx(100.0));
  CHECK(e.emp_f1.low == Approx(100.0));
  CHECK(e.bleu[0] == Approx(100.0));
  CHECK(e.rouge_l == Approx(100.0));
  for (auto const& m : e.mechanisms) {
    CHECK(m.kappa.value == Approx(1.0));
    CHECK(m.jensen_shannon == Approx(0.0).margin(1e-12));
    CHECK(m.accuracy == Approx(100.0));
  }
}

TEST_CASE("evaluation: intervals hold their value and marginals sum to 1",
          "[train][evaluation][unit]") {
  auto const pairs = train_test::toy_pairs(97);
  std::vector<std::string> responses = targets_of(pairs);
  for (std::size_t i = 0; i < responses.size(); i += 3)
    responses[i] = "word er2 word" + std::to_string(i % 5);
  responses[4].clear();
  ToyScorer scorer;
  auto const e = train::evaluate_responses("mixed", pairs, responses, scorer, quick);
  for (auto const& x : {e.reward, e.emp_f1, e.distinct_1, e.distinct_2, e.mean_length,
                        e.mechanisms[0].kappa, e.mechanisms[1].kappa, e.mechanisms[2].kappa}) {
    CHECK(x.low <= x.value);
    CHECK(x.value <= x.high);
    CHECK(x.low < x.high);
  }
  index_t n = 0;
  for (auto const& emotion : e.emotions) n += emotion.n;
  CHECK(n == 97);
  for (auto const& m : e.mechanisms) {
    CHECK(m.marginals[0] + m.marginals[1] + m.marginals[2] == Approx(1.0));
    CHECK(m.target_marginals[0] + m.target_marginals[1] + m.target_marginals[2] == Approx(1.0));
  }
  // The reward is that of METHOD 6, and leaving a mechanism out raises it.
  auto without = quick;
  without.mechanisms = {true, false, true};
  auto const less = train::evaluate_responses("mixed", pairs, responses, scorer, without);
  CHECK(less.reward.value > e.reward.value);
  CHECK(less.emp_f1.value == e.emp_f1.value);
}

TEST_CASE("evaluation: a system compared with itself gains exactly nothing",
          "[train][evaluation][unit]") {
  auto const pairs = train_test::toy_pairs(33);
  ToyScorer scorer;
  std::vector<std::string> const constant(pairs.size(), "word er1");
  auto const e = train::evaluate_responses("same", pairs, constant, scorer, quick);
  auto const c = train::compare(e, e);
  for (auto const& x :
       {c.reward, c.emp_f1, c.mean_length, c.distinct_2, c.kappa[0], c.kappa[1], c.kappa[2]}) {
    CHECK(x.value == 0.0);
    CHECK(x.low == 0.0);
    CHECK(x.high == 0.0);
    CHECK_FALSE(x.excludes_zero());
  }
  CHECK(c.distinct_2_before_cut == c.distinct_2_after_cut);
}

TEST_CASE("evaluation: a paired gain is found, and turns its sign with the order",
          "[train][evaluation][unit]") {
  auto const pairs = train_test::toy_pairs(97);
  ToyScorer scorer;
  std::vector<std::string> const constant(pairs.size(), "word er1");
  auto const worse = train::evaluate_responses("constant", pairs, constant, scorer, quick);
  auto const better = train::evaluate_responses("target", pairs, targets_of(pairs), scorer, quick);
  auto const up = train::compare(worse, better);
  auto const down = train::compare(better, worse);
  CHECK(up.reward.low > 0.0);
  CHECK(up.emp_f1.low > 0.0);
  CHECK(up.reward.value == Approx(better.reward.value - worse.reward.value));
  CHECK(up.emp_f1.value == Approx(better.emp_f1.value - worse.emp_f1.value));
  CHECK(down.reward.value == Approx(-up.reward.value));
  CHECK(down.reward.low == Approx(-up.reward.high).margin(1e-9));
  CHECK(up.distinct_2.value == Approx(better.distinct_2.value - worse.distinct_2.value));
  CHECK(train::before_after_table(worse, better, up).notes.front().find("rose") !=
        std::string::npos);
  auto const fewer = std::span<data::Pair const>(pairs).first(96);
  auto const other =
      train::evaluate_responses("fewer", fewer, std::span(constant).first(96), scorer, quick);
  CHECK_THROWS_AS(train::compare(worse, other), ShapeError);
}

TEST_CASE("evaluation: Distinct's interval by the jackknife counts each response once",
          "[train][evaluation][distinct][unit]") {
  Ragged rows;
  rows.push_back(std::vector<std::int32_t>{1, 2, 3});
  rows.push_back(std::vector<std::int32_t>{1, 2});
  rows.push_back(std::vector<std::int32_t>{4});
  auto const x = train::distinct_interval(rows.view(), 1);
  CHECK(x.value == Approx(100.0 * 4 / 6));
  // Without each row in turn: {1,2,4} of 3, {1,2,3,4} of 4, {1,2,3} of 5.
  double const mean = (100.0 + 100.0 + 60.0) / 3;
  double const squares = 2 * (100 - mean) * (100 - mean) + (60 - mean) * (60 - mean);
  double const half = 1.959963984540054 * std::sqrt(2.0 / 3.0 * squares);
  CHECK(x.low == Approx(x.value - half));
  CHECK(x.high == Approx(std::min(100.0, x.value + half)));
  Ragged one;
  one.push_back(std::vector<std::int32_t>{});
  CHECK(train::distinct_interval(one.view(), 2).value == 0.0);
  CHECK_THROWS_AS(train::distinct_interval(Ragged{}.view(), 1), ConfigError);
}

TEST_CASE("evaluation: bad input is refused by name", "[train][evaluation][unit]") {
  auto pairs = train_test::toy_pairs(4);
  ToyScorer scorer;
  std::vector<std::string> const answers(4, "x");
  CHECK_THROWS_AS(train::evaluate_responses("e", {}, {}, scorer), ConfigError);
  CHECK_THROWS_AS(train::evaluate_responses("e", pairs, std::span(answers).first(3), scorer),
                  ShapeError);
  pairs[2].levels.reset();
  CHECK_THROWS_WITH(train::evaluate_responses("e", pairs, answers, scorer),
                    Catch::Matchers::ContainsSubstring(pairs[2].id));
  pairs[2].levels = empathy::Levels{0, 3, 0};
  CHECK_THROWS_AS(train::evaluate_responses("e", pairs, answers, scorer), ConfigError);
  pairs[2].levels = empathy::Levels{0, 0, 0};
  auto broken = [](std::span<std::string const> c, std::span<std::string const>) {
    empathy::LevelProbabilities p{{{1, 0, 0}, {1, 0, 0}, {std::nan(""), 0, 0}}};
    return std::vector<empathy::LevelProbabilities>(c.size(), p);
  };
  CHECK_THROWS_AS(train::evaluate_responses("e", pairs, answers, broken), Error);
  auto short_one = [](std::span<std::string const>, std::span<std::string const>) {
    return std::vector<empathy::LevelProbabilities>{};
  };
  CHECK_THROWS_AS(train::evaluate_responses("e", pairs, answers, short_one), ShapeError);
  CHECK_THROWS_AS(
      train::evaluate_responses("e", pairs, answers, scorer, {0, 1, empathy::every_mechanism}),
      ConfigError);
  CHECK_THROWS_AS(
      train::evaluate_responses("e", pairs, answers, scorer, {9, 1, {false, false, false}}),
      ConfigError);
}

TEST_CASE("evaluation: JSON has the documented keys and tables have even rows",
          "[train][evaluation][unit]") {
  auto const pairs = train_test::toy_pairs(12);
  ToyScorer scorer;
  auto e = train::evaluate_responses("system", pairs, targets_of(pairs), scorer, quick);
  e.note = "a note";
  io::Json const before = train::evaluation_to_json(e);
  CHECK_FALSE(before["values"].contains("ppl"));
  e.likelihood = {9.5, 1.4, 1.6, 3.0};
  io::Json const json = train::evaluation_to_json(e);
  for (char const* key :
       {"name", "kind", "note", "n", "values", "marginals", "target_marginals", "emotions"}) {
    INFO(key);
    CHECK(json.contains(key));
  }
  for (auto const& metric : train::metric_descriptions()) {
    INFO(metric.dump());
    CHECK(json["values"].contains(metric["key"].get<std::string>()));
  }
  CHECK(json["values"]["reward"]["low"].is_number());
  CHECK(json["values"]["ppl"] == 9.5);
  CHECK(json["kind"] == "system");
  auto const gain = train::compare(e, e);
  io::Json const compared = train::comparison_to_json(gain);
  CHECK(compared["reward"]["value"] == 0.0);
  std::vector<train::SystemEvaluation> const both{e, e};
  CHECK(train::marginals_to_json(both).size() == 3);
  for (auto const& table : {train::before_after_table(e, e, gain), train::systems_table(both),
                            train::marginals_table(both), train::emotions_table(e, e)}) {
    INFO(table.title);
    CHECK_FALSE(table.rows.empty());
    for (auto const& row : table.rows) CHECK(row.size() == table.header.size());
  }
}
