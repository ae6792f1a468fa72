// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rows written to chosen places of a larger matrix: the newest keys and values into their cache.

#include <algorithm>

#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

/// y[at[n],:] = x[n,:]; the other rows stay.
/// @param y (R, C)      @param x (N, C)      @param at (N), each below R and none twice
/// @throws ShapeError if extents disagree or a place is not a row of y
template <Scalar T>
void scatter_rows(Cpu& dev, Out<T, 2, Cpu> y, In<T, 2, Cpu> x,
                  TensorView<index_t const, 1, Cpu> at) {
  expects(y.extent(1) == x.extent(1) && at.extent(0) == x.extent(0),
          "scatter_rows: one place for each row, rows as wide as the matrix");
  for (index_t i = 0; i < at.extent(0); ++i) {
    expects(at(i) >= 0 && at(i) < y.extent(0), "scatter_rows: a place is not a row of the matrix");
  }
  parallel_for(dev, x.extent(0), 64, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) std::copy_n(x.row(i), x.extent(1), y.row(at(i)));
  });
}

}  // namespace emprl
