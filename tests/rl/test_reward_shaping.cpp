// SPDX-License-Identifier: Apache-2.0
#include "emprl/rl/reward_shaping.hpp"

#include <limits>
#include <vector>

#include "emprl/rl/kl.hpp"
#include "support/catch.hpp"

using namespace emprl;
using namespace emprl::rl;

namespace {
double const not_a_number = std::numeric_limits<double>::quiet_NaN();
}

TEST_CASE("reward_shaping: the score lands on the last token that counts",
          "[rl][reward_shaping][unit]") {
  // Rows: three tokens, none, one, two of which the last is masked, one masked.
  std::vector<index_t> const offsets{0, 3, 3, 4, 6, 7};
  std::vector<std::uint8_t> const mask{1, 1, 1, 1, 1, 0, 0};
  std::vector<double> const kl{0.5, -1, 2, 1, 4, not_a_number, not_a_number};
  std::vector<double> const scores{10, 20, 30, 40, 50};
  std::vector<double> rewards(7, not_a_number);
  shape_rewards(offsets, kl, scores, mask, 0.5, rewards);
  CHECK(rewards == std::vector<double>{-0.25, 0.5, 9, 29.5, 38, 0, 0});
}

TEST_CASE("reward_shaping: the row mean of KL counts rows without tokens",
          "[rl][reward_shaping][unit]") {
  std::vector<index_t> const offsets{0, 2, 2, 3};
  std::vector<double> const kl{1, 2, not_a_number};
  CHECK(mean_row_sum(offsets, kl, std::vector<std::uint8_t>{1, 1, 0}) == 1.0);
  CHECK(mean_row_sum(std::vector<index_t>{0}, {}, {}) == 0.0);
}

TEST_CASE("reward_shaping: what masked tokens hold reaches nothing", "[rl][reward_shaping][unit]") {
  std::vector<index_t> const offsets{0, 2, 4};
  std::vector<std::uint8_t> const mask{0, 1, 1, 0};
  auto const run = [&](double junk) {
    std::vector<double> const logp{junk, -1, -2, junk}, reference{junk, -2, -1, junk};
    std::vector<double> kl(4), rewards(4);
    token_kl(KlK3{}, logp, reference, mask, kl);
    shape_rewards(offsets, kl, std::vector<double>{1, 2}, mask, 0.2, rewards);
    whiten_rewards(rewards, mask);
    return rewards;
  };
  auto const rewards = run(not_a_number);
  CHECK(rewards == run(-17.0));
  CHECK(rewards[0] == 0.0);
  CHECK(rewards[3] == 0.0);
}

TEST_CASE("reward_shaping: every generated token is trained", "[rl][reward_shaping][unit]") {
  Ragged responses;
  responses.push_back(std::vector<std::int32_t>{4, 0, 1});
  responses.push_back({});
  CHECK(response_mask(responses.view()) == std::vector<std::uint8_t>{1, 1, 1});
}

TEST_CASE("reward_shaping: lengths that disagree are refused", "[rl][reward_shaping][unit]") {
  std::vector<index_t> const offsets{0, 1};
  std::vector<std::uint8_t> const mask{1};
  std::vector<double> one(1), two(2);
  CHECK_THROWS_AS(shape_rewards(offsets, one, two, mask, 0.1, one), ShapeError);
  CHECK_THROWS_AS(shape_rewards(offsets, two, one, mask, 0.1, one), ShapeError);
}
