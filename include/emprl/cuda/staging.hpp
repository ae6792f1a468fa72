// SPDX-License-Identifier: Apache-2.0
#pragma once

// Bytes on their way to a device through memory that the device reads when it comes to it. What
// that memory is and how the device is waited for is the caller's (cuda/uploads.cuh).

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstring>

namespace emprl::cuda {

/// What can bring staged bytes on:
///   p.copy(to, from, bytes)  orders a copy to the device, which may read `from` later
///   p.mark(half)             gives the point that the order of the copies has come to a name, 0 or
///                            1, which may have been another's
///   p.wait(half)             returns when all before the point of that name is done
template <class P>
concept StagingPort = requires(P& p, void* to, std::byte const* from, std::size_t bytes, int half) {
  { p.copy(to, from, bytes) } -> std::same_as<void>;
  { p.mark(half) } -> std::same_as<void>;
  { p.wait(half) } -> std::same_as<void>;
};

/// Memory in two halves: one is filled while the device reads the other. What is copied may be
/// larger than both.
class Staging {
 public:
  Staging() = default;
  /// @param memory  of 2 `half` bytes, which the caller keeps until the device has read them
  Staging(std::byte* memory, std::size_t half) : memory_(memory), half_bytes_(half) {}

  /// Copies bytes to the device, in the order of `port`. `from` has been read when this returns;
  /// it waits where the half that is next has not been read.
  /// @throws whatever `port` throws
  template <StagingPort P>
  void copy(P& port, void* to, void const* from, std::size_t bytes) {
    auto* there = static_cast<std::byte*>(to);
    auto const* here = static_cast<std::byte const*>(from);
    while (bytes > 0) {
      if (used_ == half_bytes_) turn(port);
      std::size_t const n = std::min(bytes, half_bytes_ - used_);
      std::byte* const staged = memory_ + static_cast<std::size_t>(half_) * half_bytes_ + used_;
      std::memcpy(staged, here, n);
      port.copy(there, staged, n);
      used_ = std::min(half_bytes_, used_ + (n + alignment - 1) / alignment * alignment);
      there += n;
      here += n;
      bytes -= n;
    }
  }

 private:
  /// Copies begin at multiples of a cache line.
  static constexpr std::size_t alignment = 64;

  /// Goes on with the other half.
  template <class P>
  void turn(P& port) {
    port.mark(half_);
    marked_[static_cast<std::size_t>(half_)] = true;
    int const other = 1 - half_;
    if (marked_[static_cast<std::size_t>(other)]) port.wait(other);
    half_ = other;
    used_ = 0;
  }

  std::byte* memory_ = nullptr;
  std::size_t half_bytes_ = 0;
  std::size_t used_ = 0;  // of the half that is being filled
  int half_ = 0;
  std::array<bool, 2> marked_{};
};

}  // namespace emprl::cuda
