// SPDX-License-Identifier: Apache-2.0
#pragma once

// The seam to matrix multiplication. This header holds the vocabulary; ops/gemm_cpu.hpp the CPU's
// implementation, kept apart because it includes Eigen or oneDNN, which must not reach code that
// nvcc compiles.
//
//   gemm(dev, ta, tb, alpha, a, b, beta, c):   c = alpha op(a) op(b) + beta c
//
// with op(a) (M, K), op(b) (K, N), c (M, N). With beta = 0, c is written without being read.

namespace emprl {

/// Whether a matrix enters a product as it is or transposed.
enum class Trans { no, yes };

}  // namespace emprl
