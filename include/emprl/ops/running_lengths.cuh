// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "emprl/cuda/context.cuh"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/launch.cuh"
#include "emprl/ops/running_lengths.hpp"

namespace emprl {

namespace detail {

inline constexpr int running_threads = 256;

/// PRECOND: a thread a row
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(running_threads)
    running_lengths_kernel(TensorView<index_t, 1, Cuda> out, index_t const* length,
                           index_t const* running) {
  index_t const a = cuda::global_thread_x();
  if (a < out.extent(0)) out.data()[a] = running[a] > 0 ? length[a] : 0;
}

}  // namespace detail

/// As the op of the same name on the CPU.
/// @param dev  work is ordered on dev.stream, no synchronisation
/// @throws ShapeError if extents disagree
/// @throws CudaError
inline void running_lengths(Cuda& dev, TensorView<index_t, 1, Cuda> out,
                            In<index_t, 1, Cuda> length, In<index_t, 1, Cuda> running) {
  expects(length.extents() == out.extents() && running.extents() == out.extents(),
          "running_lengths: one length and one flag for each row");
  if (out.empty()) return;
  cuda::launch<detail::running_lengths_kernel>(
      dev.stream,
      {.grid = {cuda::blocks_for(out.extent(0), detail::running_threads)},
       .block = {detail::running_threads}},
      out, length.data(), running.data());
}

}  // namespace emprl
