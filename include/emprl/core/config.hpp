// SPDX-License-Identifier: Apache-2.0
#pragma once

// What every other header may assume: the version, the index type, and the mark of code that runs
// on both host and device.

#include <cstdint>

#define EMPRL_VERSION_MAJOR 0
#define EMPRL_VERSION_MINOR 1
#define EMPRL_VERSION_PATCH 0
#define EMPRL_VERSION_STRING "0.1.0"

#if defined(__CUDACC__)
#define EMPRL_HD __host__ __device__
#else
#define EMPRL_HD
#endif

namespace emprl {

/// Extents, offsets and counts. Signed, so that differences are safe; 64 bits, so that products
/// are.
using index_t = std::int64_t;

}  // namespace emprl
