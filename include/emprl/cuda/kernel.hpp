// SPDX-License-Identifier: Apache-2.0
#pragma once

// What kernels are made of: positions in the grid, barriers, shuffles, votes and atomic sums. Each
// is one CUDA instruction or intrinsic under nvcc, and has a host body for the executor that tests
// kernels without a GPU.
//
// The rules are the strict reading of the CUDA programming guide; the executor reports what breaks
// them:
//   * every thread of the block comes to the same sync_threads, in the same line;
//   * every lane of a mask comes to the same warp function, in the same line, with the same mask,
//     and a lane that calls is in its own mask;
//   * sync_threads and sync_warp order memory. Shuffles and votes do not.

#include <concepts>
#include <cstring>
#include <type_traits>

#include "emprl/core/config.hpp"
#include "emprl/cuda/host.hpp"
#include "emprl/cuda/language.hpp"

namespace emprl::cuda {

/// The position of this thread in its block.
EMPRL_DEVICE Dim3 thread_index() {
#if defined(__CUDACC__)
  return {static_cast<int>(threadIdx.x), static_cast<int>(threadIdx.y),
          static_cast<int>(threadIdx.z)};
#else
  return host::thread().index;
#endif
}

/// The position of this block in the grid.
EMPRL_DEVICE Dim3 block_index() {
#if defined(__CUDACC__)
  return {static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
#else
  return host::grid().block;
#endif
}

/// Threads of a block.
EMPRL_DEVICE Dim3 block_size() {
#if defined(__CUDACC__)
  return {static_cast<int>(blockDim.x), static_cast<int>(blockDim.y), static_cast<int>(blockDim.z)};
#else
  return host::grid().block_size;
#endif
}

/// Blocks of the grid.
EMPRL_DEVICE Dim3 grid_size() {
#if defined(__CUDACC__)
  return {static_cast<int>(gridDim.x), static_cast<int>(gridDim.y), static_cast<int>(gridDim.z)};
#else
  return host::grid().grid_size;
#endif
}

/// This thread's number in its block: x fastest, then y, then z.
EMPRL_DEVICE int thread_rank() {
#if defined(__CUDACC__)
  return static_cast<int>(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
#else
  return host::thread().rank;
#endif
}

/// This thread's number in its warp, 0 to 31.
EMPRL_DEVICE int lane_index() {
  return thread_rank() % warp_size;
}

/// This warp's number in its block.
EMPRL_DEVICE int warp_index() {
  return thread_rank() / warp_size;
}

/// This thread's number along x in the whole grid, and how many there are: a loop from the one in
/// steps of the other covers any range.
EMPRL_DEVICE index_t global_thread_x() {
  return index_t{block_index().x} * block_size().x + thread_index().x;
}
EMPRL_DEVICE index_t global_size_x() {
  return index_t{grid_size().x} * block_size().x;
}

/// Waits for every thread of the block; shared and global memory written before is seen after.
EMPRL_DEVICE void sync_threads([[maybe_unused]] Site where = Site::current()) {
#if defined(__CUDACC__)
  __syncthreads();
#else
  host::sync_threads(where);
#endif
}

/// Lets the launch behind this one begin, if it overlaps (LaunchShape::overlaps), once every block
/// has called it or is done. It says nothing about memory.
EMPRL_DEVICE void begin_next() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Waits until the launch in front has ended, and with it all launches before; what they wrote is
/// seen after. At once where launches do not overlap.
EMPRL_DEVICE void wait_for_previous() {
#if !defined(__CUDACC__)
  host::wait_for_previous();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Asks for the line of L2 that holds `p`, an address in global memory, and waits for nothing.
EMPRL_DEVICE void prefetch_line(void const* p) {
#if defined(__CUDACC__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(p)));
#else
  // So that AddressSanitizer sees it.
  [[maybe_unused]] char const volatile touched = *static_cast<char const volatile*>(p);
#endif
}

/// Waits for the lanes of `mask`; memory written before is seen after by them.
EMPRL_DEVICE void sync_warp(LaneMask mask = full_warp,
                            [[maybe_unused]] Site where = Site::current()) {
#if defined(__CUDACC__)
  __syncwarp(mask);
#else
  host::collective({"sync_warp", true, [](void* const*, LaneMask) {}}, mask, nullptr, where);
#endif
}

/// What a shuffle carries: a number of four or eight bytes.
template <class T>
concept Shuffled = (std::integral<T> || std::floating_point<T>)&&(sizeof(T) == 4 || sizeof(T) == 8);

#if !defined(__CUDACC__)
namespace detail {

template <class T>
struct Exchange {
  T value;
  int source;
  T result;
};

/// Every lane of `mask` gets the value of its source; all bits set, a NaN, where the source takes
/// no part, since the device would give anything.
template <class T>
void apply_exchange(void* const* lanes, LaneMask mask) {
  for (int i = 0; i < warp_size; ++i) {
    if ((mask >> i & 1u) == 0) continue;
    auto& mine = *static_cast<Exchange<T>*>(lanes[i]);
    if ((mask >> mine.source & 1u) != 0) {
      mine.result = static_cast<Exchange<T> const*>(lanes[mine.source])->value;
    } else {
      std::memset(&mine.result, 0xff, sizeof(T));
    }
  }
}

template <class T>
T exchange(char const* name, T value, int source, LaneMask mask, Site where) {
  if (source < 0 || source >= warp_size) {
    host::fault(host::Fault::lanes,
                std::string(name) + " asks for lane " + std::to_string(source) + " of 32", where);
  }
  Exchange<T> mine{value, source, T()};
  host::collective({name, false, apply_exchange<T>}, mask, &mine, where);
  return mine.result;
}

struct Ballot {
  bool yes;
  LaneMask result;
};

inline void apply_ballot(void* const* lanes, LaneMask mask) {
  LaneMask votes = 0;
  for (int i = 0; i < warp_size; ++i) {
    if ((mask >> i & 1u) != 0 && static_cast<Ballot const*>(lanes[i])->yes) votes |= 1u << i;
  }
  for (int i = 0; i < warp_size; ++i) {
    if ((mask >> i & 1u) != 0) static_cast<Ballot*>(lanes[i])->result = votes;
  }
}

inline LaneMask ballot(char const* name, bool yes, LaneMask mask, Site where) {
  Ballot mine{yes, 0};
  host::collective({name, false, apply_ballot}, mask, &mine, where);
  return mine.result;
}

}  // namespace detail
#endif

/// The value of lane `source`. What a lane outside the mask would give is undefined, here and in
/// the three functions below.
template <Shuffled T>
EMPRL_DEVICE T shuffle(T value, int source, LaneMask mask = full_warp,
                       [[maybe_unused]] Site where = Site::current()) {
#if defined(__CUDACC__)
  return __shfl_sync(mask, value, source);
#else
  return detail::exchange("shuffle", value, source, mask, where);
#endif
}

/// The value of the lane `distance` below; the first lanes keep their own.
template <Shuffled T>
EMPRL_DEVICE T shuffle_up(T value, int distance, LaneMask mask = full_warp,
                          [[maybe_unused]] Site where = Site::current()) {
#if defined(__CUDACC__)
  return __shfl_up_sync(mask, value, static_cast<unsigned>(distance));
#else
  int const lane = lane_index();
  int const source = lane - distance;
  return detail::exchange("shuffle_up", value, source >= 0 ? source : lane, mask, where);
#endif
}

/// The value of the lane `distance` above; the last lanes keep their own.
template <Shuffled T>
EMPRL_DEVICE T shuffle_down(T value, int distance, LaneMask mask = full_warp,
                            [[maybe_unused]] Site where = Site::current()) {
#if defined(__CUDACC__)
  return __shfl_down_sync(mask, value, static_cast<unsigned>(distance));
#else
  int const lane = lane_index();
  int const source = lane + distance;
  return detail::exchange("shuffle_down", value, source < warp_size ? source : lane, mask, where);
#endif
}

/// The value of the lane whose number differs in the bits of `bits`.
template <Shuffled T>
EMPRL_DEVICE T shuffle_xor(T value, int bits, LaneMask mask = full_warp,
                           [[maybe_unused]] Site where = Site::current()) {
#if defined(__CUDACC__)
  return __shfl_xor_sync(mask, value, bits);
#else
  return detail::exchange("shuffle_xor", value, lane_index() ^ bits, mask, where);
#endif
}

/// One bit for each lane of the mask that says yes.
EMPRL_DEVICE LaneMask ballot(bool yes, LaneMask mask = full_warp,
                             [[maybe_unused]] Site where = Site::current()) {
#if defined(__CUDACC__)
  return __ballot_sync(mask, yes);
#else
  return detail::ballot("ballot", yes, mask, where);
#endif
}

/// True if a lane of the mask says yes.
EMPRL_DEVICE bool any(bool yes, LaneMask mask = full_warp,
                      [[maybe_unused]] Site where = Site::current()) {
#if defined(__CUDACC__)
  return __any_sync(mask, yes) != 0;
#else
  return detail::ballot("any", yes, mask, where) != 0;
#endif
}

/// True if every lane of the mask says yes.
EMPRL_DEVICE bool all(bool yes, LaneMask mask = full_warp,
                      [[maybe_unused]] Site where = Site::current()) {
#if defined(__CUDACC__)
  return __all_sync(mask, yes) != 0;
#else
  return detail::ballot("all", yes, mask, where) == mask;
#endif
}

/// What atomic sums are made in.
template <class T>
concept AtomicNumber = std::same_as<T, int> || std::same_as<T, unsigned> ||
    std::same_as<T, float> || std::same_as<T, double>;

/// *to += value as one step, in global memory. The order among threads is not fixed, so sums of
/// float differ from run to run. @return the value before
template <AtomicNumber T>
EMPRL_DEVICE T atomic_add(T* to, std::type_identity_t<T> value) {
#if defined(__CUDACC__)
  return atomicAdd(to, value);
#else
  // The executor's threads take turns, and none takes over within an addition.
  T const before = *to;
  *to = before + value;
  return before;
#endif
}

}  // namespace emprl::cuda
