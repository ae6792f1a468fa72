// SPDX-License-Identifier: Apache-2.0
#pragma once

// Mean and deviation of all scores seen so far, merged batch by batch (Chan, Golub & LeVeque 1979),
// and the normalisation of scores by them.

#include <cmath>
#include <span>

#include "emprl/core/config.hpp"

namespace emprl::rl {

/// Running mean and variance. A plain aggregate: the four numbers are the whole state, to be saved
/// and restored as they are.
struct RunningMoments {
  double mean = 0;
  double variance = 1;   ///< biased
  double deviation = 1;  ///< square root of the unbiased variance; 1 until two numbers were seen
  double count = 1e-24;  ///< not 0, so that the first merge has no special case

  /// Merges a batch:
  ///   delta = mu - mean,  tot = count + n,  M = var count + delta^2 count n / tot + s2 n,
  ///   mean += delta n / tot,  var = M / tot,  deviation = sqrt(var tot / (tot - 1)),  count = tot
  /// with mu and s2 the batch's mean and biased variance. An empty batch changes nothing.
  void update(std::span<double const> batch) {
    if (batch.empty()) return;
    double const n = static_cast<double>(batch.size());
    double mu = 0;
    for (double const x : batch) mu += x;
    mu /= n;
    double s2 = 0;
    for (double const x : batch) s2 += (x - mu) * (x - mu);
    s2 /= n;

    double const delta = mu - mean;
    double const total = count + n;
    double const m = variance * count + delta * delta * count * n / total + s2 * n;
    mean += delta * n / total;
    variance = m / total;
    deviation = total > 1.5 ? std::sqrt(variance * total / (total - 1.0)) : 1.0;
    count = total;
  }

  friend bool operator==(RunningMoments const&, RunningMoments const&) = default;
};

/// What is done to scores before they become rewards.
enum class ScoreScaling {
  none,
  scale,     ///< s / (deviation + eps)
  normalise  ///< (s - mean) / (deviation + eps)
};

/// What scores are divided by: 1, or deviation + eps with eps = 1.1920929e-07.
inline double score_divisor(RunningMoments const& moments, ScoreScaling scaling) {
  return scaling == ScoreScaling::none ? 1.0 : moments.deviation + 1.1920928955078125e-07;
}

/// Scales scores in place by moments that already include them. Identical scores normalise to 0.
inline void scale_scores(std::span<double> scores, RunningMoments const& moments,
                         ScoreScaling scaling) {
  if (scaling == ScoreScaling::none) return;
  double const shift = scaling == ScoreScaling::normalise ? moments.mean : 0.0;
  double const divisor = score_divisor(moments, scaling);
  for (double& s : scores) s = (s - shift) / divisor;
}

}  // namespace emprl::rl
