// SPDX-License-Identifier: Apache-2.0
#pragma once

// Every number that PPO can be told, in one aggregate.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/rl/running_moments.hpp"

namespace emprl::rl {

/// Which arithmetic: PPO as it is meant, or as TRL 0.9.6 ran it. Masks, whitening, the
/// normalisation of the loss, clipping and skipping differ; see each field's and function's
/// comment.
enum class PpoMode {
  corrected,
  /// Parity with the library that EmpRL was published with (von Werra et al., TRL 0.9.6), defects
  /// included, for comparing runs. Nothing else depends on it.
  ///   - the first generated token of a response is masked; a response of one token is an error
  ///   - whitened rewards are not masked again: padding up to the batch's longest response holds
  ///     mean (1 - 1 / sqrt(var + 1e-8)), which reaches real tokens through the advantages
  ///   - a mini-batch's loss is its own mean, and an optimiser step divides each by the number of
  ///     mini-batches that it should hold
  ///   - gradients are clipped in the first optimiser step of the run alone
  ///   - the last rollout batch of a pass over the data (PromptBatch::last_of_pass) takes an
  ///     optimiser step for every mini-batch, each gradient divided as if they were accumulated
  ///   - a mini-batch with too large a ratio counts with loss 0, and the optimiser steps even if
  ///     all of them do
  trl_0_9_6
};

/// The settings of PPO. Designated initialisers read well:  PpoConfig{.batch_size = 16,
/// .kl_coefficient = 0.05}. The defaults are the preset emprl().
struct PpoConfig {
  PpoMode mode = PpoMode::corrected;
  std::uint64_t seed = 42;            ///< addresses the order of mini-batches
  index_t batch_size = 32;            ///< the most episodes a rollout batch may hold
  index_t mini_batch_size = 8;        ///< episodes that are skipped or trained together
  index_t gradient_accumulation = 4;  ///< mini-batches in one optimiser step
  /// Episodes in one forward and backward, at most, as far as they are whole mini-batches of one
  /// optimiser step; 1: one mini-batch, as published. Only the order of sums depends on it, and
  /// time and memory: activations of so many rows are kept at once.
  index_t rows_per_pass = 32;
  /// Lets the evaluation of the policy that sampled compute the update's first forward pass: no
  /// weight moves in between, so that the numbers are the same. Of the first optimiser step of a
  /// rollout batch as many rows share as are in one pass. The first step of a run does not share:
  /// there the first ratios tell whether evaluation and update see the same policy
  /// (ratio_tolerance), which they cannot tell of rows that were computed once. False: no step
  /// shares.
  bool share_old_pass = true;
  index_t epochs = 4;          ///< passes over a rollout batch
  std::int32_t end_token = 1;  ///< for the share of unfinished responses

  double learning_rate = 1e-5;
  std::int64_t decay_steps = 0;  ///< steps after which a linear decay reaches 0; 0: constant rate
  double max_gradient_norm = 1.0;

  double gamma = 1.0;
  double lambda = 0.95;
  double policy_clip = 0.2;
  double value_clip = 0.2;
  double value_coefficient = 0.1;

  double kl_coefficient = 0.2;
  double kl_target = 6.0;
  double kl_horizon = 10000.0;

  ScoreScaling score_scaling = ScoreScaling::normalise;  ///< scores divided by running moments
  bool whiten_rewards = true;
  bool whiten_advantages = true;

  double ratio_threshold = 10.0;  ///< a mini-batch with a larger mean ratio is skipped
  /// Largest |ratio - 1| allowed before the first optimiser step of a rollout batch; of rows that
  /// share a pass it is 0. Unset: 1e-3 in float (log-probabilities of a few tens, summed in another
  /// order), 1e-9 in double. An actor that computes in 16 bits and has float numbers needs more
  /// (train::align gives it 0.5).
  std::optional<double> ratio_tolerance{};

  /// The published setting of EmpRL.
  static PpoConfig emprl() { return {}; }

  /// The same numbers in the arithmetic of TRL 0.9.6.
  static PpoConfig trl_0_9_6() { return {.mode = PpoMode::trl_0_9_6}; }

  /// Most rows that go through a model at once.
  index_t rows_at_once() const { return std::max(rows_per_pass, mini_batch_size); }

  /// Whether a step of PPO lets its evaluation compute the update's first pass.
  bool shares_old_pass(std::int64_t step) const { return share_old_pass && step > 0; }

  /// learning_rate * max(0, 1 - step / decay_steps).
  double learning_rate_at(std::int64_t step) const {
    if (decay_steps == 0) return learning_rate;
    return learning_rate *
           std::max(0.0, 1.0 - static_cast<double>(step) / static_cast<double>(decay_steps));
  }

  /// @throws ConfigError naming the first field that is out of range
  void validate() const {
    auto const field = [](bool ok, char const* name, char const* rule) {
      expects<ConfigError>(ok, std::string(name) + " must be " + rule);
    };
    auto const finite_from = [](double x, double low) { return std::isfinite(x) && x >= low; };
    auto const above_zero = [](double x) { return std::isfinite(x) && x > 0; };
    auto const share = [](double x) { return x >= 0 && x <= 1; };
    field(mode == PpoMode::corrected || mode == PpoMode::trl_0_9_6, "mode",
          "corrected or trl_0_9_6");
    field(batch_size > 0, "batch_size", "at least 1");
    field(mini_batch_size > 0, "mini_batch_size", "at least 1");
    field(mini_batch_size <= batch_size, "mini_batch_size", "at most batch_size");
    field(gradient_accumulation > 0, "gradient_accumulation", "at least 1");
    field(rows_per_pass > 0, "rows_per_pass", "at least 1");
    field(epochs > 0, "epochs", "at least 1");
    field(finite_from(learning_rate, 0), "learning_rate", "a finite number of at least 0");
    field(decay_steps >= 0, "decay_steps", "at least 0");
    field(max_gradient_norm > 0, "max_gradient_norm", "above 0");
    field(share(gamma), "gamma", "from 0 to 1");
    field(share(lambda), "lambda", "from 0 to 1");
    field(policy_clip > 0 && policy_clip < 1, "policy_clip", "between 0 and 1");
    field(value_clip > 0, "value_clip", "above 0");
    field(finite_from(value_coefficient, 0), "value_coefficient", "a finite number of at least 0");
    field(finite_from(kl_coefficient, 0), "kl_coefficient", "a finite number of at least 0");
    field(above_zero(kl_target), "kl_target", "a finite number above 0");
    field(above_zero(kl_horizon), "kl_horizon", "a finite number above 0");
    field(ratio_threshold > 1, "ratio_threshold", "above 1");
    field(!ratio_tolerance || *ratio_tolerance > 0, "ratio_tolerance", "above 0");
  }
};

}  // namespace emprl::rl
