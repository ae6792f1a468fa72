// SPDX-License-Identifier: Apache-2.0
#include "../../examples/emprl/report.hpp"

#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "support/catch.hpp"

namespace {

using emprl::program::html_report;
using nlohmann::json;

bool has(std::string const& page, std::string const& part) {
  return page.find(part) != std::string::npos;
}

std::size_t count(std::string const& page, std::string const& part) {
  std::size_t n = 0;
  for (std::size_t at = page.find(part); at != std::string::npos; at = page.find(part, at + 1)) ++n;
  return n;
}

json full_report() {
  return json::parse(R"({
    "title": "A run", "note": "Synthetic data.", "findings": ["It rose."], "command": "emprl run",
    "configuration": {"ppo": {"steps": 40, "lr": 0.001}, "seed": 1},
    "metrics": [{"key": "reward", "name": "Reward", "better": "higher"}, {"key": "ppl", "better": "lower"}],
    "systems": [{"name": "before", "values": {"reward": {"value": 0.3, "low": 0.28, "high": 0.32}, "ppl": 9.5}},
                {"name": "after", "values": {"reward": 0.4}},
                {"name": "constant", "kind": "floor", "values": {"reward": 0.1}}],
    "gains": [{"name": "reward", "value": 0.1, "low": 0.08, "high": 0.12}],
    "curves": [{"title": "Loss", "x": "epoch", "y": "nats", "series": [
       {"name": "train", "points": [[1, 3.0], [2, 2.0]]}, {"name": "valid", "points": [[1, 3.1], [2, 2.2]]}]}],
    "marginals": [{"name": "ER", "groups": [{"name": "target", "shares": [0.3, 0.4, 0.3]}]}],
    "identifiers": [{"name": "ER", "systems": [{"name": "identifier", "kappa": 0.5, "macro_f1": 0.6}]}],
    "samples": [{"context": ["I won."], "target_levels": [2, 0, 1],
                 "answers": [{"name": "after", "text": "Great!", "levels": [2, 1, 1]}]}]
  })");
}

}  // namespace

TEST_CASE("report: every text of the input is escaped", "[examples][report][unit]") {
  std::string const bad = "<script>alert(\"x\")</script>&'\x01";
  std::string const good = "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&#39;";
  json report;
  report["title"] = bad;
  report["subtitle"] = bad;
  report["note"] = bad;
  report["findings"] = {bad};
  report["command"] = bad;
  report["run"] = {{bad, bad}};
  report["configuration"] = {{bad, {{bad, bad}}}};
  report["files"] = {{bad, bad}};
  report["metrics"] = {{{"key", "k"}, {"name", bad}, {"about", bad}}};
  report["systems"] = {{{"name", bad}, {"note", bad}, {"values", {{"k", 1.0}}}}};
  report["gains"] = {{{"name", bad}, {"value", 1.0}}};
  json const point = json::array({json::array({0, 1}), json::array({1, 2})});
  json const series = {{"name", bad}, {"points", point}};
  report["curves"] = {{{"title", bad},
                       {"x", bad},
                       {"y", bad},
                       {"group", bad},
                       {"series", json::array({series, series})}}};
  report["marginals"] = {
      {{"name", bad}, {"note", bad}, {"groups", {{{"name", bad}, {"shares", {0.2, 0.3, 0.5}}}}}}};
  report["identifiers"] = {{{"name", bad}, {"systems", {{{"name", bad}, {"kappa", 0.1}}}}}};
  report["samples"] = {
      {{"emotion", bad}, {"context", {bad}}, {"answers", {{{"name", bad}, {"text", bad}}}}}};
  std::string const page = html_report(report);
  CHECK_FALSE(has(page, "<script"));
  CHECK_FALSE(has(page, "\x01"));
  CHECK_FALSE(has(page, "alert(\"x\")"));
  CHECK(count(page, good) >= 30);
}

TEST_CASE("report: a title alone makes a page and missing parts are left out",
          "[examples][report][unit]") {
  std::string const page = html_report({{"title", "Alone"}});
  CHECK(has(page, "<h1>Alone</h1>"));
  CHECK(page.rfind("<!DOCTYPE html>", 0) == 0);
  CHECK_FALSE(has(page, "<h2>"));
  CHECK_FALSE(has(page, "<section"));
  CHECK_FALSE(has(page, "<svg"));
  CHECK_FALSE(has(page, "<table"));
  CHECK_THROWS_AS(html_report(json::object()), emprl::ConfigError);
  CHECK_THROWS_AS(html_report(json()), emprl::ConfigError);

  // Each part goes without taking another with it.
  json const full = full_report();
  std::string const whole = html_report(full);
  for (auto const& [key, heading] :
       std::map<std::string, std::string>{{"findings", "<h2>Findings"},
                                          {"curves", "<h2>Curves"},
                                          {"marginals", "<h2>Levels"},
                                          {"samples", "<h2>Sample dialogues"},
                                          {"identifiers", "<h2>Identifiers"}}) {
    INFO(key);
    json less = full;
    less.erase(key);
    std::string const without = html_report(less);
    CHECK(has(whole, heading));
    CHECK_FALSE(has(without, heading));
    CHECK(count(without, "<h2>") + 1 == count(whole, "<h2>"));
    less[key] = json::array();
    CHECK(html_report(less) == without);
    less[key] = "of another type";
    CHECK(html_report(less) == without);
  }
}

