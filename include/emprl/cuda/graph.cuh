// SPDX-License-Identifier: Apache-2.0
#pragma once

// A piece of a stream's work as a CUDA graph: captured once, then started by one call as often as
// it is wanted. Decoding a token is some hundreds of launches of a few microseconds each; started
// one by one, the GPU would wait for the host.
//
//   CudaGraph const step = CudaGraph::capture(dev, [&] { /* launches */ });
//   for (...) step.replay(dev);
//
// Without nvcc the launches are recorded with their arguments (cuda/recording.hpp) and done again
// in their order.

#include <concepts>
#include <cstddef>
#include <utility>

#include "emprl/cuda/context.cuh"
#include "emprl/cuda/recording.hpp"

namespace emprl::cuda {

namespace detail {

/// While it lives, the arenas of a context do not fill what they give with NaN: that would be work
/// of another stream, which a capture does not take.
class WithoutPoison {
 public:
  explicit WithoutPoison(Cuda& dev)
      : dev_(dev), saved_(dev.saved.poisons()), scratch_(dev.scratch.poisons()) {
    dev.saved.poison(false);
    dev.scratch.poison(false);
  }
  ~WithoutPoison() {
    dev_.saved.poison(saved_);
    dev_.scratch.poison(scratch_);
  }
  WithoutPoison(WithoutPoison const&) = delete;
  WithoutPoison& operator=(WithoutPoison const&) = delete;

 private:
  Cuda& dev_;
  bool saved_, scratch_;
};

}  // namespace detail

/// Work of a stream that can be started again. It holds addresses and sizes as they were at the
/// capture: whatever memory it reads and writes must outlive it, scratch memory of the context's
/// arenas included, which therefore only work of the same stream may use meanwhile.
class CudaGraph {
 public:
  /// Nothing to do.
  CudaGraph() = default;

  /// What `work` orders on dev.stream; it is not done yet. `work` may launch kernels and multiply
  /// matrices. It may not copy from or to the host, wait, or allocate: run it once before, so that
  /// the arenas have grown, the algorithms of its products are chosen, and its kernels are loaded.
  /// @throws CudaError with the name of the call that CUDA refuses; whatever `work` throws
  template <std::invocable Work>
  static CudaGraph capture(Cuda& dev, Work&& work) {
    detail::WithoutPoison const without_poison(dev);
    CudaGraph result;
#if defined(__CUDACC__)
    // Calls of other threads stay allowed.
    cuda_try(cudaStreamBeginCapture(dev.stream, cudaStreamCaptureModeThreadLocal),
             "cudaStreamBeginCapture");
    cudaGraph_t graph = nullptr;
    try {
      work();
    } catch (...) {
      static_cast<void>(cudaStreamEndCapture(dev.stream, &graph));
      if (graph != nullptr) static_cast<void>(cudaGraphDestroy(graph));
      static_cast<void>(cudaGetLastError());
      throw;
    }
    cuda_try(cudaStreamEndCapture(dev.stream, &graph), "cudaStreamEndCapture");
    cudaError_t status = cudaGraphGetNodes(graph, nullptr, &result.size_);
    if (status == cudaSuccess) status = cudaGraphInstantiate(&result.graph_, graph, 0);
    static_cast<void>(cudaGraphDestroy(graph));
    cuda_try(status, "cudaGraphInstantiate");
#else
    host::Recording recorded;
    struct Recorder {
      explicit Recorder(host::Recording& here) {
        if (host::recording != nullptr) {
          throw CudaError("cudaStreamBeginCapture: the stream is already capturing");
        }
        host::recording = &here;
      }
      ~Recorder() { host::recording = nullptr; }
      Recorder(Recorder const&) = delete;
      Recorder& operator=(Recorder const&) = delete;
    };
    {
      Recorder const recorder(recorded);
      work();
    }
    if (!recorded.refused.empty()) {
      throw CudaError("cudaStreamEndCapture: the capture was spoilt by " + recorded.refused);
    }
    result.work_ = std::move(recorded.work);
#endif
    return result;
  }

  /// Orders the work on dev.stream once more.
  /// @throws CudaError if CUDA refuses. Errors of its kernels show at a later call
  void replay(Cuda& dev) const {
    if (size() == 0) return;
#if defined(__CUDACC__)
    cuda_try(cudaGraphLaunch(graph_, dev.stream), "cudaGraphLaunch");
#else
    static_cast<void>(dev);
    for (auto const& work : work_) host::enqueue(work);
#endif
  }

  /// How many launches it is.
  std::size_t size() const {
#if defined(__CUDACC__)
    return size_;
#else
    return work_.size();
#endif
  }

#if defined(__CUDACC__)
  CudaGraph(CudaGraph&& other) noexcept
      : graph_(std::exchange(other.graph_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  CudaGraph& operator=(CudaGraph&& other) noexcept {
    std::swap(graph_, other.graph_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~CudaGraph() {
    // CUDA keeps it until replays under way are done.
    if (graph_ != nullptr) static_cast<void>(cudaGraphExecDestroy(graph_));
  }

 private:
  cudaGraphExec_t graph_ = nullptr;
  std::size_t size_ = 0;
#else
  CudaGraph(CudaGraph&&) = default;
  CudaGraph& operator=(CudaGraph&&) = default;

 private:
  std::vector<std::function<void()>> work_;
#endif
};

}  // namespace emprl::cuda
