// SPDX-License-Identifier: Apache-2.0
#pragma once

// An ActorCritic made of two networks that share nothing, and one that has no critic.

#include <algorithm>
#include <span>
#include <type_traits>

#include "emprl/rl/concepts.hpp"

namespace emprl::rl {

/// Joins a policy and a value function. Refers to both; they outlive it.
template <Policy P, ValueFunction V>
class SeparateActorCritic {
  static_assert(std::is_same_v<typename P::Scalar, typename V::Scalar>,
                "policy and value function must use the same number format");

 public:
  using Scalar = typename P::Scalar;

  struct Context {
    typename P::Context policy;
    typename V::Context value;
  };

  SeparateActorCritic(P& policy, V& value) : policy_(&policy), value_(&value) {}

  /// Writes log-probabilities and values of every generated token.
  void forward(TokenBatch const& batch, std::span<Scalar> logp, std::span<Scalar> values,
               Context& context) {
    policy_->forward(batch, logp, context.policy);
    value_->forward(batch, values, context.value);
  }

  /// Adds (+=) to the parameter gradients of both.
  void backward(std::span<Scalar const> dlogp, std::span<Scalar const> dvalues, Context& context) {
    policy_->backward(dlogp, context.policy);
    value_->backward(dvalues, context.value);
  }

 private:
  P* policy_;
  V* value_;
};

/// A policy alone, for advantages that need no value function (GroupRelative, LeaveOneOut,
/// RunningBaseline): every value is 0, and no value head exists to be trained. Refers to the
/// policy, which outlives it.
template <Policy P>
class PolicyOnly {
 public:
  using Scalar = typename P::Scalar;
  using Context = typename P::Context;

  explicit PolicyOnly(P& policy) : policy_(&policy) {}

  void forward(TokenBatch const& batch, std::span<Scalar> logp, std::span<Scalar> values,
               Context& context) {
    policy_->forward(batch, logp, context);
    std::ranges::fill(values, Scalar(0));
  }

  /// Adds (+=) to the policy's gradients; dvalues reach nothing.
  void backward(std::span<Scalar const> dlogp, std::span<Scalar const>, Context& context) {
    policy_->backward(dlogp, context);
  }

 private:
  P* policy_;
};

}  // namespace emprl::rl
