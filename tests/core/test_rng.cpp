// SPDX-License-Identifier: Apache-2.0
#include "emprl/core/rng.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <set>
#include <vector>

#include "support/catch.hpp"

using emprl::index_t;
using emprl::RandomSequence;
using emprl::RngAddress;
using emprl::Stream;
using Counter = std::array<std::uint32_t, 4>;

TEST_CASE("philox: the published known answers", "[core][rng][golden]") {
  // kat_vectors of Random123 (Salmon et al. 2011), philox4x32 with 10 rounds.
  CHECK(emprl::philox({0, 0, 0, 0}, {0, 0}) ==
        Counter{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u});
  std::uint32_t const f = 0xffffffffu;
  CHECK(emprl::philox({f, f, f, f}, {f, f}) ==
        Counter{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu});
  CHECK(emprl::philox({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u},
                      {0xa4093822u, 0x299f31d0u}) ==
        Counter{0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u});
}

TEST_CASE("philox: runs at compile time", "[core][rng][unit]") {
  static_assert(emprl::philox({0, 0, 0, 0}, {0, 0})[0] == 0x6627e8d5u);
  SUCCEED();
}

TEST_CASE("uniform: every part of an address matters", "[core][rng][unit]") {
  RngAddress const at{7, Stream::sample, 3, 2, 1};
  std::set<double> seen{emprl::uniform(at)};
  for (int part = 0; part < 6; ++part) {
    RngAddress other = at;
    if (part == 0) other.seed += 1;
    if (part == 1) other.seed += std::uint64_t{1} << 32;
    if (part == 2) other.stream = Stream::dropout;
    if (part == 3) other.step += 1;
    if (part == 4) other.row += 1;
    if (part == 5) other.position += 1;
    seen.insert(emprl::uniform(other));
  }
  CHECK(seen.size() == 7);
  CHECK(emprl::uniform(at) == emprl::uniform(at));
}

TEST_CASE("unit_interval: from 0 to just below 1", "[core][rng][unit]") {
  CHECK(emprl::unit_interval(0, 0) == 0.0);
  CHECK(emprl::unit_interval(0xffffffffu, 0xffffffffu) < 1.0);
  CHECK(emprl::unit_interval(0x80000000u, 0) == 0.5);
}

TEST_CASE("RandomSequence: uniform numbers have the moments of uniform numbers",
          "[core][rng][unit]") {
  RandomSequence random(1, Stream::bootstrap);
  constexpr int n = 100000;
  double sum = 0;
  double squares = 0;
  for (int i = 0; i < n; ++i) {
    double const u = random.uniform();
    REQUIRE(u >= 0.0);
    REQUIRE(u < 1.0);
    sum += u;
    squares += u * u;
  }
  // Five standard errors.
  CHECK(std::abs(sum / n - 0.5) < 5 * std::sqrt(1.0 / 12 / n));
  CHECK(std::abs(squares / n - 1.0 / 3) < 5 * std::sqrt(4.0 / 45 / n));
}

TEST_CASE("RandomSequence: normal numbers have the moments of normal numbers",
          "[core][rng][unit]") {
  RandomSequence random(2, Stream::initialise);
  constexpr int n = 100000;
  std::array<double, 4> moment{};
  for (int i = 0; i < n; ++i) {
    double const x = random.normal();
    REQUIRE(std::isfinite(x));
    moment[0] += x / n;
    moment[1] += x * x / n;
    moment[2] += x * x * x / n;
    moment[3] += x * x * x * x / n;
  }
  CHECK(std::abs(moment[0]) < 5 * std::sqrt(1.0 / n));
  CHECK(std::abs(moment[1] - 1) < 5 * std::sqrt(2.0 / n));
  CHECK(std::abs(moment[2]) < 5 * std::sqrt(15.0 / n));
  CHECK(std::abs(moment[3] - 3) < 5 * std::sqrt(96.0 / n));
}

TEST_CASE("RandomSequence: below(n) is uniform over 0..n-1", "[core][rng][unit]") {
  RandomSequence random(3, Stream::split);
  constexpr int n = 7;
  constexpr int draws = 70000;
  std::array<int, n> counts{};
  for (int i = 0; i < draws; ++i) {
    index_t const x = random.below(n);
    REQUIRE(x >= 0);
    REQUIRE(x < n);
    ++counts[static_cast<std::size_t>(x)];
  }
  double chi2 = 0;
  for (int const c : counts) chi2 += std::pow(c - draws / n, 2) / (draws / n);
  // Chi-squared with 6 degrees of freedom passes 30 once in 25,000 seeds.
  CHECK(chi2 < 30);
  for (int i = 0; i < 100; ++i) CHECK(random.below(1) == 0);
}

TEST_CASE("RandomSequence: shuffle permutes, and its seed decides how", "[core][rng][unit]") {
  auto const shuffled = [](std::uint64_t seed) {
    std::vector<int> x(97);
    std::iota(x.begin(), x.end(), 0);
    RandomSequence random(seed, Stream::shuffle);
    random.shuffle<int>(x);
    return x;
  };
  auto x = shuffled(5);
  CHECK(x == shuffled(5));
  CHECK(x != shuffled(6));
  std::sort(x.begin(), x.end());
  for (int i = 0; i < 97; ++i) CHECK(x[static_cast<std::size_t>(i)] == i);
}

TEST_CASE("RandomSequence: shuffle reaches all orders equally often", "[core][rng][unit]") {
  RandomSequence random(8, Stream::shuffle);
  std::array<int, 6> counts{};
  for (int i = 0; i < 12000; ++i) {
    std::array<int, 3> x{0, 1, 2};
    random.shuffle<int>(x);
    ++counts[static_cast<std::size_t>(x[0] * 2 + (x[1] > x[2] ? 1 : 0))];
  }
  for (int const c : counts) CHECK(std::abs(c - 2000) < 5 * 41);
}

TEST_CASE("RandomSequence: streams, steps and rows do not share numbers", "[core][rng][unit]") {
  RandomSequence a(9, Stream::shuffle, 0, 0);
  RandomSequence b(9, Stream::sample, 0, 0);
  RandomSequence c(9, Stream::shuffle, 1, 0);
  RandomSequence d(9, Stream::shuffle, 0, 1);
  std::set<std::uint32_t> seen;
  for (int i = 0; i < 50; ++i) {
    for (RandomSequence* s : {&a, &b, &c, &d}) seen.insert(s->next());
  }
  // 200 draws of 32 bits: one chance in 200,000 of a coincidence, and the draws are fixed.
  CHECK(seen.size() == 200);
}
