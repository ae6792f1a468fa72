// SPDX-License-Identifier: Apache-2.0
#include "emprl/io/json_lines.hpp"

#include <string>
#include <vector>

#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::IoError;
using emprl::io::Json;
using emprl::io::JsonLine;
using emprl::io::JsonLinesReader;
using emprl::test::message_of;
using emprl::test::slurp;
using emprl::test::TemporaryFolder;

namespace {

std::string refusal(std::string const& text) {
  return message_of<IoError>([&] {
    JsonLinesReader reader(text, "in.jsonl");
    for (JsonLine line; reader.next(line);) {
    }
  });
}

}  // namespace

TEST_CASE("json_lines: unknown fields and the order of keys survive", "[io][json_lines][unit]") {
  TemporaryFolder const folder;
  std::string const text =
      "{\"z\":1,\"context\":\"caf\xC3\xA9\",\"a\":[1,{\"y\":null,\"b\":2.5}]}\n{\"id\":7}\n";
  auto const lines = emprl::io::read_json_lines(folder.put("in.jsonl", text));
  REQUIRE(lines.size() == 2);
  CHECK(lines[1].line == 2);
  std::vector<Json> values;
  for (auto const& line : lines) values.push_back(line.value);
  emprl::io::write_json_lines(folder / "out.jsonl", values);
  CHECK(slurp(folder / "out.jsonl") == text);
}

TEST_CASE("json_lines: blank lines, CRLF, a byte order mark and a last line without end are fine",
          "[io][json_lines][unit]") {
  JsonLinesReader reader("\xEF\xBB\xBF{\"a\":1}\r\n\n  \r\n{\"a\":2}", "in");
  JsonLine line;
  REQUIRE(reader.next(line));
  CHECK(line.value["a"] == 1);
  REQUIRE(reader.next(line));
  CHECK(line.value["a"] == 2);
  CHECK(line.line == 4);
  CHECK(reader.where() == "in:4");
  CHECK_FALSE(reader.next(line));
  JsonLinesReader empty("", "in");
  CHECK_FALSE(empty.next(line));
}

TEST_CASE("json_lines: bad lines are refused by file and line", "[io][json_lines][bad_input]") {
  CHECK_THAT(refusal("{}\n{\"a\":}\n"),
             ContainsSubstring("in.jsonl:2:") && ContainsSubstring("not valid JSON"));
  CHECK_THAT(refusal("{}\n{} {}\n"), ContainsSubstring("in.jsonl:2:"));
  CHECK_THAT(refusal("\n\n[1]\n"),
             ContainsSubstring("in.jsonl:3:") && ContainsSubstring("JSON object"));
  CHECK_THAT(refusal("{\"a\":\"\xFF\"}"),
             ContainsSubstring("in.jsonl:1:") && ContainsSubstring("UTF-8"));
  CHECK_THAT(refusal("{\"a\":\"\\ud800\"}"), ContainsSubstring("in.jsonl:1:"));
  CHECK_THAT(refusal("{\"a\":1e999}"), ContainsSubstring("in.jsonl:1:"));
  CHECK_THAT(refusal("{\"a\":" + std::string(1'000'000, '[')), ContainsSubstring("nested"));
  CHECK_THAT(refusal("{\"a\":" + std::string(64, '[') + std::string(64, ']') + "}"),
             ContainsSubstring("nested"));
  CHECK(refusal("{\"a\":" + std::string(63, '[') + std::string(63, ']') + "}").empty());
  CHECK(refusal("{\"brackets\":\"" + std::string(1000, '[') + "\\\"" + "\"}").empty());
}

TEST_CASE("json_lines: an abandoned or failed writer leaves the old file",
          "[io][json_lines][bad_input]") {
  TemporaryFolder const folder;
  auto const path = folder.put("out.jsonl", "old");
  {
    emprl::io::JsonLinesWriter writer(path);
    writer.write({{"a", 1}});
  }
  CHECK(slurp(path) == "old");
  std::string message;
  {
    emprl::test::FullDisk const full(1000);
    message = message_of<IoError>([&] {
      emprl::io::JsonLinesWriter writer(path);
      for (int i = 0; i < 1000; ++i) writer.write({{"text", "some text"}});
      writer.commit();
    });
  }
  CHECK_THAT(message, ContainsSubstring(path.string()));
  CHECK(slurp(path) == "old");
  CHECK(folder.entries() == 1);
}

TEST_CASE("json_lines: text that is not UTF-8 is mended on the way out", "[io][json_lines]") {
  CHECK(emprl::io::to_json_line({{"a", "x\xFF"}}) == "{\"a\":\"x\xEF\xBF\xBD\"}");
}

TEST_CASE("json: a file that is empty or holds no object is refused by name",
          "[io][json][bad_input]") {
  TemporaryFolder const folder;
  auto const refuse = [&](std::string const& text) {
    auto const path = folder.put("config.json", text);
    return message_of<IoError>([&] { emprl::io::read_json_file(path); });
  };
  CHECK_THAT(refuse(""), ContainsSubstring("config.json: the file is empty"));
  CHECK_THAT(refuse("[1]"), ContainsSubstring("JSON object"));
  CHECK_THAT(refuse("{\"a\": tru}"), ContainsSubstring("config.json: this is not valid JSON"));
  CHECK(refuse("{\"a\": true}").empty());
  emprl::io::write_json_file(folder / "config.json", {{"z", 1}, {"a", 2}});
  CHECK(slurp(folder / "config.json") == "{\n  \"z\": 1,\n  \"a\": 2\n}\n");
}
