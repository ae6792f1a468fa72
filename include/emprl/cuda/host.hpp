// SPDX-License-Identifier: Apache-2.0
#pragma once

// How kernels reach the host executor where there is no nvcc. Everything here is declared and
// nothing is defined: tests/support/host_executor defines it, and a program that launches a kernel
// without nvcc and without the executor does not link. Kernels never call it; the headers beside
// this one do.

#include <cstddef>
#include <string>

#include "emprl/cuda/language.hpp"

#if !defined(__CUDACC__)

namespace emprl::cuda::host {

/// What can be wrong with a kernel.
enum class Fault {
  launch,      ///< a grid, block or amount of shared memory that no device takes
  stuck,       ///< threads that wait for others that never come: barriers, masks, deadlocks
  lanes,       ///< a lane mask that the caller is not in, or lanes that disagree
  race,        ///< two threads at one shared address, one of them writing, nothing between them
  bounds,      ///< a place outside a shared array
  alignment,   ///< an address that the instruction does not take
  async_copy,  ///< shared memory touched while cp.async is still bringing it
  unwritten,   ///< shared memory read before anything was written there
  order        ///< a launch that overlaps, and a thread of it that never waits for the one in front
};

/// Ends the kernel with a report; `launch` throws it.
[[noreturn]] void fault(Fault kind, std::string const& sentence, Site where);

/// Where the running thread stands.
struct Thread {
  Dim3 index;
  int rank = 0;  ///< in the block, x fastest
};
struct Grid {
  Dim3 block;
  Dim3 block_size;
  Dim3 grid_size;
};
Thread const& thread();
Grid const& grid();

void sync_threads(Site where);

/// The running thread waits for the launch in front, which the executor has long ended.
void wait_for_previous();

/// Something that the lanes of a mask do together.
struct Collective {
  char const* name;
  /// True if memory accesses before it are seen after it.
  bool orders_memory;
  /// Runs once, when all have arrived; lanes[i] is what lane i brought, null outside the mask.
  void (*apply)(void* const* lanes, LaneMask mask);
};
/// Returns when every lane of `mask` has brought something to the same collective at the same line.
void collective(Collective const& what, LaneMask mask, void* brought, Site where);

/// One array in the shared memory of a block.
struct SharedArray {
  std::byte* data = nullptr;
  int bytes = 0;
  int element_bytes = 1;
  char const* name = "";
  Site declared;
};

/// The array that `key` stands for, made by the first thread that asks.
SharedArray& static_array(void const* key, char const* name, int element_bytes, int count,
                          Site where);
/// The array at `offset` of the block's dynamic shared memory.
SharedArray& dynamic_array(int offset, int element_bytes, int count, Site where);

enum class Access { load, store, atomic };

/// The running thread is about to touch bytes [offset, offset + bytes) of the array.
void access(SharedArray& array, int offset, int bytes, Access kind, Site where);

/// cp.async: `valid` bytes of `from` and zeros up to `bytes` arrive when wait_copies says so.
void copy_async(SharedArray& array, int offset, void const* from, int bytes, int valid, Site where);
void commit_copies();
/// Waits for all but the last `pending` groups.
void wait_copies(int pending);

/// A launch as the executor sees it.
struct Launch {
  std::string kernel;
  Dim3 grid;
  Dim3 block;
  std::size_t shared_bytes = 0;
  bool overlaps = false;
};
/// Calls body(context) once for every thread of the grid.
void run(Launch const& launch, void (*body)(void const*), void const* context);

}  // namespace emprl::cuda::host

#endif
