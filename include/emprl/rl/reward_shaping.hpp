// SPDX-License-Identifier: Apache-2.0
#pragma once

// From scores (one number a response) and KL (one number a token) to the reward of each token.

#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/rl/concepts.hpp"
#include "emprl/rl/masked.hpp"
#include "emprl/rl/types.hpp"

namespace emprl::rl {

/// Every generated token is trained, the first and the end token included.
inline std::vector<std::uint8_t> response_mask(RaggedView responses) {
  return std::vector<std::uint8_t>(static_cast<std::size_t>(responses.tokens()), 1);
}

/// The mask of PpoMode::trl_0_9_6: every generated token but the first of each response.
/// @throws Error naming the row if a response has no second token; the original fails there too
inline std::vector<std::uint8_t> trl_response_mask(RaggedView responses,
                                                   PromptBatch const& prompts) {
  std::vector<std::uint8_t> mask = response_mask(responses);
  for (index_t i = 0; i < responses.rows(); ++i) {
    if (responses.length(i) < 2) {
      throw Error("the response to episode " + prompts.name(i) + " has " +
                  std::to_string(responses.length(i)) +
                  " tokens, but the mode trl_0_9_6 masks the first and so needs two; sample at "
                  "least two tokens, or use the mode corrected");
    }
    mask[static_cast<std::size_t>(responses.offsets[static_cast<std::size_t>(i)])] = 0;
  }
  return mask;
}

/// kl[t] = estimator(logp[t], reference[t]), 0 where masked.
template <KlEstimator K>
void token_kl(K const& estimator, std::span<double const> logp, std::span<double const> reference,
              MaskView mask, std::span<double> kl) {
  expects(logp.size() == mask.size() && reference.size() == mask.size() && kl.size() == mask.size(),
          "KL needs a log-probability, a reference and a mask entry for every token");
  for (std::size_t t = 0; t < mask.size(); ++t) {
    kl[t] = mask[t] != 0 ? static_cast<double>(estimator(logp[t], reference[t])) : 0.0;
  }
}

/// Mean over rows of sum_t kl[t]; 0 without rows. A row without tokens counts as 0.
inline double mean_row_sum(std::span<index_t const> offsets, std::span<double const> x,
                           MaskView mask) {
  check_offsets(offsets, static_cast<index_t>(x.size()));
  std::size_t const rows = offsets.size() - 1;
  return rows > 0 ? masked_sum(x, mask) / static_cast<double>(rows) : 0.0;
}

/// r[t] = -beta kl[t], and the row's score is added to its last token that counts. Masked tokens
/// get 0. The score of a row without such a token reaches nothing: there is no action to credit.
/// @param scores (rows)   @param kl, mask, rewards (tokens)
inline void shape_rewards(std::span<index_t const> offsets, std::span<double const> kl,
                          std::span<double const> scores, MaskView mask, double beta,
                          std::span<double> rewards) {
  check_offsets(offsets, static_cast<index_t>(mask.size()));
  expects(kl.size() == mask.size() && rewards.size() == mask.size(),
          "shaping rewards needs KL, mask and reward for every token");
  expects(scores.size() + 1 == offsets.size(), "shaping rewards needs one score a row");
  for (std::size_t t = 0; t < mask.size(); ++t) rewards[t] = mask[t] != 0 ? -beta * kl[t] : 0.0;
  for (std::size_t i = 0; i < scores.size(); ++i) {
    auto const begin = static_cast<std::size_t>(offsets[i]);
    for (auto t = static_cast<std::size_t>(offsets[i + 1]); t-- > begin;) {
      if (mask[t] == 0) continue;
      rewards[t] += scores[i];
      break;
    }
  }
}

/// The same for a reward of tokens: r[t] = -beta kl[t] + scale token_scores[t], and what the row's
/// score has beyond the sum of its scaled token scores (the mean that normalisation takes away, the
/// scores of masked tokens) is added to its last token that counts. Each row's rewards add up to
/// those of a reward of responses with the same scores.
/// @param scores (rows), scaled already   @param token_scores (tokens), as the reward gave them
inline void shape_token_rewards(std::span<index_t const> offsets, std::span<double const> kl,
                                std::span<double const> scores,
                                std::span<double const> token_scores, double scale, MaskView mask,
                                double beta, std::span<double> rewards) {
  check_offsets(offsets, static_cast<index_t>(mask.size()));
  expects(token_scores.size() == mask.size(), "shaping rewards needs a score for every token");
  expects(scores.size() + 1 == offsets.size(), "shaping rewards needs one score a row");
  std::vector<double> rest(scores.begin(), scores.end());
  for (std::size_t i = 0; i < rest.size(); ++i) {
    for (auto t = offsets[i]; t < offsets[i + 1]; ++t) {
      auto const u = static_cast<std::size_t>(t);
      if (mask[u] != 0) rest[i] -= scale * token_scores[u];
    }
  }
  shape_rewards(offsets, kl, rest, mask, beta, rewards);
  for (std::size_t t = 0; t < mask.size(); ++t) {
    if (mask[t] != 0) rewards[t] += scale * token_scores[t];
  }
}

/// Divides rewards by their deviation over the mask and keeps their mean; masked tokens stay 0, so
/// that nothing leaks from them into the advantages of real ones.
inline void whiten_rewards(std::span<double> rewards, MaskView mask) {
  masked_whiten(rewards, mask, WhitenMean::keep);
  clear_masked(rewards, mask);
}

/// The same in PpoMode::trl_0_9_6: what masked tokens held, 0, is whitened too and stays.
/// @throws Error if fewer than two tokens count: the original's variance is NaN there
/// @return what a token of padding then holds, mean (1 - 1 / sqrt(variance + 1e-8))
inline double whiten_rewards_trl(std::span<double> rewards, MaskView mask) {
  if (masked_count(mask) < 2) {
    throw Error(
        "the mode trl_0_9_6 cannot whiten the rewards of fewer than two trained tokens: "
        "the original's variance is not a number there; use the mode corrected");
  }
  double const mean = masked_mean(rewards, mask);
  double const scale = 1.0 / std::sqrt(masked_variance(rewards, mask) + 1e-8);
  masked_whiten(rewards, mask, WhitenMean::keep);
  return (0.0 - mean) * scale + mean;
}

}  // namespace emprl::rl
