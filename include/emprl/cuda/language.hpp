// SPDX-License-Identifier: Apache-2.0
#pragma once

// What CUDA adds to C++, as macros and plain types, so that a kernel is ordinary C++ for a compiler
// that does not know CUDA. Under nvcc they are CUDA's own words; elsewhere a kernel is a function
// that the host executor of the tests calls once for every thread of a grid.
//
//   template <class T>
//   EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(256) scale_kernel(T* y, T const* x, T factor, index_t n) {
//     index_t const i = cuda::global_thread_x();
//     if (i < n) y[i] = factor * x[i];
//   }

#include <cstdint>

#include "emprl/core/error.hpp"

#if defined(__CUDACC__)
#if !defined(__CUDACC_RELAXED_CONSTEXPR__)
// Without it nvcc warns and then compiles calls of constexpr host functions in kernels to nothing.
#error "emprl's kernels need nvcc's option --expt-relaxed-constexpr"
#endif
/// A kernel. It has internal linkage: every translation unit launches its own copy.
#define EMPRL_KERNEL [[maybe_unused]] static __global__ void
/// Code that runs on the device only. A function that synchronises takes a Site as last argument
/// and hands it on, so that reports name the line of its caller.
#define EMPRL_DEVICE __device__ inline
/// After EMPRL_KERNEL: the most threads of a block and, if given, the least blocks that one
/// multiprocessor shall hold; the compiler divides the registers accordingly.
#define EMPRL_LAUNCH_BOUNDS(...) __launch_bounds__(__VA_ARGS__)
/// Before a loop of constant length: without it an array that the loop indexes may go to memory.
#define EMPRL_UNROLL _Pragma("unroll")
#else
#define EMPRL_KERNEL inline void
#define EMPRL_DEVICE inline
#define EMPRL_LAUNCH_BOUNDS(...)
#define EMPRL_UNROLL
#endif

namespace emprl::cuda {

/// Extents and positions of threads and blocks. Signed: differences of indices are common.
struct Dim3 {
  int x = 1;
  int y = 1;
  int z = 1;
};

/// One bit for each lane of a warp.
using LaneMask = std::uint32_t;

/// Every lane. A warp that a block fills only in part has fewer and may not use it.
inline constexpr LaneMask full_warp = 0xffffffffu;

inline constexpr int warp_size = 32;

/// The line that asks. Only the host executor wants to know it; on the device it is empty.
#if defined(__CUDACC__)
struct Site {
  __host__ __device__ static constexpr Site current() { return {}; }
};
#else
using Site = SourceLocation;
#endif

}  // namespace emprl::cuda
