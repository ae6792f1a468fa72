// SPDX-License-Identifier: Apache-2.0
#include "emprl/core/half.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "support/catch.hpp"

using emprl::Bf16;
using emprl::Fp16;

namespace {

/// What the bits mean, from the definition of an IEEE format with `fraction` fraction bits.
double meaning(std::uint32_t bits, int fraction) {
  int const exponent_bits = 15 - fraction;
  int const bias = (1 << (exponent_bits - 1)) - 1;
  double const sign = (bits >> 15) != 0 ? -1 : 1;
  int const exponent = static_cast<int>(bits >> fraction) & ((1 << exponent_bits) - 1);
  double const f = std::ldexp(static_cast<double>(bits & ((1u << fraction) - 1)), -fraction);
  if (exponent == (1 << exponent_bits) - 1) {
    return f == 0 ? sign * std::numeric_limits<double>::infinity()
                  : std::numeric_limits<double>::quiet_NaN();
  }
  return sign * (exponent == 0 ? std::ldexp(f, 1 - bias) : std::ldexp(1 + f, exponent - bias));
}

template <class Half>
constexpr int fraction_bits = std::is_same_v<Half, Bf16> ? 7 : 10;

template <class Half>
std::uint32_t infinity = ((1u << (15 - fraction_bits<Half>)) - 1) << fraction_bits<Half>;

/// True if the two numbers are the same number, or both none.
bool same(double a, double b) {
  return (std::isnan(a) && std::isnan(b)) || (a == b && std::signbit(a) == std::signbit(b));
}

}  // namespace

TEMPLATE_TEST_CASE("half: all 65536 patterns mean what IEEE 754 says and survive the round trip",
                   "[core][half][unit]", Bf16, Fp16) {
  int wrong = 0;
  for (std::uint32_t i = 0; i <= 0xffff; ++i) {
    auto const x = TestType::from_bits(static_cast<std::uint16_t>(i));
    auto const value = static_cast<float>(x);
    if (!same(static_cast<double>(value), meaning(i, fraction_bits<TestType>))) ++wrong;
    std::uint32_t const expected = std::isnan(value) ? 0x7fffu : i;
    if (TestType(value).bits != expected) ++wrong;
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("half: rounds to nearest, ties to even, at every boundary of the format",
                   "[core][half][unit]", Bf16, Fp16) {
  // Between two neighbours lie the midpoint and its two neighbours in float; the upper neighbour of
  // the largest number is the one that would follow if the exponent had room.
  constexpr int fraction = fraction_bits<TestType>;
  int wrong = 0;
  for (std::uint32_t i = 0; i < infinity<TestType>; ++i) {
    double const low = meaning(i, fraction);
    double const unit = std::ldexp(1.0, std::max(static_cast<int>(i >> fraction), 1) -
                                            ((1 << (14 - fraction)) - 1) - fraction);
    auto const middle = static_cast<float>(low + unit / 2);
    std::uint32_t const even = i % 2 == 0 ? i : i + 1;
    float const inf = std::numeric_limits<float>::infinity();
    for (float const sign : {1.0f, -1.0f}) {
      std::uint32_t const s = sign < 0 ? 0x8000u : 0u;
      if (TestType(sign * middle).bits != (s | even)) ++wrong;
      if (TestType(sign * std::nextafter(middle, 0.0f)).bits != (s | i)) ++wrong;
      if (TestType(sign * std::nextafter(middle, inf)).bits != (s | (i + 1))) ++wrong;
    }
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("half: what is too large becomes infinite and NaN stays NaN",
                   "[core][half][unit]", Bf16, Fp16) {
  float const inf = std::numeric_limits<float>::infinity();
  CHECK(TestType(inf).bits == infinity<TestType>);
  CHECK(TestType(-inf).bits == (0x8000u | infinity<TestType>));
  CHECK(TestType(std::numeric_limits<float>::max()).bits == infinity<TestType>);
  // A NaN whose fraction lies in the bits that are cut off.
  CHECK(std::isnan(static_cast<float>(TestType(std::bit_cast<float>(0x7f800001u)))));
  CHECK(TestType(std::bit_cast<float>(0xff800001u)).bits == 0x7fff);
}
