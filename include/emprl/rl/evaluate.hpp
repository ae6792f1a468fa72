// SPDX-License-Identifier: Apache-2.0
#pragma once

// Asking the models about a rollout: log-probabilities, values and reference, with nothing
// non-finite let through.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/rl/concepts.hpp"
#include "emprl/rl/types.hpp"

namespace emprl::rl {

/// Some rows of a rollout as a model sees them.
struct RowBatch {
  std::vector<index_t> rows;  ///< which rows of the rollout, those without a token left out
  Ragged contexts;
  Ragged responses;

  TokenBatch view() const { return {contexts.view(), responses.view()}; }
  std::size_t tokens() const { return responses.ids.size(); }

  /// The row of the rollout to which packed token t belongs.
  index_t row_of(std::size_t t) const {
    auto const after = std::upper_bound(responses.offsets.begin(), responses.offsets.end(),
                                        static_cast<index_t>(t));
    return rows[static_cast<std::size_t>(after - responses.offsets.begin()) - 1];
  }
};

/// Copies rows out of a rollout, in the order given. Rows without a token are left out: there is
/// nothing to evaluate.
inline RowBatch take_rows(RaggedView contexts, RaggedView responses,
                          std::span<index_t const> rows) {
  RowBatch batch;
  for (index_t const i : rows) {
    if (responses.length(i) == 0) continue;
    batch.rows.push_back(i);
    batch.contexts.push_back(contexts.row(i));
    batch.responses.push_back(responses.row(i));
  }
  return batch;
}

/// @throws Error naming the episode and token of the first non-finite number
template <class T>
void expect_finite(std::span<T const> x, RowBatch const& batch, PromptBatch const& prompts,
                   std::string_view what) {
  for (std::size_t t = 0; t < x.size(); ++t) {
    if (std::isfinite(x[t])) continue;
    index_t const row = batch.row_of(t);
    throw Error("the " + std::string(what) + " of a token of episode " + prompts.name(row) +
                " is not finite: " + std::to_string(x[t]));
  }
}

/// Calls f(batch, first) on the rows of a rollout, a few at a time and in order, so that the tokens
/// of `batch` are those of the packed arrays from `first` on.
template <class F>
void for_each_row_batch(PromptBatch const& prompts, Rollout const& rollout, index_t rows_at_once,
                        F&& f) {
  std::vector<index_t> rows;
  std::size_t first = 0;
  for (index_t begin = 0; begin < rollout.rows(); begin += rows_at_once) {
    rows.clear();
    for (index_t i = begin; i < std::min(rollout.rows(), begin + rows_at_once); ++i) {
      rows.push_back(i);
    }
    RowBatch const batch = take_rows(prompts.contexts.view(), rollout.responses.view(), rows);
    if (batch.rows.empty()) continue;
    f(batch, first);
    first += batch.tokens();
  }
}

/// Log-probabilities and values under the policy that sampled, log-probabilities under the
/// reference: fills logp, values and reference of the rollout, a few rows at a time. Keeps no
/// gradient.
/// @param rows_at_once   at most so many rows in one forward
/// @throws Error naming the episode if a model gives a non-finite number
template <ActorCritic A, ReferencePolicy<typename A::Scalar> R>
void evaluate_rollout(A& actor, R& reference, PromptBatch const& prompts, index_t rows_at_once,
                      Rollout& rollout) {
  using T = typename A::Scalar;
  auto const tokens = static_cast<std::size_t>(rollout.tokens());
  rollout.logp.assign(tokens, 0.0);
  rollout.values.assign(tokens, 0.0);
  rollout.reference.assign(tokens, 0.0);
  std::vector<T> logp, values, reference_logp;
  [[maybe_unused]] typename A::Context context;
  for_each_row_batch(prompts, rollout, rows_at_once, [&](RowBatch const& batch, std::size_t first) {
    std::size_t const n = batch.tokens();
    logp.assign(n, T(0));
    values.assign(n, T(0));
    reference_logp.assign(n, T(0));
    if constexpr (InferringActor<A>) {
      actor.inference(batch.view(), std::span<T>(logp), std::span<T>(values));
    } else {
      actor.forward(batch.view(), std::span<T>(logp), std::span<T>(values), context);
    }
    reference.logprobs(batch.view(), std::span<T>(reference_logp));
    expect_finite(std::span<T const>(logp), batch, prompts, "log-probability");
    expect_finite(std::span<T const>(values), batch, prompts, "value");
    expect_finite(std::span<T const>(reference_logp), batch, prompts, "reference log-probability");
    auto const at = static_cast<std::ptrdiff_t>(first);
    std::copy(logp.begin(), logp.end(), rollout.logp.begin() + at);
    std::copy(values.begin(), values.end(), rollout.values.begin() + at);
    std::copy(reference_logp.begin(), reference_logp.end(), rollout.reference.begin() + at);
  });
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
  for_each_row_batch(prompts, rollout, rows_at_once, [&](RowBatch const& batch, std::size_t first) {
    kl.assign(batch.tokens(), T(0));
    actor.full_kl(reference, batch.view(), std::span<T>(kl));
    expect_finite(std::span<T const>(kl), batch, prompts, "KL divergence");
    for (std::size_t t = 0; t < kl.size(); ++t) {
      if (rollout.mask[first + t] != 0) rollout.kl[first + t] = static_cast<double>(kl[t]);
    }
  });
}

}  // namespace emprl::rl
