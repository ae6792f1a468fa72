// SPDX-License-Identifier: Apache-2.0
#include "emprl/io/json.hpp"

#include <cstdint>
#include <limits>
#include <string>

#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::IoError;
using emprl::io::Json;
using emprl::io::parse_json;
using emprl::io::whole_number;
using emprl::test::message_of;

TEST_CASE("json: whole numbers of 64 bits are read and nothing is cut to one", "[io][json][unit]") {
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  constexpr std::int64_t least = std::numeric_limits<std::int64_t>::min();
  CHECK(whole_number(parse_json("7", "x"), "x") == 7);
  CHECK(whole_number(parse_json("-1", "x"), "x") == -1);
  CHECK(whole_number(parse_json(std::to_string(most), "x"), "x") == most);
  CHECK(whole_number(parse_json(std::to_string(least), "x"), "x") == least);
  CHECK(whole_number(Json(std::uint64_t{7}), "x") == 7);
  for (char const* text : {"9223372036854775808", "18446744073709551615", "1e300", "2.5", "3.0",
                           "true", "\"7\"", "null", "[7]", "{}"}) {
    INFO(text);
    CHECK_THAT(message_of<IoError>([&] { whole_number(parse_json(text, "x"), "state.json"); }),
               ContainsSubstring("state.json: a whole number was expected"));
  }
}

TEST_CASE("json: nothing after a NUL is passed over", "[io][json][bad_input]") {
  using namespace std::string_literals;
  for (std::string const& text :
       {"{}\0"s, "{}\0{\"a\":"s, "{\"a\":\0 1}"s, "\0{}"s, "[\"a\0b\"]"s}) {
    CHECK_THAT(message_of<IoError>([&] { parse_json(text, "x.json"); }),
               ContainsSubstring("x.json: this is not valid JSON") && ContainsSubstring("NUL"));
  }
  // Written with an escape it is a character like others.
  CHECK(parse_json(R"(["a\u0000b"])", "x")[0] == "a\0b"s);
}
