// SPDX-License-Identifier: Apache-2.0
#include "emprl/data/empathetic_dialogues.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "data/real_data.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::IoError;
using emprl::data::Conversations;
using emprl::data::listener_pairs;
using emprl::data::Pair;
using emprl::data::parse_empathetic_dialogues;
using emprl::test::message_of;

namespace {

std::string const header =
    "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\n";

std::string row(std::string const& conversation, std::string const& index,
                std::string const& text) {
  return conversation + "," + index + ",sad,a prompt,0," + text + ",,\n";
}

std::string texts(std::vector<Pair> const& pairs) {
  std::string all;
  for (auto const& pair : pairs) {
    all += pair.id + "[" + pair.context + "->" + pair.response + "]";
  }
  return all;
}

}  // namespace

TEST_CASE("empathetic_dialogues: even turns are responses to all that came before",
          "[data][empathetic_dialogues][unit]") {
  auto const data = parse_empathetic_dialogues(
      header + row("c1", "1", "Hi_comma_ \"you") + row("c1", "2", "Hello") + row("c1", "3", "Bye") +
          row("c1", "4", "Ciao") + row("c1", "5", "End") + row("c2", "1", "alone"),
      "train.csv");
  CHECK(data.warnings.empty());
  CHECK(texts(listener_pairs(data)) == "c1:2[Hi, \"you->Hello]c1:4[Hi, \"you Hello Bye->Ciao]");
  CHECK(listener_pairs(data)[0].emotion == "sad");
  CHECK(data.conversations[0].prompt == "a prompt");
  CHECK(texts(listener_pairs(data, {" </t> ", 2})) ==
        "c1:2[Hi, \"you->Hello]c1:4[Hello </t> Bye->Ciao]");
  CHECK(texts(listener_pairs(data, {" ", 1})) == "c1:2[Hi, \"you->Hello]c1:4[Bye->Ciao]");
  CHECK_THROWS_AS(listener_pairs(data, {" ", -1}), emprl::ConfigError);
  CHECK(emprl::data::utterances(data) ==
        std::vector<std::string>{"Hi, \"you", "Hello", "Bye", "Ciao", "End", "alone"});
}

TEST_CASE("empathetic_dialogues: speaker_idx, row order, CRLF and a byte order mark do not matter",
          "[data][empathetic_dialogues][unit]") {
  auto const data = parse_empathetic_dialogues("\xEF\xBB\xBF" + header + "c1,2,sad,p,17,b,,\r\n" +
                                                   "c2,1,joyful,p,3,x,,\r\n" +
                                                   "c1,1,sad,p,17,a,,\r\n" + "c2,2,joyful,p,3,y,,",
                                               "f");
  CHECK(data.warnings.empty());
  CHECK(texts(listener_pairs(data)) == "c1:2[a->b]c2:2[x->y]");
}

