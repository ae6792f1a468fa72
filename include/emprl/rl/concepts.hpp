// SPDX-License-Identifier: Apache-2.0
#pragma once

// What PPO asks of the things it is composed of. Each concept is small, constrains signatures, and
// is satisfied by any type with the right expressions: nothing derives from anything. The comments
// give what a compiler cannot check.
//
// Common to all: arrays "per token" are packed like batch.responses.ids (types.hpp). T is the
// models' number format, float or double, named Scalar by the actor. Rows without a token are never
// passed to a model.

#include <concepts>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "emprl/core/ragged.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/math/dual.hpp"
#include "emprl/rl/types.hpp"

namespace emprl::rl {

// -------------------------------------------------------------------------------------------------
// Policy: a distribution over responses that can be trained.
//
//   typename P::Scalar                 float or double
//   typename P::Context                what backward needs from forward; default constructible
//   p.forward(batch, logp, context)    writes log p(y_t | context, y_<t) of every generated token
//   p.backward(dlogp, context)         adds d loss / d parameters for the batch of the context
//
// Invariants. forward is a function of the parameters and the batch: no dropout, no noise; two
// calls give the same numbers, and a row's numbers do not depend on the other rows beyond rounding
// (PPO checks that the ratio is 1 before the first update). backward accumulates (+=); a context is
// consumed at most once, is used again for the next batch, and may refer to its batch, which lives
// until backward has returned. Between a forward and its backward nothing is asked of the models
// but the entropy, no weight moves, and gradients may be set to 0: what a policy keeps, in its
// context or in itself, is still there. Whether the log-probabilities are of the raw or of the
// tempered softmax is the policy's affair; the reference must make the same choice.
//
// What an actor may offer besides (below), a policy may offer too, without the values; the adaptors
// of actor_critic.hpp hand it on:
//   p.inference(batch, logp)            p.entropy(entropy, context)
//   p.full_kl(reference, batch, kl)     p.backward(dlogp, dentropy, context)
//
//   struct Coin {                         // a response is one token, heads or tails
//     using Scalar = double;
//     struct Context { std::vector<std::int32_t> y; };
//     double logit = 0, gradient = 0;     // P(heads) = sigmoid(logit)
//     double p(int y) const { return 1 / (1 + std::exp(y ? -logit : logit)); }
//     void forward(rl::TokenBatch const& b, std::span<double> logp, Context& c) const {
//       c.y.assign(b.responses.ids.begin(), b.responses.ids.end());
//       for (std::size_t i = 0; i < logp.size(); ++i) logp[i] = std::log(p(c.y[i]));
//     }
//     void backward(std::span<double const> d, Context const& c) {
//       for (std::size_t i = 0; i < d.size(); ++i) gradient += d[i] * (c.y[i] - p(1));
//     }
//   };
// -------------------------------------------------------------------------------------------------
template <class P>
concept Policy = emprl::Scalar<typename P::Scalar> &&
    std::default_initializable<typename P::Context> &&
    requires(P& p, typename P::Context& context, TokenBatch const& batch,
             std::span<typename P::Scalar> logp, std::span<typename P::Scalar const> dlogp) {
  { p.forward(batch, logp, context) } -> std::same_as<void>;
  { p.backward(dlogp, context) } -> std::same_as<void>;
};

// -------------------------------------------------------------------------------------------------
// ValueFunction: the expected return from before each token, V(context, y_<t).
//
//   v.forward(batch, values, context)   writes one value a generated token, from y_<t only
//   v.backward(dvalues, context)        adds d loss / d parameters
//
// Invariants as for Policy. A value function that looks ahead makes advantages vanish without any
// error to be seen.
//
//   struct Constant {
//     using Scalar = double;
//     struct Context {};
//     double v = 0, gradient = 0;
//     void forward(rl::TokenBatch const&, std::span<double> out, Context&) const {
//       std::ranges::fill(out, v);
//     }
//     void backward(std::span<double const> d, Context const&) {
//       for (double x : d) gradient += x;
//     }
//   };
// -------------------------------------------------------------------------------------------------
template <class V>
concept ValueFunction = emprl::Scalar<typename V::Scalar> &&
    std::default_initializable<typename V::Context> &&
    requires(V& v, typename V::Context& context, TokenBatch const& batch,
             std::span<typename V::Scalar> values, std::span<typename V::Scalar const> dvalues) {
  { v.forward(batch, values, context) } -> std::same_as<void>;
  { v.backward(dvalues, context) } -> std::same_as<void>;
};

// -------------------------------------------------------------------------------------------------
// ActorCritic: policy and value function in one, for a trunk that both share. One forward gives
// both arrays, one backward takes both gradients, so that the trunk is run once and its two
// gradients are added where they meet.
//
//   a.forward(batch, logp, values, context)
//   a.backward(dlogp, dvalues, context)
//
// Invariants as for Policy and ValueFunction. SeparateActorCritic (actor_critic.hpp) builds one
// from two networks:
//
//   rl::SeparateActorCritic actor{policy, value_function};
//
// A type of one's own, in outline:
//
//   struct Shared {
//     using Scalar = float;
//     struct Context { Trunk::Context trunk; };
//     using Out = std::span<float>;
//     using In = std::span<float const>;
//     void forward(rl::TokenBatch const& b, Out logp, Out values, Context& c);
//     void backward(In dlogp, In dvalues, Context& c);
//   };
//
// More expressions are used where they exist:
//   a.inference(batch, logp, values)    the same numbers as forward, saving nothing
//   a.entropy(entropy, context)         entropy of the full softmax at every token
//   a.backward(dlogp, dvalues, dentropy, context)    the same, and trains that entropy
//   a.full_kl(reference, batch, kl)     the exact divergence from the reference at every token
// They are named InferringActor, ReportsEntropy, TrainsEntropy and ReportsFullKl below.
// -------------------------------------------------------------------------------------------------
template <class A>
concept ActorCritic = emprl::Scalar<typename A::Scalar> &&
    std::default_initializable<typename A::Context> &&
    requires(A& a, typename A::Context& context, TokenBatch const& batch,
             std::span<typename A::Scalar> out, std::span<typename A::Scalar const> gradient) {
  { a.forward(batch, out, out, context) } -> std::same_as<void>;
  { a.backward(gradient, gradient, context) } -> std::same_as<void>;
};

/// An actor that can be evaluated without keeping anything for a gradient.
template <class A>
concept InferringActor = ActorCritic<A> &&
    requires(A& a, TokenBatch const& batch, std::span<typename A::Scalar> out) {
  { a.inference(batch, out, out) } -> std::same_as<void>;
};

/// An actor that tells the entropy of its distribution at every token of the last forward.
template <class A>
concept ReportsEntropy = ActorCritic<A> &&
    requires(A& a, typename A::Context const& context, std::span<typename A::Scalar> entropy) {
  { a.entropy(entropy, context) } -> std::same_as<void>;
};

/// An actor that also takes the gradient of that entropy: what an EntropyObjective needs.
template <class A>
concept TrainsEntropy = ReportsEntropy<A> &&
    requires(A& a, typename A::Context& context, std::span<typename A::Scalar const> gradient) {
  { a.backward(gradient, gradient, gradient, context) } -> std::same_as<void>;
};

/// An actor that can compare its whole distribution with that of a reference: kl[t] = sum_v p_v
/// (log p_v - log q_v) at every generated token, p its own.
template <class A, class R>
concept ReportsFullKl = ActorCritic<A> &&
    requires(A& a, R& reference, TokenBatch const& batch, std::span<typename A::Scalar> kl) {
  { a.full_kl(reference, batch, kl) } -> std::same_as<void>;
};

// -------------------------------------------------------------------------------------------------
// ReferencePolicy: the frozen model that the policy is kept close to.
//
//   r.logprobs(batch, logp)   writes log q(y_t | context, y_<t) of every generated token
//
// It has no backward, so that a frozen model cannot be trained by mistake. Invariants: the same
// vocabulary, start token and temperature convention as the policy; constant over the run.
//
//   struct Uniform {    // over a vocabulary of n tokens
//     double n;
//     void logprobs(rl::TokenBatch const&, std::span<float> logp) const {
//       std::ranges::fill(logp, -std::log(float(n)));
//     }
//   };
// -------------------------------------------------------------------------------------------------
template <class R, class T>
concept ReferencePolicy = emprl::Scalar<T> &&
    requires(R& r, TokenBatch const& batch, std::span<T> logp) {
  { r.logprobs(batch, logp) } -> std::same_as<void>;
};

// -------------------------------------------------------------------------------------------------
// RewardModel: one number an episode, or one a generated token; larger is better. Never
// differentiated.
//
//   r(episodes, scores)         writes scores[i] for every episode, or
//   r(episodes, scores, log)    the same, and records named parts of the score in a ScoreLog;
//                               scores a std::span<float>, or
//                               TokenScores: writes scores.row(i)[t] for every token t of episode i
//
// Invariants. Every score is written and finite: one left unwritten or non-finite is an error that
// names the episode. The scale is free where the configuration normalises scores. The i-th score
// depends on the i-th episode alone, unless you mean a reward that compares episodes. The score of
// an episode whose tokens are scored is their sum.
//
//   auto asks_back = [](rl::EpisodeBatch const& episodes, std::span<float> scores) {
//     for (std::size_t i = 0; i < episodes.size(); ++i) {
//       scores[i] = episodes[i].response.ends_with('?') ? 1.f : 0.f;
//     }
//   };
//   auto small_ids = [](rl::EpisodeBatch const& episodes, rl::TokenScores scores) {
//     for (std::size_t i = 0; i < episodes.size(); ++i) {
//       auto const ids = episodes[i].response_ids;
//       for (std::size_t t = 0; t < ids.size(); ++t) scores.row(i)[t] = ids[t] < 100 ? 1.f : 0.f;
//     }
//   };
//
// A reward that remembers something from batch to batch has state() and restore(), as a KL
// controller has (StatefulRewardModel, rewards.hpp).
//
// Models: any callable; Named (rewards.hpp); sums, products, bounds, gates and running
// normalisation of others, and Spread over tokens (reward_combinators.hpp); repetition, length,
// overlap (reward_rules.hpp); the empathy reward (train/empathy_reward.hpp); a T5's likelihood and
// a classifier's level (train/model_rewards.hpp); a program on the other end of a pipe
// (train/pipe_reward.hpp).
// -------------------------------------------------------------------------------------------------
/// A reward of responses that also names its parts.
template <class R>
concept LoggingRewardModel = requires(R& r, EpisodeBatch const& episodes, std::span<float> scores,
                                      ScoreLog& log) {
  { r(episodes, scores, log) } -> std::same_as<void>;
};

/// A reward with one number a response.
template <class R>
concept ResponseReward = LoggingRewardModel<R> ||
    requires(R& r, EpisodeBatch const& episodes, std::span<float> scores) {
  { r(episodes, scores) } -> std::same_as<void>;
};

/// A reward of tokens that also names its parts, one number a response each.
template <class R>
concept LoggingTokenReward = requires(R& r, EpisodeBatch const& episodes, TokenScores scores,
                                      ScoreLog& log) {
  { r(episodes, scores, log) } -> std::same_as<void>;
};

/// A reward with one number a generated token.
template <class R>
concept TokenReward = LoggingTokenReward<R> ||
    requires(R& r, EpisodeBatch const& episodes, TokenScores scores) {
  { r(episodes, scores) } -> std::same_as<void>;
};

template <class R>
concept RewardModel = ResponseReward<R> || TokenReward<R>;

// -------------------------------------------------------------------------------------------------
// KlEstimator: an estimate of KL(policy || reference) from the log-probabilities of one sampled
// token.
//
//   k(logp, reference) -> number
//
// Invariants: a pure function; 0 when both are equal. Written as a template over the number it also
// serves in a loss.
//
//   struct Squared {
//     template <class S>
//     S operator()(S const& p, S const& q) const {
//       return S(0.5) * (p - q) * (p - q);
//     }
//   };
//
// Models: KlK1, KlAbs, KlK2, KlK3; KlInLoss of the last three puts the penalty into the loss
// (kl.hpp).
// -------------------------------------------------------------------------------------------------
template <class K>
concept KlEstimator = requires(K const& k, double logp, double reference) {
  { k(logp, reference) } -> std::convertible_to<double>;
};

// -------------------------------------------------------------------------------------------------
// KlController: chooses the coefficient beta of the KL penalty.
//
//   k.coefficient() noexcept -> double    beta of the next rollout batch; finite, not negative
//   k.update(mean_kl, episodes)           after the epochs of a batch; mean_kl is per response
//
// Copyable, as it is a value. A controller whose coefficient changes also says how to save itself,
// else a run that used it cannot be resumed:
//   k.state() -> std::vector<double>      everything that update changes
//   k.restore(state)
//
//   struct Halving {
//     double beta = 0.2;
//     double coefficient() const noexcept { return beta; }
//     void update(double, std::int64_t) { beta /= 2; }
//     std::vector<double> state() const { return {beta}; }
//     void restore(std::span<double const> s) { beta = s[0]; }
//   };
//
// Models: FixedKl, AdaptiveKl, LinearKl (kl.hpp).
// -------------------------------------------------------------------------------------------------
template <class K>
concept KlController = std::copyable<K> &&
    requires(K& k, K const& constant, double mean_kl, std::int64_t episodes) {
  { constant.coefficient() }
  noexcept->std::same_as<double>;
  { k.update(mean_kl, episodes) } -> std::same_as<void>;
};

/// A controller that can be saved and restored.
template <class K>
concept StatefulKlController = KlController<K> &&
    requires(K& k, K const& constant, std::span<double const> state) {
  { constant.state() } -> std::same_as<std::vector<double>>;
  { k.restore(state) } -> std::same_as<void>;
};

// -------------------------------------------------------------------------------------------------
// AdvantageEstimator: credits each token.
//
//   a(rollout, advantages, returns)   writes both, one number a token
//
// It reads rewards (shaped, and whitened where configured), values, mask, offsets and scores of the
// rollout. Masked tokens hold reward 0 and value 0, and their advantages are never used. `returns`
// is the value function's target. Whitening of advantages is the trainer's next step.
//
//   struct RewardToGo {
//     using Out = std::span<double>;
//     void operator()(rl::Rollout const& r, Out advantages, Out returns) const {
//       rl::Gae{1, 1}(r, advantages, returns);
//       std::ranges::copy(returns, advantages.begin());
//     }
//   };
//
// An estimator that remembers something from batch to batch also has state() and restore(), as a
// KL controller has (StatefulAdvantageEstimator).
//
// One that does not read values says so, and no value function is built for it:
//   static constexpr bool uses_values = false;
// One whose numbers can be out of range has validate(), which the trainer calls first.
//
// Models: Gae, GroupRelative, LeaveOneOut, RunningBaseline (advantages.hpp).
// -------------------------------------------------------------------------------------------------
template <class A>
concept AdvantageEstimator = requires(A& a, Rollout const& rollout, std::span<double> advantages,
                                      std::span<double> returns) {
  { a(rollout, advantages, returns) } -> std::same_as<void>;
};

/// Whether an estimator reads the values: true unless it says otherwise. Where it is false nobody
/// needs a value function (train/align.hpp builds none).
template <class A>
inline constexpr bool uses_values = [] {
  if constexpr (requires {
                  { A::uses_values } -> std::convertible_to<bool>;
                }) {
    return static_cast<bool>(A::uses_values);
  } else {
    return true;
  }
}();

/// An estimator that can be saved and restored.
template <class A>
concept StatefulAdvantageEstimator = AdvantageEstimator<A> &&
    requires(A& a, A const& constant, std::span<double const> state) {
  { constant.state() } -> std::same_as<std::vector<double>>;
  { a.restore(state) } -> std::same_as<void>;
};

// -------------------------------------------------------------------------------------------------
// Objective: the loss of one token, a function of its log-probability and value under the current
// parameters.
//
//   template <class S> S operator()(S logp, S value, TokenContext const& t) const
//
// The library evaluates it with S = Dual<double, 2> and so has both derivatives; no calculus is
// asked for. Invariants: pure; summed over tokens and divided by their number by the caller, so no
// normalisation inside. With `using namespace emprl::scalar_math;` exp, log, abs, min, max and clip
// work for numbers and duals alike.
//
//   struct Reinforce {
//     template <class S> S operator()(S logp, S value, rl::TokenContext const& t) const {
//       S const error = value - S(t.ret);
//       return S(-t.advantage) * logp + S(0.5) * error * error;
//     }
//   };
//
// An objective of the entropy too takes it as a third number (EntropyObjective); the actor must
// then take its gradient (TrainsEntropy):
//   template <class S> S operator()(S logp, S value, S entropy, TokenContext const& t) const
// One whose numbers can be out of range has validate(), which the trainer calls first.
//
// An objective that can tell its terms apart offers them for the statistics (ItemisedObjective):
//   o.policy(logp, t), o.value(value, t)   the two terms, the second before its coefficient
//   o.clipped(logp, t) -> bool             whether the policy term has lost its gradient
//
// Models: PpoClipObjective, DualClipObjective, EntropyBonus (objective.hpp).
// -------------------------------------------------------------------------------------------------
/// An objective of log-probability, value and entropy.
template <class O>
concept EntropyObjective = requires(O const& o, Dual<double, 3> dual, double number,
                                    TokenContext const& t) {
  { o(dual, dual, dual, t) } -> std::same_as<Dual<double, 3>>;
  { o(number, number, number, t) } -> std::same_as<double>;
};

template <class O>
concept Objective = EntropyObjective<O> ||
    requires(O const& o, Dual<double, 2> dual, double number, TokenContext const& t) {
  { o(dual, dual, t) } -> std::same_as<Dual<double, 2>>;
  { o(number, number, t) } -> std::same_as<double>;
};

/// An objective whose policy term and value term can be reported apart.
template <class O>
concept ItemisedObjective = Objective<O> &&
    requires(O const& o, double number, TokenContext const& t) {
  { o.policy(number, t) } -> std::same_as<double>;
  { o.value(number, t) } -> std::same_as<double>;
  { o.clipped(number, t) } -> std::same_as<bool>;
};

// -------------------------------------------------------------------------------------------------
// Sampler: draws one response for each context from the policy being trained.
//
//   s(contexts, step) -> Ragged   as many rows as contexts, in their order
//
// A response holds the generated tokens, the end token included if it was emitted, the start token
// excluded; it may be empty. `step` addresses the random draws: the same step, contexts and
// parameters give the same responses.
//
//   auto flip = [&](RaggedView contexts, std::uint32_t step) {
//     Ragged out;
//     for (index_t i = 0; i < contexts.rows(); ++i) {
//       double const u = uniform({.seed = 1, .step = step, .row = std::uint32_t(i)});
//       out.push_back(std::array{std::int32_t(u < coin.p(1))});
//     }
//     return out;
//   };
// -------------------------------------------------------------------------------------------------
template <class S>
concept Sampler = requires(S& s, RaggedView contexts, std::uint32_t step) {
  { s(contexts, step) } -> std::same_as<Ragged>;
};

/// TextDecoder: the text of a response, special tokens skipped; what rewards read.
template <class D>
concept TextDecoder = requires(D& d, std::span<std::int32_t const> ids) {
  { d(ids) } -> std::convertible_to<std::string>;
};

// -------------------------------------------------------------------------------------------------
// Optimizer: owns (or refers to) the actor's parameters, their gradients and its own moments.
//
//   o.zero_gradients()               before the first backward of an optimiser step
//   o.step(rate, max_norm)           scales the gradients by min(1, max_norm / norm), moves the
//                                    weights; returns the norm before scaling, a double
//
// Invariant: if the norm is not finite, step changes neither weights nor moments, and returns it or
// throws Error. The trainer then stops with an error that names the episodes.
//
//   struct Descent {
//     Coin& coin;
//     void zero_gradients() { coin.gradient = 0; }
//     double step(double rate, double max_norm) {
//       double const norm = std::abs(coin.gradient);
//       if (!std::isfinite(norm)) return norm;
//       coin.logit -= rate * coin.gradient * std::min(1.0, max_norm / (norm + 1e-6));
//       return norm;
//     }
//   };
// -------------------------------------------------------------------------------------------------
template <class O>
concept Optimizer = requires(O& o, double learning_rate, double max_gradient_norm) {
  { o.zero_gradients() } -> std::same_as<void>;
  { o.step(learning_rate, max_gradient_norm) } -> std::same_as<double>;
};

}  // namespace emprl::rl
