// SPDX-License-Identifier: Apache-2.0
#include "emprl/rl/masked.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"

using namespace emprl;
using namespace emprl::rl;

namespace {
double const not_a_number = std::numeric_limits<double>::quiet_NaN();
}

TEST_CASE("masked: reductions equal those of the slice that counts", "[rl][masked][unit]") {
  std::vector<double> const x{1, not_a_number, 3, 8, not_a_number};
  std::vector<std::uint8_t> const mask{1, 0, 1, 1, 0};
  CHECK(masked_count(mask) == 3);
  CHECK(masked_sum(x, mask) == 12.0);
  CHECK(masked_mean(x, mask) == 4.0);
  CHECK(masked_variance(x, mask) == 13.0);
}

TEST_CASE("masked: none and one element have defined results", "[rl][masked][unit]") {
  std::vector<double> x{5, not_a_number};
  std::vector<std::uint8_t> const none{0, 0}, one{1, 0};
  CHECK(masked_mean(x, none) == 0.0);
  CHECK(masked_variance(x, none) == 0.0);
  CHECK(masked_mean(x, one) == 5.0);
  CHECK(masked_variance(x, one) == 0.0);
  masked_whiten(x, one, WhitenMean::keep);
  CHECK(x[0] == 5.0);
  masked_whiten(x, one, WhitenMean::remove);
  CHECK(x[0] == 0.0);
  CHECK(masked_mean({}, {}) == 0.0);
}

TEST_CASE("masked: whitening gives mean 0 or keeps it, and deviation 1", "[rl][masked][unit]") {
  std::vector<double> x{1, 2, 4, 100, 9};
  std::vector<std::uint8_t> const mask{1, 1, 1, 0, 1};
  std::vector<double> kept = x;
  masked_whiten(kept, mask, WhitenMean::keep);
  CHECK(masked_mean(kept, mask) == Approx(4.0));
  CHECK(masked_variance(kept, mask) == Approx(1.0));
  masked_whiten(x, mask, WhitenMean::remove);
  CHECK(masked_mean(x, mask) == Approx(0.0).margin(1e-15));
  CHECK(masked_variance(x, mask) == Approx(1.0));
}

TEST_CASE("masked: identical elements whiten to 0, not to NaN", "[rl][masked][unit]") {
  std::vector<double> x{2, 2, 2};
  masked_whiten(x, std::vector<std::uint8_t>{1, 1, 1}, WhitenMean::remove);
  for (double const v : x) CHECK(v == 0.0);
}

TEST_CASE("masked: clearing removes NaN and infinity", "[rl][masked][unit]") {
  std::vector<double> x{1, not_a_number, std::numeric_limits<double>::infinity()};
  clear_masked(x, std::vector<std::uint8_t>{1, 0, 0});
  CHECK(x == std::vector<double>{1, 0, 0});
  CHECK_THROWS_AS(clear_masked(x, std::vector<std::uint8_t>{1}), ShapeError);
}
