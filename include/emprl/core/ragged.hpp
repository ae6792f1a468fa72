// SPDX-License-Identifier: Apache-2.0
#pragma once

// Batches of token rows of different lengths, packed one after the other. There is no padding and
// so nothing to mask.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"

namespace emprl {

/// Rows of token ids: row i is ids[offsets[i]] .. ids[offsets[i + 1]).
struct RaggedView {
  std::span<std::int32_t const> ids;
  std::span<index_t const> offsets;

  index_t rows() const { return offsets.empty() ? 0 : static_cast<index_t>(offsets.size()) - 1; }
  index_t tokens() const { return static_cast<index_t>(ids.size()); }
  index_t length(index_t i) const {
    auto const u = static_cast<std::size_t>(i);
    return offsets[u + 1] - offsets[u];
  }
  std::span<std::int32_t const> row(index_t i) const {
    return ids.subspan(static_cast<std::size_t>(offsets[static_cast<std::size_t>(i)]),
                       static_cast<std::size_t>(length(i)));
  }
};

/// Rows of token ids that own their memory.
struct Ragged {
  std::vector<std::int32_t> ids;
  std::vector<index_t> offsets{0};

  index_t rows() const { return static_cast<index_t>(offsets.size()) - 1; }
  index_t tokens() const { return static_cast<index_t>(ids.size()); }
  std::span<std::int32_t const> row(index_t i) const { return view().row(i); }
  RaggedView view() const { return {ids, offsets}; }

  void push_back(std::span<std::int32_t const> row) {
    ids.insert(ids.end(), row.begin(), row.end());
    offsets.push_back(static_cast<index_t>(ids.size()));
  }
  void clear() {
    ids.clear();
    offsets.assign(1, 0);
  }
};

/// @throws ShapeError unless offsets start at 0, never fall, and end at the number of ids
inline void check_offsets(std::span<index_t const> offsets, index_t tokens) {
  expects(!offsets.empty() && offsets.front() == 0 && offsets.back() == tokens,
          "ragged offsets must start at 0 and end at the number of rows of the packed tensor");
  for (std::size_t i = 1; i < offsets.size(); ++i) {
    expects(offsets[i - 1] <= offsets[i], "ragged offsets must not fall");
  }
}

/// Some rows of a ragged batch, in the order given.
inline Ragged gather_rows(RaggedView from, std::span<index_t const> rows) {
  Ragged part;
  for (index_t const i : rows) part.push_back(from.row(i));
  return part;
}

}  // namespace emprl
