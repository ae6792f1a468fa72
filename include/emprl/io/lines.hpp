// SPDX-License-Identifier: Apache-2.0
#pragma once

// The lines of a text, with their numbers for messages.

#include <cstddef>
#include <string>
#include <string_view>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/io/utf8.hpp"

namespace emprl::io {

/// "file:line", the form in which every message names a place.
inline std::string place(std::string_view name, index_t line) {
  return std::string(name) + ":" + std::to_string(line);
}

/// Walks over the lines of a text that outlives it. A line ends at "\n" or "\r\n"; the last need
/// not end.
class LineReader {
 public:
  /// @param text the whole text; a byte order mark is passed over
  /// @param name the file's name, for messages
  LineReader(std::string_view text, std::string name)
      : rest_(without_byte_order_mark(text)), name_(std::move(name)) {}

  /// Moves to the next line. @return false when there is none
  bool next(std::string_view& line) {
    if (rest_.empty()) return false;
    std::size_t const end = rest_.find('\n');
    line = rest_.substr(0, end);
    rest_ = end == std::string_view::npos ? std::string_view{} : rest_.substr(end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    ++number_;
    return true;
  }

  /// The number of the line last read, from 1.
  index_t number() const { return number_; }
  /// "file:line" of the line last read.
  std::string where() const { return place(name_, number_); }

  /// @throws IoError unless the line is valid UTF-8
  void check_utf8(std::string_view line) const {
    std::size_t const bad = find_invalid_utf8(line);
    if (bad != std::string_view::npos) {
      throw IoError(where() + ": byte " + std::to_string(bad + 1) +
                    " of this line is not valid UTF-8.");
    }
  }

 private:
  std::string_view rest_;
  std::string name_;
  index_t number_ = 0;
};

}  // namespace emprl::io
