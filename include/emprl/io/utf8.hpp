// SPDX-License-Identifier: Apache-2.0
#pragma once

// UTF-8 as RFC 3629 has it: no overlong forms, no surrogates, nothing above U+10FFFF.

#include <cstddef>
#include <string>
#include <string_view>

namespace emprl::io {

/// The position of the first byte that does not belong to valid UTF-8, or npos when there is none.
inline std::size_t find_invalid_utf8(std::string_view text) {
  std::size_t i = 0;
  auto const byte = [&](std::size_t at) { return static_cast<unsigned char>(text[at]); };
  auto const is_tail = [&](std::size_t at, unsigned low, unsigned high) {
    return at < text.size() && byte(at) >= low && byte(at) <= high;
  };
  while (i < text.size()) {
    unsigned const lead = byte(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    // The second byte's range is what rules out overlong forms, surrogates and what lies above
    // U+10FFFF.
    unsigned low = 0x80;
    unsigned high = 0xBF;
    std::size_t length = 0;
    if (lead >= 0xC2 && lead <= 0xDF) {
      length = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
      length = 3;
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
      length = 4;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    } else {
      return i;
    }
    if (!is_tail(i + 1, low, high)) return i;
    for (std::size_t k = 2; k < length; ++k) {
      if (!is_tail(i + k, 0x80, 0xBF)) return i;
    }
    i += length;
  }
  return std::string_view::npos;
}

/// Whether all of a text is valid UTF-8.
inline bool is_valid_utf8(std::string_view text) {
  return find_invalid_utf8(text) == std::string_view::npos;
}

/// A text without the byte order mark that some editors put first.
inline std::string_view without_byte_order_mark(std::string_view text) {
  return text.starts_with("\xEF\xBB\xBF") ? text.substr(3) : text;
}

/// Whether a text holds nothing but ASCII white space.
inline bool is_blank(std::string_view text) {
  return text.find_first_not_of(" \t\r\n\v\f") == std::string_view::npos;
}

}  // namespace emprl::io
