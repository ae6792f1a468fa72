// SPDX-License-Identifier: Apache-2.0
#pragma once

// Memory that kernels see, and copies between it and the host. Without nvcc it is the host's own,
// where the executor runs kernels and AddressSanitizer watches the bounds.

#include <cstddef>
#include <cstring>
#include <new>
#include <string>

#include "emprl/core/arena.hpp"
#include "emprl/cuda/launch.cuh"

namespace emprl::cuda {

/// The sentence where `bytes` are asked for and `left` of `all` are free.
inline std::string out_of_memory(std::size_t bytes, std::size_t left, std::size_t all) {
  auto const megabytes = [](std::size_t n) { return std::to_string((n + 500000) / 1000000); };
  return "the GPU has not enough memory: " + megabytes(bytes) + " MB more are needed, and " +
         megabytes(left) + " of its " + megabytes(all) +
         " MB are free; fewer rows at once need less";
}

/// Where an arena of device memory gets its blocks; the device is the calling thread's current one.
struct DeviceMemory {
  /// What a vector load of any width, a cp.async and a tensor map ask for.
  static constexpr std::size_t alignment = 256;

#if defined(__CUDACC__)
  /// @throws CudaError that says how much was asked for and how much there is, if that is less
  static void* allocate(std::size_t bytes) {
    void* p = nullptr;
    cudaError_t const status = cudaMalloc(&p, bytes);
    if (status == cudaErrorMemoryAllocation) {
      static_cast<void>(cudaGetLastError());
      std::size_t left = 0, all = 0;
      static_cast<void>(cudaMemGetInfo(&left, &all));
      throw CudaError(out_of_memory(bytes, left, all));
    }
    cuda_try(status, "cudaMalloc");
    return p;
  }
  static void release(void* p) noexcept {
    // Work under way may use it: cudaFree waits for that, but says only that it may.
    static_cast<void>(cudaDeviceSynchronize());
    // At the end of a process the driver may be gone already; then there is nothing to release.
    static_cast<void>(cudaFree(p));
    static_cast<void>(cudaGetLastError());
  }
  static void poison(void* p, std::size_t bytes) {
    // The fill is not ordered on the context's stream: it may neither overtake the work that still
    // reads this memory nor be overtaken by what writes it next.
    cuda_try(cudaDeviceSynchronize(), "poisoning");
    cuda_try(cudaMemset(p, 0xff, bytes), "poisoning");
    cuda_try(cudaDeviceSynchronize(), "poisoning");
  }
#else
  static void* allocate(std::size_t bytes) {
    host::refuse_in_recording("cudaMalloc");
    return ::operator new (bytes, std::align_val_t{alignment});
  }
  static void release(void* p) noexcept {
    host::spoil_recording("cudaFree");
    ::operator delete (p, std::align_val_t{alignment});
  }
  static void poison(void* p, std::size_t bytes) {
    std::memset(p, 0xff, bytes);
  }
#endif
};

/// @throws CudaError naming `what` if the stream's work is being captured
inline void expect_no_capture([[maybe_unused]] StreamHandle stream, char const* what) {
#if defined(__CUDACC__)
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  cuda_try(cudaStreamIsCapturing(stream, &capturing), what);
  if (capturing != cudaStreamCaptureStatusNone) {
    throw CudaError(std::string(what) + ": not permitted while a graph is captured");
  }
#else
  host::refuse_in_recording(what);
#endif
}

/// Copies bytes on a stream, from and to either side. Memory of the host, pinned or not, stays as
/// it is until the stream has come here: CUDA leaves open when it is read or written. (What may go
/// sooner takes cuda/uploads.cuh.)
/// @throws CudaError also while a graph is captured: it would copy at every replay, from or to
/// memory of the host that may be gone
inline void copy_bytes([[maybe_unused]] StreamHandle stream, void* to, void const* from,
                       std::size_t bytes) {
  if (bytes == 0) return;
  expect_no_capture(stream, "copying memory");
#if defined(__CUDACC__)
  cuda_try(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copying memory");
#else
  std::memcpy(to, from, bytes);
#endif
}

/// Sets bytes to zero on a stream.
inline void zero_bytes([[maybe_unused]] StreamHandle stream, void* p, std::size_t bytes) {
  if (bytes == 0) return;
#if defined(__CUDACC__)
  cuda_try(cudaMemsetAsync(p, 0, bytes, stream), "clearing memory");
#else
  host::enqueue([p, bytes] { std::memset(p, 0, bytes); });
#endif
}

/// Waits until everything on the stream is done. @throws CudaError if a kernel has failed
inline void synchronize([[maybe_unused]] StreamHandle stream) {
#if defined(__CUDACC__)
  cuda_try(cudaStreamSynchronize(stream), "waiting for the GPU");
#else
  host::refuse_in_recording("waiting for the GPU");
#endif
}

}  // namespace emprl::cuda
