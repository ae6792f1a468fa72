// SPDX-License-Identifier: Apache-2.0
#pragma once

// Memory that kernels see, and copies between it and the host. Without nvcc it is the host's own,
// where the executor runs kernels and AddressSanitizer watches the bounds.

#include <cstddef>
#include <cstring>
#include <new>

#include "emprl/core/arena.hpp"
#include "emprl/cuda/launch.cuh"

namespace emprl::cuda {

/// Where an arena of device memory gets its blocks; the device is the calling thread's current one.
struct DeviceMemory {
  /// What a vector load of any width, a cp.async and a tensor map ask for.
  static constexpr std::size_t alignment = 256;

#if defined(__CUDACC__)
  /// @throws CudaError if there is not so much
  static void* allocate(std::size_t bytes) {
    void* p = nullptr;
    cuda_try(cudaMalloc(&p, bytes), "cudaMalloc");
    return p;
  }
  static void release(void* p) noexcept {
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

/// Copies bytes on a stream, from and to either side; returns at once where both are pinned or on
/// the device, else when the host's side has been read or written.
/// @throws CudaError also while a graph is captured: it would copy at every replay, from or to
/// memory of the host that may be gone
inline void copy_bytes([[maybe_unused]] StreamHandle stream, void* to, void const* from,
                       std::size_t bytes) {
  if (bytes == 0) return;
#if defined(__CUDACC__)
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  cuda_try(cudaStreamIsCapturing(stream, &capturing), "copying memory");
  if (capturing != cudaStreamCaptureStatusNone) {
    throw CudaError("copying memory: not permitted while a graph is captured");
  }
  cuda_try(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "copying memory");
#else
  host::refuse_in_recording("copying memory");
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
