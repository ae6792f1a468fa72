// SPDX-License-Identifier: Apache-2.0
#include "emprl/data/pairs.hpp"

#include <set>
#include <string>
#include <vector>

#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::IoError;
using emprl::data::load_pairs;
using emprl::data::Pair;
using emprl::data::Split;
using emprl::test::message_of;
using emprl::test::TemporaryFolder;

namespace {

std::string const header =
    "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\n";

}  // namespace

TEST_CASE("pairs: JSON lines give context, response, emotion, levels and a name",
          "[data][pairs][unit]") {
  TemporaryFolder const folder;
  auto const file = folder.put(
      "p.jsonl",
      R"({"context": "a", "response": "b", "emotion": "sad", "levels": {"er": 0, "ip": 2, "ex": 1}})"
      "\n\n"
      R"({"id": "x7", "context": "c", "response": "d", "levels": null, "more": []})"
      "\n"
      R"({"id": 12, "context": "c", "response": "d"})");
  auto const set = load_pairs(file, Split::train);
  REQUIRE(set.pairs.size() == 3);
  CHECK(set.file == file);
  CHECK_FALSE(set.has_splits);
  CHECK(set.pairs[0].context == "a");
  CHECK(set.pairs[0].response == "b");
  CHECK(set.pairs[0].emotion == "sad");
  CHECK(set.pairs[0].levels == emprl::data::Levels{0, 2, 1});
  CHECK(set.pairs[0].id == file.string() + ":1");
  CHECK(set.pairs[1].id == "x7");
  CHECK_FALSE(set.pairs[1].levels.has_value());
  CHECK(set.pairs[2].id == "12");
  auto const again = emprl::data::pair_from_json(emprl::data::pair_to_json(set.pairs[0]), "w");
  CHECK(again.levels == set.pairs[0].levels);
  CHECK(again.id == set.pairs[0].id);
  CHECK(again.emotion == "sad");
}

TEST_CASE("pairs: bad lines are refused by file and line", "[data][pairs][bad_input]") {
  TemporaryFolder const folder;
  auto const refusal = [&](std::string const& line) {
    auto const file = folder.put("p.jsonl", R"({"context": "a", "response": "b"})"
                                            "\n" +
                                                line);
    std::string const message = message_of<IoError>([&] { load_pairs(file, Split::train); });
    CHECK_THAT(message, ContainsSubstring(file.string() + ":2: "));
    return message;
  };
  CHECK_THAT(refusal(R"({"response": "b"})"), ContainsSubstring("no \"context\""));
  CHECK_THAT(refusal(R"({"context": "b"})"), ContainsSubstring("no \"response\""));
  CHECK_THAT(refusal(R"({"context": "", "response": "b"})"),
             ContainsSubstring("\"context\" is empty"));
  CHECK_THAT(refusal(R"({"context": "a", "response": " \n"})"),
             ContainsSubstring("\"response\" is empty"));
  CHECK_THAT(refusal(R"({"context": 3, "response": "b"})"), ContainsSubstring("must be text"));
  std::string const pair = R"({"context": "a", "response": "b", "levels": )";
  CHECK_THAT(refusal(pair + R"({"er": 0, "ip": 3, "ex": 1}})"),
             ContainsSubstring("level 3 of \"ip\""));
  CHECK_THAT(refusal(pair + R"({"er": -1, "ip": 0, "ex": 1}})"), ContainsSubstring("level -1"));
  CHECK_THAT(refusal(pair + R"({"er": 1.5, "ip": 0, "ex": 1}})"), ContainsSubstring("level 1.5"));
  CHECK_THAT(refusal(pair + R"({"er": "1", "ip": 0, "ex": 1}})"), ContainsSubstring("level"));
  CHECK_THAT(refusal(pair + R"({"er": 1, "ip": 0}})"), ContainsSubstring("no \"ex\""));
  CHECK_THAT(refusal(pair + "[0, 1, 2]}"), ContainsSubstring("levels"));
  CHECK_THAT(refusal("{\"context\": \"\xFF\", \"response\": \"b\"}"), ContainsSubstring("UTF-8"));
  auto const empty = folder.put("empty.jsonl", "\n");
  CHECK_THAT(message_of<IoError>([&] { load_pairs(empty, Split::train); }),
             ContainsSubstring("holds no pairs"));
  auto const context_only = folder.put("c.jsonl", R"({"context": "a"})");
  CHECK(emprl::data::read_pairs(context_only, emprl::data::Responses::optional).size() == 1);
}

