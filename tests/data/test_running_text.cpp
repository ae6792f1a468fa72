// SPDX-License-Identifier: Apache-2.0
#include "emprl/data/running_text.hpp"

#include <string>
#include <vector>

#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

using namespace emprl;
using Catch::Matchers::ContainsSubstring;
using Texts = std::vector<std::string>;

TEST_CASE("running text: a paragraph a line, blank lines passed over",
          "[data][running_text][unit]") {
  CHECK(data::paragraphs_of("\xEF\xBB\xBFone\r\n\n  \ntwo three\n\"four\"", "book") ==
        Texts{"one", "two three", "\"four\""});
  CHECK_THROWS_WITH(data::paragraphs_of("", "book"),
                    ContainsSubstring("book: the file holds no text"));
  CHECK_THROWS_WITH(data::paragraphs_of("\n \t\n", "book"), ContainsSubstring("no text"));
  CHECK_THROWS_WITH(data::paragraphs_of("good\nb\xE9"
                                        "d\n",
                                        "book"),
                    ContainsSubstring("book:2: byte 2"));
}

TEST_CASE("running text: the turns of dialogues, in their order", "[data][running_text][unit]") {
  CHECK(data::turns_of("{\"source\": \"x\", \"turns\": [\"hi\", \" \", \"hello\"]}\n\n"
                       "{\"turns\": []}\n{\"turns\": [\"bye\"]}",
                       "talk") == Texts{"hi", "hello", "bye"});
  std::string const good = "{\"turns\": [\"hi\"]}\n";
  auto const refused = [](std::string const& text, std::string const& sentence) {
    INFO(text);
    CHECK_THAT(emprl::test::message_of<IoError>([&] { data::turns_of(text, "talk"); }),
               ContainsSubstring(sentence));
  };
  refused("", "talk: the file holds no turns");
  refused("{\"turns\": [\" \"]}\n", "talk: the file holds no turns");
  refused(good + "hi there\n", "talk:2: ");
  refused(good + good + "[\"hi\"]\n", "talk:3: ");
  refused(good + "{\"text\": \"hi\"}\n", "talk:2: there is no list \"turns\"");
  refused(good + "{\"turns\": \"hi\"}\n", "talk:2: there is no list \"turns\"");
  refused(good + "{\"turns\": [\"hi\", 3]}\n", "talk:2: in \"turns\" there is number");
}
