// SPDX-License-Identifier: Apache-2.0
#pragma once

// Copies from global to shared memory that go on while the thread computes (cp.async, sm_80 and
// newer). What a thread copies it may read after wait_copies; what others have copied it may read
// after their wait_copies and a barrier. Until then nobody touches the place. Double buffering:
//
//   copy tile 0; commit_copies();
//   for each tile i:
//     if there is a tile i + 1: copy it to the other buffer
//     commit_copies();                 // an empty group keeps the count right
//     wait_copies<1>();                // all but the newest group: tile i is here
//     sync_threads();                  // ... and everybody's part of it
//     compute with tile i
//     sync_threads();                  // before the next round overwrites it
//
// The host executor lets data arrive at wait_copies and no sooner: until then the place holds NaN.

#include "emprl/cuda/host.hpp"
#include "emprl/cuda/shared.hpp"

namespace emprl::cuda {

/// Starts to copy `Bytes` (4, 8 or 16) bytes; both addresses are multiples of it.
/// @param valid  bytes that come from memory, 0 to Bytes; the rest of the place becomes zeros and
///               memory behind them is not read. With 0 `from` may be any such multiple, or null.
template <int Bytes, class T>
EMPRL_DEVICE void copy_async(SharedAddress<T> to, T const* from, int valid = Bytes,
                             [[maybe_unused]] Site where = Site::current()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
#if defined(__CUDACC__)
  if constexpr (Bytes == 16) {
    // Past the L1 cache: a tile is read once a block.
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.window()), "l"(from),
                 "r"(valid)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to.window()), "l"(from),
                 "n"(Bytes), "r"(valid)
                 : "memory");
  }
#else
  to.pointer(Bytes, Bytes, where);
  host::copy_async(*to.array, to.offset, from, Bytes, valid, where);
#endif
}

/// Closes the group of this thread's copies since the last call.
EMPRL_DEVICE void commit_copies() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  host::commit_copies();
#endif
}

/// Waits until at most the last `Pending` groups of this thread are under way.
template <int Pending>
EMPRL_DEVICE void wait_copies() {
  static_assert(Pending >= 0);
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
#else
  host::wait_copies(Pending);
#endif
}

}  // namespace emprl::cuda
