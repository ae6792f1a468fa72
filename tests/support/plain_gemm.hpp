// SPDX-License-Identifier: Apache-2.0
#pragma once

// The CPU's matrix product for tests that nvcc compiles, which must not see Eigen or oneDNN. It
// takes the place of ops/gemm_cpu.hpp: a program includes one of the two.

#include "emprl/core/device.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/ops/gemm.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

/// c = alpha op(a) op(b) + beta c, as three loops.
template <Scalar T>
void gemm(Cpu&, Trans ta, Trans tb, std::type_identity_t<T> alpha, In<T, 2, Cpu> a, In<T, 2, Cpu> b,
          std::type_identity_t<T> beta, Out<T, 2, Cpu> c) {
  index_t const terms = ta == Trans::no ? a.extent(1) : a.extent(0);
  for (index_t i = 0; i < c.extent(0); ++i) {
    for (index_t j = 0; j < c.extent(1); ++j) {
      T sum = T(0);
      for (index_t k = 0; k < terms; ++k) {
        sum += (ta == Trans::no ? a(i, k) : a(k, i)) * (tb == Trans::no ? b(k, j) : b(j, k));
      }
      c(i, j) = beta == T(0) ? alpha * sum : alpha * sum + beta * c(i, j);
    }
  }
}

}  // namespace emprl
