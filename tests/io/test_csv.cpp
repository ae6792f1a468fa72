// SPDX-License-Identifier: Apache-2.0
#include "emprl/io/csv.hpp"

#include <string>
#include <vector>

#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::IoError;
using emprl::io::QuotedCsvReader;
using emprl::test::message_of;

namespace {

using Rows = std::vector<std::vector<std::string>>;

Rows all(std::string const& text, std::vector<emprl::index_t>* lines = nullptr) {
  QuotedCsvReader reader(text, "in.csv");
  Rows rows;
  for (std::vector<std::string> row; reader.next(row);) {
    rows.push_back(row);
    if (lines != nullptr) lines->push_back(reader.line());
  }
  return rows;
}

}  // namespace

TEST_CASE("csv: unquoted lines split at every comma and a quote is data", "[io][csv][unit]") {
  auto const fields = emprl::io::split_unquoted_csv("a,\"b,c\",,d");
  CHECK(std::vector<std::string>(fields.begin(), fields.end()) ==
        std::vector<std::string>{"a", "\"b", "c\"", "", "d"});
  CHECK(emprl::io::split_unquoted_csv("").size() == 1);
  CHECK(emprl::io::split_unquoted_csv(",").size() == 2);
}

TEST_CASE("csv: quoted fields hold commas, newlines and quotes", "[io][csv][unit]") {
  std::vector<emprl::index_t> lines;
  CHECK(all("a,b\r\n\"x, y\",\"two\nlines, \"\"said\"\"\"\n\n,\"\"\nlast,5\" nails", &lines) ==
        Rows{{"a", "b"}, {"x, y", "two\nlines, \"said\""}, {"", ""}, {"last", "5\" nails"}});
  CHECK(lines == std::vector<emprl::index_t>{1, 2, 5, 6});
  CHECK(all("").empty());
  CHECK(all("\n\r\n").empty());
  CHECK(all("\xEF\xBB\xBF\"a\",b\n") == Rows{{"a", "b"}});
  CHECK(all("a,\n") == Rows{{"a", ""}});
  CHECK(all("a,") == Rows{{"a", ""}});
  CHECK(all("\"a\"") == Rows{{"a"}});
  CHECK(all("a\rb,c\n") == Rows{{"a\rb", "c"}});
}

TEST_CASE("csv: quoting mistakes and invalid UTF-8 are refused by file and line",
          "[io][csv][bad_input]") {
  auto const refusal = [](std::string const& text) {
    return message_of<IoError>([&] { all(text); });
  };
  CHECK_THAT(refusal("a\n\"open\nmore\n"),
             ContainsSubstring("in.csv:2:") && ContainsSubstring("never closed"));
  CHECK_THAT(refusal("a\n\"x\ny\"z,1\n"),
             ContainsSubstring("in.csv:3:") && ContainsSubstring("closing quote"));
  CHECK_THAT(refusal("a\nb\n\xFF\n"), ContainsSubstring("in.csv:3:") && ContainsSubstring("UTF-8"));
  CHECK_THAT(refusal("a\n\"b\n\xC3\n\nc\"\n"),
             ContainsSubstring("in.csv:3:") && ContainsSubstring("UTF-8"));
}
