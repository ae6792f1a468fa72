// SPDX-License-Identifier: Apache-2.0
#include "emprl/metrics/bootstrap_many.hpp"

#include <limits>
#include <vector>

#include "support/catch.hpp"

using namespace emprl;

TEST_CASE("bootstrap_many: the intervals are those of one statistic at a time",
          "[metrics][bootstrap_many][unit]") {
  std::vector<double> const x{0.5, 1.0, -2.0, 4.0, 0.25, 3.0, 7.5};
  metrics::BootstrapConfig const config{300, 0.9, 11};
  auto const mean = [&](std::span<index_t const> rows) {
    double sum = 0.0;
    for (index_t const i : rows) sum += x[static_cast<std::size_t>(i)];
    return sum / static_cast<double>(rows.size());
  };
  auto const first = [&](std::span<index_t const> rows) {
    return x[static_cast<std::size_t>(rows[0])];
  };
  auto const both = metrics::bootstrap_many(
      7, 2,
      [&](std::span<index_t const> rows, std::span<double> out) {
        out[0] = mean(rows);
        out[1] = first(rows);
      },
      config);
  REQUIRE(both.size() == 2);
  auto const a = metrics::bootstrap(7, mean, config);
  auto const b = metrics::bootstrap(7, first, config);
  CHECK(both[0].value == a.value);
  CHECK(both[0].low == a.low);
  CHECK(both[0].high == a.high);
  CHECK(both[1].low == b.low);
  CHECK(both[1].high == b.high);
}

TEST_CASE("bootstrap_many: no rows, bad settings and numbers that are not finite are refused",
          "[metrics][bootstrap_many][unit]") {
  auto const nothing = [](std::span<index_t const>, std::span<double>) {};
  CHECK_THROWS_AS(metrics::bootstrap_many(0, 1, nothing), Error);
  CHECK_THROWS_AS(metrics::bootstrap_many(1, 1, nothing, {0, 0.95, 1}), ConfigError);
  CHECK_THROWS_AS(metrics::bootstrap_many(1, 1,
                                          [](std::span<index_t const>, std::span<double> out) {
                                            out[0] = std::numeric_limits<double>::quiet_NaN();
                                          }),
                  Error);
}
