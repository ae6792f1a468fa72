// SPDX-License-Identifier: Apache-2.0
#pragma once

// Numbers of the host on their way to the GPU. When ordinary memory has been read by a copy from it
// CUDA leaves open: a driver that takes it through memory of its own has read it when the call
// returns, one whose GPU reads the host's pages by itself need not have. The ids and offsets of a
// batch lie in vectors that are gone by then. So they go through pinned memory of the context's,
// which is written again only when the GPU has read it; and however large a copy is, the host does
// not wait for the kernels before it.

#include <array>
#include <cstddef>
#include <cstring>
#include <memory>

#include "emprl/cuda/memory.cuh"
#include "emprl/cuda/staging.hpp"

namespace emprl::cuda {

/// The way up of a context and its stream. The pinned memory is taken by the first copy. Whoever
/// destroys it has waited for the stream.
class Uploads {
 public:
  Uploads() = default;
  Uploads(Uploads const&) = delete;
  Uploads& operator=(Uploads const&) = delete;

  /// Copies bytes of the host to the device in the order of the stream. `from` may change as soon
  /// as this returns.
  /// @throws CudaError also while a graph is captured: it would copy at every replay
  void copy(StreamHandle stream, void* to, void const* from, std::size_t bytes) {
    if (bytes == 0) return;
    expect_no_capture(stream, "copying memory");
    if (memory_ == nullptr) open();
    Port port{*this, stream};
    staging_.copy(port, to, from, bytes);
  }

 private:
  /// A half takes the host some tenth of a millisecond, and a copy engine less: about 10 and 25
  /// GB/s.
  static constexpr std::size_t half_bytes = std::size_t{1} << 20;

#if defined(__CUDACC__)
  struct Release {
    void operator()(std::byte* p) const noexcept { static_cast<void>(cudaFreeHost(p)); }
  };
  struct Event {
    cudaEvent_t event = nullptr;
    Event() {
      cuda_try(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreate");
    }
    ~Event() { static_cast<void>(cudaEventDestroy(event)); }
    Event(Event const&) = delete;
    Event& operator=(Event const&) = delete;
  };
  struct Port {
    Uploads& uploads;
    StreamHandle stream;

    void copy(void* to, std::byte const* from, std::size_t bytes) {
      cuda_try(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "copying memory");
    }
    void mark(int half) {
      cuda_try(cudaEventRecord(uploads.read(half), stream), "cudaEventRecord");
    }
    void wait(int half) {
      cuda_try(cudaEventSynchronize(uploads.read(half)), "cudaEventSynchronize");
    }
  };

  cudaEvent_t read(int half) const {
    return (*read_)[static_cast<std::size_t>(half)].event;
  }

  void open() {
    if (read_ == nullptr) read_ = std::make_unique<std::array<Event, 2>>();
    void* memory = nullptr;
    cuda_try(cudaMallocHost(&memory, 2 * half_bytes), "cudaMallocHost");
    memory_.reset(static_cast<std::byte*>(memory));
    staging_ = Staging(memory_.get(), half_bytes);
  }

  std::unique_ptr<std::array<Event, 2>> read_;
  std::unique_ptr<std::byte, Release> memory_;
#else
  /// The executor has done all before; nothing comes late.
  struct Port {
    Uploads& uploads;
    StreamHandle stream;

    void copy(void* to, std::byte const* from, std::size_t bytes) { std::memcpy(to, from, bytes); }
    void mark(int) {}
    void wait(int) {}
  };

  void open() {
    memory_.reset(new std::byte[2 * half_bytes]);
    staging_ = Staging(memory_.get(), half_bytes);
  }

  std::unique_ptr<std::byte[]> memory_;
#endif
  Staging staging_;
};

}  // namespace emprl::cuda
