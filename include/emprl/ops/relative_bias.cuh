// SPDX-License-Identifier: Apache-2.0
#pragma once

// T5's relative position bias on the GPU. The distances of a bucket are neighbours, so a warp takes
// a bucket of a head: it writes one number to a range of distances, or sums a range in a fixed
// order. Where ranges begin is found on the host, by the function that the CPU calls, because the
// logarithm of another library might put a distance on a boundary into the next bucket.

#include <algorithm>
#include <cstddef>
#include <string>

#include "emprl/core/scalar.hpp"
#include "emprl/ops/relative_bias.hpp"
#include "emprl/ops/row_packs.cuh"

namespace emprl {

namespace detail {

/// Buckets of a table at most: their ranges travel as an argument of the kernel.
inline constexpr int most_relative_buckets = 256;

/// Columns [begin, end) of a bias are those of a bucket.
struct RelativeRanges {
  int begin[most_relative_buckets];
  int end[most_relative_buckets];
};

/// The smallest distance whose bucket, counted from the first of its side, is at least `bucket`;
/// `none` if there is no such distance below it.
inline index_t first_distance(index_t bucket, RelativeBuckets const& kind, int buckets,
                              index_t none) {
  // A key before the query: both kinds count these buckets from 0.
  index_t low = 0;
  index_t high = none;
  while (low < high) {
    index_t const middle = low + (high - low) / 2;
    if (relative_bucket(-middle, kind.direction, buckets, kind.max_distance) >= bucket) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

/// The ranges of all buckets among `count` columns that begin at distance `first`.
/// @throws ConfigError if the table has too few or too many buckets
inline RelativeRanges relative_ranges(index_t first, index_t count, RelativeBuckets const& kind,
                                      index_t buckets) {
  bool const two_sides = kind.direction == Direction::bidirectional;
  index_t const side = two_sides ? buckets / 2 : buckets;
  if (side < 2 || buckets > most_relative_buckets) {
    throw ConfigError(
        "relative_bias on a GPU takes a table of at most " + std::to_string(most_relative_buckets) +
        " buckets, and of at least 2 for each side; it has " + std::to_string(buckets));
  }
  RelativeRanges ranges{};
  // Distances beyond every column are all alike.
  index_t const far = std::max(std::max(-first, first + count), index_t{0}) + 1;
  auto const set = [&](index_t bucket, index_t nearest, index_t beyond) {
    auto const column = [&](index_t distance) {
      return static_cast<int>(std::clamp<index_t>(distance - first, 0, count));
    };
    ranges.begin[bucket] = column(nearest);
    ranges.end[bucket] = column(beyond);
  };
  index_t near = first_distance(0, kind, static_cast<int>(buckets), far);
  for (index_t b = 0; b < side; ++b) {
    index_t const next =
        b + 1 < side ? first_distance(b + 1, kind, static_cast<int>(buckets), far) : far;
    // Keys before the query: distances near .. next - 1, farthest first. Those that stand with it
    // belong to bucket 0; so does, where there is one side only, everything after it.
    set(b, 1 - next, b == 0 && !two_sides ? far : 1 - near);
    if (two_sides) set(side + b, std::max<index_t>(near, 1), next);
    near = next;
  }
  return ranges;
}

inline constexpr int relative_threads = 256;

/// bias[h, r] = table[b, h] for the columns r of bucket b.
/// PRECOND: a warp a bucket and head
template <CudaElement T>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(relative_threads)
    relative_bias_forward_kernel(TensorView<float, 2, Cuda> bias,
                                 TensorView<T const, 2, Cuda> table, RelativeRanges ranges) {
  index_t const item = cuda::global_thread_x() / cuda::warp_size;
  index_t const heads = table.extent(1);
  if (item >= table.extent(0) * heads) return;
  index_t const bucket = item / heads;
  index_t const head = item % heads;
  float const value = static_cast<float>(table.row(bucket)[head]);
  float* const row = bias.row(head);
  for (int r = ranges.begin[bucket] + cuda::lane_index(); r < ranges.end[bucket];
       r += cuda::warp_size) {
    row[r] = value;
  }
}

/// dtable[b, h] += the sum of dbias[h, r] over the columns r of bucket b.
/// PRECOND: a warp a bucket and head
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(relative_threads)
    relative_bias_backward_kernel(TensorView<float, 2, Cuda> dtable,
                                  TensorView<float const, 2, Cuda> dbias, RelativeRanges ranges) {
  index_t const item = cuda::global_thread_x() / cuda::warp_size;
  index_t const heads = dtable.extent(1);
  if (item >= dtable.extent(0) * heads) return;
  index_t const bucket = item / heads;
  index_t const head = item % heads;
  float const* const row = dbias.row(head);
  float sum = 0.0f;
  for (int r = ranges.begin[bucket] + cuda::lane_index(); r < ranges.end[bucket];
       r += cuda::warp_size) {
    sum += row[r];
  }
  sum = cuda::warp_sum(sum);
  if (cuda::lane_index() == 0) dtable.row(bucket)[head] += sum;
}

template <CudaElement T>
void launch_relative_bias_forward(Cuda& dev, TensorView<float, 2, Cuda> bias,
                                  TensorView<T const, 2, Cuda> table, index_t first,
                                  RelativeBuckets const& buckets) {
  expects(bias.extent(0) == table.extent(1),
          "relative_bias: the table must have one column a head");
  auto const ranges = relative_ranges(first, bias.extent(1), buckets, table.extent(0));
  if (bias.empty()) return;
  cuda::launch<relative_bias_forward_kernel<T>>(
      dev.stream,
      {.grid = {cuda::blocks_for(table.size() * cuda::warp_size, relative_threads)},
       .block = {relative_threads}},
      bias, table, ranges);
}

}  // namespace detail

/// bias[h, r] = table[bucket(r + first), h] for r in [0, R): the bias of head h for a key at query
/// position + r + first.
/// @param bias (H, R), float, written: attention adds it to its float scores
/// @param table (buckets, H), float or Bf16
/// @param first the distance of column 0, usually negative
/// @throws ShapeError if extents disagree, ConfigError if there are too many or too few buckets
inline void relative_bias_forward(Cuda& dev, Out<float, 2, Cuda> bias, In<float, 2, Cuda> table,
                                  index_t first, RelativeBuckets buckets) {
  detail::launch_relative_bias_forward<float>(dev, bias, table, first, buckets);
}
inline void relative_bias_forward(Cuda& dev, Out<float, 2, Cuda> bias, In<Bf16, 2, Cuda> table,
                                  index_t first, RelativeBuckets buckets) {
  detail::launch_relative_bias_forward<Bf16>(dev, bias, table, first, buckets);
}

/// dtable[bucket(r + first), h] += dbias[h, r], in the same order in every run.
/// @param dtable (buckets, H), float, accumulated      @param dbias (H, R), float
/// @throws as relative_bias_forward
inline void relative_bias_backward(Cuda& dev, Out<float, 2, Cuda> dtable, In<float, 2, Cuda> dbias,
                                   index_t first, RelativeBuckets buckets) {
  expects(dbias.extent(0) == dtable.extent(1),
          "relative_bias: the table must have one column a head");
  auto const ranges = detail::relative_ranges(first, dbias.extent(1), buckets, dtable.extent(0));
  if (dbias.empty()) return;
  cuda::launch<detail::relative_bias_backward_kernel>(
      dev.stream,
      {.grid = {cuda::blocks_for(dtable.size() * cuda::warp_size, detail::relative_threads)},
       .block = {detail::relative_threads}},
      dtable, dbias, ranges);
}

}  // namespace emprl
