// SPDX-License-Identifier: Apache-2.0
#pragma once

// Texts to learn a language from: plain text with a paragraph a line, and JSON lines with the turns
// of a dialogue each.

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/io/json_lines.hpp"
#include "emprl/io/lines.hpp"
#include "emprl/io/utf8.hpp"

namespace emprl::data {

/// The lines of a plain text; blank ones are passed over.
/// @param name  the file's, for messages
/// @throws IoError naming file:line for bytes that are not UTF-8; for a text without any line
inline std::vector<std::string> paragraphs_of(std::string_view text, std::string const& name) {
  io::LineReader reader(text, name);
  std::vector<std::string> paragraphs;
  for (std::string_view line; reader.next(line);) {
    reader.check_utf8(line);
    if (!io::is_blank(line)) paragraphs.emplace_back(line);
  }
  if (paragraphs.empty()) throw IoError(name + ": the file holds no text.");
  return paragraphs;
}

/// The turns of all dialogues of JSON lines, {"turns": ["...", ...]} each, in their order; blank
/// ones are passed over.
/// @param name  the file's, for messages
/// @throws IoError naming file:line for a line that is no JSON object or has no list of texts
/// "turns"; for a file without any turn
inline std::vector<std::string> turns_of(std::string text, std::string const& name) {
  io::JsonLinesReader reader(std::move(text), name);
  std::vector<std::string> turns;
  for (io::JsonLine line; reader.next(line);) {
    auto const field = line.value.find("turns");
    if (field == line.value.end() || !field->is_array()) {
      throw IoError(reader.where() + ": there is no list \"turns\".");
    }
    for (io::Json& turn : *field) {
      if (!turn.is_string()) {
        throw IoError(reader.where() + ": in \"turns\" there is " + std::string(turn.type_name()) +
                      ", and text was expected.");
      }
      auto& words = turn.get_ref<std::string&>();
      if (!io::is_blank(words)) turns.push_back(std::move(words));
    }
  }
  if (turns.empty()) throw IoError(name + ": the file holds no turns of dialogues.");
  return turns;
}

}  // namespace emprl::data
