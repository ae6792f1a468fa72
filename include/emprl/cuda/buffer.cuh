// SPDX-License-Identifier: Apache-2.0
#pragma once

// Tensors that own memory of the GPU, and the way there and back.

#include <cstddef>
#include <span>
#include <type_traits>
#include <utility>

#include "emprl/core/tensor.hpp"
#include "emprl/core/transfer.hpp"
#include "emprl/cuda/context.cuh"
#include "emprl/cuda/memory.cuh"

namespace emprl {

/// Elements in the GPU's memory, not initialised. Allocating and releasing wait for the GPU: a pass
/// takes its memory from the context's arenas.
template <class T>
class Buffer<T, Cuda> {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  Buffer() = default;
  /// @throws ShapeError if the size is negative or too large
  /// @throws CudaError if there is not so much memory
  explicit Buffer(index_t size) : size_(checked_size<1>({size}, sizeof(T))) {
    if (size_ > 0) {
      data_ = static_cast<T*>(
          cuda::DeviceMemory::allocate(static_cast<std::size_t>(size_) * sizeof(T)));
    }
  }
  Buffer(Buffer const&) = delete;
  Buffer& operator=(Buffer const&) = delete;
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) cuda::DeviceMemory::release(data_);
  }

  T* data() const { return data_; }
  index_t size() const { return size_; }

 private:
  T* data_ = nullptr;
  index_t size_ = 0;
};

/// to = from, in the order of dev.stream. The span may change as soon as this returns.
/// @throws ShapeError if the view has gaps or another number of elements than the span
/// @throws CudaError
template <class T, int Rank>
void copy(Cuda& dev, TensorView<T, Rank, Cuda> to, std::type_identity_t<std::span<T const>> from) {
  detail::check_transfer(to, from.size());
  dev.uploads.copy(dev.stream, to.data(), from.data(), from.size_bytes());
}

/// to = from, after all that dev.stream holds. Waits until the values have arrived.
/// @throws ShapeError if the view has gaps or another number of elements than the span
/// @throws CudaError also if a kernel before it has failed
template <class T, int Rank>
void copy(Cuda& dev, std::span<std::remove_const_t<T>> to, TensorView<T, Rank, Cuda> from) {
  detail::check_transfer(from, to.size());
  cuda::copy_bytes(dev.stream, to.data(), from.data(), to.size_bytes());
  dev.synchronize();
}

/// All bits zero, in the order of dev.stream.
/// @throws ShapeError if the view has gaps
/// @throws CudaError
template <class T, int Rank>
void clear(Cuda& dev, TensorView<T, Rank, Cuda> x) {
  expects(x.is_contiguous(), "clear: the tensor has gaps");
  cuda::zero_bytes(dev.stream, x.data(), static_cast<std::size_t>(x.size()) * sizeof(T));
}

/// A copy of host values in `arena`, in the order of dev.stream.
/// @throws CudaError
template <class T>
TensorView<T const, 1, Cuda> on_device(Cuda& dev, DeviceArena& arena, std::span<T const> values) {
  auto const there = arena.template allocate<T, 1>({static_cast<index_t>(values.size())});
  copy(dev, there, values);
  return there;
}

}  // namespace emprl
