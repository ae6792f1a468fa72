// SPDX-License-Identifier: Apache-2.0
#pragma once

// The head widths that attention's kernels are compiled for.

#include <string>
#include <type_traits>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"

namespace emprl::detail {

/// Whether attention has kernels that are compiled for heads of such a width.
constexpr bool has_tiled_attention(index_t width) {
  return width == 32 || width == 64 || width == 128;
}

/// Calls f(std::integral_constant<int, Dh>) for a head width that has kernels.
/// @param op  the op's name, for the message
/// @throws ConfigError for another width
template <class F>
void dispatch_head_width(char const* op, index_t width, F f) {
  switch (width) {
    case 32:
      return f(std::integral_constant<int, 32>{});
    case 64:
      return f(std::integral_constant<int, 64>{});
    case 128:
      return f(std::integral_constant<int, 128>{});
    default:
      throw ConfigError(std::string(op) +
                        " on the GPU has kernels for heads of 32, 64 and 128 columns, not " +
                        std::to_string(width));
  }
}

}  // namespace emprl::detail
