// SPDX-License-Identifier: Apache-2.0
#include "support/catch.hpp"

#if defined(EMPRL_PROGRAM) && __has_include(<CLI/CLI.hpp>)

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "../../examples/emprl/configuration.hpp"

namespace {

using namespace emprl::program;
using emprl::ConfigError;
using emprl::io::Json;

/// A command with an option of every kind that the program's commands have.
struct Sample {
  std::filesystem::path model;
  std::string separator = " ";
  double rate = 3e-4;
  std::int64_t steps = 0;
  std::uint64_t seed = 42;
  std::vector<std::string> names{"er", "ip", "ex"};
  std::vector<std::string> extra;
  bool greedy = false;
  double temperature = 0.9;
  bool adaptive = true;
  bool html = true;

  CLI::App app;
  CLI::App* command = nullptr;

  Sample() {
    app.option_defaults()->always_capture_default();
    command = app.add_subcommand("sample");
    command->add_option("--model", model)->type_name("DIR");
    command->add_option("--separator", separator);
    command->add_option("--rate", rate);
    command->add_option("--steps", steps);
    command->add_option("--seed", seed);
    command->add_option("--names", names)->delimiter(',');
    command->add_option("--extra", extra);
    auto* const flag = command->add_flag("--greedy", greedy);
    flag->excludes(command->add_option("--temperature", temperature));
    command->add_flag("!--fixed", adaptive);
    command->add_flag("--html,!--no-html", html);
    command->add_option("--config", "a file of options");
  }

  Json parse(Words words) {
    words.insert(words.begin(), "sample");
    app.parse(Words{words.rbegin(), words.rend()});
    return resolve(*command);
  }
};

/// What one command resolves to, another reads back, to the same values.
void check_round_trip(Words const& words) {
  Sample first;
  Json const resolved = first.parse(words);
  INFO(resolved.dump());
  Sample second;
  Json const again = second.parse(options_from(*second.command, resolved, "file", {}));
  CHECK(again == resolved);
  CHECK(second.model == first.model);
  CHECK(second.separator == first.separator);
  CHECK(second.rate == first.rate);
  CHECK(second.steps == first.steps);
  CHECK(second.seed == first.seed);
  CHECK(second.names == first.names);
  CHECK(second.extra == first.extra);
  CHECK(second.greedy == first.greedy);
  CHECK(second.temperature == first.temperature);
  CHECK(second.adaptive == first.adaptive);
  CHECK(second.html == first.html);
}

}  // namespace

TEST_CASE("configuration: resolved options read back to the same values", "[program][unit]") {
  check_round_trip({});
  check_round_trip(
      {"--model", "a folder/with 'quotes'", "--separator", "", "--rate", "0.1", "--steps", "-3"});
  check_round_trip({"--seed", "18446744073709551615", "--rate", "1e-7"});
  check_round_trip({"--names", "er,ex", "--extra", "a,b", "--extra", "--c"});
  check_round_trip({"--names", "er", "--names", "ip"});
  check_round_trip({"--greedy"});
  check_round_trip({"--temperature", "0.25"});
  check_round_trip({"--fixed"});
  check_round_trip({"--html"});
  check_round_trip({"--no-html"});
}

TEST_CASE("configuration: values keep their kinds, and a negative flag says whether it was given",
          "[program][unit]") {
  Sample sample;
  Json const json = sample.parse({"--fixed", "--steps=7", "--model", "12", "--greedy"});
  CHECK(json["fixed"] == true);
  CHECK_FALSE(sample.adaptive);
  CHECK(json["steps"].is_number_integer());
  CHECK(json["rate"].is_number_float());
  CHECK(json["model"] == "12");
  CHECK(json["names"] == Json({"er", "ip", "ex"}));
  CHECK_FALSE(json.contains("temperature"));
  CHECK_FALSE(json.contains("config"));
  CHECK_FALSE(json.contains("help"));
}

TEST_CASE("configuration: the command line wins, and overrules what it excludes",
          "[program][unit]") {
  Json const file{{"rate", 0.5}, {"temperature", 0.1}, {"names", {"ip"}}, {"fixed", true}};
  Sample sample;
  Words const given{"--greedy", "--names=er", "--rate", "0.25"};
  Words words = options_from(*sample.command, file, "file", given);
  CHECK(words == Words{"--fixed"});
  words.insert(words.end(), given.begin(), given.end());
  sample.parse(words);
  CHECK(sample.rate == 0.25);
  CHECK(sample.names == Words{"er"});
  CHECK_FALSE(sample.adaptive);
}

TEST_CASE("configuration: what is no option, or of the wrong kind, is refused", "[program][unit]") {
  Sample sample;
  auto const read = [&](Json const& json) {
    return options_from(*sample.command, json, "file", {});
  };
  for (Json const& bad :
       {Json{{"rat", 1}}, Json{{"config", "x"}}, Json{{"help", true}}, Json{{"greedy", 1}},
        Json{{"rate", true}}, Json{{"rate", Json::array({1, 2})}}, Json{{"model", Json::object()}},
        Json{{"names", Json::array({Json::array()})}}, Json{{"", 1}}}) {
    INFO(bad.dump());
    CHECK_THROWS_AS(read(bad), ConfigError);
  }
  CHECK(read(Json{{"model", nullptr}}).empty());
  CHECK(suggestion("temprature", known_keys(*sample.command)) == " (did you mean temperature?)");
  CHECK(suggestion("nothing-like-it", known_keys(*sample.command)).empty());
}

#else

TEST_CASE("configuration: the program was not built, so there is nothing to test", "[program]") {
  SUCCEED();
}

#endif
