// SPDX-License-Identifier: Apache-2.0
#include "emprl/math/relative_bucket.hpp"

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "reference/relative_bucket.hpp"
#include "support/catch.hpp"

using emprl::Direction;
using emprl::index_t;
using emprl::relative_bucket;

TEST_CASE("relative_bucket: the buckets of transformers", "[math][relative_bucket][golden]") {
  std::ifstream file(std::string(EMPRL_GOLDEN_DIR) + "/relative_bucket.json");
  REQUIRE(file);
  auto const golden = nlohmann::json::parse(file);
  REQUIRE(golden.at("version") == "2");
  REQUIRE(golden.at("cases").size() >= 4);
  for (auto const& c : golden.at("cases")) {
    bool const both = c.at("bidirectional").get<bool>();
    int const buckets = c.at("num_buckets").get<int>();
    int const distance = c.at("max_distance").get<int>();
    auto position = c.at("first_position").get<index_t>();
    for (int const expected : c.at("buckets").get<std::vector<int>>()) {
      INFO("position " << position << ", " << buckets << " buckets, distance " << distance
                       << (both ? ", bidirectional" : ", unidirectional"));
      REQUIRE(relative_bucket(position, both ? Direction::bidirectional : Direction::unidirectional,
                              buckets, distance) == expected);
      CHECK(reference::relative_bucket(position, both, buckets, distance) == expected);
      ++position;
    }
  }
}

TEST_CASE("relative_bucket: worked by hand for 32 buckets and distance 128",
          "[math][relative_bucket][unit]") {
  auto const two = [](index_t r) { return relative_bucket(r, Direction::bidirectional, 32, 128); };
  auto const one = [](index_t r) { return relative_bucket(r, Direction::unidirectional, 32, 128); };
  CHECK(two(0) == 0);
  CHECK(two(-1) == 1);
  CHECK(two(1) == 17);
  CHECK(two(-7) == 7);
  CHECK(two(-8) == 8);
  // 8 (128/8)^(1/8) = 11.3: distances 8 to 11 share a bucket.
  CHECK(two(-11) == 8);
  CHECK(two(-12) == 9);
  CHECK(two(-1000000) == 15);
  CHECK(two(1000000) == 31);
  CHECK(one(5) == 0);
  CHECK(one(0) == 0);
  CHECK(one(-15) == 15);
  CHECK(one(-16) == 16);
  CHECK(one(-128) == 31);
}
