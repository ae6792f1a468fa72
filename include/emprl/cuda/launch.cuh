// SPDX-License-Identifier: Apache-2.0
#pragma once

// Launching kernels. Under nvcc on a stream of the GPU; without it through the host executor, which
// returns when the grid has run.
//
//   launch<scale_kernel<float>>(dev.stream, {.grid = {blocks}, .block = {256}}, y, x, 2.0f, n);

#include <cstddef>
#include <string>
#include <string_view>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/cuda/host.hpp"
#include "emprl/cuda/language.hpp"
#include "emprl/cuda/recording.hpp"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#else
struct CUstream_st;
#endif

namespace emprl::cuda {

/// cudaStream_t, without CUDA's header.
using StreamHandle = CUstream_st*;

/// How many threads run a kernel, and with how much dynamic shared memory a block.
struct LaunchShape {
  Dim3 grid;
  Dim3 block;
  std::size_t shared_bytes = 0;
  /// The kernel may begin before the launch in front of it has ended (programmatic dependent
  /// launch, from sm_90 on): that one has called cuda::begin_next, or its last block is done. Every
  /// thread of it must call cuda::wait_for_previous, and before that touch nothing that the launch
  /// in front writes or reads.
  bool overlaps = false;
};

/// Blocks of `size` that cover `n` elements. @throws ConfigError if a grid cannot have so many
inline int blocks_for(index_t n, index_t size) {
  index_t const blocks = (n + size - 1) / size;
  if (n < 0 || size <= 0 || blocks > 0x7fffffff) {
    throw ConfigError("a CUDA grid has at most 2147483647 blocks along x, and " +
                      std::to_string(blocks) + " were asked for");
  }
  return static_cast<int>(blocks);
}

#if defined(__CUDACC__)

/// @throws CudaError with CUDA's own words if `status` is an error; it is cleared, so that the next
/// call is not blamed for it
inline void cuda_try(cudaError_t status, std::string_view what,
                     SourceLocation where = SourceLocation::current()) {
  if (status == cudaSuccess) return;
  cudaGetLastError();
  throw CudaError(std::string(what) + ": " + cudaGetErrorName(status) + " (" +
                  cudaGetErrorString(status) + ") [" + where.file + ":" +
                  std::to_string(where.line) + "]" +
                  (status == cudaErrorNoKernelImageForDevice
                       ? "; the program was not compiled for this kind of GPU"
                       : ""));
}

#endif

namespace detail {

/// "rms_norm_kernel<float>": a kernel's name, as the compiler writes it.
template <auto Kernel>
std::string kernel_name() {
  std::string_view text = __PRETTY_FUNCTION__;
  // g++: "... [with auto Kernel = name; ...]", clang++ and nvcc: "[Kernel = &name]" or like g++.
  auto const begin = text.find("Kernel = ");
  if (begin == std::string_view::npos) return std::string(text);
  text.remove_prefix(begin + 9);
  if (text.starts_with('&')) text.remove_prefix(1);
  return std::string(text.substr(0, text.find_first_of(";]")));
}

#if defined(__CUDACC__)
inline dim3 dimensions(Dim3 d) {
  return {static_cast<unsigned>(d.x), static_cast<unsigned>(d.y), static_cast<unsigned>(d.z)};
}
#endif

}  // namespace detail

/// Runs Kernel(arguments...) on every thread of the grid, after what the stream already holds.
/// @throws CudaError if CUDA refuses the launch. Errors of the kernel itself show at a later call;
/// with EMPRL_SYNC_LAUNCHES defined they show here. The host executor throws its report. While a
/// graph is captured (cuda/graph.cuh) the launch is written down, with the arguments as they are.
template <auto Kernel, class... Arguments>
void launch([[maybe_unused]] StreamHandle stream, LaunchShape const& shape,
            Arguments const&... arguments) {
#if defined(__CUDACC__)
  // Above 48 KB, static memory included, a kernel has to say that it means it.
  cudaError_t status = cudaSuccess;
  if (shape.shared_bytes > 0) {
    status = cudaFuncSetAttribute(Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(shape.shared_bytes));
  }
  if (status == cudaSuccess && shape.overlaps) {
    cudaLaunchAttribute overlaps{};
    overlaps.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlaps.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = detail::dimensions(shape.grid);
    config.blockDim = detail::dimensions(shape.block);
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = stream;
    config.attrs = &overlaps;
    config.numAttrs = 1;
    status = cudaLaunchKernelEx(&config, Kernel, arguments...);
  } else if (status == cudaSuccess) {
    Kernel<<<detail::dimensions(shape.grid), detail::dimensions(shape.block), shape.shared_bytes,
             stream>>>(arguments...);
    status = cudaGetLastError();
  }
#if defined(EMPRL_SYNC_LAUNCHES)
  if (status == cudaSuccess) status = cudaStreamSynchronize(stream);
#endif
  if (status != cudaSuccess) cuda_try(status, "launching " + detail::kernel_name<Kernel>());
#else
  host::enqueue([shape, arguments...] {
    auto const call = [&] { Kernel(arguments...); };
    host::run(
        {detail::kernel_name<Kernel>(), shape.grid, shape.block, shape.shared_bytes,
         shape.overlaps},
        [](void const* context) { (*static_cast<decltype(call) const*>(context))(); }, &call);
  });
#endif
}

}  // namespace emprl::cuda
