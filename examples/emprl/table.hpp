// SPDX-License-Identifier: Apache-2.0
#pragma once

// Plain-text tables that fit a terminal of 80 columns.

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/core.h>

#include "emprl/core/error.hpp"
#include "emprl/train/text_table.hpp"

namespace emprl::program {

/// The width that tables keep to unless told otherwise.
inline constexpr std::size_t table_width = 80;

namespace detail::table {

inline bool continues(char c) {
  return (static_cast<unsigned char>(c) & 0xC0u) == 0x80u;
}

/// Characters, counting a UTF-8 sequence as one.
inline std::size_t width(std::string_view text) {
  return static_cast<std::size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return !continues(c); }));
}

/// The byte where character `count` begins.
inline std::size_t byte_of(std::string_view text, std::size_t count) {
  std::size_t at = 0;
  for (; at < text.size(); ++at) {
    if (continues(text[at])) continue;
    if (count == 0) break;
    --count;
  }
  return at;
}

/// Cuts text into lines of at most `limit` characters, at spaces where there are any.
inline std::vector<std::string> wrap(std::string_view text, std::size_t limit) {
  std::vector<std::string> lines;
  while (width(text) > limit) {
    std::size_t const end = byte_of(text, limit);
    std::size_t cut = text.substr(0, end + 1).rfind(' ');
    bool const at_space = cut != std::string_view::npos && cut > 0;
    if (!at_space) cut = end;
    lines.emplace_back(text.substr(0, cut));
    text.remove_prefix(cut + (at_space ? 1 : 0));
  }
  lines.emplace_back(text);
  return lines;
}

}  // namespace detail::table

/// The lines of a table: names to the left, numbers to the right, cells broken at spaces where the
/// table would be wider than `limit` characters. Only a table whose columns cannot be narrowed to
/// six characters each is wider.
/// @throws ShapeError if a row has not as many cells as the header
inline std::vector<std::string> table_lines(train::TextTable const& table,
                                            std::size_t limit = table_width) {
  namespace d = detail::table;
  constexpr std::size_t gap = 2;
  constexpr std::size_t narrowest = 6;
  std::size_t const columns = table.header.size();
  std::vector<std::size_t> widths(columns, 0);
  auto const measure = [&](std::vector<std::string> const& row) {
    expects(row.size() == columns, "a row of a table must have as many cells as its header.");
    for (std::size_t c = 0; c < columns; ++c) widths[c] = std::max(widths[c], d::width(row[c]));
  };
  measure(table.header);
  for (auto const& row : table.rows) measure(row);
  auto const total = [&] {
    std::size_t sum = columns == 0 ? 0 : gap * (columns - 1);
    for (std::size_t const w : widths) sum += w;
    return sum;
  };
  while (total() > limit) {
    auto const widest = std::max_element(widths.begin(), widths.end());
    if (*widest <= narrowest) break;
    --*widest;
  }

  std::vector<std::string> lines;
  auto const add = [&](std::vector<std::string> const& row) {
    std::vector<std::vector<std::string>> cells;
    std::size_t height = 1;
    for (std::size_t c = 0; c < columns; ++c) {
      cells.push_back(d::wrap(row[c], widths[c]));
      height = std::max(height, cells.back().size());
    }
    for (std::size_t part = 0; part < height; ++part) {
      std::string line;
      for (std::size_t c = 0; c < columns; ++c) {
        std::string_view const cell = part < cells[c].size() ? cells[c][part] : std::string_view();
        std::string const space(widths[c] - std::min(widths[c], d::width(cell)), ' ');
        if (c > 0) line.append(gap, ' ');
        line += c == 0 ? std::string(cell) + space : space + std::string(cell);
      }
      line.erase(line.find_last_not_of(' ') + 1);
      lines.push_back(line);
    }
  };
  if (!table.title.empty()) {
    for (std::string const& line : d::wrap(table.title, limit)) lines.push_back(line);
  }
  if (columns > 0) {
    add(table.header);
    lines.emplace_back(std::min(total(), limit), '-');
    for (auto const& row : table.rows) add(row);
  }
  for (std::string const& note : table.notes) {
    for (std::string const& line : d::wrap(note, limit)) lines.push_back(line);
  }
  return lines;
}

/// Prints a table and an empty line.
/// @throws ShapeError as table_lines
inline void print_table(train::TextTable const& table, std::size_t limit = table_width) {
  for (std::string const& line : table_lines(table, limit)) fmt::print("{}\n", line);
  fmt::print("\n");
}

}  // namespace emprl::program
