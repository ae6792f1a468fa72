// SPDX-License-Identifier: Apache-2.0
#pragma once

// Two kinds of comma separated values: without quoting (EmpatheticDialogues, where a double quote
// is data), and quoted as in RFC 4180, where a field in double quotes may hold commas, newlines and
// doubled quotes.

#include <cstddef>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/io/file.hpp"
#include "emprl/io/lines.hpp"
#include "emprl/io/utf8.hpp"

namespace emprl::io {

/// Splits a line at every comma. Quotes mean nothing. The parts point into `line`.
inline std::vector<std::string_view> split_unquoted_csv(std::string_view line) {
  std::vector<std::string_view> fields;
  for (;;) {
    std::size_t const comma = line.find(',');
    fields.push_back(line.substr(0, comma));
    if (comma == std::string_view::npos) return fields;
    line.remove_prefix(comma + 1);
  }
}

/// Reads quoted CSV record by record. A quote inside a field that does not start with one is data,
/// as most writers and readers have it.
class QuotedCsvReader {
 public:
  /// @throws IoError naming the file if it cannot be read
  explicit QuotedCsvReader(std::filesystem::path const& path)
      : QuotedCsvReader(read_file(path), path.string()) {}

  /// Reads from a text that is already in memory, called `name` in messages.
  QuotedCsvReader(std::string text, std::string name)
      : text_(std::move(text)),
        name_(std::move(name)),
        at_(text_.size() - without_byte_order_mark(text_).size()) {}

  /// Reads the next record; empty lines are passed over. @return false when there is none
  /// @throws IoError naming file:line for a quote that never closes, text after a closing quote, or
  /// invalid UTF-8
  bool next(std::vector<std::string>& fields) {
    fields.clear();
    while (at_ < text_.size() && (text_[at_] == '\n' || starts_line_end())) step_line();
    if (at_ >= text_.size()) return false;
    record_line_ = line_;
    for (;;) {
      fields.push_back(at_ < text_.size() && text_[at_] == '"' ? quoted_field() : plain_field());
      if (at_ >= text_.size()) return true;
      if (text_[at_] == ',') {
        ++at_;
        continue;
      }
      step_line();
      return true;
    }
  }

  /// The line on which the record last read starts, from 1.
  index_t line() const { return record_line_; }
  /// "file:line" of the record last read.
  std::string where() const { return place(name_, record_line_); }

 private:
  bool starts_line_end() const {
    return text_[at_] == '\r' && at_ + 1 < text_.size() && text_[at_ + 1] == '\n';
  }

  void step_line() {
    if (starts_line_end()) ++at_;
    ++at_;
    ++line_;
  }

  void check_utf8(std::string_view field) const {
    std::size_t const bad = find_invalid_utf8(field);
    if (bad == std::string_view::npos) return;
    index_t line = line_;
    for (char const c : field.substr(bad)) line -= c == '\n' ? 1 : 0;
    throw IoError(place(name_, line) + ": this line is not valid UTF-8.");
  }

  std::string plain_field() {
    std::size_t const begin = at_;
    while (at_ < text_.size() && text_[at_] != ',' && text_[at_] != '\n' && !starts_line_end()) {
      ++at_;
    }
    std::string field = text_.substr(begin, at_ - begin);
    check_utf8(field);
    return field;
  }

  std::string quoted_field() {
    index_t const opened = line_;
    std::string field;
    ++at_;
    for (;;) {
      std::size_t const quote = text_.find('"', at_);
      if (quote == std::string::npos) {
        throw IoError(place(name_, opened) + ": a quoted field that starts here is never closed.");
      }
      for (std::size_t i = at_; i < quote; ++i) line_ += text_[i] == '\n' ? 1 : 0;
      field.append(text_, at_, quote - at_);
      at_ = quote + 1;
      if (at_ >= text_.size() || text_[at_] != '"') break;
      field += '"';
      ++at_;
    }
    if (at_ < text_.size() && text_[at_] != ',' && text_[at_] != '\n' && !starts_line_end()) {
      throw IoError(place(name_, line_) +
                    ": a closing quote must be followed by a comma or the end of the line.");
    }
    check_utf8(field);
    return field;
  }

  std::string text_;
  std::string name_;
  std::size_t at_ = 0;
  index_t line_ = 1;
  index_t record_line_ = 0;
};

}  // namespace emprl::io
