// SPDX-License-Identifier: Apache-2.0
#pragma once

// T5's bucket of a relative position (Raffel et al. 2020, 2.1). The logarithmic bucket is found by
// walking up its borders in long double, so that rounding cannot move a distance across one.

#include <cmath>

#include "emprl/core/config.hpp"

namespace reference {

using emprl::index_t;

/// @param relative  position of the key minus position of the query
inline index_t relative_bucket(index_t relative, bool bidirectional, index_t buckets,
                               index_t max_distance) {
  index_t first = 0;
  index_t distance = 0;
  if (bidirectional) {
    // Half of the buckets look forward.
    buckets /= 2;
    if (relative > 0) first = buckets;
    distance = relative < 0 ? -relative : relative;
  } else {
    // Keys after the query are never seen by a causal stack; they share bucket 0 with the query
    // itself.
    distance = relative < 0 ? -relative : 0;
  }
  index_t const exact = buckets / 2;
  if (distance < exact) return first + distance;
  index_t const wide = buckets - exact;
  // The largest k < wide with exact * (max_distance / exact)^(k / wide) <= distance.
  index_t k = 0;
  while (k + 1 < wide) {
    long double const border =
        static_cast<long double>(k + 1) / static_cast<long double>(wide) *
        std::log(static_cast<long double>(max_distance) / static_cast<long double>(exact));
    long double const reached =
        std::log(static_cast<long double>(distance) / static_cast<long double>(exact));
    // 1e-15: long double rounding, far below the gap between the logarithms of neighbouring
    // integers.
    if (reached < border - 1e-15L) break;
    ++k;
  }
  return first + exact + k;
}

}  // namespace reference
