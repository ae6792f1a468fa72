// SPDX-License-Identifier: Apache-2.0
#pragma once

// JSON lines: one object a line, blank lines passed over, unknown fields and the order of keys
// kept.

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/io/file.hpp"
#include "emprl/io/json.hpp"
#include "emprl/io/lines.hpp"

namespace emprl::io {

/// An object and the line it came from.
struct JsonLine {
  Json value;
  index_t line = 0;
};

/// Reads JSON lines one at a time.
class JsonLinesReader {
 public:
  /// @throws IoError naming the file if it cannot be read
  explicit JsonLinesReader(std::filesystem::path const& path)
      : JsonLinesReader(read_file(path), path.string()) {}

  /// Reads from a text that is already in memory, called `name` in messages.
  JsonLinesReader(std::string text, std::string name)
      : text_(std::move(text)), lines_(text_, std::move(name)) {}

  JsonLinesReader(JsonLinesReader const&) = delete;
  JsonLinesReader& operator=(JsonLinesReader const&) = delete;

  /// Moves to the next object. @return false when there is none
  /// @throws IoError naming file:line for bad JSON, invalid UTF-8, or anything but an object
  bool next(JsonLine& out) {
    std::string_view line;
    while (lines_.next(line)) {
      if (is_blank(line)) continue;
      out.value = parse_json(line, lines_.where());
      if (!out.value.is_object()) {
        throw IoError(lines_.where() + ": each line must hold a JSON object ({...}).");
      }
      out.line = lines_.number();
      return true;
    }
    return false;
  }

  /// "file:line" of the line last read.
  std::string where() const { return lines_.where(); }

 private:
  std::string text_;
  LineReader lines_;
};

/// All objects of a file of JSON lines.
/// @throws IoError naming file:line
inline std::vector<JsonLine> read_json_lines(std::filesystem::path const& path) {
  JsonLinesReader reader(path);
  std::vector<JsonLine> all;
  for (JsonLine line; reader.next(line);) all.push_back(std::move(line));
  return all;
}

/// One value as one line, without the newline; text that is not UTF-8 is mended with U+FFFD rather
/// than refused.
inline std::string to_json_line(Json const& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

/// Writes values as JSON lines under a temporary name; `commit` puts the file in its place.
class JsonLinesWriter {
 public:
  /// @throws IoError naming the file
  explicit JsonLinesWriter(std::filesystem::path path) : file_(std::move(path)) {}

  /// Appends one line.
  void write(Json const& value) {
    buffer_ += to_json_line(value);
    buffer_ += '\n';
    if (buffer_.size() >= flush_at) flush();
  }

  /// Ends the file and gives it its name. @throws IoError; the old file is then untouched
  void commit() {
    flush();
    file_.commit();
  }

 private:
  static constexpr std::size_t flush_at = std::size_t{1} << 16;

  void flush() {
    file_.write(buffer_);
    buffer_.clear();
  }

  AtomicFile file_;
  std::string buffer_;
};

/// Writes a whole file of JSON lines, all or nothing.
/// @throws IoError naming the file
inline void write_json_lines(std::filesystem::path const& path, std::span<Json const> values) {
  JsonLinesWriter writer(path);
  for (auto const& value : values) writer.write(value);
  writer.commit();
}

}  // namespace emprl::io