TEST_CASE("pairs: a folder's test split falls back to valid and says so", "[data][pairs][unit]") {
  TemporaryFolder const folder;
  auto const csv = [](std::string const& name) {
    return header + name + ",1,sad,p,0,a,,\n" + name + ",2,sad,p,1,b,,\n" + "broken,row\n";
  };
  folder.put("train.csv", csv("t"));
  CHECK_THAT(message_of<IoError>([&] { load_pairs(folder.path(), Split::test); }),
             ContainsSubstring("no test.csv and no valid.csv"));
  CHECK_THAT(message_of<IoError>([&] { load_pairs(folder.path(), Split::valid); }),
             ContainsSubstring("no valid.csv"));
  folder.put("valid.csv", csv("v"));
  auto const fallback = load_pairs(folder.path(), Split::test);
  CHECK(fallback.split == Split::valid);
  CHECK(fallback.has_splits);
  CHECK(fallback.warnings.size() == 1);
  CHECK(fallback.pairs.at(0).id == "v:2");
  folder.put("test.csv", csv("e"));
  CHECK(load_pairs(folder.path(), Split::test).split == Split::test);
  CHECK(load_pairs(folder.path(), Split::train).pairs.at(0).id == "t:2");
  CHECK(load_pairs(folder / "valid.csv", Split::train).pairs.at(0).id == "v:2");
  folder.put("nothing.csv", header);
  CHECK_THAT(message_of<IoError>([&] { load_pairs(folder / "nothing.csv", Split::train); }),
             ContainsSubstring("no pairs"));
  CHECK_THROWS_AS(load_pairs(folder / "missing.jsonl", Split::train), IoError);
}

TEST_CASE("pairs: a tokenizer sees each text of a dialogue once", "[data][pairs][unit]") {
  TemporaryFolder const folder;
  auto const file = folder.put("p.jsonl", R"({"context": "a", "response": "b"})"
                                          "\n"
                                          R"({"context": "a b c", "response": "d"})"
                                          "\n"
                                          R"({"context": "x", "response": "y"})"
                                          "\n");
  CHECK(emprl::data::load_texts(file, Split::train) ==
        std::vector<std::string>{"b", "a b c", "d", "x", "y"});
  auto const csv = folder.put("t.csv", header + "c,1,sad,p,0,a,,\nc,2,sad,p,1,b,,\n");
  CHECK(emprl::data::load_texts(csv, Split::train) == std::vector<std::string>{"a", "b"});
}

TEST_CASE("pairs: holding out never cuts a dialogue", "[data][pairs][unit]") {
  std::vector<Pair> pairs;
  for (int d = 0; d < 50; ++d) {
    std::string context = "dialogue " + std::to_string(d) + ".";
    for (int turn = 0; turn < 3; ++turn) {
      Pair pair;
      pair.id = std::to_string(d);
      pair.context = context;
      pair.response = "r";
      pairs.push_back(pair);
      context += " more";
    }
  }
  auto const parts = emprl::data::hold_out(pairs, 0.2, 3);
  CHECK(parts.held_out.size() == 30);
  CHECK(parts.kept.size() == 120);
  std::set<std::string> out;
  for (auto const& pair : parts.held_out) out.insert(pair.id);
  CHECK(out.size() == 10);
  for (auto const& pair : parts.kept) CHECK(out.count(pair.id) == 0);
  CHECK(emprl::data::hold_out(pairs, 0.2, 3).held_out[0].id == parts.held_out[0].id);
  CHECK(emprl::data::hold_out(pairs, 0.0001, 3).held_out.size() == 3);
  CHECK(emprl::data::hold_out(pairs, 0.9999, 3).kept.size() == 3);
  CHECK_THROWS_AS(emprl::data::hold_out(pairs, 1.0, 3), emprl::ConfigError);
  CHECK_THROWS_AS(emprl::data::hold_out(std::span(pairs).first(3), 0.5, 3), IoError);
}
