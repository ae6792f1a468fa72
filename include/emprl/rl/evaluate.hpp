// SPDX-License-Identifier: Apache-2.0
#pragma once

// Asking the models about a rollout: log-probabilities, values and reference, with nothing
// non-finite let through.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "emprl/rl/concepts.hpp"
#include "emprl/rl/passes.hpp"
#include "emprl/rl/types.hpp"

namespace emprl::rl {

namespace detail {

/// The rows of a rollout but for some, in their order.
inline std::vector<index_t> rows_but_for(index_t rows, std::span<index_t const> some) {
  std::vector<std::uint8_t> taken(static_cast<std::size_t>(rows), 0);
  for (index_t const i : some) taken[static_cast<std::size_t>(i)] = 1;
  std::vector<index_t> others;
  for (index_t i = 0; i < rows; ++i) {
    if (taken[static_cast<std::size_t>(i)] == 0) others.push_back(i);
  }
  return others;
}

/// Calls f(batch) on some rows of a rollout, a few at a time.
template <class F>
void for_each_row_batch(PromptBatch const& prompts, Rollout const& rollout,
                        std::span<index_t const> rows, index_t rows_at_once, F&& f) {
  while (!rows.empty()) {
    auto const some = rows.first(std::min(rows.size(), static_cast<std::size_t>(rows_at_once)));
    rows = rows.subspan(some.size());
    RowBatch const batch = take_rows(prompts.contexts.view(), rollout.responses.view(), some);
    if (!batch.rows.empty()) f(batch);
  }
}

/// Puts one number a token of a batch where the rollout has it.
template <class T>
void put_tokens(RowBatch const& batch, std::span<T const> x, Rollout const& rollout,
                std::span<double> out) {
  for (std::size_t k = 0; k < batch.rows.size(); ++k) {
    auto const from = x.begin() + batch.responses.offsets[k];
    auto const to = out.begin() + rollout.offsets()[static_cast<std::size_t>(batch.rows[k])];
    std::copy(from, from + (batch.responses.offsets[k + 1] - batch.responses.offsets[k]), to);
  }
}

}  // namespace detail

/// Log-probabilities and values under the policy that sampled, log-probabilities under the
/// reference: fills logp, values and reference of the rollout, a few rows at a time, and computes
/// on the way what an update that follows would begin with.
///
/// The rows of `first` are evaluated by the actor's forward instead of its inference, after all
/// others and after the reference, so that nothing is asked of either until the update takes
/// gradients of `pass`: the old-policy pass of these rows costs nothing. What the pass keeps for
/// its backward stays in memory until then, while no model works: what a step needs at most is
/// still what that backward needs.
/// @param rows_at_once   at most so many of the other rows in one forward
/// @param first   what first_pass says, or no rows: then no gradient is kept
/// @param pass    written: for update_policy
/// @throws Error naming the episode if a model gives a non-finite number
template <ActorCritic A, ReferencePolicy<typename A::Scalar> R>
void evaluate_rollout(A& actor, R& reference, PromptBatch const& prompts, index_t rows_at_once,
                      Rollout& rollout, PassRows const& first, ForwardPass<A>& pass) {
  using T = typename A::Scalar;
  pass.rows = {};
  for (auto* x : {&rollout.logp, &rollout.values, &rollout.reference}) {
    x->assign(static_cast<std::size_t>(rollout.tokens()), 0.0);
  }
  std::vector<T> logp, values;
  auto const put = [&](RowBatch const& batch, std::vector<T> const& x, std::vector<double>& out) {
    detail::put_tokens(batch, std::span<T const>(x), rollout, std::span<double>(out));
  };
  auto const ask_reference = [&](RowBatch const& batch) {
    logp.assign(batch.tokens(), T(0));
    reference.logprobs(batch.view(), std::span<T>(logp));
    expect_finite(std::span<T const>(logp), batch, prompts, "reference log-probability");
    put(batch, logp, rollout.reference);
  };
  auto const others = detail::rows_but_for(rollout.rows(), first.rows);
  detail::for_each_row_batch(prompts, rollout, others, rows_at_once, [&](RowBatch const& batch) {
    logp.assign(batch.tokens(), T(0));
    values.assign(batch.tokens(), T(0));
    if constexpr (InferringActor<A>) {
      actor.inference(batch.view(), std::span<T>(logp), std::span<T>(values));
    } else {
      actor.forward(batch.view(), std::span<T>(logp), std::span<T>(values), pass.context);
    }
    expect_finite(std::span<T const>(logp), batch, prompts, "log-probability");
    expect_finite(std::span<T const>(values), batch, prompts, "value");
    put(batch, logp, rollout.logp);
    put(batch, values, rollout.values);
    ask_reference(batch);
  });
  if (first.rows.empty()) return;
  ask_reference(take_rows(prompts.contexts.view(), rollout.responses.view(), first.rows));
  run_forward(actor, prompts, rollout, first, pass);
  put(pass.batch, pass.logp, rollout.logp);
  put(pass.batch, pass.values, rollout.values);
  pass.rows = first;
}

/// The same by inference alone; keeps no gradient.
template <ActorCritic A, ReferencePolicy<typename A::Scalar> R>
void evaluate_rollout(A& actor, R& reference, PromptBatch const& prompts, index_t rows_at_once,
                      Rollout& rollout) {
  ForwardPass<A> none;
  evaluate_rollout(actor, reference, prompts, rows_at_once, rollout, {}, none);
}

/// kl[t] of KlFull: the exact divergence of the actor from the reference at every token that
/// counts, 0 where masked.
/// @throws Error naming the episode if the actor gives a non-finite number
template <class A, class R>
requires ReportsFullKl<A, R>
void evaluate_full_kl(A& actor, R& reference, PromptBatch const& prompts, index_t rows_at_once,
                      Rollout& rollout) {
  using T = typename A::Scalar;
  rollout.kl.assign(static_cast<std::size_t>(rollout.tokens()), 0.0);
  std::vector<T> kl;
  detail::for_each_row_batch(
      prompts, rollout, detail::rows_but_for(rollout.rows(), {}), rows_at_once,
      [&](RowBatch const& batch) {
        kl.assign(batch.tokens(), T(0));
        actor.full_kl(reference, batch.view(), std::span<T>(kl));
        expect_finite(std::span<T const>(kl), batch, prompts, "KL divergence");
        detail::put_tokens(batch, std::span<T const>(kl), rollout, std::span<double>(rollout.kl));
      });
  for (std::size_t t = 0; t < rollout.kl.size(); ++t) {
    if (rollout.mask[t] == 0) rollout.kl[t] = 0;
  }
}

}  // namespace emprl::rl
