// SPDX-License-Identifier: Apache-2.0
#pragma once

// Estimators of KL(p || q) from one sampled token, p the policy and q the reference, and
// controllers of its coefficient. With r = q / p at the sampled token (Schulman 2020,
// "Approximating KL divergence"):
//
//   k1  = -log r          unbiased, may be negative; its variance is that of log r
//   abs = |log r|         biased upwards, never negative: E|log r| >= |KL|
//   k2  = (log r)^2 / 2   biased: agrees with KL to second order in log r; never negative, low
//   variance k3  = r - 1 - log r   unbiased, never negative; low variance while p is near q,
//   unbounded where
//                         p is small and q is not
//
// Where the penalty goes is a second choice. In the reward (the estimator itself as the trainer's
// `kl`) it is a number, and any estimator will do. In the loss (KlInLoss) it is differentiated, and
// what is then minimised is not what the estimator's name says:
//   k1   its gradient is that of log p, which is 0 in expectation: nothing is penalised. Refused.
//   abs  a gradient of constant size and the sign of log p - log q: pulls back, whatever the
//   distance k2   (log p - log q) grad log p: in expectation exactly the gradient of KL(p || q) k3
//   (1 - q/p) grad log p: in expectation the gradient of KL(q || p), the other direction

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/math/dual.hpp"
#include "emprl/rl/concepts.hpp"

namespace emprl::rl {

/// log p - log q.
struct KlK1 {
  template <class S>
  EMPRL_HD S operator()(S const& logp, S const& reference) const {
    return logp - reference;
  }
};

/// |log p - log q|.
struct KlAbs {
  template <class S>
  EMPRL_HD S operator()(S const& logp, S const& reference) const {
    using namespace scalar_math;
    return abs(logp - reference);
  }
};

/// (log p - log q)^2 / 2.
struct KlK2 {
  template <class S>
  EMPRL_HD S operator()(S const& logp, S const& reference) const {
    S const d = logp - reference;
    return S(0.5) * d * d;
  }
};

/// q / p - 1 - log(q / p).
struct KlK3 {
  template <class S>
  EMPRL_HD S operator()(S const& logp, S const& reference) const {
    using namespace scalar_math;
    S const d = reference - logp;
    return exp(d) - S(1) - d;
  }
};

/// The exact divergence at each token, sum_v p_v (log p_v - log q_v): no variance from the token
/// that was drawn, at the price of both models' whole distributions. It is no function of two
/// numbers; the actor computes it (ReportsFullKl). In the reward only.
struct KlFull {};

/// Puts a KL penalty into the loss instead of the reward: loss = objective + beta * kl(logp,
/// reference) a token, beta from the controller. Give it to the trainer in an estimator's place.
template <class K>
struct KlInLoss {
  static_assert(
      !std::is_same_v<K, KlFull>,
      "the full KL cannot be a penalty in the loss: its gradient passes through the whole "
      "distribution, not through one log-probability; use KlK2, which has that gradient in "
      "expectation, or KlFull in the reward");
  static_assert(KlEstimator<K> || std::is_same_v<K, KlFull>,
                "KlInLoss takes a KlEstimator: callable with two log-probabilities");
  static_assert(
      !std::is_same_v<K, KlK1>,
      "k1 cannot be a penalty in the loss: the gradient of log p - log q is that of log p, "
      "which is 0 in expectation; use KlK2 or KlK3, or k1 in the reward");
  K estimator{};

  /// The estimator of the statistics, which do not care where the penalty goes.
  template <class S>
  EMPRL_HD S operator()(S const& logp, S const& reference) const {
    return estimator(logp, reference);
  }
};

namespace detail {
template <class K>
inline constexpr bool is_kl_in_loss = false;
template <class K>
inline constexpr bool is_kl_in_loss<KlInLoss<K>> = true;
}  // namespace detail

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

/// A coefficient that moves linearly from one number to another over a number of steps and stays
/// there:  beta = first + (last - first) * min(1, step / steps).
class LinearKl {
 public:
  /// @throws ConfigError unless both coefficients are finite and not negative and steps is above 0
  LinearKl(double first, double last, std::int64_t steps)
      : first_(first), last_(last), steps_(steps) {
    expects<ConfigError>(std::isfinite(first) && first >= 0 && std::isfinite(last) && last >= 0,
                         "kl_coefficient must be a finite number of at least 0, first and last");
    expects<ConfigError>(steps > 0, "the steps of a linear KL schedule must be above 0");
  }

  double coefficient() const noexcept {
    double const share = static_cast<double>(std::min(done_, steps_)) / static_cast<double>(steps_);
    return first_ + (last_ - first_) * share;
  }

  void update(double, std::int64_t) { ++done_; }

  std::vector<double> state() const { return {static_cast<double>(done_)}; }

  /// @throws ConfigError if the numbers are not from state()
  void restore(std::span<double const> state) {
    expects<ConfigError>(
        state.size() == 1 && state[0] >= 0 && state[0] < 9e15 && state[0] == std::floor(state[0]),
        "the saved state of a linear KL schedule is one number of steps");
    done_ = static_cast<std::int64_t>(state[0]);
  }

 private:
  double first_;
  double last_;
  std::int64_t steps_;
  std::int64_t done_ = 0;
};

static_assert(KlEstimator<KlK1> && KlEstimator<KlAbs> && KlEstimator<KlK2> && KlEstimator<KlK3>);
static_assert(KlController<FixedKl> && StatefulKlController<AdaptiveKl> &&
              StatefulKlController<LinearKl>);

}  // namespace emprl::rl
