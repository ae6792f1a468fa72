// SPDX-License-Identifier: Apache-2.0
#pragma once

// The real data sets are not part of the project. Tests that want them look where EMPRL_DATA
// points.

#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

#include "support/catch.hpp"

namespace emprl::test {

/// A path below EMPRL_DATA; empty, with a message, where it is absent.
inline std::filesystem::path real_data(std::string_view name) {
  char const* const root = std::getenv("EMPRL_DATA");
  if (root == nullptr || *root == '\0') {
    WARN("skipped: set EMPRL_DATA to the folder that holds " << name << " to run this test");
    return {};
  }
  auto path = std::filesystem::path(root) / name;
  if (std::filesystem::exists(path)) return path;
  WARN("skipped: EMPRL_DATA has no " << name);
  return {};
}

}  // namespace emprl::test
