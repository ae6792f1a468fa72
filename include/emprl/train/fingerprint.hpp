// SPDX-License-Identifier: Apache-2.0
#pragma once

// A short name for long contents, to notice that a run goes on with other data or another model
// than it began with.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

namespace emprl::train {

/// FNV-1a in 64 bits (Fowler, Noll & Vo):  h <- (h xor x) * prime  for each x in turn. It tells
/// contents apart that differ by accident, and says nothing against those made to agree: it is no
/// cryptography. Texts are taken by bytes; numbers by 32-bit words, for a large model's weights are
/// gigabytes. The same on every machine of the same byte order.
class Fingerprint {
 public:
  /// The bytes of a text and nothing else: FNV-1a as published.
  void bytes(std::string_view text) {
    for (char const c : text) mix(static_cast<unsigned char>(c));
  }

  /// A text and where it ends: "ab", "c" is not "a", "bc".
  void text(std::string_view text) {
    count(text.size());
    bytes(text);
  }

  /// Numbers, bit by bit: 0 is not -0.
  template <class T>
  void numbers(std::span<T const> values) {
    static_assert(std::is_arithmetic_v<T> && sizeof(T) % 4 == 0);
    count(values.size());
    auto const* at = reinterpret_cast<char const*>(values.data());
    for (std::size_t i = 0; i < values.size_bytes(); i += 4) {
      std::uint32_t word = 0;
      std::memcpy(&word, at + i, 4);
      mix(word);
    }
  }

  std::uint64_t value() const { return hash_; }

  /// Sixteen hexadecimal digits.
  std::string name() const {
    std::string digits(16, '0');
    for (std::size_t i = 0; i < 16; ++i) digits[i] = "0123456789abcdef"[hash_ >> (60 - 4 * i) & 15];
    return digits;
  }

 private:
  void mix(std::uint32_t x) { hash_ = (hash_ ^ x) * 0x100000001b3u; }
  void count(std::size_t n) {
    auto const wide = static_cast<std::uint64_t>(n);
    mix(static_cast<std::uint32_t>(wide));
    mix(static_cast<std::uint32_t>(wide >> 32));
  }

  std::uint64_t hash_ = 0xcbf29ce484222325u;
};

}  // namespace emprl::train
