// SPDX-License-Identifier: Apache-2.0
#pragma once

// Estimators of KL(p || q) from one sampled token, p the policy and q the reference, and
// controllers of its coefficient. With r = q / p at the sampled token (Schulman 2020,
// "Approximating KL divergence"):
//
//   k1  = -log r          unbiased, may be negative, high variance
//   abs = |log r|         biased; bounds both directions
//   k2  = (log r)^2 / 2   biased, low variance, never negative
//   k3  = r - 1 - log r   unbiased, never negative, low variance while p is near q

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/math/dual.hpp"
#include "emprl/rl/concepts.hpp"

namespace emprl::rl {

/// log p - log q.
struct KlK1 {
  template <class S>
  S operator()(S const& logp, S const& reference) const {
    return logp - reference;
  }
};

/// |log p - log q|.
struct KlAbs {
  template <class S>
  S operator()(S const& logp, S const& reference) const {
    using namespace scalar_math;
    return abs(logp - reference);
  }
};

/// (log p - log q)^2 / 2.
struct KlK2 {
  template <class S>
  S operator()(S const& logp, S const& reference) const {
    S const d = logp - reference;
    return S(0.5) * d * d;
  }
};

/// q / p - 1 - log(q / p).
struct KlK3 {
  template <class S>
  S operator()(S const& logp, S const& reference) const {
    using namespace scalar_math;
    S const d = reference - logp;
    return exp(d) - S(1) - d;
  }
};

/// A coefficient that never changes.
class FixedKl {
 public:
  /// @throws ConfigError unless coefficient is finite and not negative
  explicit FixedKl(double coefficient) : coefficient_(coefficient) {
    expects<ConfigError>(std::isfinite(coefficient) && coefficient >= 0,
                         "kl_coefficient must be a finite number of at least 0");
  }

  double coefficient() const noexcept { return coefficient_; }
  void update(double, std::int64_t) {}

 private:
  double coefficient_;
};

/// Steers towards a target (Ziegler et al. 2019):  beta *= 1 + clip(kl / target - 1, -0.2, 0.2) *
/// episodes / horizon.
class AdaptiveKl {
 public:
  /// @throws ConfigError unless coefficient >= 0, target > 0 and horizon > 0, all finite
  AdaptiveKl(double coefficient, double target, double horizon)
      : coefficient_(coefficient), target_(target), horizon_(horizon) {
    expects<ConfigError>(std::isfinite(coefficient) && coefficient >= 0,
                         "kl_coefficient must be a finite number of at least 0");
    expects<ConfigError>(std::isfinite(target) && target > 0,
                         "kl_target must be a finite number above 0");
    expects<ConfigError>(std::isfinite(horizon) && horizon > 0,
                         "kl_horizon must be a finite number above 0");
  }

  double coefficient() const noexcept { return coefficient_; }

  void update(double mean_kl, std::int64_t episodes) {
    double const error = std::clamp(mean_kl / target_ - 1.0, -0.2, 0.2);
    coefficient_ *= 1.0 + error * static_cast<double>(episodes) / horizon_;
  }

  std::vector<double> state() const { return {coefficient_}; }

  /// @throws ConfigError if the numbers are not from state()
  void restore(std::span<double const> state) {
    expects<ConfigError>(state.size() == 1 && std::isfinite(state[0]) && state[0] >= 0,
                         "the saved state of an adaptive KL controller is one coefficient");
    coefficient_ = state[0];
  }

 private:
  double coefficient_;
  double target_;
  double horizon_;
};

static_assert(KlEstimator<KlK1> && KlEstimator<KlAbs> && KlEstimator<KlK2> && KlEstimator<KlK3>);
static_assert(KlController<FixedKl> && StatefulKlController<AdaptiveKl>);

}  // namespace emprl::rl
