// SPDX-License-Identifier: Apache-2.0
#pragma once

// The linear layer on the GPU: its ReLU in the passes of cuBLASLt's products, and sums of rows.
// linear_forward and linear_backward themselves are those of ops/linear.hpp.

#include <array>
#include <concepts>
#include <cstdint>

#include "emprl/core/half.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/cuda/context.cuh"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/launch.cuh"
#include "emprl/cuda/shared.hpp"
#include "emprl/ops/elementwise.cuh"
#include "emprl/ops/gemm.cuh"
#include "emprl/ops/linear.hpp"
#include "emprl/ops/rms_norm.cuh"
#include "emprl/ops/row_packs.cuh"

namespace emprl {

namespace detail {

/// y[i,j] += b[j]. PRECOND: matrix_shape
template <CudaElement T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(row_threads)
    add_bias_kernel(TensorView<T, 2, Cuda> y, T const* b) {
  index_t const j = cuda::global_thread_x();
  if (j >= y.extent(1)) return;
  auto const bias = static_cast<float>(b[j]);
  for (index_t i = first_row(); i < y.extent(0); i += row_step()) {
    T* const at = y.row(i) + j;
    *at = T(static_cast<float>(*at) + bias);
  }
}

/// The rows that one block adds up, and how many of them at a time.
inline constexpr index_t sum_rows_chunk = 256;
inline constexpr int sum_rows_lanes = 8;

/// partial[chunk, j] = the sum of column j over the rows of a chunk.
/// PRECOND: block (32, 8), grid (columns / 32, chunks), rounded up
template <CudaElement T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(cuda::warp_size* sum_rows_lanes)
    sum_rows_kernel(float* partial, TensorView<T const, 2, Cuda> x) {
  EMPRL_SHARED(float, sums, cuda::warp_size* sum_rows_lanes);
  int const lane = cuda::thread_index().x;
  int const part = cuda::thread_index().y;
  index_t const columns = x.extent(1);
  index_t const j = index_t{cuda::block_index().x} * cuda::warp_size + lane;
  index_t const chunk = cuda::block_index().y;
  index_t const first = chunk * sum_rows_chunk;
  index_t const last = first + sum_rows_chunk < x.extent(0) ? first + sum_rows_chunk : x.extent(0);
  float sum = 0.0f;
  if (j < columns) {
    for (index_t i = first + part; i < last; i += sum_rows_lanes) {
      sum += static_cast<float>(x.row(i)[j]);
    }
  }
  sums[part * cuda::warp_size + lane] = sum;
  cuda::sync_threads();
  if (part > 0 || j >= columns) return;
  for (int p = 1; p < sum_rows_lanes; ++p) {
    float const more = sums[p * cuda::warp_size + lane];
    sum += more;
  }
  partial[chunk * columns + j] = sum;
}

template <CudaElement T>
void launch_sum_rows(Cuda& dev, TensorView<float, 1, Cuda> db, TensorView<T const, 2, Cuda> dy) {
  expects(dy.extent(1) == db.extent(0), "sum_rows: the sum must have one element a column");
  if (dy.empty()) return;
  index_t const columns = db.extent(0);
  int const chunks = cuda::blocks_for(dy.extent(0), sum_rows_chunk);
  expects<ConfigError>(chunks <= 65535, "sum_rows: there may be at most 16 million rows");
  ArenaScope scope(dev.scratch);
  auto const partial = dev.scratch.template allocate<float, 2>({chunks, columns});
  cuda::launch<sum_rows_kernel<T>>(dev.stream,
                                   {.grid = {cuda::blocks_for(columns, cuda::warp_size), chunks},
                                    .block = {cuda::warp_size, sum_rows_lanes}},
                                   partial.data(), dy);
  add_column_sums(dev, db.data(), partial.data(), chunks, columns);
}

}  // namespace detail

/// y[n,:] += b.     y (N, C), b (C)
/// @throws ShapeError if the extents disagree
/// @throws CudaError
template <CudaElement T>
void add_bias(Cuda& dev, Out<T, 2, Cuda> y, In<T, 1, Cuda> b) {
  expects(y.extent(1) == b.extent(0), "add_bias: the bias must have one element a column");
  if (y.empty()) return;
  cuda::launch<detail::add_bias_kernel<T>>(
      dev.stream, detail::matrix_shape(y.extent(0), y.extent(1)), y, b.data());
}

/// db[c] += sum_n dy[n,c], in an order that the extents alone fix.     db (C) float, dy (N, C)
/// @throws ShapeError if the extents disagree
/// @throws ConfigError if there are more than 16 million rows
/// @throws CudaError
inline void sum_rows(Cuda& dev, Out<float, 1, Cuda> db, In<float, 2, Cuda> dy) {
  detail::launch_sum_rows<float>(dev, db, dy);
}
inline void sum_rows(Cuda& dev, Out<float, 1, Cuda> db, In<Bf16, 2, Cuda> dy) {
  detail::launch_sum_rows<Bf16>(dev, db, dy);
}

/// What linear_relu_forward keeps for linear_relu_backward of outputs (N, O): one bit an element,
/// where rows fill cuBLASLt's 128 bits, as those of every T5 do. Elsewhere nothing, as on the CPU.
inline std::array<index_t, 2> relu_mask_extents(Cuda const&, index_t n, index_t outputs) {
  return outputs % 128 == 0 ? relu_mask_extents(n, outputs) : std::array<index_t, 2>{0, 0};
}

/// y = max(x W^T, 0) in one pass.
/// @param y (N, O), written      @param x (N, I)      @param weight (O, I)
/// @param mask  of relu_mask_extents(dev, N, O), written; empty if not needed
/// @throws ShapeError if extents disagree
/// @throws CudaError
template <CudaElement T>
void linear_relu_forward(Cuda& dev, Out<T, 2, Cuda> y, In<T, 2, Cuda> x, In<T, 2, Cuda> weight,
                         OptionalOut<std::uint8_t, 2, Cuda> mask = {}) {
  gemm_relu(dev, Trans::no, Trans::yes, 1, x, weight, y, {}, mask);
}

namespace detail {

/// tail(rms_norm(x) weight^T + bias) by the kernel for few rows, if it can.
/// @param outputs  rows of the weight
inline bool normed_as_few_rows(Cuda& dev, TensorView<Bf16, 2, Cuda> y,
                               NormedRows<Bf16, Cuda> const& x, In<Bf16, 2, Cuda> weight,
                               In<Bf16, 1, Cuda> bias, index_t outputs, FewRowsTail tail) {
  expects(y.extent(0) == x.x().extent(0) && weight.extent(1) == x.x().extent(1) &&
              x.weight().extent(0) == x.x().extent(1) && weight.extent(0) == outputs &&
              (bias.empty() || bias.extent(0) == outputs),
          "linear: x must be as wide as the weight and the norm, y as the weight has rows");
  if (y.empty()) return true;
  return multiplied_as_few_rows(dev, y, x.x(), weight, 1, x.weight(), x.eps(), data_or_null(bias),
                                {}, tail);
}

}  // namespace detail

/// y = rms_norm(x) W^T + b. @see ops/linear.hpp. Few rows (Products::few_rows) take one pass.
/// @throws ShapeError if extents disagree
/// @throws CudaError
template <std::same_as<Bf16> T>
void linear_forward(Cuda& dev, TensorView<T, 2, Cuda> y, NormedRows<T, Cuda>& x,
                    In<T, 2, Cuda> weight, In<T, 1, Cuda> bias = {}) {
  if (!detail::normed_as_few_rows(dev, y, x, weight, bias, y.extent(1),
                                  detail::FewRowsTail::none)) {
    linear_forward(dev, y, x.rows(dev), weight, bias);
  }
}

/// y = max(rms_norm(x) W^T, 0). @see ops/linear.hpp. Few rows take one pass.
/// @throws ShapeError if extents disagree
/// @throws CudaError
template <std::same_as<Bf16> T>
void linear_relu_forward(Cuda& dev, TensorView<T, 2, Cuda> y, NormedRows<T, Cuda>& x,
                         In<T, 2, Cuda> weight) {
  if (!detail::normed_as_few_rows(dev, y, x, weight, {}, y.extent(1), detail::FewRowsTail::relu)) {
    linear_relu_forward(dev, y, x.rows(dev), weight);
  }
}

/// y = gelu_new(rms_norm(x) Wi^T) * (rms_norm(x) Wg^T). @see ops/linear.hpp. Few rows take one
/// pass.
/// @throws ShapeError if extents disagree
/// @throws CudaError
template <std::same_as<Bf16> T>
void linear_gated_gelu_forward(Cuda& dev, TensorView<T, 2, Cuda> y, NormedRows<T, Cuda>& x,
                               In<T, 2, Cuda> weight) {
  if (y.extent(1) % 8 != 0 || !detail::normed_as_few_rows(dev, y, x, weight, {}, 2 * y.extent(1),
                                                          detail::FewRowsTail::gated_gelu)) {
    linear_gated_gelu_forward<Bf16, Cuda>(dev, y, x, weight);
  }
}

/// dx = dy W where x > 0, else 0,  dweight += dy^T x. @see ops/linear.hpp
/// @param mask  as linear_relu_forward wrote it: dx then takes one pass. Empty: x is asked, in a
/// second one
/// @throws ShapeError if extents disagree
/// @throws CudaError
template <CudaElement T>
void linear_relu_backward(Cuda& dev, Out<T, 2, Cuda> dx, OptionalOut<float, 2, Cuda> dweight,
                          In<T, 2, Cuda> dy, In<T, 2, Cuda> x, In<T, 2, Cuda> weight,
                          OptionalOut<std::uint8_t, 2, Cuda> mask = {}) {
  if (mask.empty()) {
    linear_backward(dev, dx, dweight, {}, dy, x, weight);
    relu_backward(dev, dx, dx, x);
  } else {
    linear_backward(dev, TensorView<T, 2, Cuda>(), dweight, {}, dy, x, weight);
    gemm_relu_backward(dev, Trans::no, Trans::no, 1, dy, weight, dx, mask);
  }
}

}  // namespace emprl
