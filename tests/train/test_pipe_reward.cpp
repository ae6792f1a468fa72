// SPDX-License-Identifier: Apache-2.0
#include "emprl/train/pipe_reward.hpp"

#include <signal.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "emprl/io/utf8.hpp"
#include "emprl/rl/rewards.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::ConfigError;
using emprl::IoError;
using emprl::rl::Episode;
using emprl::rl::ScoreLog;
using emprl::test::message_of;
using emprl::test::slurp;
using emprl::test::TemporaryFolder;
using emprl::train::PipeReward;
using emprl::train::PipeRewardSettings;
using std::chrono::milliseconds;
using std::chrono::seconds;

namespace {

/// Episodes that own their texts.
struct Episodes {
  std::vector<std::string> names;
  std::vector<std::string> contexts;
  std::vector<std::string> responses;

  explicit Episodes(std::size_t n, std::string const& context = "how are you?") {
    for (std::size_t i = 0; i < n; ++i) {
      names.push_back("file:" + std::to_string(i));
      contexts.push_back(context);
      responses.push_back("reply " + std::to_string(i));
    }
  }

  std::vector<Episode> view() const {
    std::vector<Episode> all;
    for (std::size_t i = 0; i < names.size(); ++i) {
      Episode e;
      e.id = names[i];
      e.context = contexts[i];
      e.response = responses[i];
      all.push_back(e);
    }
    return all;
  }
};

struct Scored {
  std::vector<double> scores;
  ScoreLog log;
};

Scored score(PipeReward& reward, Episodes const& episodes) {
  auto const view = episodes.view();
  Scored out{{}, ScoreLog(view.size())};
  out.scores = emprl::rl::score_episodes(reward, {view, 0}, out.log);
  return out;
}

std::string refusal(PipeRewardSettings settings, std::size_t n = 1) {
  PipeReward reward(std::move(settings));
  return message_of<IoError>([&] { score(reward, Episodes(n)); });
}

/// A program that does `body` for every request; $id is its number.
std::string for_each_request(std::string const& body) {
  return "while read -r line; do id=${line#*:}; id=${id%%,*}; " + body + "; done";
}

/// A program that gives every request the same answer.
std::string saying(std::string const& answer) {
  return for_each_request("echo '" + answer + "'");
}

std::string const number_as_score = for_each_request("echo \"{\\\"id\\\":$id,\\\"score\\\":$id}\"");

}  // namespace

TEST_CASE("pipe reward: every episode gets its own score", "[train][pipe_reward][unit]") {
  PipeReward reward{{.command = number_as_score}};
  auto const first = score(reward, Episodes(200));
  REQUIRE(first.scores.size() == 200);
  for (std::size_t i = 0; i < 200; ++i) CHECK(first.scores[i] == static_cast<double>(i));
  CHECK(first.log.components().empty());
  // The same program goes on, and so do its numbers.
  CHECK(score(reward, Episodes(1)).scores == std::vector<double>{200});
  CHECK(score(reward, Episodes(0)).scores.empty());
}

TEST_CASE("pipe reward: a request is one JSON object with all that a reward may want",
          "[train][pipe_reward][unit]") {
  TemporaryFolder const folder;
  auto const file = (folder / "requests").string();
  PipeReward reward{{.command = for_each_request("printf '%s\\n' \"$line\" >> " + file +
                                                 "; echo \"{\\\"id\\\":$id,\\\"score\\\":1}\"")}};
  Episodes episodes(1, "a \"quoted\"\nline");
  auto view = episodes.view();
  view[0].reference = "fine\\thanks";
  std::vector<float> scores(1);
  ScoreLog log(1);
  reward({view, 0}, scores, log);
  CHECK(scores[0] == 1);
  CHECK(emprl::io::parse_json(slurp(file), "request") ==
        emprl::io::Json{{"id", 0},
                        {"episode", "file:0"},
                        {"context", "a \"quoted\"\nline"},
                        {"response", "reply 0"},
                        {"reference", "fine\\thanks"}});
}

