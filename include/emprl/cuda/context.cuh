// SPDX-License-Identifier: Apache-2.0
#pragma once

// The GPU as an execution context: where an op's work is ordered, and its working memory.

#include <string>

#include "emprl/core/arena.hpp"
#include "emprl/core/device.hpp"
#include "emprl/core/error.hpp"
#include "emprl/cuda/language.hpp"
#include "emprl/cuda/memory.cuh"
#include "emprl/cuda/products.cuh"
#include "emprl/cuda/uploads.cuh"

namespace emprl {

#if defined(__CUDACC__)
namespace cuda {

/// @throws CudaError that says what is missing: a driver, one that is new enough, or a GPU
inline void expect_gpu() {
  int driver = 0, runtime = 0, gpus = 0;
  cuda_try(cudaDriverGetVersion(&driver), "asking for the version of the CUDA driver");
  cuda_try(cudaRuntimeGetVersion(&runtime), "asking for the version of CUDA's runtime");
  if (driver == 0) throw CudaError("there is no CUDA driver");
  cudaError_t const status = cudaGetDeviceCount(&gpus);
  if (status == cudaErrorInsufficientDriver) {
    auto const name = [](int version) {
      return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
    };
    cudaGetLastError();
    throw CudaError("the CUDA driver is for CUDA " + name(driver) + ", and this program needs " +
                    name(runtime));
  }
  if (status == cudaErrorNoDevice) {
    cudaGetLastError();
    throw CudaError("there is a CUDA driver and no GPU that it may use");
  }
  cuda_try(status, "looking for a GPU");
}

/// Never launched: what CUDA knows of it tells what the program's kernels are made for.
EMPRL_KERNEL compiled_kernel() {}

/// Whether launches can overlap, in a graph as well: with CUDA 12.3, by code for sm_90 and newer.
/// The GPU does not tell: one that is newer than the program runs code for sm_80, translated, in
/// which cuda::wait_for_previous is nothing, and a launch must not begin early then.
/// @throws CudaError also if there is no code for this GPU
inline bool can_overlap() {
  int driver = 0;
  cudaFuncAttributes code{};
  cuda_try(cudaFuncGetAttributes(&code, compiled_kernel), "looking for code for the GPU");
  cuda_try(cudaDriverGetVersion(&driver), "asking for the version of the CUDA driver");
#if defined(EMPRL_SYNC_LAUNCHES)
  return false;
#else
  return code.ptxVersion >= 90 && driver >= 12030 && CUDART_VERSION >= 12030;
#endif
}

}  // namespace cuda
#endif

/// Device memory for the activations of a pass. Rewinding does not wait: memory is used again by
/// later work on the same stream only.
using DeviceArena = BasicArena<Cuda, cuda::DeviceMemory>;

/// One GPU and one stream on it. Ops order their work on the stream and never synchronise; who
/// reads a result on the host calls synchronize(). One context serves one thread of control at a
/// time. Never the default stream: it would wait for everybody else's work.
struct Cuda {
  cuda::StreamHandle stream = nullptr;
  /// Activations kept for a backward pass. Whoever starts a training pass opens the scope that
  /// releases them.
  DeviceArena saved;
  /// Temporaries of one op or layer; released when it returns.
  DeviceArena scratch;
  /// Where numbers of the host pass through.
  cuda::Uploads uploads;
  /// Matrix products: how exact, and by which algorithms.
  cuda::Products products;
  /// Generation captures the step of a token once and replays it (gen/decoding_graphs.cuh);
  /// without, each step is launched anew. The tokens are the same.
#if defined(EMPRL_SYNC_LAUNCHES)
  bool decoding_graphs = false;  // who waits after each launch cannot capture
#else
  bool decoding_graphs = true;
#endif
  /// Launches in a LaunchChain may overlap (LaunchShape::overlaps). Off where the GPU or CUDA
  /// cannot, or by whoever wants to compare.
  bool overlap_launches = true;

  /// @throws CudaError if there is no GPU, none that the driver can use, or one that the program
  /// was not compiled for: the first launch may be minutes off
  Cuda() {
#if defined(__CUDACC__)
    cuda::expect_gpu();
    overlap_launches = cuda::can_overlap();
    cuda::cuda_try(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "starting CUDA");
#endif
  }
  Cuda(Cuda const&) = delete;
  Cuda& operator=(Cuda const&) = delete;
  ~Cuda() {
#if defined(__CUDACC__)
    // Members hold what work under way reads.
    static_cast<void>(cudaStreamSynchronize(stream));
    static_cast<void>(cudaStreamDestroy(stream));
#endif
  }

  /// Whether a launch that can overlap the one in front shall.
  bool overlaps() const {
    return overlap_launches && chained_;
  }

  /// Waits until everything ordered so far is done. @throws CudaError if a kernel has failed
  void synchronize() {
    cuda::synchronize(stream);
  }

 private:
  friend class LaunchChain<Cuda>;
  bool chained_ = false;
};

static_assert(Device<Cuda>);

/// The launches of its time may overlap, if they can. Before it comes a launch that does not: all
/// earlier work, an optimiser's step for example, has then ended when the first of the chain
/// begins.
template <>
class LaunchChain<Cuda> {
 public:
  explicit LaunchChain(Cuda& dev) : dev_(dev), before_(dev.chained_) { dev.chained_ = true; }
  ~LaunchChain() { dev_.chained_ = before_; }
  LaunchChain(LaunchChain const&) = delete;
  LaunchChain& operator=(LaunchChain const&) = delete;

 private:
  Cuda& dev_;
  bool before_;
};

}  // namespace emprl
