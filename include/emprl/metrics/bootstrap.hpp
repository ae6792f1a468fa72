// SPDX-License-Identifier: Apache-2.0
#pragma once

// Bootstrap confidence intervals (Efron 1979), by percentiles.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/rng.hpp"

namespace emprl::metrics {

/// How an interval is found. Resample r draws its rows from {seed, Stream::bootstrap, 0, r}: two
/// statistics with the same seed and number of rows see the same resamples.
struct BootstrapConfig {
  index_t resamples = 1000;
  double level = 0.95;
  std::uint64_t seed = 42;

  /// @throws ConfigError naming the field that is out of range
  void validate() const {
    expects<ConfigError>(resamples >= 1, "resamples must be at least 1");
    expects<ConfigError>(level > 0.0 && level < 1.0, "level must lie between 0 and 1");
  }
};

/// A statistic of the data and the bounds between which the middle `level` of its resampled values
/// lie.
struct Interval {
  double value = 0.0;
  double low = 0.0;
  double high = 0.0;
  /// Does the interval leave out 0?
  bool excludes_zero() const { return low > 0.0 || high < 0.0; }
};

/// The value below which a part p of the numbers lies, between neighbours by linear interpolation
/// (NumPy's default).
/// @param sorted  ascending, not empty
inline double percentile(std::span<double const> sorted, double p) {
  double const position = p * static_cast<double>(sorted.size() - 1);
  auto const below = static_cast<std::size_t>(position);
  std::size_t const above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (position - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

/// The interval of any statistic of n rows: `statistic(rows)` is called with 0 .. n-1 for the
/// value, then with n rows drawn with replacement for each resample. A paired comparison of two
/// systems is the difference of both on the same rows.
/// @throws Error if there are no rows or if the statistic is not finite
template <class Statistic>
Interval bootstrap(index_t n, Statistic&& statistic, BootstrapConfig const& config = {}) {
  config.validate();
  expects<Error>(n > 0, "a bootstrap interval needs at least one row");
  auto const checked = [&](std::span<index_t const> rows) {
    double const value = statistic(rows);
    expects<Error>(std::isfinite(value), "a statistic is not finite on a resample of the rows");
    return value;
  };
  std::vector<index_t> rows(static_cast<std::size_t>(n));
  std::iota(rows.begin(), rows.end(), index_t{0});
  Interval result;
  result.value = checked(rows);
  std::vector<double> values(static_cast<std::size_t>(config.resamples));
  for (std::size_t r = 0; r < values.size(); ++r) {
    RandomSequence random(config.seed, Stream::bootstrap, 0, static_cast<std::uint32_t>(r));
    for (index_t& row : rows) row = random.below(n);
    values[r] = checked(rows);
  }
  std::sort(values.begin(), values.end());
  result.low = percentile(values, 0.5 * (1.0 - config.level));
  result.high = percentile(values, 0.5 * (1.0 + config.level));
  return result;
}

/// The interval of sum(numerators) / sum(denominators), as of a perplexity's exponent or of bits
/// per byte.
/// @throws ShapeError if the two are not as many
inline Interval bootstrap_ratio(std::span<double const> numerators,
                                std::span<double const> denominators,
                                BootstrapConfig const& config = {}) {
  expects(numerators.size() == denominators.size(), "a ratio needs two numbers for each row");
  return bootstrap(
      static_cast<index_t>(numerators.size()),
      [&](std::span<index_t const> rows) {
        double top = 0.0;
        double bottom = 0.0;
        for (index_t const i : rows) {
          top += numerators[static_cast<std::size_t>(i)];
          bottom += denominators[static_cast<std::size_t>(i)];
        }
        return top / bottom;
      },
      config);
}

/// The interval of a mean.
inline Interval bootstrap_mean(std::span<double const> x, BootstrapConfig const& config = {}) {
  std::vector<double> const ones(x.size(), 1.0);
  return bootstrap_ratio(x, ones, config);
}

/// The interval of mean(a - b), where a[i] and b[i] are two systems' scores of the same item.
/// @throws ShapeError if the two are not as many
inline Interval bootstrap_paired_difference(std::span<double const> a, std::span<double const> b,
                                            BootstrapConfig const& config = {}) {
  expects(a.size() == b.size(), "a paired comparison needs two scores for each item");
  std::vector<double> difference(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) difference[i] = a[i] - b[i];
  return bootstrap_mean(difference, config);
}

}  // namespace emprl::metrics