TEST_CASE("pipe reward: answers may come in any order within a batch",
          "[train][pipe_reward][unit]") {
  std::string const last_first =
      "number() { id=${1#*:}; id=${id%%,*}; }; answer() { number \"$1\"; "
      "echo \"{\\\"score\\\": $id.5, \\\"id\\\": $id}\"; }; "
      "while read -r a && read -r b && read -r c; do answer \"$c\"; answer \"$a\"; answer \"$b\"; "
      "done";
  PipeReward reward{{.command = last_first, .batch = 3}};
  CHECK(score(reward, Episodes(6)).scores == std::vector<double>{.5, 1.5, 2.5, 3.5, 4.5, 5.5});
}

TEST_CASE("pipe reward: components are recorded by name", "[train][pipe_reward][unit]") {
  PipeReward reward{{.command = for_each_request("if [ $((id % 2)) = 0 ]; then "
                                                 "c='\"a\":1,\"b\":2'; else c='\"b\":4,\"a\":3'; "
                                                 "fi; echo \"{\\\"id\\\":$id,\\\"score\\\":0,"
                                                 "\\\"components\\\":{$c}}\""),
                     .batch = 2}};
  auto const log = score(reward, Episodes(3)).log;
  REQUIRE(log.components().size() == 2);
  CHECK(log.components()[0].name == "a");
  CHECK(log.components()[0].values == std::vector<double>{1, 3, 1});
  CHECK(log.components()[1].name == "b");
  CHECK(log.components()[1].values == std::vector<double>{2, 4, 2});
}

TEST_CASE("pipe reward: components that differ between answers are an error",
          "[train][pipe_reward][unit]") {
  auto const message =
      refusal({.command = for_each_request("echo \"{\\\"id\\\":$id,\\\"score\\\":0,"
                                           "\\\"components\\\":{\\\"part$id\\\":1}}\"")},
              2);
  CHECK_THAT(message, ContainsSubstring("(part0)"));
  CHECK_THAT(message, ContainsSubstring("\"file:1\" has (part1)"));
}

TEST_CASE("pipe reward: a flood on standard error blocks nobody", "[train][pipe_reward][unit]") {
  PipeReward reward{{.command = for_each_request("head -c 1000000 /dev/zero | tr '\\0' e >&2; "
                                                 "echo \"{\\\"id\\\":$id,\\\"score\\\":1}\"")}};
  CHECK(score(reward, Episodes(3)).scores == std::vector<double>{1, 1, 1});
}

TEST_CASE("pipe reward: a megabyte of context goes both ways", "[train][pipe_reward][unit]") {
  PipeReward reward{
      {.command = for_each_request("printf '{\"id\":%s,\"score\":2,%s\\n' $id \"${line#*,}\"")}};
  std::string const context(std::size_t{1} << 20, 'x');
  CHECK(score(reward, Episodes(3, context)).scores == std::vector<double>{2, 2, 2});
}

TEST_CASE("pipe reward: a program that never answers is named, and leaves nothing behind",
          "[train][pipe_reward][unit]") {
  TemporaryFolder const folder;
  auto const file = (folder / "pids").string();
  auto const message = refusal({.command = "echo $$ >> " + file + "; echo loading >&2; sleep 100",
                                .timeout = milliseconds(200),
                                .restarts = 1},
                               2);
  CHECK_THAT(message, ContainsSubstring("exceeded its timeout of 200 ms"));
  CHECK_THAT(message, ContainsSubstring("sleep 100"));
  CHECK_THAT(message, ContainsSubstring("episode \"file:0\""));
  CHECK_THAT(message, ContainsSubstring("0 of 2 answers"));
  std::string const pids = slurp(file);
  std::size_t starts = 0;
  for (std::size_t at = 0; at < pids.size(); at = pids.find('\n', at) + 1, ++starts) {
    CHECK(::kill(std::stoi(pids.substr(at)), 0) != 0);
    CHECK(errno == ESRCH);
  }
  CHECK(starts <= 2);
}

TEST_CASE("pipe reward: a late program's last words are in the message",
          "[train][pipe_reward][unit]") {
  auto const message = refusal(
      {.command = "echo 'loading weights' >&2; sleep 100", .timeout = seconds(2), .restarts = 0});
  INFO(message);
  CHECK_THAT(message, ContainsSubstring("\"loading weights\""));
  CHECK_THAT(message, ContainsSubstring("timeout of 2000 ms"));
}

