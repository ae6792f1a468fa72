// SPDX-License-Identifier: Apache-2.0
#pragma once

// T5's buckets of relative positions (Raffel et al. 2020, section 2.1).

#include <cmath>

#include "emprl/core/config.hpp"

namespace emprl {

/// Which side of the query a key may stand on.
enum class Direction { bidirectional, unidirectional };

/// The bucket of a key that stands `relative` = key position - query position away.
///
/// Half of the buckets are exact distances 0, 1, 2, ...; the rest grow logarithmically up to
/// `max_distance`, beyond which all distances share the last. Bidirectional tables split the
/// buckets between keys at or before the query and keys after; unidirectional ones put all later
/// keys in bucket 0. The logarithm is taken in float, as the original does, so that distances on a
/// boundary fall on the same side.
inline int relative_bucket(index_t relative, Direction direction, int buckets, int max_distance) {
  int bucket = 0;
  index_t distance = 0;
  if (direction == Direction::bidirectional) {
    buckets /= 2;
    if (relative > 0) bucket = buckets;
    distance = relative < 0 ? -relative : relative;
  } else {
    distance = relative < 0 ? -relative : 0;
  }
  int const exact = buckets / 2;
  if (distance < exact) return bucket + static_cast<int>(distance);
  float const far = std::log(static_cast<float>(distance) / static_cast<float>(exact)) /
                    static_cast<float>(std::log(static_cast<double>(max_distance) / exact)) *
                    static_cast<float>(buckets - exact);
  int const log_bucket = exact + static_cast<int>(far);
  return bucket + (log_bucket < buckets - 1 ? log_bucket : buckets - 1);
}

}  // namespace emprl
