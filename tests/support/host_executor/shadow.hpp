// SPDX-License-Identifier: Apache-2.0
#pragma once

// Who touched what: one record for each element of shared memory, and the order that barriers make.
//
// A clock counts the barriers of a block, of warps and of the block alike. An access carries the
// time of the clock. It lies before what the running thread does now
//   * if the last barrier of the block came after it, or
//   * if it was made by a lane of the same warp and a barrier of that warp with both lanes in it
//     came after it.
// Of the lanes of one warp that read (or wrote with atomics) since the last such barrier the record
// keeps all, with the time of the first; of several warps it keeps that they were several.

#include <algorithm>
#include <bit>
#include <cstdint>

#include "emprl/cuda/language.hpp"

namespace host_executor {

using emprl::cuda::LaneMask;
using emprl::cuda::Site;
using emprl::cuda::warp_size;

/// A site in eight bytes: user addresses have 48 bits at most.
struct PackedSite {
  std::uint64_t bits = 0;

  PackedSite() = default;
  PackedSite(Site s)
      : bits(reinterpret_cast<std::uint64_t>(s.file) << 16 |
             static_cast<std::uint64_t>(s.line & 0xffff)) {}
  Site site() const {
    return {reinterpret_cast<char const*>(bits >> 16), static_cast<int>(bits & 0xffff)};
  }
};

/// The accesses of one kind that no barrier has ended yet.
struct Accesses {
  static constexpr std::uint16_t several = 0xffff;

  PackedSite where;
  std::uint32_t time = 0;
  /// The lanes of `warp`; of several warps the ranks of two threads, 16 bits each.
  LaneMask lanes = 0;
  std::uint16_t warp = 0;
  bool atomic = false;
};

/// What is known of one element.
struct Record {
  Accesses write;
  Accesses read;
  /// One more than the rank of the thread whose cp.async is still under way; 0 if none is.
  std::uint32_t copying = 0;
};

/// What the barriers of one warp have ordered.
struct WarpOrder {
  /// The time of the last barrier of all its lanes.
  std::uint32_t all = 0;
  /// True if barriers of some of the lanes came after it; then known[t][u] is the time up to which
  /// lane t has seen what lane u did.
  bool partly = false;
  std::uint32_t known[warp_size][warp_size] = {};

  void barrier(LaneMask lanes, bool whole, std::uint32_t time) {
    if (whole) {
      all = time;
      partly = false;
      return;
    }
    partly = true;
    // Each learns what any of them knew, and all that they did.
    std::uint32_t joined[warp_size];
    for (int u = 0; u < warp_size; ++u) {
      joined[u] = (lanes >> u & 1u) != 0 ? time : 0;
      for (LaneMask rest = lanes; rest != 0; rest &= rest - 1) {
        joined[u] = std::max(joined[u], known[std::countr_zero(rest)][u]);
      }
    }
    for (LaneMask rest = lanes; rest != 0; rest &= rest - 1) {
      std::copy(joined, joined + warp_size, known[std::countr_zero(rest)]);
    }
  }
};

/// The running thread, as far as order is concerned.
struct Observer {
  std::uint32_t block_barrier;  ///< the time of the block's last barrier
  std::uint32_t now;
  WarpOrder const* warp_order;
  std::uint16_t warp;
  int lane;

  /// The rank of a thread whose access may happen at the same time as this thread's, or -1.
  int conflict(Accesses const& past) const {
    if (past.time <= block_barrier || past.lanes == 0) return -1;
    if (past.warp == Accesses::several) {
      int const first = static_cast<int>(past.lanes & 0xffffu);
      return first / warp_size != warp ? first : static_cast<int>(past.lanes >> 16);
    }
    if (past.warp != warp) return past.warp * warp_size + std::countr_zero(past.lanes);
    LaneMask const others = past.lanes & ~(LaneMask{1} << lane);
    if (others == 0 || past.time <= warp_order->all) return -1;
    if (!warp_order->partly) return warp * warp_size + std::countr_zero(others);
    for (LaneMask rest = others; rest != 0; rest &= rest - 1) {
      int const u = std::countr_zero(rest);
      if (warp_order->known[lane][u] < past.time) return warp * warp_size + u;
    }
    return -1;
  }

  /// Adds this thread to accesses that do not exclude each other.
  void join(Accesses& past, Site where) const {
    LaneMask const me = LaneMask{1} << lane;
    bool const over = past.time <= block_barrier || past.lanes == 0 ||
                      (past.warp == warp && past.time <= warp_order->all);
    if (over) {
      past = {where, now, me, warp, false};
    } else if (past.warp == warp) {
      past.lanes |= me;
      past.where = where;
    } else if (past.warp != Accesses::several) {
      // Whoever comes next without a barrier conflicts with one of the two: their ranks are kept.
      int const first = past.warp * warp_size + std::countr_zero(past.lanes);
      past.lanes = static_cast<LaneMask>(first | (warp * warp_size + lane) << 16);
      past.warp = Accesses::several;
    }
  }

  /// Makes this thread the only one.
  void replace(Accesses& past, Site where) const {
    past = {where, now, LaneMask{1} << lane, warp, false};
  }
};

}  // namespace host_executor
