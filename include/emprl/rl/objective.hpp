// SPDX-License-Identifier: Apache-2.0
#pragma once

// The loss of PPO per token, written once, and its evaluation with gradients over a mini-batch.

#include <cmath>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/math/dual.hpp"
#include "emprl/rl/concepts.hpp"
#include "emprl/rl/types.hpp"

namespace emprl::rl {

/// The clipped surrogate with a clipped value loss (Schulman et al. 2017), to be minimised:
///   ratio  = exp(logp - old_logp)
///   policy = max(-A ratio, -A clip(ratio, 1 - policy_clip, 1 + policy_clip))
///   value  = max((v - ret)^2, (clip(v, old_value -+ value_clip) - ret)^2) / 2
///   loss   = policy + value_coefficient * value
/// The value's clip is max(min(v, high), low), so that a tie at a bound passes half of the
/// gradient.
struct PpoClipObjective {
  double policy_clip = 0.2;
  double value_clip = 0.2;
  double value_coefficient = 0.1;

  /// @throws ConfigError naming the first number that is out of range
  void validate() const {
    expects<ConfigError>(policy_clip > 0 && policy_clip < 1, "policy_clip must be between 0 and 1");
    expects<ConfigError>(value_clip > 0, "value_clip must be above 0");
    expects<ConfigError>(std::isfinite(value_coefficient) && value_coefficient >= 0,
                         "value_coefficient must be a finite number of at least 0");
  }

  template <class S>
  EMPRL_HD S policy(S const& logp, TokenContext const& t) const {
    using namespace scalar_math;
    S const ratio = exp(logp - S(t.old_logp));
    S const minus_advantage = S(-t.advantage);
    return max(minus_advantage * ratio,
               minus_advantage * clip(ratio, 1.0 - policy_clip, 1.0 + policy_clip));
  }

  template <class S>
  EMPRL_HD S value(S const& value, TokenContext const& t) const {
    using namespace scalar_math;
    S const clipped = max(min(value, S(t.old_value + value_clip)), S(t.old_value - value_clip));
    S const error = value - S(t.ret);
    S const clipped_error = clipped - S(t.ret);
    return S(0.5) * max(error * error, clipped_error * clipped_error);
  }

  template <class S>
  EMPRL_HD S operator()(S const& logp, S const& v, TokenContext const& t) const {
    return policy(logp, t) + S(value_coefficient) * value(v, t);
  }

  /// Whether the clipped branch is the larger one, and so the policy term constant.
  EMPRL_HD bool clipped(double logp, TokenContext const& t) const {
    using namespace scalar_math;
    double const ratio = exp(logp - t.old_logp);
    return -t.advantage * clip(ratio, 1.0 - policy_clip, 1.0 + policy_clip) > -t.advantage * ratio;
  }
};

static_assert(ItemisedObjective<PpoClipObjective>);

/// The clipped surrogate with a bound for bad actions that became likely (Ye et al. 2020,
/// "Mastering complex control in MOBA games"): where A < 0, the policy term is at most -A
/// dual_clip, so that a large ratio cannot throw the policy far.
struct DualClipObjective {
  PpoClipObjective clip{};
  double dual_clip = 3.0;  ///< above 1

  /// @throws ConfigError naming the first number that is out of range
  void validate() const {
    clip.validate();
    expects<ConfigError>(dual_clip > 1, "dual_clip must be above 1");
  }

  template <class S>
  EMPRL_HD S policy(S const& logp, TokenContext const& t) const {
    using namespace scalar_math;
    S const term = clip.policy(logp, t);
    return t.advantage < 0 ? min(term, S(-t.advantage * dual_clip)) : term;
  }

  template <class S>
  EMPRL_HD S value(S const& v, TokenContext const& t) const {
    return clip.value(v, t);
  }

  template <class S>
  EMPRL_HD S operator()(S const& logp, S const& v, TokenContext const& t) const {
    return policy(logp, t) + S(clip.value_coefficient) * value(v, t);
  }

