// SPDX-License-Identifier: Apache-2.0
#pragma once

// y = x W^T + b on packed rows, in terms of gemm. The same source serves every device that has
// gemm, add_bias and sum_rows.

#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/ops/gemm.hpp"
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

/// y = x W^T + b.
/// @param y  (N, O), written
/// @param x (N, I)
/// @param weight (O, I)
/// @param bias (O), or empty for none
/// @throws ShapeError if extents disagree
template <Element T, Device D>
void linear_forward(D& dev, Out<T, 2, D> y, In<T, 2, D> x, In<T, 2, D> weight,
                    In<T, 1, D> bias = {}) {
  gemm(dev, Trans::no, Trans::yes, 1, x, weight, 0, y);
  if (!bias.empty()) add_bias(dev, y, bias);
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

}  // namespace emprl
