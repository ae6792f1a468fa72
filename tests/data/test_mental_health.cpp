// SPDX-License-Identifier: Apache-2.0
#include "emprl/data/mental_health.hpp"

#include <map>
#include <string>
#include <vector>

#include "data/real_data.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::IoError;
using emprl::data::Mechanism;
using emprl::data::Post;
using emprl::data::Split;
using emprl::test::message_of;
using emprl::test::TemporaryFolder;

namespace {

std::string const header = "sp_id,rp_id,seeker_post,response_post,level,rationales\n";

std::vector<Post> parse(std::string const& text) {
  emprl::io::QuotedCsvReader reader(text, "er.csv");
  return emprl::data::parse_posts(reader, "er.csv");
}

}  // namespace

TEST_CASE("mental_health: quoted posts with newlines are one row each",
          "[data][mental_health][unit]") {
  auto const posts =
      parse(header + "s1,r1,\"I feel\nlow, \"\"really\"\"\",sorry,2,sorry|\n" + "s2,r2,a,b,0,\n");
  REQUIRE(posts.size() == 2);
  CHECK(posts[0].seeker == "I feel\nlow, \"really\"");
  CHECK(posts[0].level == 2);
  CHECK(posts[1].seeker_id == "s2");
  CHECK(posts[1].response_id == "r2");
  CHECK(posts[1].response == "b");
  CHECK(emprl::data::level_counts(posts) == std::array<emprl::index_t, 3>{1, 0, 1});
}

TEST_CASE("mental_health: bad rows are refused by file and line",
          "[data][mental_health][bad_input]") {
  auto const refusal = [](std::string const& rows) {
    return message_of<IoError>([&] { parse(header + "s0,r0,\"two\nlines\",b,1,\n" + rows); });
  };
  CHECK_THAT(refusal("s,r,a,b,3,\n"),
             ContainsSubstring("er.csv:4:") && ContainsSubstring("level \"3\""));
  CHECK_THAT(refusal("s,r,a,b,-1,\n"), ContainsSubstring("level \"-1\""));
  CHECK_THAT(refusal("s,r,a,b,,\n"), ContainsSubstring("level \"\""));
  CHECK_THAT(refusal("s,r,a,b,1\n"),
             ContainsSubstring("er.csv:4:") && ContainsSubstring("5 columns instead of 6"));
  CHECK_THAT(refusal("s,r,a,b,1,,\n"), ContainsSubstring("7 columns"));
  CHECK_THAT(refusal("s,r, ,b,1,\n"), ContainsSubstring("seeker_post is empty"));
  CHECK_THAT(refusal("s,r,a,,1,\n"), ContainsSubstring("response_post is empty"));
  CHECK_THAT(refusal(",r,a,b,1,\n"), ContainsSubstring("sp_id"));
  CHECK_THAT(refusal("s,r,a\xFF,b,1,\n"),
             ContainsSubstring("er.csv:4:") && ContainsSubstring("UTF-8"));
  CHECK_THAT(message_of<IoError>([] { parse(""); }),
             ContainsSubstring("er.csv: the file is empty"));
  CHECK_THAT(message_of<IoError>([] { parse(header); }), ContainsSubstring("no posts"));
  CHECK_THAT(message_of<IoError>([] { parse("a,b,c,d,e,f\n1,2,3,4,0,\n"); }),
             ContainsSubstring("er.csv:1:"));
}

TEST_CASE("mental_health: missing folders and files are named",
          "[data][mental_health][bad_input]") {
  TemporaryFolder const folder;
  CHECK_THAT(
      message_of<IoError>([&] { emprl::data::load_mental_health(folder.path(), Mechanism::ip); }),
      ContainsSubstring("interpretations-reddit.csv"));
  CHECK_THAT(message_of<IoError>(
                 [&] { emprl::data::load_mental_health(folder / "nowhere", Mechanism::ip); }),
             ContainsSubstring("nowhere"));
  folder.put("explorations-reddit.csv", header + "s,r,a,b,1,\n");
  CHECK(emprl::data::load_mental_health(folder.path(), Mechanism::ex).size() == 1);
}

TEST_CASE("mental_health: a seeker is in one part, whatever the other rows, and every seed differs",
          "[data][mental_health][unit]") {
  std::vector<Post> posts;
  for (int i = 0; i < 3000; ++i) {
    Post post;
    post.seeker_id = "seeker" + std::to_string(i % 2000);
    post.response_id = std::to_string(i);
    posts.push_back(post);
  }
  auto const parts = emprl::data::split_by_seeker(posts, 7, {0.1, 0.2});
  CHECK(parts.train.size() + parts.valid.size() + parts.test.size() == posts.size());
  std::map<std::string, Split> seen;
  auto const check = [&](std::vector<Post> const& part, Split split) {
    for (auto const& post : part) {
      auto const [place, is_new] = seen.try_emplace(post.seeker_id, split);
      if (place->second != split) FAIL(post.seeker_id);
      if (emprl::data::part_of_seeker(post.seeker_id, 7, {0.1, 0.2}) != split) {
        FAIL(post.seeker_id);
      }
    }
  };
  check(parts.train, Split::train);
  check(parts.valid, Split::valid);
  check(parts.test, Split::test);
  // Binomial shares of 2000 seekers, four standard deviations wide.
  std::map<Split, int> shares;
  for (auto const& entry : seen) ++shares[entry.second];
  CHECK(shares[Split::valid] == Approx(200).margin(54));
  CHECK(shares[Split::test] == Approx(400).margin(72));

  int moved = 0;
  for (auto const& [id, split] : seen) {
    moved += emprl::data::part_of_seeker(id, 8, {0.1, 0.2}) != split ? 1 : 0;
  }
  CHECK(moved > 500);
  CHECK(emprl::data::split_by_seeker(posts, 7, {0.0, 0.0}).train.size() == posts.size());
  CHECK_THROWS_AS(emprl::data::split_by_seeker(posts, 7, {0.5, 0.5}), emprl::ConfigError);
  CHECK_THROWS_AS(emprl::data::split_by_seeker(posts, 7, {-0.1, 0.5}), emprl::ConfigError);
}

TEST_CASE("mental_health: mechanisms have names", "[data][dialogue][unit]") {
  for (Mechanism const mechanism : emprl::data::all_mechanisms) {
    CHECK(emprl::data::mechanism_of(emprl::data::mechanism_name(mechanism)) == mechanism);
  }
  CHECK(emprl::data::mechanism_title(Mechanism::ex) == "explorations");
  CHECK_THROWS_AS(emprl::data::mechanism_of("empathy"), emprl::ConfigError);
}

TEST_CASE("mental_health: the real data has the known counts", "[data][mental_health][real]") {
  auto const folder = emprl::test::real_data("empathy_mental_health");
  if (folder.empty()) return;
  using Counts = std::array<emprl::index_t, 3>;
  std::map<Mechanism, Counts> const expected{{Mechanism::er, {1619, 706, 121}},
                                             {Mechanism::ip, {1301, 91, 1054}},
                                             {Mechanism::ex, {2065, 77, 304}}};
  for (auto const& [mechanism, counts] : expected) {
    auto const posts = emprl::data::load_mental_health(folder, mechanism);
    CHECK(posts.size() == 2446);
    CHECK(emprl::data::level_counts(posts) == counts);
  }
}
