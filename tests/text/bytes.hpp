// SPDX-License-Identifier: Apache-2.0
#pragma once

// The model of a tokenizer that the comment of text/concepts.hpp gives.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/core/config.hpp"

namespace emprl::test {

struct Bytes {
  std::vector<std::int32_t> encode(std::string_view text) const {
    std::vector<std::int32_t> ids;
    for (char const c : text) ids.push_back(3 + static_cast<unsigned char>(c));
    return ids;
  }
  std::string decode(std::span<std::int32_t const> ids) const {
    std::string text;
    for (auto const id : ids) {
      if (id >= 3 && id < 259) text += static_cast<char>(id - 3);
    }
    return text;
  }
  index_t size() const { return 259; }
};

}  // namespace emprl::test