  /// Whether either clip has taken the policy term's gradient.
  EMPRL_HD bool clipped(double logp, TokenContext const& t) const {
    return clip.clipped(logp, t) ||
           (t.advantage < 0 && clip.policy(logp, t) > -t.advantage * dual_clip);
  }
};

static_assert(ItemisedObjective<DualClipObjective>);

namespace detail {

/// An objective inside another: the terms that it reports, and its check, are the whole's.
template <Objective O>
class Inside {
 public:
  EMPRL_HD double policy(double logp, TokenContext const& t) const requires ItemisedObjective<O> {
    return objective().policy(logp, t);
  }
  EMPRL_HD double value(double v, TokenContext const& t) const requires ItemisedObjective<O> {
    return objective().value(v, t);
  }
  EMPRL_HD bool clipped(double logp, TokenContext const& t) const requires ItemisedObjective<O> {
    return objective().clipped(logp, t);
  }
  void validate() const requires requires(O const& o) { o.validate(); }
  { objective().validate(); }

 protected:
  explicit Inside(O objective) : objective_(std::move(objective)) {}
  EMPRL_HD O const& objective() const { return objective_; }

 private:
  O objective_;
};

}  // namespace detail

/// Another objective with a KL penalty added to each token's loss: objective + coefficient *
/// kl(logp, reference_logp). Its terms are reported as the objective's own.
template <Objective O, KlEstimator K>
class WithKlPenalty : public detail::Inside<O> {
 public:
  WithKlPenalty(O objective, K kl, double coefficient)
      : detail::Inside<O>(std::move(objective)), kl_(std::move(kl)), coefficient_(coefficient) {}

  template <class S>
  EMPRL_HD S operator()(S const& logp, S const& v, TokenContext const& t) const
      requires(!EntropyObjective<O>) {
    return this->objective()(logp, v, t) + penalty(logp, t);
  }
  template <class S>
  EMPRL_HD S operator()(S const& logp, S const& v, S const& entropy,
                        TokenContext const& t) const requires EntropyObjective<O> {
    return this->objective()(logp, v, entropy, t) + penalty(logp, t);
  }

 private:
  template <class S>
  EMPRL_HD S penalty(S const& logp, TokenContext const& t) const {
    return S(coefficient_) * S(kl_(logp, S(t.reference_logp)));
  }

  K kl_;
  double coefficient_;
};

/// Another objective with a bonus for a policy that stays undecided:
///   objective - coefficient * H,   H = -sum_v p_v log p_v of the full softmax at the token
/// (Williams and Peng 1991). It works against collapse to one answer, but with a vocabulary of tens
/// of thousands most of what it raises is noise: where a KL penalty to a good reference is at hand,
/// that is the better brake. Needs an actor that trains its entropy (TrainsEntropy). The terms that
/// are reported are the objective's own; the entropy is a statistic anyhow.
template <Objective O>
class EntropyBonus : public detail::Inside<O> {
  static_assert(!EntropyObjective<O>, "the objective of an entropy bonus must not use it itself");

 public:
  explicit EntropyBonus(O objective, double coefficient = 0.01)
      : detail::Inside<O>(std::move(objective)), coefficient_(coefficient) {}

  /// @throws ConfigError naming the first number that is out of range
  void validate() const {
    if constexpr (requires(detail::Inside<O> const& inside) { inside.validate(); }) {
      detail::Inside<O>::validate();
    }
    expects<ConfigError>(std::isfinite(coefficient_) && coefficient_ >= 0,
                         "the coefficient of an entropy bonus must be a finite number of at "
                         "least 0");
  }

  template <class S>
  EMPRL_HD S operator()(S const& logp, S const& v, S const& entropy, TokenContext const& t) const {
    return this->objective()(logp, v, t) - S(coefficient_) * entropy;
  }

 private:
  double coefficient_;
};

static_assert(EntropyObjective<EntropyBonus<PpoClipObjective>> &&
              ItemisedObjective<EntropyBonus<PpoClipObjective>>);

/// Sums over the tokens of one or more mini-batches; divide by `tokens` for means.
struct ObjectiveSums {
  double tokens = 0;
  double loss = 0;
  double policy = 0;   ///< only from an objective that itemises
  double value = 0;    ///< likewise, before its coefficient
  double clipped = 0;  ///< likewise
  double ratio = 0;
  double k1 = 0;                 ///< old_logp - logp
  double k3 = 0;                 ///< ratio - 1 - log ratio
  double worst_ratio_error = 0;  ///< max |ratio - 1|
  std::size_t worst_token = 0;   ///< where it was found

  double mean_ratio() const { return tokens > 0 ? ratio / tokens : 1.0; }

