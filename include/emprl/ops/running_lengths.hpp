// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rows that have ended, as ranges of no keys: an op that reads lengths skips them, without the host
// having to know which they are.

#include "emprl/core/device.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

/// out[a] = length[a] where running[a] > 0, else 0.
/// @param out (A), written, may be length      @param length, running (A)
/// @throws ShapeError if extents disagree
inline void running_lengths(Cpu&, TensorView<index_t, 1, Cpu> out, In<index_t, 1, Cpu> length,
                            In<index_t, 1, Cpu> running) {
  expects(length.extents() == out.extents() && running.extents() == out.extents(),
          "running_lengths: one length and one flag for each row");
  for (index_t a = 0; a < out.extent(0); ++a) out(a) = running(a) > 0 ? length(a) : 0;
}

}  // namespace emprl
