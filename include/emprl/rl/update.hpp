// SPDX-License-Identifier: Apache-2.0
#pragma once

// The epochs of PPO over one rollout batch: mini-batches, accumulated gradients, optimiser steps,
// and the guards that stop before a weight moves.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/rl/concepts.hpp"
#include "emprl/rl/objective.hpp"
#include "emprl/rl/passes.hpp"
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

/// What the objective needs to know of the tokens of some rows.
struct RowTokens {
  std::vector<TokenContext> tokens;
  std::vector<std::uint8_t> mask;
};

/// Copies it out of a rollout whose advantages and returns are known.
inline RowTokens take_tokens(Rollout const& rollout, std::span<index_t const> rows) {
  RowTokens taken;
  for (index_t const i : rows) {
    auto const row = static_cast<std::size_t>(i);
    auto const end = static_cast<std::size_t>(rollout.responses.offsets[row + 1]);
    for (auto t = static_cast<std::size_t>(rollout.responses.offsets[row]); t < end; ++t) {
      taken.tokens.push_back({rollout.logp[t], rollout.values[t], rollout.advantages[t],
                              rollout.returns[t], rollout.reference[t]});
      taken.mask.push_back(rollout.mask[t]);
    }
  }
  return taken;
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

/// `config.epochs` passes over the rollout. Each shuffles the rows, cuts them into optimiser steps
/// of mini_batch_size * gradient_accumulation rows, and each of those into mini-batches whose
/// gradients add up to the mean over the step's tokens, whatever the cut. A mini-batch whose mean
/// ratio passes the threshold counts with loss 0; a step all of whose mini-batches are skipped, or
/// that has no token, moves nothing.
/// In PpoMode::trl_0_9_6 each of the last four sentences is otherwise; see there.
///
/// Mini-batches go through the actor several at a time (config.rows_per_pass; cut_passes): each has
/// its own sums, guards and normalisation, and one that is skipped takes part in the backward of
/// its pass with gradients of 0.
/// @param step   addresses the shuffles
/// @param clipped_before   PpoMode::trl_0_9_6: whether an earlier optimiser step of the run clipped
/// @param kept   the pass that evaluate_rollout has computed, or null: the update begins with it
/// instead of a forward of its own, and uses it up
/// @throws Error naming the episode or episodes of a non-finite number or of a ratio that is not 1
/// at first; the weights have then not moved in the optimiser step that failed. ShapeError if the
/// kept pass is not the update's first
template <ActorCritic A, Objective O, Optimizer G>
UpdateReport update_policy(A& actor, O const& objective, G& optimizer, PromptBatch const& prompts,
                           Rollout const& rollout, PpoConfig const& config, std::uint32_t step,
                           double learning_rate, bool clipped_before = false,
                           ForwardPass<A>* kept = nullptr) {
  using T = typename A::Scalar;
  using In = std::span<T const>;
  double const tolerance = config.ratio_tolerance.value_or(std::is_same_v<T, float> ? 1e-3 : 1e-9);
  bool const trl = config.mode == PpoMode::trl_0_9_6;
  auto const accumulated = static_cast<double>(config.gradient_accumulation);
  std::size_t const step_rows = rows_of_optimizer_step(config, prompts);

  UpdateReport report;
  ForwardPass<A> own;
  ForwardPass<A>& pass = kept != nullptr ? *kept : own;
  PassRows first = std::exchange(pass.rows, {});
  constexpr bool of_entropy = EntropyObjective<O>;
  std::vector<T> entropy, dlogp, dvalues, dentropy;
  for (index_t epoch = 0; epoch < config.epochs; ++epoch) {
    std::vector<index_t> const order = epoch_order(rollout.rows(), config, step, epoch);
    std::span<index_t const> rest = order;
    while (!rest.empty()) {
      std::span<index_t const> const rows = rest.first(std::min(rest.size(), step_rows));
      rest = rest.subspan(rows.size());
      std::vector<PassRows> const passes = cut_passes(rollout, rows, config);
      double step_tokens = 0;
      for (PassRows const& part : passes) {
        for (MiniBatch const& mini : part.mini_batches) {
          step_tokens += static_cast<double>(mini.counted);
        }
      }

      optimizer.zero_gradients();
      bool trained = false;
      for (PassRows const& part : passes) {
        if (first.rows.empty()) {
          run_forward(actor, prompts, rollout, part, pass);
        } else {
          expects(first == part, "a kept pass must be the one that the update begins with");
          first = {};
        }
        RowTokens const known = take_tokens(rollout, part.rows);
        std::size_t const n = known.tokens.size();
        dlogp.assign(n, T(0));
        dvalues.assign(n, T(0));
        if constexpr (ReportsEntropy<A>) {
          entropy.assign(n, T(0));
          actor.entropy(std::span<T>(entropy), pass.context);
          expect_finite(In(entropy), pass.batch, prompts, "entropy");
        }
        if constexpr (of_entropy) dentropy.assign(n, T(0));
        bool counts = false;
        for (MiniBatch const& mini : part.mini_batches) {
          auto const of_mini = [&mini](auto x) {
            return x.empty() ? x : x.subspan(mini.begin, mini.end - mini.begin);
          };
          MaskView const mask = of_mini(MaskView(known.mask));
          double const normaliser =
              trl ? static_cast<double>(mini.counted) * accumulated : step_tokens;
          ObjectiveSums sums = evaluate_objective<T>(
              objective, of_mini(In(pass.logp)), of_mini(In(pass.values)),
              of_mini(std::span<TokenContext const>(known.tokens)), mask, normaliser,
              of_mini(std::span<T>(dlogp)), of_mini(std::span<T>(dvalues)),
              of_entropy ? of_mini(In(entropy)) : In{}, of_mini(std::span<T>(dentropy)));
          sums.worst_token += mini.begin;
          if (report.optimizer_steps == 0) {
            expect_unit_ratio(sums, tolerance, pass.batch, prompts);
          }
          report.ratio += sums.ratio;
          report.ratio_tokens += sums.tokens;
          if (sums.mean_ratio() > config.ratio_threshold) {
            ++report.skipped_batches;
            trained = trained || trl;
            for (auto* gradient : {&dlogp, &dvalues, &dentropy}) {
              std::ranges::fill(of_mini(std::span<T>(*gradient)), T(0));
            }
            continue;
          }
          if constexpr (ReportsEntropy<A>) {
            for (std::size_t t = mini.begin; t < mini.end; ++t) {
              if (known.mask[t] != 0) report.entropy += static_cast<double>(entropy[t]);
            }
          }
          report.sums.add(sums);
          counts = true;
        }
        if (!counts) continue;
        for (auto const* gradient : {&dlogp, &dvalues, &dentropy}) {
          expect_finite(In(*gradient), pass.batch, prompts, "loss gradient");
        }
        if constexpr (of_entropy) {
          actor.backward(In(dlogp), In(dvalues), In(dentropy), pass.context);
        } else {
          actor.backward(In(dlogp), In(dvalues), pass.context);
        }
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
