// SPDX-License-Identifier: Apache-2.0
#include "emprl/metrics/bootstrap.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"

using namespace emprl;
using metrics::BootstrapConfig;

namespace {

std::vector<double> normals(std::size_t n, std::uint32_t row) {
  RandomSequence random(5, Stream::initialise, 0, row);
  std::vector<double> x(n);
  for (double& v : x) v = random.normal();
  return x;
}

}  // namespace

TEST_CASE("bootstrap: percentiles are NumPy's", "[metrics][bootstrap][unit]") {
  std::vector<double> const x{1.0, 2.0, 4.0, 8.0, 16.0};
  CHECK(metrics::percentile(x, 0.0) == 1.0);
  CHECK(metrics::percentile(x, 0.5) == 4.0);
  CHECK(metrics::percentile(x, 0.025) == Approx(1.1));
  CHECK(metrics::percentile(x, 0.975) == Approx(15.2));
  CHECK(metrics::percentile(x, 1.0) == 16.0);
}

TEST_CASE("bootstrap: the interval of a mean is as wide as the standard error says",
          "[metrics][bootstrap][unit]") {
  std::vector<double> const x = normals(1000, 0);
  double mean = 0.0;
  for (double const v : x) mean += v / 1000.0;
  double variance = 0.0;
  for (double const v : x) variance += (v - mean) * (v - mean) / 1000.0;
  auto const interval = metrics::bootstrap_mean(x, {.resamples = 4000});
  double const half = 1.959964 * std::sqrt(variance / 1000.0);
  CHECK(interval.value == Approx(mean).margin(1e-12));
  CHECK(interval.low == Approx(mean - half).margin(0.1 * half));
  CHECK(interval.high == Approx(mean + half).margin(0.1 * half));
}

TEST_CASE("bootstrap: intervals of 95 % hold the truth about 95 times in 100",
          "[metrics][bootstrap][unit]") {
  int covered = 0;
  for (std::uint32_t row = 0; row < 400; ++row) {
    auto const interval =
        metrics::bootstrap_mean(normals(60, row), {.resamples = 300, .seed = row});
    covered += interval.excludes_zero() ? 0 : 1;
  }
  // 380 expected, standard deviation 4.4; percentile intervals of 60 rows are a little narrow.
  CHECK(covered >= 362);
  CHECK(covered <= 394);
}

TEST_CASE("bootstrap: a paired comparison sees what two separate intervals do not",
          "[metrics][bootstrap][unit]") {
  std::vector<double> const a = normals(300, 1);
  std::vector<double> b = a;
  std::vector<double> const noise = normals(300, 2);
  for (std::size_t i = 0; i < b.size(); ++i) b[i] += 0.05 + 0.1 * noise[i];
  auto const gain = metrics::bootstrap_paired_difference(b, a);
  CHECK(gain.excludes_zero());
  CHECK(gain.low > 0.02);
  CHECK(gain.high < 0.08);
  auto const first = metrics::bootstrap_mean(a);
  auto const second = metrics::bootstrap_mean(b);
  CHECK(first.high > second.low);
  auto const loss = metrics::bootstrap_paired_difference(a, b);
  CHECK(loss.value == Approx(-gain.value));
  CHECK(loss.high == Approx(-gain.low));
  CHECK(loss.excludes_zero());
}

TEST_CASE("bootstrap: any statistic of rows, and the same seed gives the same interval",
          "[metrics][bootstrap][unit]") {
  std::vector<double> const x = normals(97, 3);
  auto const largest = [&](std::span<index_t const> rows) {
    double best = -1e9;
    for (index_t const i : rows) best = std::max(best, x[static_cast<std::size_t>(i)]);
    return best;
  };
  auto const one = metrics::bootstrap(97, largest, {.seed = 7});
  auto const two = metrics::bootstrap(97, largest, {.seed = 7});
  auto const other = metrics::bootstrap(97, largest, {.level = 0.5, .seed = 8});
  CHECK(one.value == *std::max_element(x.begin(), x.end()));
  CHECK(one.high == one.value);
  CHECK(one.low < one.value);
  CHECK(two.low == one.low);
  CHECK(other.low > one.low);
}

TEST_CASE("bootstrap: a ratio of sums weighs rows by their denominators",
          "[metrics][bootstrap][unit]") {
  std::vector<double> const top{2.0, 30.0};
  std::vector<double> const bottom{1.0, 3.0};
  auto const interval = metrics::bootstrap_ratio(top, bottom);
  CHECK(interval.value == 8.0);
  CHECK(interval.low == 2.0);
  CHECK(interval.high == 10.0);
}

TEST_CASE("bootstrap: mistakes are errors", "[metrics][bootstrap][unit]") {
  std::vector<double> const x{1.0, 2.0};
  std::vector<double> const one{1.0};
  std::vector<double> const bad{1.0, std::numeric_limits<double>::quiet_NaN()};
  CHECK_THROWS_AS(metrics::bootstrap_mean(std::vector<double>{}), Error);
  CHECK_THROWS_AS(metrics::bootstrap_mean(bad), Error);
  CHECK_THROWS_AS(metrics::bootstrap_mean(x, {.resamples = 0}), ConfigError);
  CHECK_THROWS_AS(metrics::bootstrap_mean(x, {.level = 1.0}), ConfigError);
  CHECK_THROWS_AS(metrics::bootstrap_paired_difference(x, one), ShapeError);
  CHECK_THROWS_AS(metrics::bootstrap_ratio(x, one), ShapeError);
}