  void add(ObjectiveSums const& other) {
    tokens += other.tokens;
    loss += other.loss;
    policy += other.policy;
    value += other.value;
    clipped += other.clipped;
    ratio += other.ratio;
    k1 += other.k1;
    k3 += other.k3;
  }
};

namespace detail {

/// The loop of evaluate_objective, below. Everything it calls is inlined (flatten), and within a
/// token nothing is stored before everything is computed, since a store might change what objective
/// and token hold, for all that a compiler knows. So loss, derivatives and statistics share what
/// they have in common, the exponential above all. benchmarks/ppo/bench_objective compares it with
/// a gradient derived by hand.
template <emprl::Scalar T, Objective O>
[[gnu::flatten]] ObjectiveSums evaluate_tokens(O const& objective, std::span<T const> logp,
                                               std::span<T const> value,
                                               std::span<TokenContext const> tokens, MaskView mask,
                                               double normaliser, std::span<T> dlogp,
                                               std::span<T> dvalue, std::span<T const> entropy,
                                               std::span<T> dentropy) {
  constexpr bool of_entropy = EntropyObjective<O>;
  using S = Dual<double, of_entropy ? 3 : 2>;
  ObjectiveSums sums;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    if (mask[t] == 0) {
      dlogp[t] = T(0);
      dvalue[t] = T(0);
      if constexpr (of_entropy) dentropy[t] = T(0);
      continue;
    }
    TokenContext const& token = tokens[t];
    double const lp = static_cast<double>(logp[t]);
    double const v = static_cast<double>(value[t]);
    // The call of exp comes first, when there are no results yet that must survive it in memory.
    double const log_ratio = lp - token.old_logp;
    double const ratio = std::exp(log_ratio);
    S loss;
    if constexpr (of_entropy) {
      loss = objective(S::variable(lp, 0), S::variable(v, 1),
                       S::variable(static_cast<double>(entropy[t]), 2), token);
    } else {
      loss = objective(S::variable(lp, 0), S::variable(v, 1), token);
    }
    double policy_term = 0, value_term = 0, clipped = 0;
    if constexpr (ItemisedObjective<O>) {
      policy_term = objective.policy(lp, token);
      value_term = objective.value(v, token);
      clipped = objective.clipped(lp, token) ? 1.0 : 0.0;
    }

    dlogp[t] = static_cast<T>(loss.derivative[0] / normaliser);
    dvalue[t] = static_cast<T>(loss.derivative[1] / normaliser);
    if constexpr (of_entropy) dentropy[t] = static_cast<T>(loss.derivative[2] / normaliser);
    sums.tokens += 1;
    sums.loss += loss.value;
    sums.policy += policy_term;
    sums.value += value_term;
    sums.clipped += clipped;
    sums.ratio += ratio;
    sums.k1 -= log_ratio;
    sums.k3 += ratio - 1.0 - log_ratio;
    if (std::abs(ratio - 1.0) > sums.worst_ratio_error) {
      sums.worst_ratio_error = std::abs(ratio - 1.0);
      sums.worst_token = t;
    }
  }
  return sums;
}

}  // namespace detail

/// Evaluates the objective at every token and differentiates it by log-probability, value and, of
/// an EntropyObjective, entropy.
///   dlogp[t] = dL[t]/dlogp[t] / normaliser,  and dvalue, dentropy likewise; all are 0 where
///   masked.
/// @param logp, value  (tokens) under the current parameters
/// @param tokens       (tokens) what was known at sampling
/// @param normaliser   tokens of the whole optimiser step, so that mini-batches of any size add up
/// to its mean
/// @param dlogp, dvalue (tokens) written (=)
/// @param entropy, dentropy (tokens) read, and written (=), by an EntropyObjective; else left empty
/// @return sums over the mask, not divided
template <emprl::Scalar T, Objective O>
ObjectiveSums evaluate_objective(O const& objective, std::span<T const> logp,
                                 std::span<T const> value, std::span<TokenContext const> tokens,
                                 MaskView mask, double normaliser, std::span<T> dlogp,
                                 std::span<T> dvalue, std::span<T const> entropy = {},
                                 std::span<T> dentropy = {}) {
  std::size_t const n = tokens.size();
  expects(logp.size() == n && value.size() == n && mask.size() == n && dlogp.size() == n &&
              dvalue.size() == n,
          "an objective needs a log-probability, a value and a mask entry for every token");
  expects(entropy.size() == (EntropyObjective<O> ? n : 0) && dentropy.size() == entropy.size(),
          "an objective of the entropy, and no other, needs it for every token");
  return detail::evaluate_tokens(objective, logp, value, tokens, mask, normaliser, dlogp, dvalue,
                                 entropy, dentropy);
}

}  // namespace emprl::rl
