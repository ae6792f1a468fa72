// SPDX-License-Identifier: Apache-2.0
#pragma once

// How well the empathy levels of responses match those of the targets. A level is 0, 1 or 2 for
// each of emotional reaction, interpretation and exploration.

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/metrics/agreement.hpp"

namespace emprl::metrics {

/// The three confusion matrices (targets are the truth), in the order ER, IP, EX.
/// @throws ShapeError if there are not as many targets as responses, Error if a level is not 0, 1
/// or 2
inline std::array<Confusion, 3> level_confusions(std::span<std::array<int, 3> const> targets,
                                                 std::span<std::array<int, 3> const> responses) {
  expects(targets.size() == responses.size(), "Emp-F1 needs one response for each target");
  std::array<Confusion, 3> result{Confusion(3), Confusion(3), Confusion(3)};
  for (std::size_t i = 0; i < targets.size(); ++i) {
    for (std::size_t k = 0; k < 3; ++k) result[k].add(targets[i][k], responses[i][k]);
  }
  return result;
}

/// Emp-F1: the mean over the three mechanisms of 100 * support-weighted F1.
inline double emp_f1(std::span<Confusion const, 3> mechanisms) {
  double sum = 0.0;
  for (Confusion const& m : mechanisms) sum += 100.0 * weighted_f1(m);
  return sum / 3.0;
}

inline double emp_f1(std::span<std::array<int, 3> const> targets,
                     std::span<std::array<int, 3> const> responses) {
  return emp_f1(level_confusions(targets, responses));
}

}  // namespace emprl::metrics
