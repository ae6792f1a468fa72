// SPDX-License-Identifier: Apache-2.0
#pragma once

// How the rows of a rollout go through the models: in which order, which of them together, and a
// forward pass whose backward is still to come.
//
// A mini-batch is a unit of PPO's arithmetic: its mean ratio decides whether it counts, and in
// PpoMode::trl_0_9_6 it is what a loss is divided by. A pass is what a model computes at once: one
// mini-batch or several. The gradients of mini-batches are added up, and objective and guards see
// each by itself, so that passes of several change nothing but the order of sums within a weight's
// gradient; what they save is the time that small matrix products take, above all on a GPU.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/rl/concepts.hpp"
#include "emprl/rl/masked.hpp"
#include "emprl/rl/ppo_config.hpp"
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

/// A mini-batch within its pass.
struct MiniBatch {
  std::size_t begin = 0, end = 0;  ///< its tokens among the generated tokens of the pass
  index_t counted = 0;             ///< how many of them are not masked; at least 1

  friend bool operator==(MiniBatch const&, MiniBatch const&) = default;
};

/// Rows that go through a model together, and the mini-batches that they are.
struct PassRows {
  std::vector<index_t> rows;  ///< of the rollout, one mini-batch after another
  std::vector<MiniBatch> mini_batches;

  friend bool operator==(PassRows const&, PassRows const&) = default;
};

/// The rows of a rollout in the order in which an epoch trains them.
inline std::vector<index_t> epoch_order(index_t rows, PpoConfig const& config, std::uint32_t step,
                                        index_t epoch) {
  std::vector<index_t> order(static_cast<std::size_t>(rows));
  std::iota(order.begin(), order.end(), index_t{0});
  RandomSequence(config.seed, Stream::permute, step, static_cast<std::uint32_t>(epoch))
      .shuffle(std::span<index_t>(order));
  return order;
}

/// How many rows an optimiser step takes of a rollout.
inline std::size_t rows_of_optimizer_step(PpoConfig const& config, PromptBatch const& prompts) {
  auto const mini = static_cast<std::size_t>(config.mini_batch_size);
  if (config.mode == PpoMode::trl_0_9_6 && prompts.last_of_pass) return mini;
  return mini * static_cast<std::size_t>(config.gradient_accumulation);
}

/// Cuts the rows of an optimiser step into mini-batches and those into passes. A pass takes as many
/// mini-batches as config.rows_per_pass allows, and at least one; a mini-batch without a token that
/// counts is left out.
inline std::vector<PassRows> cut_passes(Rollout const& rollout, std::span<index_t const> rows,
                                        PpoConfig const& config) {
  auto const mini_rows = static_cast<std::size_t>(config.mini_batch_size);
  auto const most = static_cast<std::size_t>(config.rows_per_pass);
  std::vector<PassRows> passes;
  while (!rows.empty()) {
    auto const mini = rows.first(std::min(rows.size(), mini_rows));
    rows = rows.subspan(mini.size());
    std::size_t tokens = 0;
    index_t counted = 0;
    for (index_t const i : mini) {
      auto const begin = static_cast<std::size_t>(rollout.offsets()[static_cast<std::size_t>(i)]);
      auto const length = static_cast<std::size_t>(rollout.responses.view().length(i));
      tokens += length;
      counted += masked_count(MaskView(rollout.mask).subspan(begin, length));
    }
    if (counted == 0) continue;
    if (passes.empty() || passes.back().rows.size() + mini.size() > most) passes.emplace_back();
    PassRows& pass = passes.back();
    std::size_t const begin = pass.mini_batches.empty() ? 0 : pass.mini_batches.back().end;
    pass.rows.insert(pass.rows.end(), mini.begin(), mini.end());
    pass.mini_batches.push_back({begin, begin + tokens, counted});
  }
  return passes;
}

/// The pass that the update of a rollout begins with, as soon as responses and mask are known;
/// without rows if the first optimiser step trains nothing.
inline PassRows first_pass(PromptBatch const& prompts, Rollout const& rollout,
                           PpoConfig const& config, std::uint32_t step) {
  std::vector<index_t> const order = epoch_order(rollout.rows(), config, step, 0);
  auto const rows = std::span<index_t const>(order).first(
      std::min(order.size(), rows_of_optimizer_step(config, prompts)));
  std::vector<PassRows> passes = cut_passes(rollout, rows, config);
  return passes.empty() ? PassRows{} : std::move(passes.front());
}

/// A forward pass with what its backward needs: the batch, to which the context may refer, stays
/// where it is.
template <ActorCritic A>
struct ForwardPass {
  using Scalar = typename A::Scalar;

  PassRows rows;  ///< what is kept for an update; none: nothing is
  RowBatch batch;
  std::vector<Scalar> logp, values;  ///< (tokens)
  typename A::Context context;

  ForwardPass() = default;
  ForwardPass(ForwardPass const&) = delete;
  ForwardPass& operator=(ForwardPass const&) = delete;
};

/// Runs the actor's forward on some rows, in the place of what the pass held before.
/// @throws Error naming the episode if the actor gives a non-finite number
template <ActorCritic A>
void run_forward(A& actor, PromptBatch const& prompts, Rollout const& rollout, PassRows const& rows,
                 ForwardPass<A>& pass) {
  using T = typename A::Scalar;
  pass.batch = take_rows(prompts.contexts.view(), rollout.responses.view(), rows.rows);
  pass.logp.assign(pass.batch.tokens(), T(0));
  pass.values.assign(pass.batch.tokens(), T(0));
  actor.forward(pass.batch.view(), std::span<T>(pass.logp), std::span<T>(pass.values),
                pass.context);
  expect_finite(std::span<T const>(pass.logp), pass.batch, prompts, "log-probability");
  expect_finite(std::span<T const>(pass.values), pass.batch, prompts, "value");
}

}  // namespace emprl::rl