TEST_CASE("pipe reward: a program that dies is started again and gets the batch anew",
          "[train][pipe_reward][unit]") {
  TemporaryFolder const folder;
  auto const file = (folder / "started").string();
  // The first one answers one request and dies, so that half a batch has been answered.
  std::string const command = "if [ ! -e " + file + " ]; then touch " + file +
                              "; read -r line; echo '{\"id\":0,\"score\":99}'; "
                              "echo 'out of memory' >&2; exit 9; fi; " +
                              number_as_score;
  SECTION("with a restart left") {
    PipeReward reward{{.command = command, .restarts = 1}};
    CHECK(score(reward, Episodes(5)).scores == std::vector<double>{0, 1, 2, 3, 4});
  }
  SECTION("and is an error without") {
    PipeReward reward{{.command = command, .restarts = 0}};
    auto const message = message_of<IoError>([&] { score(reward, Episodes(5)); });
    CHECK_THAT(message, ContainsSubstring("ended with status 9"));
    CHECK_THAT(message, ContainsSubstring("out of memory"));
    CHECK_THAT(message, ContainsSubstring("episode \"file:"));
    // The next call starts it again.
    CHECK(score(reward, Episodes(2)).scores == std::vector<double>{0, 1});
  }
}

TEST_CASE("pipe reward: restarts are counted per call, over all its batches",
          "[train][pipe_reward][unit]") {
  std::string const once =
      "read -r line; id=${line#*:}; id=${id%%,*}; echo \"{\\\"id\\\":$id,\\\"score\\\":$id}\"";
  PipeReward enough{{.command = once, .restarts = 2, .batch = 1}};
  CHECK(score(enough, Episodes(3)).scores == std::vector<double>{0, 1, 2});
  PipeReward few{{.command = once, .restarts = 1, .batch = 1}};
  auto const message = message_of<IoError>([&] { score(few, Episodes(3)); });
  CHECK_THAT(message, ContainsSubstring("ended with status 0"));
  CHECK_THAT(message, ContainsSubstring("episode \"file:2\""));
}

TEST_CASE("pipe reward: an answer that breaks the protocol is refused and not asked for again",
          "[train][pipe_reward][unit]") {
  TemporaryFolder const folder;
  auto const file = (folder / "starts").string();
  auto const refused = [&](std::string const& answer, std::size_t n = 1) {
    std::string const message =
        refusal({.command = "echo start >> " + file + "; echo note >&2; " + saying(answer)}, n);
    CHECK(slurp(file) == "start\n");
    std::filesystem::remove(file);
    CHECK_THAT(message, ContainsSubstring("while read -r line"));
    CHECK_THAT(message, ContainsSubstring("episode \"file:"));
    CHECK_THAT(message, ContainsSubstring(answer));
    CHECK_THAT(message, ContainsSubstring("\"note\""));
    return message;
  };
  CHECK_THAT(refused("hello"), ContainsSubstring("not valid JSON"));
  CHECK_THAT(refused(R"({"id":0,"score":NaN})"), ContainsSubstring("neither NaN nor Infinity"));
  CHECK_THAT(refused(R"({"id":0,"score":1e999})"), ContainsSubstring("not valid JSON"));
  CHECK_THAT(refused(R"({"id":0,"id":0,"score":1})"), ContainsSubstring("appears twice"));
  CHECK_THAT(refused("0.5"), ContainsSubstring("An answer is a JSON object"));
  CHECK_THAT(refused(R"({"score":1})"), ContainsSubstring("no \"id\""));
  CHECK_THAT(refused(R"({"id":"0","score":1})"), ContainsSubstring("not the whole number"));
  CHECK_THAT(refused(R"({"id":7,"score":1})"), ContainsSubstring("requests 0 to 0 are open"));
  CHECK_THAT(refused(R"({"id":-1,"score":1})"), ContainsSubstring("Nobody waits for the id -1"));
  CHECK_THAT(refused(R"({"id":18446744073709551615,"score":1})"),
             ContainsSubstring("Nobody waits for the id 18446744073709551615"));
  CHECK_THAT(refused(R"({"id":0,"score":1})", 2), ContainsSubstring("answered twice"));
  CHECK_THAT(refused(R"({"id":0})"), ContainsSubstring("no \"score\""));
  CHECK_THAT(refused(R"({"id":0,"score":null})"), ContainsSubstring("not a finite number"));
  CHECK_THAT(refused(R"({"id":0,"score":"1"})"), ContainsSubstring("not a finite number"));
  CHECK_THAT(refused(R"({"id":0,"score":true})"), ContainsSubstring("not a finite number"));
  CHECK_THAT(refused(R"({"id":0,"score":1e300})"), ContainsSubstring("not a finite number"));
  CHECK_THAT(refused(R"({"id":0,"score":1,"components":[1]})"), ContainsSubstring("not an object"));
  CHECK_THAT(refused(R"({"id":0,"score":1,"components":{"a":null}})"),
             ContainsSubstring("component \"a\" of episode \"file:0\" is not a finite number"));
}

