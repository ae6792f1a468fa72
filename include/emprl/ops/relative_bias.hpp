// SPDX-License-Identifier: Apache-2.0
#pragma once

// T5's relative position bias: a learned table of (buckets, heads), expanded to one number for each
// head and distance, which is all that attention reads. No (Tq, Tk) matrix exists.

#include "emprl/core/device.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/math/relative_bucket.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

/// How distances share the rows of a bias table.
struct RelativeBuckets {
  Direction direction = Direction::bidirectional;
  int max_distance = 128;
};

/// bias[h, r] = table[bucket(r + first), h] for r in [0, R): the bias of head h for a key at query
/// position + r + first.
/// @param bias (H, R), written
/// @param table (buckets, H)
/// @param first the distance of column 0, usually negative
template <Scalar T>
void relative_bias_forward(Cpu&, Out<T, 2, Cpu> bias, In<T, 2, Cpu> table, index_t first,
                           RelativeBuckets buckets) {
  expects(bias.extent(0) == table.extent(1),
          "relative_bias: the table must have one column a head");
  for (index_t r = 0; r < bias.extent(1); ++r) {
    int const bucket = relative_bucket(r + first, buckets.direction,
                                       static_cast<int>(table.extent(0)), buckets.max_distance);
    for (index_t h = 0; h < bias.extent(0); ++h) bias(h, r) = table(bucket, h);
  }
}

/// dtable[bucket(r + first), h] += dbias[h, r].
/// @param dtable (buckets, H), accumulated      @param dbias (H, R)
template <Scalar T>
void relative_bias_backward(Cpu&, Out<T, 2, Cpu> dtable, In<T, 2, Cpu> dbias, index_t first,
                            RelativeBuckets buckets) {
  expects(dbias.extent(0) == dtable.extent(1),
          "relative_bias: the table must have one column a head");
  for (index_t r = 0; r < dbias.extent(1); ++r) {
    int const bucket = relative_bucket(r + first, buckets.direction,
                                       static_cast<int>(dtable.extent(0)), buckets.max_distance);
    for (index_t h = 0; h < dbias.extent(0); ++h) dtable(bucket, h) += dbias(h, r);
  }
}

}  // namespace emprl
