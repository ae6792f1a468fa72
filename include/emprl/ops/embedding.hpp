// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rows of a table chosen by token ids.

#include <algorithm>
#include <cstdint>
#include <string>

#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

namespace detail {

/// @throws ShapeError that names the first id which is not a row of a table of that many rows
inline void check_ids(TensorView<std::int32_t const, 1, Cpu> ids, index_t rows) {
  for (index_t i = 0; i < ids.extent(0); ++i) {
    if (ids(i) < 0 || ids(i) >= rows) {
      throw ShapeError("embedding: token id " + std::to_string(ids(i)) +
                       " is not a row of a table of " + std::to_string(rows));
    }
  }
}

}  // namespace detail

/// y[n,:] = table[ids[n],:].
/// @param y (N, C), written      @param table (V, C)      @param ids (N)
/// @throws ShapeError if extents disagree or an id is not a row of the table
template <Scalar T>
void embedding_forward(Cpu& dev, Out<T, 2, Cpu> y, In<T, 2, Cpu> table,
                       TensorView<std::int32_t const, 1, Cpu> ids) {
  expects(y.extent(0) == ids.extent(0) && y.extent(1) == table.extent(1),
          "embedding: one row of output for each id, as wide as the table");
  detail::check_ids(ids, table.extent(0));
  parallel_for(dev, ids.extent(0), 64, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      T const* const row = table.row(ids(i));
      std::copy(row, row + table.extent(1), y.row(i));
    }
  });
}

/// dtable[ids[n],:] += dy[n,:]. Threads share the columns, so that the order of a sum never depends
/// on them.
/// @param dtable (V, C), accumulated      @param dy (N, C)      @param ids (N)
/// @throws ShapeError if extents disagree or an id is not a row of the table
template <Scalar T>
void embedding_backward(Cpu& dev, Out<T, 2, Cpu> dtable, In<T, 2, Cpu> dy,
                        TensorView<std::int32_t const, 1, Cpu> ids) {
  expects(dy.extent(0) == ids.extent(0) && dy.extent(1) == dtable.extent(1),
          "embedding: one row of gradient for each id, as wide as the table");
  detail::check_ids(ids, dtable.extent(0));
  parallel_for(dev, dtable.extent(1), 32, [&](index_t begin, index_t end) {
    for (index_t i = 0; i < ids.extent(0); ++i) {
      T* const row = dtable.row(ids(i));
      T const* const g = dy.row(i);
      for (index_t j = begin; j < end; ++j) row[j] += g[j];
    }
  });
}

}  // namespace emprl
