// SPDX-License-Identifier: Apache-2.0
#pragma once

// y = x W^T + b on packed rows, in terms of gemm, with what goes with the product: a residual that
// is added, a ReLU that follows. The same source serves every device that has gemm, gemm_add and
// sum_rows.

#include <array>
#include <cstdint>

#include "emprl/core/arena.hpp"
#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/ops/elementwise.hpp"
#include "emprl/ops/gemm.hpp"
#include "emprl/ops/normed_rows.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

/// y[n,:] += b.     y (N, C), b (C)
template <Scalar T>
void add_bias(Cpu& dev, Out<T, 2, Cpu> y, In<T, 1, Cpu> b) {
  expects(y.extent(1) == b.extent(0), "add_bias: the bias must have one element a column");
  parallel_for(dev, y.extent(0), 64, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      T* const row = y.row(i);
      for (index_t j = 0; j < b.extent(0); ++j) row[j] += b.data()[j];
    }
  });
}

/// db[c] += sum_n dy[n,c].     db (C), dy (N, C)
template <Scalar T>
void sum_rows(Cpu& dev, Out<T, 1, Cpu> db, In<T, 2, Cpu> dy) {
  expects(dy.extent(1) == db.extent(0), "sum_rows: the sum must have one element a column");
  parallel_for(dev, db.extent(0), 64, [&](index_t begin, index_t end) {
    for (index_t i = 0; i < dy.extent(0); ++i) {
      T const* const row = dy.row(i);
      for (index_t j = begin; j < end; ++j) db.data()[j] += row[j];
    }
  });
}

/// c = alpha op(a) op(b) + added + bias, where each of the last two may be empty, which is nothing.
/// @param c (M, N), written      @param bias (N)      @param added (M, N), may be c
/// @throws ShapeError if extents disagree
template <Scalar T>
void gemm_add(Cpu& dev, Trans ta, Trans tb, std::type_identity_t<T> alpha, In<T, 2, Cpu> a,
              In<T, 2, Cpu> b, Out<T, 2, Cpu> c, In<T, 1, Cpu> bias, In<T, 2, Cpu> added) {
  if (!added.empty() && added.data() != c.data()) copy(dev, c, added);
  gemm(dev, ta, tb, alpha, a, b, added.empty() ? T(0) : T(1), c);
  if (!bias.empty()) add_bias(dev, c, bias);
}

/// y = residual + x W^T + b.
/// @param y  (N, O), written
/// @param x (N, I)
/// @param weight (O, I)
/// @param bias (O), or empty for none
/// @param residual (N, O), or empty for none; may be y
/// @throws ShapeError if extents disagree
template <Element T, Device D>
void linear_forward(D& dev, Out<T, 2, D> y, In<T, 2, D> x, In<T, 2, D> weight,
                    In<T, 1, D> bias = {}, In<T, 2, D> residual = {}) {
  gemm_add(dev, Trans::no, Trans::yes, 1, x, weight, y, bias, residual);
}

/// y = rms_norm(x) W^T + b, in one pass where the device has one.
/// @param y (N, O), written, may not alias x      @param weight (O, I)
/// @param bias (O), or empty for none
/// @throws ShapeError if extents disagree
template <Element T, Device D>
void linear_forward(D& dev, Out<T, 2, D> y, std::type_identity_t<NormedRows<T, D>>& x,
                    In<T, 2, D> weight, In<T, 1, D> bias = {}) {
  linear_forward(dev, y, x.rows(dev), weight, bias);
}

/// dx = dy W (or +=, by `write`),  dweight += dy^T x,  dbias += sum_n dy.
/// Empty views for dx, dweight or dbias mean that the gradient is not needed and is not computed.
/// @throws ShapeError if extents disagree
template <Element T, Device D>
void linear_backward(D& dev, Out<T, 2, D> dx, OptionalOut<Accumulator<T>, 2, D> dweight,
                     OptionalOut<Accumulator<T>, 1, D> dbias, In<T, 2, D> dy, In<T, 2, D> x,
                     In<T, 2, D> weight, Write write = Write::overwrite) {
  if (!dweight.empty()) gemm(dev, Trans::yes, Trans::no, 1, dy, x, 1, dweight);
  if (!dbias.empty()) sum_rows(dev, dbias, dy);
  if (!dx.empty()) {
    Accumulator<T> const keep = write == Write::overwrite ? 0 : 1;
    gemm(dev, Trans::no, Trans::no, 1, dy, weight, keep, dx);
  }
}

/// What linear_relu_forward keeps for linear_relu_backward of outputs (N, O): on the CPU nothing,
/// for the outputs themselves say where they are positive.
inline std::array<index_t, 2> relu_mask_extents(Cpu const&, index_t, index_t) {
  return {0, 0};
}

/// y = max(x W^T, 0).
/// @param y (N, O), written      @param x (N, I)      @param weight (O, I)
/// @param mask  of relu_mask_extents(dev, N, O), written; empty if not needed
/// @throws ShapeError if extents disagree
template <Scalar T>
void linear_relu_forward(Cpu& dev, Out<T, 2, Cpu> y, In<T, 2, Cpu> x, In<T, 2, Cpu> weight,
                         OptionalOut<std::uint8_t, 2, Cpu> = {}) {
  linear_forward(dev, y, x, weight);
  relu_forward(dev, y, y);
}

/// y = max(rms_norm(x) W^T, 0), in one pass where the device has one.
/// @param y (N, O), written, may not alias x      @param weight (O, I)
/// @throws ShapeError if extents disagree
template <Element T, Device D>
void linear_relu_forward(D& dev, Out<T, 2, D> y, std::type_identity_t<NormedRows<T, D>>& x,
                         In<T, 2, D> weight) {
  linear_relu_forward(dev, y, x.rows(dev), weight);
}

/// y = gelu_new(x Wi^T) * (x Wg^T), in one pass where the device has one.
/// @param y (N, F), written, may not alias x
/// @param x (N, I), or rows to be normalised
/// @param weight (2 F, I): Wi, and Wg behind it
/// @throws ShapeError if extents disagree
template <Element T, Device D, class X>
void linear_gated_gelu_forward(D& dev, Out<T, 2, D> y, X&& x, In<T, 2, D> weight) {
  ArenaScope scope(dev.scratch);
  auto projected = dev.scratch.template allocate<T, 2>({y.extent(0), weight.extent(0)});
  linear_forward(dev, projected, x, weight);
  gated_gelu_forward(dev, y, projected);
}

/// linear_backward of a layer whose input is the output of a ReLU, and of the ReLU itself:
/// dx = dy W where x > 0, else 0,  dweight += dy^T x.
/// @param dx  (N, I), written: the gradient before the ReLU
/// @param dweight  (O, I); empty if not needed
/// @param x (N, I), after the ReLU; elements that are zero for another reason may be among them,
/// and whether the gradient passes those is left open
/// @param mask  as linear_relu_forward wrote it, or empty
/// @throws ShapeError if extents disagree
template <Scalar T>
void linear_relu_backward(Cpu& dev, Out<T, 2, Cpu> dx, OptionalOut<T, 2, Cpu> dweight,
                          In<T, 2, Cpu> dy, In<T, 2, Cpu> x, In<T, 2, Cpu> weight,
                          OptionalOut<std::uint8_t, 2, Cpu> = {}) {
  linear_backward(dev, dx, dweight, {}, dy, x, weight);
  relu_backward(dev, dx, dx, x);
}

}  // namespace emprl