TEST_CASE("pipe reward: after a broken answer the program is asked afresh",
          "[train][pipe_reward][unit]") {
  TemporaryFolder const folder;
  auto const file = (folder / "started").string();
  PipeReward reward{{.command = "if [ ! -e " + file + " ]; then touch " + file + "; " +
                                saying("what?") + "; else " + number_as_score + "; fi"}};
  CHECK_THROWS_AS(score(reward, Episodes(3)), IoError);
  CHECK(score(reward, Episodes(3)).scores == std::vector<double>{0, 1, 2});
}

TEST_CASE("pipe reward: bytes that are not UTF-8 reach the program as U+FFFD",
          "[train][pipe_reward][unit]") {
  TemporaryFolder const folder;
  auto const file = (folder / "requests").string();
  PipeReward reward{{.command = for_each_request("printf '%s\\n' \"$line\" >> " + file +
                                                 "; echo \"{\\\"id\\\":$id,\\\"score\\\":1}\"")}};
  Episodes episodes(1);
  episodes.responses[0] = "caf\xE9 \xE2\x82";
  CHECK(score(reward, episodes).scores == std::vector<double>{1});
  CHECK(emprl::io::is_valid_utf8(slurp(file)));
  CHECK_THAT(slurp(file), ContainsSubstring("caf\xEF\xBF\xBD \xEF\xBF\xBD"));
}

TEST_CASE("pipe reward: a program that answers in bytes that are not UTF-8 is refused legibly",
          "[train][pipe_reward][unit]") {
  auto const message = refusal({.command = for_each_request("printf '\\377\\n'")});
  CHECK_THAT(message, ContainsSubstring("not valid UTF-8"));
  CHECK(emprl::io::is_valid_utf8(message));
}

TEST_CASE("pipe reward: nothing is started before there is an episode",
          "[train][pipe_reward][unit]") {
  TemporaryFolder const folder;
  PipeReward reward{{.command = "touch " + (folder / "started").string() + "; cat"}};
  CHECK(score(reward, Episodes(0)).scores.empty());
  CHECK(folder.entries() == 0);
}

TEST_CASE("pipe reward: it moves with its program and does not copy",
          "[train][pipe_reward][unit]") {
  STATIC_REQUIRE(!std::is_copy_constructible_v<PipeReward>);
  PipeReward reward{{.command = number_as_score}};
  CHECK(score(reward, Episodes(1)).scores == std::vector<double>{0});
  PipeReward moved = std::move(reward);
  CHECK(score(moved, Episodes(1)).scores == std::vector<double>{1});
}

TEST_CASE("pipe reward: settings out of range are refused by name", "[train][pipe_reward][unit]") {
  auto const message = [](PipeRewardSettings settings) {
    return message_of<ConfigError>([&] { PipeReward reward(std::move(settings)); });
  };
  CHECK_THAT(message({}), ContainsSubstring("command"));
  CHECK_THAT(message({.command = " "}), ContainsSubstring("command"));
  CHECK_THAT(message({.command = std::string("a\0b", 3)}), ContainsSubstring("command"));
  CHECK_THAT(message({.command = "cat", .timeout = milliseconds(0)}),
             ContainsSubstring("timeout is 0 ms"));
  CHECK_THAT(message({.command = "cat", .timeout = milliseconds::max()}),
             ContainsSubstring("timeout"));
  CHECK_THAT(message({.command = "cat", .restarts = -1}), ContainsSubstring("restarts is -1"));
  CHECK_THAT(message({.command = "cat", .batch = 0}), ContainsSubstring("batch is 0"));
}
