// SPDX-License-Identifier: Apache-2.0
#include "../../examples/emprl/table.hpp"

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"

using emprl::program::table_lines;
using emprl::train::TextTable;

TEST_CASE("table: names stand left, numbers right", "[examples][table][unit]") {
  TextTable const table{
      "Title", {"system", "reward"}, {{"a", "0.5"}, {"before", "0.25"}}, {"Note."}};
  CHECK(table_lines(table) == std::vector<std::string>{"Title",           //
                                                       "system  reward",  //
                                                       "--------------",  //
                                                       "a          0.5",  //
                                                       "before    0.25",  //
                                                       "Note."});
}

TEST_CASE("table: no line is wider than asked and no word is lost", "[examples][table][unit]") {
  TextTable table;
  table.title = std::string(50, 'x') + " " + std::string(50, 'y');
  table.header = {"a name of some length", "0.312 [0.305,0.319]", "0.312 [0.305,0.319]",
                  "0.312 [0.305,0.319]", "0.312 [0.305,0.319]"};
  table.rows = {{"another dialogue's reply", "0.312 [0.305,0.319]", "1", "2", "\u00e9\u00e9"}};
  table.notes = {std::string(200, 'z')};
  std::string all;
  for (std::string const& line : table_lines(table)) {
    CHECK(emprl::program::detail::table::width(line) <= 80);
    all += line + "\n";
  }
  for (char const* part : {"another", "dialogue's", "[0.305,0.319]", "\u00e9\u00e9"}) {
    INFO(part);
    CHECK(all.find(part) != std::string::npos);
  }
  CHECK(std::count(all.begin(), all.end(), 'z') == 200);
}

TEST_CASE("table: a row of another length is refused and an empty table is nothing",
          "[examples][table][unit]") {
  CHECK_THROWS_AS(table_lines({"", {"a", "b"}, {{"1"}}, {}}), emprl::ShapeError);
  CHECK(table_lines({}).empty());
}

TEST_CASE("table: numbers as text", "[train][text_table][unit]") {
  CHECK(emprl::train::fixed_text(-0.0001, 2) == "0.00");
  CHECK(emprl::train::fixed_text(std::numeric_limits<double>::infinity(), 2) == "-");
  CHECK(emprl::train::interval_text({0.3, 0.25, 0.351}, 2) == "0.30 [0.25,0.35]");
  CHECK(emprl::train::gain_text({0.3, 0.21, 0.39}, 1) == "+0.3 [0.2,0.4]");
  CHECK(emprl::train::gain_text({-0.3, -0.4, -0.2}, 1) == "-0.3 [-0.4,-0.2]");
  CHECK(emprl::train::gain_text({0.0, 0.0, 0.0}, 1) == "0.0 [0.0,0.0]");
}