TEST_CASE("empathetic_dialogues: a broken row is reported and nothing after it is misaligned",
          "[data][empathetic_dialogues][bad_input]") {
  std::string const good = row("c1", "1", "a") + row("c1", "2", "b") + row("c1", "3", "c");
  auto const with = [&](std::string const& broken) {
    return parse_empathetic_dialogues(header + good + broken + row("c1", "5", "e") +
                                          row("c1", "6", "f") + row("c2", "1", "x") +
                                          row("c2", "2", "y"),
                                      "t.csv");
  };
  std::string const kept = "c1:2[a->b]c2:2[x->y]";
  for (std::string const broken :
       {"c1,4,sad,p,0,d, unescaped,,\n", "c1,4,sad,p,0,d\n", "c1,4,sad,p,0,d,5|5|5,,\n",
        "c1,four,sad,p,0,d,,\n", "c1,4,sad,p,0, ,,\n", "c1,-4,sad,p,0,d,,\n", "c1,4x,sad,p,0,d,,\n",
        "c1,99999999999999999999,sad,p,0,d,,\n", "\n"}) {
    INFO(broken);
    Conversations const data = with(broken);
    CHECK(texts(listener_pairs(data)) == kept);
    bool const blank = broken == "\n";
    REQUIRE(data.warnings.size() == (blank ? 1U : 2U));
    CHECK(data.warnings.front().line == (blank ? 6 : 5));
    CHECK_THAT(to_string(data.warnings.back()), ContainsSubstring("t.csv:6: turn 4 of c1"));
  }
  CHECK_THAT(to_string(with("c1,4,sad,p,0,d\n").warnings.front()),
             ContainsSubstring("t.csv:5:") && ContainsSubstring("6 columns"));

  auto const twice = parse_empathetic_dialogues(
      header + good + row("c1", "2", "other") + row("c1", "4", "d"), "t.csv");
  CHECK(texts(listener_pairs(twice)) == "c1:2[a->b]c1:4[a b c->d]");
  REQUIRE(twice.warnings.size() == 1);
  CHECK(twice.warnings[0].line == 5);

  auto const headless = parse_empathetic_dialogues(header + row("c1", "2", "b"), "t.csv");
  CHECK(headless.conversations.empty());
  CHECK(headless.warnings.size() == 1);
}

TEST_CASE("empathetic_dialogues: a ninth column of candidates is not a broken row",
          "[data][empathetic_dialogues][unit]") {
  auto const data = parse_empathetic_dialogues(
      header + row("c1", "1", "a") + "c1,2,sad,p,0,b,5|5|5_4|3|4,,one|two|three\n", "t.csv");
  CHECK(data.warnings.empty());
  CHECK(texts(listener_pairs(data)) == "c1:2[a->b]");
}

TEST_CASE("empathetic_dialogues: other files, empty ones and invalid UTF-8 are refused by name",
          "[data][empathetic_dialogues][bad_input]") {
  auto const refusal = [](std::string const& text) {
    return message_of<IoError>([&] { parse_empathetic_dialogues(text, "t.csv"); });
  };
  CHECK_THAT(refusal(""), ContainsSubstring("t.csv: the file is empty"));
  CHECK_THAT(refusal("a,b,c\n"), ContainsSubstring("t.csv:1:"));
  CHECK_THAT(refusal(header + row("c1", "1", "a") + row("c1", "2", "b\xFF")),
             ContainsSubstring("t.csv:3:") && ContainsSubstring("UTF-8"));
  CHECK_THROWS_AS(emprl::data::read_empathetic_dialogues("no/such/file.csv"), IoError);
}

TEST_CASE("empathetic_dialogues: the 32 emotions are found by name",
          "[data][empathetic_dialogues][unit]") {
  CHECK(std::is_sorted(emprl::data::emotions.begin(), emprl::data::emotions.end()));
  CHECK(emprl::data::emotion_index("afraid") == 0);
  CHECK(emprl::data::emotion_index("trusting") == 31);
  CHECK_FALSE(emprl::data::emotion_index("hungry").has_value());
}

TEST_CASE("empathetic_dialogues: the real data has the published counts",
          "[data][empathetic_dialogues][real]") {
  auto const folder = emprl::test::real_data("empathetic_dialogues");
  if (folder.empty()) return;
  auto const train = emprl::data::read_empathetic_dialogues(folder / "train.csv");
  CHECK(train.conversations.size() == 19'533);
  CHECK(listener_pairs(train).size() == 40'254);
  CHECK(emprl::data::utterances(train).size() == 84'169);
  CHECK(train.warnings.empty());
  for (auto const& conversation : train.conversations) {
    if (!emprl::data::emotion_index(conversation.emotion)) FAIL(conversation.emotion);
  }
  auto const valid = emprl::data::read_empathetic_dialogues(folder / "valid.csv");
  CHECK(valid.conversations.size() == 2'770);
  CHECK(listener_pairs(valid).size() == 5'738);
  CHECK(valid.warnings.empty());
}
