// SPDX-License-Identifier: Apache-2.0
#pragma once

// Bootstrap intervals of several statistics at once: the rows are drawn once for all of them.

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
#include "emprl/metrics/bootstrap.hpp"

namespace emprl::metrics {

/// The intervals of `count` statistics of n rows: `statistics(rows, out)` writes them all to out.
/// The resamples are those of `bootstrap` with the same seed and number of rows.
/// @throws Error if there are no rows or if a statistic is not finite; ConfigError as
/// BootstrapConfig
template <class Statistics>
std::vector<Interval> bootstrap_many(index_t n, std::size_t count, Statistics&& statistics,
                                     BootstrapConfig const& config = {}) {
  config.validate();
  expects<Error>(n > 0, "a bootstrap interval needs at least one row");
  std::vector<index_t> rows(static_cast<std::size_t>(n));
  std::iota(rows.begin(), rows.end(), index_t{0});
  auto const resamples = static_cast<std::size_t>(config.resamples);
  std::vector<std::vector<double>> values(count, std::vector<double>(resamples));
  std::vector<double> now(count);
  auto const compute = [&] {
    statistics(std::span<index_t const>(rows), std::span<double>(now));
    bool const finite =
        std::all_of(now.begin(), now.end(), [](double x) { return std::isfinite(x); });
    expects<Error>(finite, "a statistic is not finite on a resample of the rows");
  };
  std::vector<Interval> out(count);
  compute();
  for (std::size_t k = 0; k < count; ++k) out[k].value = now[k];
  for (std::size_t r = 0; r < resamples; ++r) {
    RandomSequence random(config.seed, Stream::bootstrap, 0, static_cast<std::uint32_t>(r));
    for (index_t& row : rows) row = random.below(n);
    compute();
    for (std::size_t k = 0; k < count; ++k) values[k][r] = now[k];
  }
  for (std::size_t k = 0; k < count; ++k) {
    std::sort(values[k].begin(), values[k].end());
    out[k].low = percentile(values[k], 0.5 * (1.0 - config.level));
    out[k].high = percentile(values[k], 0.5 * (1.0 + config.level));
  }
  return out;
}

}  // namespace emprl::metrics
