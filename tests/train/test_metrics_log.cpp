// SPDX-License-Identifier: Apache-2.0
#include "emprl/train/metrics_log.hpp"

#include <cmath>
#include <filesystem>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "emprl/io/json_lines.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

namespace {

using namespace emprl;
using train::MetricsLog;

/// All (tag, step) of the event files of a folder, and how often each is there.
std::map<std::pair<std::string, index_t>, int> events_of(std::filesystem::path const& folder) {
  std::map<std::pair<std::string, index_t>, int> found;
  for (auto const& entry : std::filesystem::directory_iterator(folder)) {
    if (!entry.path().filename().string().starts_with("events.out.tfevents.")) continue;
    for (auto const& event : train::read_event_file(entry.path())) {
      for (auto const& scalar : event.scalars) ++found[{scalar.first, event.step}];
    }
  }
  return found;
}

}  // namespace

TEST_CASE("metrics_log: each write is a line and an event", "[train][metrics_log][unit]") {
  test::TemporaryFolder const folder;
  auto const place = folder / "run/logs";
  MetricsLog log(place);
  CHECK(std::filesystem::is_empty(place));
  log.write("finetune", 1, {{"loss", 2.5}, {"rate", 1e-4}});
  log.write("align", 1, {{"objective/kl", 0.1}});
  log.sync();
  CHECK(test::slurp(log.path()) ==
        "{\"phase\":\"finetune\",\"step\":1,\"loss\":2.5,\"rate\":0.0001}\n"
        "{\"phase\":\"align\",\"step\":1,\"objective/kl\":0.1}\n");
  CHECK(events_of(place) ==
        std::map<std::pair<std::string, index_t>, int>{
            {{"finetune/loss", 1}, 1}, {{"finetune/rate", 1}, 1}, {{"align/objective/kl", 1}, 1}});
}

TEST_CASE("metrics_log: a number that is not finite is null in the lines",
          "[train][metrics_log][unit]") {
  test::TemporaryFolder const folder;
  MetricsLog log(folder.path());
  log.write("align", 3,
            {{"a", std::numeric_limits<double>::quiet_NaN()},
             {"b", std::numeric_limits<double>::infinity()},
             {"c", 1.0}});
  CHECK(test::slurp(log.path()) ==
        "{\"phase\":\"align\",\"step\":3,\"a\":null,\"b\":null,\"c\":1.0}\n");
}

TEST_CASE("metrics_log: a run that goes on has each step of its phase once, others are untouched",
          "[train][metrics_log][unit]") {
  test::TemporaryFolder const folder;
  {
    MetricsLog log(folder.path());
    for (index_t i = 1; i <= 4; ++i) log.write("finetune", i, {{"loss", 1.0 / double(i)}});
    for (index_t i = 1; i <= 5; ++i) log.write("align", i, {{"kl", 0.1}, {"reward", 1.0}});
  }
  MetricsLog log(folder.path());
  log.resume("align", 3);
  for (index_t i = 4; i <= 6; ++i) log.write("align", i, {{"kl", 0.2}, {"reward", 2.0}});

  std::vector<std::pair<std::string, index_t>> steps;
  for (auto const& line : io::read_json_lines(log.path())) {
    steps.emplace_back(line.value["phase"], line.value["step"]);
  }
  CHECK(steps == std::vector<std::pair<std::string, index_t>>{{"finetune", 1},
                                                              {"finetune", 2},
                                                              {"finetune", 3},
                                                              {"finetune", 4},
                                                              {"align", 1},
                                                              {"align", 2},
                                                              {"align", 3},
                                                              {"align", 4},
                                                              {"align", 5},
                                                              {"align", 6}});
  auto const events = events_of(folder.path());
  CHECK(events.size() == 4 + 2 * 6);
  for (auto const& [key, times] : events) CHECK(times == 1);

  log.resume("finetune", -1);
  CHECK(io::read_json_lines(log.path()).size() == 6);
  CHECK(events_of(folder.path()).size() == 12);
  log.resume("align", -1);
  CHECK(test::slurp(log.path()).empty());
  CHECK(events_of(folder.path()).empty());
}

TEST_CASE("metrics_log: resuming a log that has nothing later changes no file",
          "[train][metrics_log][unit]") {
  test::TemporaryFolder const folder;
  MetricsLog log(folder.path());
  log.resume("align", 0);
  CHECK(folder.entries() == 0);
  log.write("align", 1, {{"kl", 0.5}});
  std::string const before = test::slurp(log.path());
  log.resume("align", 1);
  log.resume("alig", -1);
  CHECK(test::slurp(log.path()) == before);
  CHECK(events_of(folder.path()).size() == 1);
}

TEST_CASE("metrics_log: a line that a killed run left unfinished is dropped",
          "[train][metrics_log][unit]") {
  test::TemporaryFolder const folder;
  folder.put("metrics.jsonl",
             "{\"phase\":\"align\",\"step\":1,\"kl\":0.5}\n{\"phase\":\"align\",\"st");
  MetricsLog log(folder.path());
  log.write("align", 2, {{"kl", 0.25}});
  CHECK(test::slurp(log.path()) ==
        "{\"phase\":\"align\",\"step\":1,\"kl\":0.5}\n"
        "{\"phase\":\"align\",\"step\":2,\"kl\":0.25}\n");
  folder.put("metrics.jsonl", "{\"phase\"");
  MetricsLog const other(folder.path());
  CHECK(test::slurp(other.path()).empty());
}

TEST_CASE("metrics_log: a file that is no log is named with its line, not rewritten",
          "[train][metrics_log][unit]") {
  test::TemporaryFolder const folder;
  std::string const text = "{\"phase\":\"align\",\"step\":1}\n{\"loss\": 1}\n";
  folder.put("metrics.jsonl", text);
  MetricsLog log(folder.path());
  CHECK(test::message_of<IoError>([&] {
          log.resume("align", 0);
        }).find("metrics.jsonl:2: this is not a line of metrics") != std::string::npos);
  CHECK(test::slurp(log.path()) == text);
}

TEST_CASE("metrics_log: names that would be ambiguous are refused", "[train][metrics_log][unit]") {
  test::TemporaryFolder const folder;
  MetricsLog log(folder.path());
  CHECK_THROWS_AS(log.write("a/b", 1, {{"x", 1.0}}), ConfigError);
  CHECK_THROWS_AS(log.write("", 1, {{"x", 1.0}}), ConfigError);
  CHECK_THROWS_AS(log.write("a", 1, {{"step", 1.0}}), ConfigError);
  CHECK(folder.entries() == 0);
}

TEST_CASE("metrics_log: on a full disk a line is written whole or not at all",
          "[train][metrics_log][unit]") {
  test::TemporaryFolder const folder;
  MetricsLog log(folder.path());
  log.write("align", 1, {{"kl", 0.5}});
  std::string const before = test::slurp(log.path());
  {
    test::FullDisk const full(before.size() + 10);
    CHECK(test::message_of<IoError>([&] {
            log.write("align", 2, {{"kl", 0.5}});
          }).find("metrics.jsonl") != std::string::npos);
  }
  CHECK(test::slurp(log.path()) == before);
}
