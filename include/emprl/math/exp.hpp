// SPDX-License-Identifier: Apache-2.0
#pragma once

// exp and tanh without branches or calls, so that loops over them become SIMD code in any compiler
// and on any device.

#include <bit>
#include <cmath>
#include <cstdint>

#include "emprl/core/config.hpp"

namespace emprl {

/// e^x in float, within 2 units in the last place for results in the normal range; 0 below it (also
/// for -inf), +inf above, NaN for NaN. Cody–Waite reduction to |r| <= ln2/2, then a polynomial of
/// degree 6 whose coefficients, 1 and 1 aside, minimise the largest relative error (0.07 units of
/// rounding).
EMPRL_HD inline float exp_branchless(float x) {
  float const clamped = x < -87.3f ? -87.3f : (x > 88.7228f ? 88.7228f : x);
  // Adding 1.5 * 2^23 rounds to the nearest integer in the low mantissa bits.
  float const shifted = clamped * 1.44269504f + 12582912.0f;
  float const n = shifted - 12582912.0f;
  float const r = (clamped - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.38144661e-3f;
  p = p * r + 8.36878084e-3f;
  p = p * r + 4.16683927e-2f;
  p = p * r + 1.66665196e-1f;
  p = p * r + 4.99999940e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // 2^n in two factors: n reaches 128, one more than an exponent field can hold.
  std::int32_t const k = static_cast<std::int32_t>(n);
  std::int32_t const half = k >> 1;
  float const scale_low = std::bit_cast<float>((half + 127) << 23);
  float const scale_high = std::bit_cast<float>((k - half + 127) << 23);
  float const y = p * scale_low * scale_high;
  float const low = x < -87.3f ? 0.0f : y;
  float const high = x > 88.7228f ? std::bit_cast<float>(0x7f800000) : low;
  return x != x ? x : high;
}

/// e^x in double: the library's own.
EMPRL_HD inline double exp_branchless(double x) {
  return std::exp(x);
}

/// tanh x = sign(x) (1 - 2 / (e^(2|x|) + 1)); absolute error below 2 units of the format at 1.
EMPRL_HD inline float tanh_branchless(float x) {
  float const a = x < 0.0f ? -x : x;
  float const y = 1.0f - 2.0f / (exp_branchless(2.0f * a) + 1.0f);
  return x < 0.0f ? -y : y;
}

EMPRL_HD inline double tanh_branchless(double x) {
  return std::tanh(x);
}

}  // namespace emprl
