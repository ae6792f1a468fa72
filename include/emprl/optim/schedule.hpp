// SPDX-License-Identifier: Apache-2.0
#pragma once

// Learning rates over the steps of a run.

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>
#include <string_view>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"

namespace emprl::optim {

enum class Decay { constant, linear, inverse_sqrt, cosine };

/// @throws ConfigError for a name that is none of constant, linear, inverse_sqrt, cosine
inline Decay parse_decay(std::string_view name) {
  if (name == "constant") return Decay::constant;
  if (name == "linear") return Decay::linear;
  if (name == "inverse_sqrt") return Decay::inverse_sqrt;
  if (name == "cosine") return Decay::cosine;
  throw ConfigError("the schedule '" + std::string(name) +
                    "' is none of constant, linear, inverse_sqrt, cosine");
}

/// The learning rate of step s = 0, 1, ..., with W warm-up steps of T in all:
///   s < W         peak * (s + 1) / W
///   constant      peak
///   linear        peak * (f + (1 - f) * r),                        r = max(0, T - s) / (T - W)
///   cosine        peak * (f + (1 - f) * (1 + cos(pi * (1 - r))) / 2)
///   inverse_sqrt  peak * sqrt(max(W, 1) / max(s + 1, W))
/// f = floor. The first step's rate is never 0; the last step's, T - 1, is not quite the floor.
struct Schedule {
  Decay decay = Decay::constant;
  double peak = 1e-4;
  index_t warmup_steps = 0;
  /// Needed by linear and cosine.
  index_t total_steps = 0;
  /// The rate at the end, as a part of the peak (linear and cosine).
  double floor = 0.0;

  /// @throws ConfigError naming the field that is out of range
  void validate() const {
    expects<ConfigError>(std::isfinite(peak) && peak >= 0.0,
                         "the learning rate must be finite and not negative");
    expects<ConfigError>(warmup_steps >= 0, "warmup_steps must not be negative");
    expects<ConfigError>(floor >= 0.0 && floor <= 1.0, "floor must lie in [0, 1]");
    bool const ends = decay == Decay::linear || decay == Decay::cosine;
    expects<ConfigError>(!ends || total_steps > warmup_steps,
                         "total_steps must exceed warmup_steps for a schedule that ends");
  }

  /// The rate of a step, counted from 0.
  double operator()(index_t step) const {
    auto const s = static_cast<double>(step);
    auto const w = static_cast<double>(warmup_steps);
    if (step < warmup_steps) return peak * (s + 1.0) / w;
    auto const remaining = [&] {
      return static_cast<double>(std::max<index_t>(0, total_steps - step)) /
             static_cast<double>(total_steps - warmup_steps);
    };
    switch (decay) {
      case Decay::constant:
        break;
      case Decay::linear:
        return peak * (floor + (1.0 - floor) * remaining());
      case Decay::cosine:
        return peak * (floor + (1.0 - floor) * 0.5 *
                                   (1.0 + std::cos(std::numbers::pi * (1.0 - remaining()))));
      case Decay::inverse_sqrt:
        return peak * std::sqrt(std::max(w, 1.0) / std::max(s + 1.0, w));
    }
    return peak;
  }
};

}  // namespace emprl::optim
