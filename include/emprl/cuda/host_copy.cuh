// SPDX-License-Identifier: Apache-2.0
#pragma once

// A few numbers of the GPU's on their way to the host, while the stream goes on.

#include <cstddef>
#include <span>
#include <type_traits>
#if !defined(__CUDACC__)
#include <vector>
#endif

#include "emprl/core/transfer.hpp"
#include "emprl/cuda/context.cuh"

namespace emprl::cuda {

/// Pinned memory of the host, and the event that says when it has been written.
template <class T>
class HostCopy {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  /// @throws CudaError
  explicit HostCopy(std::size_t size)
#if defined(__CUDACC__)
      : size_(size) {
    void* memory = nullptr;
    cuda_try(cudaMallocHost(&memory, size * sizeof(T)), "cudaMallocHost");
    data_ = static_cast<T*>(memory);
    cudaError_t const status = cudaEventCreateWithFlags(&arrived_, cudaEventDisableTiming);
    if (status != cudaSuccess) static_cast<void>(cudaFreeHost(data_));
    cuda_try(status, "cudaEventCreate");
  }
#else
      : memory_(size) {
  }
#endif
  HostCopy(HostCopy const&) = delete;
  HostCopy& operator=(HostCopy const&) = delete;
  ~HostCopy() {
#if defined(__CUDACC__)
    static_cast<void>(cudaEventSynchronize(arrived_));
    static_cast<void>(cudaEventDestroy(arrived_));
    static_cast<void>(cudaFreeHost(data_));
#endif
  }

  /// Orders the copy on dev.stream, and returns.
  /// @throws ShapeError if the view has gaps or another size
  /// @throws CudaError
  void begin(Cuda& dev, TensorView<T const, 1, Cuda> from) {
    emprl::detail::check_transfer(from, span().size());
    copy_bytes(dev.stream, span().data(), from.data(), span().size_bytes());
#if defined(__CUDACC__)
    cuda_try(cudaEventRecord(arrived_, dev.stream), "cudaEventRecord");
#endif
  }

  /// The values of the last begin(), for which it waits.
  /// @throws CudaError also if a kernel before it has failed
  std::span<T const> wait() {
#if defined(__CUDACC__)
    cuda_try(cudaEventSynchronize(arrived_), "cudaEventSynchronize");
#endif
    return span();
  }

 private:
#if defined(__CUDACC__)
  std::span<T> span() const {
    return {data_, size_};
  }

  T* data_ = nullptr;
  std::size_t size_ = 0;
  cudaEvent_t arrived_ = nullptr;
#else
  std::span<T> span() {
    return memory_;
  }

  std::vector<T> memory_;
#endif
};

}  // namespace emprl::cuda
