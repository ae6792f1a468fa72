// SPDX-License-Identifier: Apache-2.0
#pragma once

// What a test of a kernel needs on either side: arrays in the memory that kernels see, and the
// schedules to try. Compiled by nvcc the arrays are on the GPU and there is one schedule, the GPU's
// own; otherwise they are on the heap, where AddressSanitizer watches their bounds, and the host
// executor runs every schedule.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/cuda/launch.cuh"
#if !defined(__CUDACC__)
#include "support/host_executor/executor.hpp"
#endif

namespace support {

/// Elements that kernels read and write.
template <class T>
class DeviceArray {
 public:
  /// Elements with all bits set: NaN in every float format. A kernel must overwrite them.
  static DeviceArray poisoned(emprl::index_t size) {
    std::vector<T> bits(static_cast<std::size_t>(size));
    if (size > 0) std::memset(static_cast<void*>(bits.data()), 0xff, bits.size() * sizeof(T));
    return DeviceArray(bits);
  }

#if defined(__CUDACC__)
  explicit DeviceArray(std::vector<T> const& values) : size_(values.size()) {
    emprl::cuda::cuda_try(cudaMalloc(&data_, bytes()), "cudaMalloc");
    emprl::cuda::cuda_try(cudaMemcpy(data_, values.data(), bytes(), cudaMemcpyHostToDevice),
                          "copying to the device");
    // A stream of one's own does not wait for the default stream's copies.
    emprl::cuda::cuda_try(cudaDeviceSynchronize(), "copying to the device");
  }
  DeviceArray(DeviceArray const&) = delete;
  DeviceArray& operator=(DeviceArray const&) = delete;
  ~DeviceArray() {
    cudaFree(data_);
  }

  T* data() const {
    return data_;
  }

  /// The elements, when all kernels launched so far have ended.
  /// @throws CudaError if one of them failed
  std::vector<T> values() const {
    std::vector<T> result(size_);
    emprl::cuda::cuda_try(cudaDeviceSynchronize(), "waiting for kernels");
    emprl::cuda::cuda_try(cudaMemcpy(result.data(), data_, bytes(), cudaMemcpyDeviceToHost),
                          "copying from the device");
    return result;
  }

 private:
  std::size_t bytes() const {
    return size_ * sizeof(T);
  }

  T* data_ = nullptr;
  std::size_t size_;
#else
  explicit DeviceArray(std::vector<T> const& values) : values_(values) {
    values_.shrink_to_fit();
  }
  DeviceArray(DeviceArray const&) = delete;
  DeviceArray& operator=(DeviceArray const&) = delete;

  T* data() {
    return values_.data();
  }
  std::vector<T> values() const {
    return values_;
  }

 private:
  std::vector<T> values_;
#endif
};

/// Calls f() once for each of `count` schedules of blocks and threads.
template <class F>
void for_each_schedule([[maybe_unused]] int count, F f) {
#if defined(__CUDACC__)
  f();
#else
  for (int seed = 0; seed < count; ++seed) {
    host_executor::WithOptions const with({.seed = static_cast<std::uint64_t>(seed)});
    f();
  }
#endif
}

}  // namespace support
