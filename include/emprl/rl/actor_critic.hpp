// SPDX-License-Identifier: Apache-2.0
#pragma once

// An ActorCritic made of two networks that share nothing, and one that has no critic.

#include <algorithm>
#include <concepts>
#include <span>
#include <type_traits>

#include "emprl/rl/concepts.hpp"

namespace emprl::rl {

namespace detail {

// What a policy may offer beyond Policy; an actor made of it offers the same.
template <class P>
concept PolicyReportsEntropy = requires(P& p, typename P::Context const& context,
                                        std::span<typename P::Scalar> out) {
  { p.entropy(out, context) } -> std::same_as<void>;
};
template <class P>
concept PolicyTrainsEntropy = requires(P& p, typename P::Context& context,
                                       std::span<typename P::Scalar const> gradient) {
  { p.backward(gradient, gradient, context) } -> std::same_as<void>;
};
template <class P>
concept PolicyInfers = requires(P& p, TokenBatch const& batch, std::span<typename P::Scalar> logp) {
  { p.inference(batch, logp) } -> std::same_as<void>;
};
template <class P, class R>
concept PolicyReportsFullKl = requires(P& p, R& reference, TokenBatch const& batch,
                                       std::span<typename P::Scalar> kl) {
  { p.full_kl(reference, batch, kl) } -> std::same_as<void>;
};

}  // namespace detail

/// Joins a policy and a value function. Refers to both; they outlive it.
template <Policy P, ValueFunction V>
class SeparateActorCritic {
  static_assert(std::is_same_v<typename P::Scalar, typename V::Scalar>,
                "policy and value function must use the same number format");

 public:
  using Scalar = typename P::Scalar;
  using In = std::span<Scalar const>;

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
  void backward(In dlogp, In dvalues, Context& context) {
    policy_->backward(dlogp, context.policy);
    value_->backward(dvalues, context.value);
  }

  /// The same with the gradient of the policy's entropy.
  void backward(In dlogp, In dvalues, In dentropy,
                Context& context) requires detail::PolicyTrainsEntropy<P> {
    policy_->backward(dlogp, dentropy, context.policy);
    value_->backward(dvalues, context.value);
  }

  void entropy(std::span<Scalar> out,
               Context const& context) const requires detail::PolicyReportsEntropy<P> {
    policy_->entropy(out, context.policy);
  }

  template <class R>
  requires detail::PolicyReportsFullKl<P, R>
  void full_kl(R& reference, TokenBatch const& batch, std::span<Scalar> kl) {
    policy_->full_kl(reference, batch, kl);
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
  using In = std::span<Scalar const>;

  explicit PolicyOnly(P& policy) : policy_(&policy) {}

  void forward(TokenBatch const& batch, std::span<Scalar> logp, std::span<Scalar> values,
               Context& context) {
    policy_->forward(batch, logp, context);
    std::ranges::fill(values, Scalar(0));
  }

  void inference(TokenBatch const& batch, std::span<Scalar> logp,
                 std::span<Scalar> values) requires detail::PolicyInfers<P> {
    policy_->inference(batch, logp);
    std::ranges::fill(values, Scalar(0));
  }

  /// Adds (+=) to the policy's gradients; dvalues reach nothing.
  void backward(In dlogp, In, Context& context) { policy_->backward(dlogp, context); }

  /// The same with the gradient of the policy's entropy.
  void backward(In dlogp, In, In dentropy,
                Context& context) requires detail::PolicyTrainsEntropy<P> {
    policy_->backward(dlogp, dentropy, context);
  }

  void entropy(std::span<Scalar> out,
               Context const& context) const requires detail::PolicyReportsEntropy<P> {
    policy_->entropy(out, context);
  }

  template <class R>
  requires detail::PolicyReportsFullKl<P, R>
  void full_kl(R& reference, TokenBatch const& batch, std::span<Scalar> kl) {
    policy_->full_kl(reference, batch, kl);
  }

 private:
  P* policy_;
};

}  // namespace emprl::rl
