// SPDX-License-Identifier: Apache-2.0
#include "emprl/train/identifier_report.hpp"

#include <cstddef>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace {

using namespace emprl;

std::vector<data::Post> posts_of(std::vector<int> const& levels, std::size_t rows_per_seeker = 1) {
  std::vector<data::Post> posts;
  for (std::size_t i = 0; i < levels.size(); ++i) {
    posts.push_back(
        {"s" + std::to_string(i / rows_per_seeker), "r", "post", "response", levels[i]});
  }
  return posts;
}

}  // namespace

TEST_CASE("identifier_report: scores worked by hand", "[train][identifier_report][unit]") {
  auto const posts = posts_of({0, 0, 1, 1});
  std::vector<train::IdentifierPredictions> const systems{{"identifier", {0, 0, 1, 0}},
                                                          {"majority class", {0, 0, 0, 0}}};
  auto const report =
      train::report_identifiers(data::Mechanism::ip, posts, systems, {10, 5, 1}, {200, 0.95, 3});
  CHECK(report.n == 4);
  CHECK(report.seekers == 4);
  CHECK(report.counts == std::array<index_t, 3>{2, 2, 0});
  REQUIRE(report.systems.size() == 2);
  auto const& one = report.systems[0];
  CHECK(one.accuracy.value == Approx(0.75));
  CHECK(one.macro_f1.value == Approx((0.8 + 2.0 / 3) / 2));
  CHECK(one.weighted_f1.value == Approx((0.8 + 2.0 / 3) / 2));
  CHECK(one.kappa.value == Approx(0.5));
  CHECK(one.predicted == std::array<index_t, 3>{3, 1, 0});
  auto const& majority = report.systems[1];
  CHECK(majority.accuracy.value == Approx(0.5));
  CHECK(majority.kappa.value == 0.0);
  CHECK(majority.kappa.low == 0.0);
  CHECK(majority.kappa.high == 0.0);
  REQUIRE(report.gains.size() == 1);
  CHECK(report.gains[0].over == "majority class");
  CHECK(report.gains[0].kappa.value == Approx(0.5));
  for (auto const& s : report.systems) {
    for (auto const& x : {s.accuracy, s.macro_f1, s.weighted_f1, s.kappa}) {
      CHECK(x.low <= x.value);
      CHECK(x.value <= x.high);
    }
  }
}

TEST_CASE("identifier_report: rows of one seeker are drawn together",
          "[train][identifier_report][unit]") {
  std::vector<int> gold, predicted;
  for (int i = 0; i < 120; ++i) {
    gold.push_back(i / 6 % 2);
    predicted.push_back(i / 12 % 3 == 0 ? 1 - i / 6 % 2
                                        : i / 6 % 2);  // right or wrong by the dozen
  }
  std::vector<train::IdentifierPredictions> const systems{{"identifier", predicted}};
  metrics::BootstrapConfig const config{500, 0.95, 1};
  auto const alone =
      train::report_identifiers(data::Mechanism::er, posts_of(gold, 1), systems, {}, config);
  auto const grouped =
      train::report_identifiers(data::Mechanism::er, posts_of(gold, 12), systems, {}, config);
  CHECK(grouped.seekers == 10);
  CHECK(alone.systems[0].kappa.value == Approx(grouped.systems[0].kappa.value));
  auto const width = [](metrics::Interval const& x) { return x.high - x.low; };
  CHECK(width(grouped.systems[0].accuracy) > 2 * width(alone.systems[0].accuracy));
}

TEST_CASE("identifier_report: a classifier gains exactly nothing over itself",
          "[train][identifier_report][unit]") {
  auto const posts = posts_of({0, 1, 2, 0, 1, 2, 0}, 2);
  std::vector<int> const said{0, 1, 1, 0, 2, 2, 0};
  std::vector<train::IdentifierPredictions> const systems{{"a", said}, {"b", said}};
  auto const report = train::report_identifiers(data::Mechanism::ex, posts, systems, {1, 1, 1});
  CHECK(report.gains[0].kappa.low == 0.0);
  CHECK(report.gains[0].kappa.high == 0.0);
  auto const table = train::identifier_table(report);
  CHECK(table.notes[1].find("not distinguishable") != std::string::npos);
  for (auto const& row : table.rows) CHECK(row.size() == table.header.size());
  io::Json const json = train::identifier_report_to_json(report);
  CHECK(json["mechanism"] == "ex");
  CHECK(json["systems"][0]["kappa"]["low"].is_number());
  CHECK(json["kappa_gains"][0]["over"] == "b");
  CHECK(json["train_counts"] == io::Json::array({1, 1, 1}));
}

TEST_CASE("identifier_report: the majority class is the training posts' commonest level",
          "[train][identifier_report][unit]") {
  auto const majority = train::majority_class(posts_of({2, 1, 2, 0}), 3);
  CHECK(majority.levels == std::vector<int>{2, 2, 2});
  CHECK(train::majority_class(posts_of({1, 0}), 1).levels == std::vector<int>{0});
  CHECK_THROWS_AS(train::majority_class({}, 3), ConfigError);
}

TEST_CASE("identifier_report: bad input is refused", "[train][identifier_report][unit]") {
  auto const posts = posts_of({0, 1});
  using Systems = std::vector<train::IdentifierPredictions>;
  auto const report = [](std::vector<data::Post> const& p, Systems const& s) {
    return train::report_identifiers(data::Mechanism::er, p, s, {});
  };
  CHECK_THROWS_AS(report({}, Systems{{"a", {}}}), ConfigError);
  CHECK_THROWS_AS(report(posts, {}), ConfigError);
  CHECK_THROWS_AS(report(posts, Systems{{"a", {0}}}), ShapeError);
  CHECK_THROWS_AS(report(posts, Systems{{"a", {0, 3}}}), ConfigError);
  CHECK_THROWS_AS(report(posts_of({0, -1}), Systems{{"a", {0, 0}}}), ConfigError);
}
