// SPDX-License-Identifier: Apache-2.0
#pragma once

// The only source of randomness: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as
// easy as 1, 2, 3"). A draw is a function of its address, not of the draws before it: the same on
// every device, in any batch order, after any resume.

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <span>
#include <utility>

#include "emprl/core/config.hpp"

namespace emprl {

/// What a draw is for. Two purposes never share numbers.
enum class Stream : std::uint32_t {
  initialise,
  shuffle,
  dropout,
  sample,
  bootstrap,
  split,
  corpus,
  permute,
  corrupt
};

/// Ten rounds of Philox4x32: 128 random bits from a 128-bit counter and a 64-bit key.
EMPRL_HD constexpr std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                                       std::array<std::uint32_t, 2> key) {
  std::uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
  std::uint32_t k0 = key[0], k1 = key[1];
  for (int round = 0; round < 10; ++round) {
    std::uint64_t const p0 = std::uint64_t{0xD2511F53u} * c0;
    std::uint64_t const p1 = std::uint64_t{0xCD9E8D57u} * c2;
    std::uint32_t const n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1 ^ k0;
    std::uint32_t const n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<std::uint32_t>(p1);
    c3 = static_cast<std::uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

/// Where a draw is taken.
struct RngAddress {
  std::uint64_t seed = 0;
  Stream stream = Stream::sample;
  std::uint32_t step = 0;
  std::uint32_t row = 0;
  std::uint32_t position = 0;
};

/// The 128 bits at an address.
EMPRL_HD constexpr std::array<std::uint32_t, 4> random_bits(RngAddress const& at) {
  return philox({static_cast<std::uint32_t>(at.stream), at.step, at.row, at.position},
                {static_cast<std::uint32_t>(at.seed), static_cast<std::uint32_t>(at.seed >> 32)});
}

/// 53 random bits as a number in [0, 1).
EMPRL_HD constexpr double unit_interval(std::uint32_t high, std::uint32_t low) {
  std::uint64_t const bits = (std::uint64_t{high} << 32 | low) >> 11;
  return static_cast<double>(bits) * 0x1p-53;
}

/// A uniform number in [0, 1) that belongs to the address.
EMPRL_HD constexpr double uniform(RngAddress const& at) {
  auto const bits = random_bits(at);
  return unit_interval(bits[0], bits[1]);
}

/// A sequence of draws for serial work (initialisation, shuffling, resampling): positions 0, 1, 2,
/// ... of one address.
class RandomSequence {
 public:
  explicit RandomSequence(std::uint64_t seed, Stream stream, std::uint32_t step = 0,
                          std::uint32_t row = 0)
      : at_{seed, stream, step, row, 0} {}

  std::uint32_t next() {
    if (used_ == 4) {
      block_ = random_bits(at_);
      ++at_.position;
      used_ = 0;
    }
    return block_[used_++];
  }

  /// Uniform in [0, 1).
  double uniform() {
    std::uint32_t const high = next();
    return unit_interval(high, next());
  }

  /// Standard normal, by Box and Muller.
  double normal() {
    double const u = 1.0 - uniform();
    return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * uniform());
  }

  /// Uniform in 0 .. n-1 (n > 0), exactly, by rejection.
  index_t below(index_t n) {
    auto const bound = static_cast<std::uint64_t>(n);
    std::uint64_t const limit = std::uint64_t(-1) - std::uint64_t(-1) % bound;
    std::uint64_t x = 0;
    do {
      std::uint64_t const high = next();
      x = high << 32 | next();
    } while (x >= limit);
    return static_cast<index_t>(x % bound);
  }

  /// A uniform permutation of the elements (Fisher and Yates).
  template <class T>
  void shuffle(std::span<T> x) {
    for (std::size_t i = x.size(); i > 1; --i) {
      std::swap(x[i - 1], x[static_cast<std::size_t>(below(static_cast<index_t>(i)))]);
    }
  }

 private:
  RngAddress at_;
  std::array<std::uint32_t, 4> block_{};
  std::size_t used_ = 4;
};

}  // namespace emprl
