// SPDX-License-Identifier: Apache-2.0
#pragma once

// Sums and maxima over the lanes of a warp and the threads of a block. The order of additions is
// fixed by the shape of the block: the same numbers give the same bits in every run.

#include <limits>

#include "emprl/core/config.hpp"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/shared.hpp"

namespace emprl::cuda {

/// The two ways in which kernels here join numbers. `identity` changes nothing.
struct Sum {
  template <class T>
  EMPRL_HD static constexpr T identity() {
    return T(0);
  }
  template <class T>
  EMPRL_HD constexpr T operator()(T a, T b) const {
    return a + b;
  }
};
/// A NaN may win or lose: who needs to see it looks for it.
struct Maximum {
  template <class T>
  EMPRL_HD static constexpr T identity() {
    return std::numeric_limits<T>::has_infinity ? -std::numeric_limits<T>::infinity()
                                                : std::numeric_limits<T>::lowest();
  }
  template <class T>
  EMPRL_HD constexpr T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

/// `op` over the 32 lanes of a whole warp; every lane gets the same bits.
template <class Op, Shuffled T>
EMPRL_DEVICE T warp_reduce(Op op, T x, Site where = Site::current()) {
  EMPRL_UNROLL
  for (int bits = warp_size / 2; bits > 0; bits /= 2) {
    x = op(x, shuffle_xor(x, bits, full_warp, where));
  }
  return x;
}

template <Shuffled T>
EMPRL_DEVICE T warp_sum(T x, Site where = Site::current()) {
  return warp_reduce(Sum{}, x, where);
}

template <Shuffled T>
EMPRL_DEVICE T warp_max(T x, Site where = Site::current()) {
  return warp_reduce(Maximum{}, x, where);
}

/// `op` over all threads of a block of whole warps; every thread gets the same bits.
/// @param scratch  32 elements, which may be used again at once: a barrier ends the function
template <class Op, Shuffled T>
EMPRL_DEVICE T block_reduce(Op op, T x, Shared<T> scratch, Site where = Site::current()) {
  Dim3 const size = block_size();
  int const warps = size.x * size.y * size.z / warp_size;
  int const lane = lane_index();
  x = warp_reduce(op, x, where);
  if (lane == 0) scratch[warp_index()] = x;
  sync_threads(where);
  T y = Op::template identity<T>();
  if (lane < warps) y = scratch[lane];
  sync_threads(where);
  return warp_reduce(op, y, where);
}

template <Shuffled T>
EMPRL_DEVICE T block_sum(T x, Shared<T> scratch, Site where = Site::current()) {
  return block_reduce(Sum{}, x, scratch, where);
}

template <Shuffled T>
EMPRL_DEVICE T block_max(T x, Shared<T> scratch, Site where = Site::current()) {
  return block_reduce(Maximum{}, x, scratch, where);
}

}  // namespace emprl::cuda
