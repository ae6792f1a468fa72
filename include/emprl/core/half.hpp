// SPDX-License-Identifier: Apache-2.0
#pragma once

// The two 16-bit formats of tensor cores. They are for storage and for the operands of matrix
// products: arithmetic is done in float. The types are the project's own, so that code that holds
// them needs no CUDA header; their bits are those of __nv_bfloat16 and __half, and a conversion
// gives the same bits on host and device.
//
//   Bf16   1 sign, 8 exponent, 7 fraction bits:  the range of float, 2 to 3 decimal digits
//   Fp16   1 sign, 5 exponent, 10 fraction bits: up to 65504, subnormal below 2^-14, 3 digits

#include <bit>
#include <cstdint>

#include "emprl/core/config.hpp"

namespace emprl {

namespace detail {

/// The bits of the nearest Bf16, ties to even. Every NaN becomes 0x7fff, as on the device.
EMPRL_HD constexpr std::uint16_t bf16_bits(float x) {
  std::uint32_t const bits = std::bit_cast<std::uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  // Half a unit less one, and one more if the kept part is odd: ties go to even.
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

EMPRL_HD constexpr float bf16_value(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

/// The bits of the nearest Fp16, ties to even; from 65520 on infinity. Every NaN becomes 0x7fff.
EMPRL_HD constexpr std::uint16_t fp16_bits(float x) {
  std::uint32_t const bits = std::bit_cast<std::uint32_t>(x);
  std::uint32_t const sign = (bits >> 16) & 0x8000u;
  std::uint32_t a = bits & 0x7fffffffu;
  if (a > 0x7f800000u) return 0x7fff;
  if (a >= 0x47800000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 2^16 and above
  if (a < 0x38800000u) {
    // Below 2^-14 the format is a multiple of 2^-24, which is the unit of float at 0.5: the
    // addition rounds.
    float const shifted = std::bit_cast<float>(a) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3f000000u));
  }
  a += 0xfffu + ((a >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((a - (112u << 23)) >> 13));
}

EMPRL_HD constexpr float fp16_value(std::uint16_t bits) {
  std::uint32_t const sign = (bits & 0x8000u) << 16;
  std::uint32_t const exponent = (bits >> 10) & 31u;
  std::uint32_t const fraction = bits & 0x3ffu;
  if (exponent == 0) {
    float const size = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(size));
  }
  std::uint32_t const wide = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

}  // namespace detail

/// The upper half of a float. Rounds to nearest, ties to even; nothing converts by itself.
struct Bf16 {
  std::uint16_t bits;

  Bf16() = default;
  EMPRL_HD explicit Bf16(float x) {
#if defined(__CUDA_ARCH__)
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
    bits = detail::bf16_bits(x);
#endif
  }
  EMPRL_HD explicit operator float() const {
    return detail::bf16_value(bits);
  }

  EMPRL_HD static Bf16 from_bits(std::uint16_t bits) {
    Bf16 x;
    x.bits = bits;
    return x;
  }
};

/// IEEE 754 binary16. Rounds to nearest, ties to even; nothing converts by itself.
struct Fp16 {
  std::uint16_t bits;

  Fp16() = default;
  EMPRL_HD explicit Fp16(float x) {
#if defined(__CUDA_ARCH__)
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
    bits = detail::fp16_bits(x);
#endif
  }
  EMPRL_HD explicit operator float() const {
#if defined(__CUDA_ARCH__)
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
#else
    return detail::fp16_value(bits);
#endif
  }

  EMPRL_HD static Fp16 from_bits(std::uint16_t bits) {
    Fp16 x;
    x.bits = bits;
    return x;
  }
};

}  // namespace emprl
