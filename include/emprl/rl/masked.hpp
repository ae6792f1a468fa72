// SPDX-License-Identifier: Apache-2.0
#pragma once

// Reductions over the tokens that count. A masked element is never read: it may hold anything, NaN
// included. Results for fewer than two elements are defined, not NaN: mean 0 of none, variance 0,
// deviation 1 where one divides by it.

#include <cmath>
#include <cstdint>
#include <span>

#include "emprl/core/error.hpp"
#include "emprl/rl/types.hpp"

namespace emprl::rl {

/// How many elements count.
inline index_t masked_count(MaskView mask) {
  index_t n = 0;
  for (std::uint8_t const m : mask) n += m != 0 ? 1 : 0;
  return n;
}

/// Sum of x over the mask.
inline double masked_sum(std::span<double const> x, MaskView mask) {
  expects(x.size() == mask.size(), "a masked sum needs one mask entry an element");
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (mask[i] != 0) sum += x[i];
  }
  return sum;
}

/// Mean of x over the mask; 0 if nothing counts.
inline double masked_mean(std::span<double const> x, MaskView mask) {
  double const sum = masked_sum(x, mask);
  index_t const n = masked_count(mask);
  return n > 0 ? sum / static_cast<double>(n) : 0.0;
}

/// Unbiased variance (n - 1) of x over the mask; 0 for fewer than two elements.
inline double masked_variance(std::span<double const> x, MaskView mask) {
  double const mean = masked_mean(x, mask);
  double squares = 0;
  index_t n = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (mask[i] == 0) continue;
    squares += (x[i] - mean) * (x[i] - mean);
    ++n;
  }
  return n > 1 ? squares / static_cast<double>(n - 1) : 0.0;
}

/// What becomes of the mean when numbers are whitened.
enum class WhitenMean { remove, keep };

/// x = (x - mean) / sqrt(variance + 1e-8), plus the mean again where it is kept; mean and variance
/// over the mask. Masked elements are transformed alike (they are the caller's to clear). With
/// fewer than two elements the deviation is taken as 1.
inline void masked_whiten(std::span<double> x, MaskView mask, WhitenMean treatment) {
  double const mean = masked_mean(x, mask);
  bool const defined = masked_count(mask) > 1;
  double const scale = defined ? 1.0 / std::sqrt(masked_variance(x, mask) + 1e-8) : 1.0;
  double const back = treatment == WhitenMean::keep ? mean : 0.0;
  for (double& v : x) v = (v - mean) * scale + back;
}

/// Sets masked elements to 0, whatever they held.
inline void clear_masked(std::span<double> x, MaskView mask) {
  expects(x.size() == mask.size(), "clearing masked elements needs one mask entry an element");
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (mask[i] == 0) x[i] = 0.0;
  }
}

}  // namespace emprl::rl
