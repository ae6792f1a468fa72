// SPDX-License-Identifier: Apache-2.0
#pragma once

// Access to golden/ppo_trl_0_9_6.json: inputs and outputs of TRL 0.9.6's PPO functions on synthetic
// tensors.

#include <cmath>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "emprl/core/ragged.hpp"
#include "support/catch.hpp"

namespace emprl::tests {

inline nlohmann::json const& golden() {
  static nlohmann::json const data = [] {
    std::ifstream file(std::string(EMPRL_GOLDEN_DIR) + "/ppo_trl_0_9_6.json");
    return nlohmann::json::parse(file);
  }();
  return data;
}

using Matrix = std::vector<std::vector<double>>;

/// The gate of every comparison: |a - b| <= tol * max(1, |b|).
inline bool close(double a, double b, double tol) {
  return std::abs(a - b) <= tol * std::max(1.0, std::abs(b));
}

inline void check_close(std::vector<double> const& a, std::vector<double> const& b, double tol) {
  REQUIRE(a.size() == b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    CAPTURE(i, a[i], b[i]);
    CHECK(close(a[i], b[i], tol));
  }
}

/// The first offsets[i + 1] - offsets[i] entries of each row of a padded matrix, packed.
inline std::vector<double> pack(Matrix const& padded, std::vector<std::int64_t> const& offsets) {
  std::vector<double> out;
  for (std::size_t i = 0; i < padded.size(); ++i) {
    auto const n = static_cast<std::size_t>(offsets[i + 1] - offsets[i]);
    for (std::size_t t = 0; t < n; ++t) out.push_back(padded[i][t]);
  }
  return out;
}

/// The fixture's three rows: decoder ids without the start token.
inline Ragged golden_responses() {
  auto const& f = golden()["encdec_forward"];
  auto const ids = f["decoder_input_ids"].get<std::vector<std::vector<std::int32_t>>>();
  auto const seen = f["decoder_attention_mask"].get<std::vector<std::vector<int>>>();
  Ragged responses;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    std::vector<std::int32_t> row;
    for (std::size_t t = 1; t < ids[i].size() && seen[i][t] == 1; ++t) row.push_back(ids[i][t]);
    responses.push_back(row);
  }
  return responses;
}

}  // namespace emprl::tests