TEST_CASE("report: the page is self-contained", "[examples][report][unit]") {
  std::string const page = html_report(full_report());
  for (char const* const part :
       {"http:", "https:", "<script", "<link", "<img", "url(", "@import"}) {
    INFO(part);
    CHECK_FALSE(has(page, part));
  }
  CHECK(has(page, "prefers-color-scheme:dark"));
  CHECK(has(page, "name=\"viewport\""));
}

TEST_CASE("report: shows values, intervals, floors and whether a gain excludes zero",
          "[examples][report][unit]") {
  json report = full_report();
  std::string page = html_report(report);
  CHECK(has(page, "0.300<span class=\"interval\">0.280 to 0.320</span>"));
  CHECK(has(page, "Floors: reached without alignment"));
  CHECK(has(page, "+0.100 (95 % interval 0.080 to 0.120, excludes zero)"));
  CHECK(has(page, "<th scope=\"row\">ppo.steps</th><td>40</td>"));
  CHECK(count(page, "class=\"chip hit\"") == 2);  // ER and EX are as the target, IP is not
  report["gains"][0]["low"] = -0.01;
  page = html_report(report);
  CHECK(has(page, "does not exclude zero"));
}

TEST_CASE("report: numbers that are not finite, constant curves and single points draw nothing odd",
          "[examples][report][unit]") {
  double const nan = std::numeric_limits<double>::quiet_NaN();
  double const infinity = std::numeric_limits<double>::infinity();
  json report = full_report();
  auto& points = report["curves"][0]["series"][0]["points"];
  points = json::array({json::array({1, nan}), json::array({2, infinity}), json::array({3, 5.0}),
                        json::array({4}), "x"});
  report["curves"][0]["series"][1]["points"] = json::array({json::array({3, 5.0})});
  report["systems"][0]["values"]["ppl"] = nan;
  report["gains"][0]["value"] = infinity;
  std::string const page = html_report(report);
  CHECK_FALSE(has(page, "nan"));
  CHECK_FALSE(has(page, "inf"));
  CHECK(count(page, "<figure>") == 2);
  for (double const level : {0.0, 5.0, -3.0, 1e-9, 1e12}) {
    report["curves"][0]["series"] = json::array(
        {{{"name", "flat"},
          {"points", json::array({json::array({0, level}), json::array({9, level})})}}});
    std::string const flat = html_report(report);
    CHECK_FALSE(has(flat, "nan"));
    CHECK_FALSE(has(flat, "inf"));
  }
}

TEST_CASE("report: a long curve is thinned and a smoothed one is drawn over its raw points",
          "[examples][report][unit]") {
  json points = json::array();
  for (int i = 0; i < 100000; ++i) points.push_back(json::array({i, std::sin(i * 0.01)}));
  json report = {{"title", "Long"}};
  report["curves"] =
      json::array({{{"title", "Reward"},
                    {"smooth", true},
                    {"series", json::array({{{"name", "r"}, {"points", points}}})}}});
  std::string const page = html_report(report);
  CHECK(page.size() < 60000);
  CHECK(has(page, "class=\"line raw c0\""));
  CHECK(count(page, "<path class=\"line") == 2);
}

TEST_CASE("report: writing replaces the file and a folder that is missing is named",
          "[examples][report][unit]") {
  namespace fs = std::filesystem;
  fs::path const folder = fs::temp_directory_path() / "emprl_test_report";
  fs::remove_all(folder);
  fs::create_directories(folder);
  emprl::program::write_html_report(folder / "report.html", {{"title", "One"}});
  emprl::program::write_html_report(folder / "report.html", {{"title", "Two"}});
  CHECK(has(emprl::io::read_file(folder / "report.html"), "<h1>Two</h1>"));
  CHECK_THROWS_AS(
      emprl::program::write_html_report(folder / "none" / "report.html", {{"title", "T"}}),
      emprl::IoError);
  fs::remove_all(folder);
}
