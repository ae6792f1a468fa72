// SPDX-License-Identifier: Apache-2.0
#pragma once

// Log-probabilities of chosen tokens on the GPU: a block a row, which it reads once. Logits may be
// float or Bf16; every statistic is float.

#include <cmath>
#include <cstdint>
#include <limits>

#include "emprl/core/scalar.hpp"
#include "emprl/cuda/context.cuh"
#include "emprl/cuda/row.hpp"
#include "emprl/ops/token_logprob.hpp"

namespace emprl {

namespace detail {

/// Small enough that many rows are under way on a multiprocessor at a time.
inline constexpr int token_logprob_threads = 256;

/// PRECOND: a block a row, token_logprob_threads of it
template <CudaElement T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(token_logprob_threads)
    token_logprob_forward_kernel(float* logp, float* lse, float* entropy, T const* logits,
                                 index_t pitch, int columns, std::int32_t const* targets) {
  EMPRL_SHARED(float, scratch, cuda::warp_size);
  int const n = cuda::block_index().x;
  T const* const row = logits + n * pitch;
  SoftmaxSums sums;
  cuda::for_each_in_row(row, columns, [&](int, auto const& x) { sums.add(x.x); });
  sums = cuda::block_softmax_sums(sums, scratch);
  if (cuda::thread_rank() != 0) return;
  std::int32_t const target = targets[n];
  bool const inside = target >= 0 && target < columns;
  float const x =
      inside ? static_cast<float>(row[target]) : std::numeric_limits<float>::quiet_NaN();
  lse[n] = sums.log_sum_exp();
  // (x - most) - log(sum), not x - lse: the two large numbers cancel exactly first.
  logp[n] = (x - sums.most) - sums.log_sum();
  if (entropy != nullptr) entropy[n] = sums.entropy();
}

/// PRECOND: a block a row, token_logprob_threads of it
template <CudaElement T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(token_logprob_threads)
    token_logprob_backward_kernel(T* logits, index_t pitch, int columns, float const* dlogp,
                                  float const* lse, std::int32_t const* targets,
                                  float const* dentropy, float const* entropy) {
  int const n = cuda::block_index().x;
  T* const row = logits + n * pitch;
  float const g = dlogp[n];
  float const h = dentropy != nullptr ? dentropy[n] : 0.0f;
  if (g == 0.0f && h == 0.0f) {
    cuda::transform_row(row, columns, [](int, float) { return 0.0f; });
    return;
  }
  float const log_sum = lse[n];
  std::int32_t const target = targets[n];
  float const constant = h == 0.0f ? g : g + h * entropy[n];
  cuda::transform_row(row, columns, [&](int i, float x) {
    float const log_p = x - log_sum;
    float const p = std::exp(log_p);
    // A logit of -inf has no gradient; h log p would make it NaN.
    float const d = p == 0.0f ? 0.0f : -p * (constant + h * log_p);
    return i == target ? d + g : d;
  });
}

inline void check_columns(index_t columns) {
  expects(columns <= std::numeric_limits<std::int32_t>::max(),
          "token_logprob: more columns than token ids can name");
}

}  // namespace detail

/// As the op of the same name on the CPU; T, the format of the logits, is float unless it is named.
/// A target outside the vocabulary gives a log-probability of NaN, since a kernel cannot throw.
/// @param dev  work is ordered on dev.stream, no synchronisation
/// @throws ShapeError if extents disagree
template <CudaElement T = float>
void token_logprob_forward(Cuda& dev, TensorView<float, 1, Cuda> logp,
                           TensorView<float, 1, Cuda> lse, TensorView<float, 1, Cuda> entropy,
                           In<T, 2, Cuda> logits, TensorView<std::int32_t const, 1, Cuda> targets) {
  index_t const n = logits.extent(0);
  expects(logp.extent(0) == n && lse.extent(0) == n && targets.extent(0) == n &&
              (entropy.empty() || entropy.extent(0) == n),
          "token_logprob: one log-probability and one target for each row of logits");
  detail::check_columns(logits.extent(1));
  if (n == 0) return;
  cuda::launch<detail::token_logprob_forward_kernel<T>>(
      dev.stream, {.grid = {cuda::blocks_for(n, 1)}, .block = {detail::token_logprob_threads}},
      logp.data(), lse.data(), data_or_null(entropy), logits.data(), logits.stride(0),
      static_cast<int>(logits.extent(1)), targets.data());
}

/// As the op of the same name on the CPU: logits = their gradient. A row whose two gradients are 0
/// becomes 0, whatever its logits are.
/// @param dev  work is ordered on dev.stream, no synchronisation
/// @throws ShapeError if extents disagree
template <CudaElement T>
void token_logprob_backward(Cuda& dev, Out<T, 2, Cuda> logits, In<float, 1, Cuda> dlogp,
                            In<float, 1, Cuda> lse, TensorView<std::int32_t const, 1, Cuda> targets,
                            In<float, 1, Cuda> dentropy = {}, In<float, 1, Cuda> entropy = {}) {
  index_t const n = logits.extent(0);
  expects(dlogp.extent(0) == n && lse.extent(0) == n && targets.extent(0) == n,
          "token_logprob: one gradient and one target for each row of logits");
  expects((dentropy.empty() || dentropy.extent(0) == n) && entropy.extent(0) == dentropy.extent(0),
          "token_logprob: one entropy and its gradient for each row of logits, or neither");
  detail::check_columns(logits.extent(1));
  if (n == 0) return;
  cuda::launch<detail::token_logprob_backward_kernel<T>>(
      dev.stream, {.grid = {cuda::blocks_for(n, 1)}, .block = {detail::token_logprob_threads}},
      logits.data(), logits.stride(0), static_cast<int>(logits.extent(1)), dlogp.data(), lse.data(),
      targets.data(), data_or_null(dentropy), data_or_null(entropy));
}

}  // namespace emprl
