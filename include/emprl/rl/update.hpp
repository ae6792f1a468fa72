// SPDX-License-Identifier: Apache-2.0
#pragma once

// The epochs of PPO over one rollout batch: mini-batches, accumulated gradients, optimiser steps,
// and the guards that stop before a weight moves.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/rl/concepts.hpp"
#include "emprl/rl/evaluate.hpp"
#include "emprl/rl/masked.hpp"
#include "emprl/rl/objective.hpp"
#include "emprl/rl/ppo_config.hpp"
#include "emprl/rl/types.hpp"

namespace emprl::rl {

/// What happened during the epochs.
struct UpdateReport {
  ObjectiveSums sums;  ///< over all mini-batches that were not skipped
  double ratio = 0;    ///< summed over all tokens seen, those of skipped mini-batches included
  double ratio_tokens = 0;
  double entropy = 0;        ///< summed likewise, if the actor reports it
  double gradient_norm = 0;  ///< summed over optimiser steps
  std::int64_t optimizer_steps = 0;
  std::int64_t skipped_batches = 0;
};

/// One mini-batch: rows of a rollout with what the objective needs to know of their tokens.
struct MiniBatch {
  RowBatch batch;
  std::vector<TokenContext> tokens;
  std::vector<std::uint8_t> mask;
};

/// Copies rows out of a rollout whose advantages and returns are known.
inline MiniBatch take_mini_batch(PromptBatch const& prompts, Rollout const& rollout,
                                 std::span<index_t const> rows) {
  MiniBatch mini;
  mini.batch = take_rows(prompts.contexts.view(), rollout.responses.view(), rows);
  for (index_t const i : mini.batch.rows) {
    auto const row = static_cast<std::size_t>(i);
    auto const end = static_cast<std::size_t>(rollout.responses.offsets[row + 1]);
    for (auto t = static_cast<std::size_t>(rollout.responses.offsets[row]); t < end; ++t) {
      mini.tokens.push_back({rollout.logp[t], rollout.values[t], rollout.advantages[t],
                             rollout.returns[t], rollout.reference[t]});
      mini.mask.push_back(rollout.mask[t]);
    }
  }
  return mini;
}

/// Before weights have moved, the policy must give sampled tokens the log-probabilities that were
/// recorded.
/// @throws Error naming the episode of the worst token if |ratio - 1| passes the tolerance
inline void expect_unit_ratio(ObjectiveSums const& sums, double tolerance, RowBatch const& batch,
                              PromptBatch const& prompts) {
  if (sums.worst_ratio_error <= tolerance) return;
  throw Error(
      "before the first optimiser step the probability ratio must be 1, but a token of episode " +
      prompts.name(batch.row_of(sums.worst_token)) + " is off by " +
      std::to_string(sums.worst_ratio_error) +
      "; does the policy use dropout, or depend on the other rows of its batch?");
}

/// One optimiser step. @return the gradient norm before clipping
/// @throws Error naming the episodes if the norm is not finite, whether the optimiser returns it or
/// throws itself
template <Optimizer G>
double step_optimizer(G& optimizer, double learning_rate, double max_gradient_norm,
                      PromptBatch const& prompts, std::span<index_t const> rows) {
  auto const episodes = [&] {
    std::string names;
    for (index_t const i : rows) names += (names.empty() ? "" : ", ") + prompts.name(i);
    return " (optimiser step over the episodes " + names + ")";
  };
  double norm = 0;
  try {
    norm = optimizer.step(learning_rate, max_gradient_norm);
  } catch (Error const& error) {
    throw Error(error.what() + episodes());
  }
  if (!std::isfinite(norm)) throw Error("the gradient norm is not finite" + episodes());
  return norm;
}

/// `config.epochs` passes over the rollout. Each pass shuffles the rows, cuts them into optimiser
/// steps of mini_batch_size * gradient_accumulation rows, and each of those into mini-batches whose
/// gradients add up to the mean over the step's tokens, whatever the cut. A mini-batch whose mean
/// ratio passes the threshold counts with loss 0; a step all of whose mini-batches are skipped, or
/// that has no token, moves nothing.
/// In PpoMode::trl_0_9_6 each of the last four sentences is otherwise; see there.
/// @param step   addresses the shuffles
/// @param clipped_before   PpoMode::trl_0_9_6: whether an earlier optimiser step of the run clipped
/// @throws Error naming the episode or episodes of a non-finite number or of a ratio that is not 1
/// at first; the weights have
///         then not moved in the optimiser step that failed
template <ActorCritic A, Objective O, Optimizer G>
UpdateReport update_policy(A& actor, O const& objective, G& optimizer, PromptBatch const& prompts,
                           Rollout const& rollout, PpoConfig const& config, std::uint32_t step,
                           double learning_rate, bool clipped_before = false) {
  using T = typename A::Scalar;
  double const tolerance = config.ratio_tolerance.value_or(std::is_same_v<T, float> ? 1e-3 : 1e-9);
  auto const mini_rows = static_cast<std::size_t>(config.mini_batch_size);
  bool const trl = config.mode == PpoMode::trl_0_9_6;
  auto const accumulated = static_cast<double>(config.gradient_accumulation);
  auto const step_rows = trl && prompts.last_of_pass
                             ? mini_rows
                             : mini_rows * static_cast<std::size_t>(config.gradient_accumulation);

  UpdateReport report;
  typename A::Context context;
  constexpr bool of_entropy = EntropyObjective<O>;
  std::vector<T> logp, values, entropy, dlogp, dvalues, dentropy;
  std::vector<index_t> order(static_cast<std::size_t>(rollout.rows()));
  for (index_t epoch = 0; epoch < config.epochs; ++epoch) {
    std::iota(order.begin(), order.end(), index_t{0});
    RandomSequence(config.seed, Stream::permute, step, static_cast<std::uint32_t>(epoch))
        .shuffle(std::span<index_t>(order));
    std::span<index_t const> rest = order;
    while (!rest.empty()) {
      std::span<index_t const> rows = rest.first(std::min(rest.size(), step_rows));
      rest = rest.subspan(rows.size());

      std::vector<MiniBatch> parts;
      double step_tokens = 0;
      for (auto left = rows; !left.empty();) {
        auto const part = left.first(std::min(left.size(), mini_rows));
        left = left.subspan(part.size());
        parts.push_back(take_mini_batch(prompts, rollout, part));
        step_tokens += static_cast<double>(masked_count(parts.back().mask));
      }

      optimizer.zero_gradients();
      bool trained = false;
      for (MiniBatch const& mini : parts) {
        if (masked_count(mini.mask) == 0) continue;
        std::size_t const n = mini.tokens.size();
        logp.assign(n, T(0));
        values.assign(n, T(0));
        dlogp.resize(n);
        dvalues.resize(n);
        actor.forward(mini.batch.view(), std::span<T>(logp), std::span<T>(values), context);
        expect_finite(std::span<T const>(logp), mini.batch, prompts, "log-probability");
        expect_finite(std::span<T const>(values), mini.batch, prompts, "value");
        if constexpr (ReportsEntropy<A>) {
          entropy.assign(n, T(0));
          actor.entropy(std::span<T>(entropy), context);
          expect_finite(std::span<T const>(entropy), mini.batch, prompts, "entropy");
        }
        if constexpr (of_entropy) dentropy.resize(n);
        double const normaliser =
            trl ? static_cast<double>(masked_count(mini.mask)) * accumulated : step_tokens;
        ObjectiveSums const sums = evaluate_objective<T>(
            objective, std::span<T const>(logp), std::span<T const>(values), mini.tokens, mini.mask,
            normaliser, std::span<T>(dlogp), std::span<T>(dvalues),
            of_entropy ? std::span<T const>(entropy) : std::span<T const>{},
            std::span<T>(dentropy));
        if (report.optimizer_steps == 0) {
          expect_unit_ratio(sums, tolerance, mini.batch, prompts);
        }
        report.ratio += sums.ratio;
        report.ratio_tokens += sums.tokens;
        if (sums.mean_ratio() > config.ratio_threshold) {
          ++report.skipped_batches;
          trained = trained || trl;
          continue;
        }
        expect_finite(std::span<T const>(dlogp), mini.batch, prompts, "loss gradient");
        expect_finite(std::span<T const>(dvalues), mini.batch, prompts, "loss gradient");
        if constexpr (ReportsEntropy<A>) {
          for (std::size_t t = 0; t < n; ++t) {
            if (mini.mask[t] != 0) report.entropy += static_cast<double>(entropy[t]);
          }
        }
        if constexpr (of_entropy) {
          expect_finite(std::span<T const>(dentropy), mini.batch, prompts, "loss gradient");
          actor.backward(std::span<T const>(dlogp), std::span<T const>(dvalues),
                         std::span<T const>(dentropy), context);
        } else {
          actor.backward(std::span<T const>(dlogp), std::span<T const>(dvalues), context);
        }
        report.sums.add(sums);
        trained = true;
      }
      if (!trained) continue;

      bool const clips = !trl || (!clipped_before && report.optimizer_steps == 0);
      double const most =
          clips ? config.max_gradient_norm : std::numeric_limits<double>::infinity();
      double const norm = step_optimizer(optimizer, learning_rate, most, prompts, rows);
      report.gradient_norm += norm;
      ++report.optimizer_steps;
    }
  }
  return report;
}

}  // namespace emprl::rl
