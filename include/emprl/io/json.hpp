// SPDX-License-Identifier: Apache-2.0
#pragma once

// JSON from outside: strict, of bounded depth, order kept. The parser of nlohmann-json is iterative
// but its values are copied and printed by recursion, so the depth is bounded before anything is
// built.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "emprl/core/error.hpp"
#include "emprl/io/file.hpp"
#include "emprl/io/utf8.hpp"

namespace emprl::io {

/// A JSON value whose objects keep the order of their keys.
using Json = nlohmann::ordered_json;

/// The deepest nesting that any reader here accepts.
inline constexpr int max_json_depth = 64;

/// The depth to which brackets are nested in a JSON text (strings passed over); linear, without
/// recursion.
inline int json_depth(std::string_view text) {
  int depth = 0;
  int deepest = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    char const c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > deepest) deepest = depth;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return deepest;
}

/// What to do about a key that an object has twice.
enum class DuplicateKeys { last_wins, refuse };

/// Reads one JSON value that is the whole of a text.
/// @param where what to call the text in messages: a file, or file:line
/// @throws IoError for invalid UTF-8, NUL, bad syntax, nesting beyond max_json_depth, and duplicate
/// keys where refused
inline Json parse_json(std::string_view text, std::string const& where,
                       DuplicateKeys duplicates = DuplicateKeys::last_wins) {
  if (std::size_t const bad = find_invalid_utf8(text); bad != std::string_view::npos) {
    throw IoError(where + ": byte " + std::to_string(bad + 1) + " is not valid UTF-8.");
  }
  // The parser takes a NUL for the end and would pass over whatever comes after it.
  if (std::size_t const nul = text.find('\0'); nul != std::string_view::npos) {
    throw IoError(where + ": this is not valid JSON (byte " + std::to_string(nul + 1) +
                  " is NUL).");
  }
  if (json_depth(text) > max_json_depth) {
    throw IoError(where + ": this JSON is nested more than " + std::to_string(max_json_depth) +
                  " levels deep.");
  }
  std::vector<std::set<std::string>> open;
  auto const watch = [&](int, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) {
      open.emplace_back();
    } else if (event == Json::parse_event_t::object_end) {
      open.pop_back();
    } else if (event == Json::parse_event_t::key) {
      auto const& key = parsed.get_ref<std::string const&>();
      if (!open.back().insert(key).second) {
        throw IoError(where + ": the key \"" + key + "\" appears twice in one object.");
      }
    }
    return true;
  };
  try {
    if (duplicates == DuplicateKeys::refuse) return Json::parse(text.begin(), text.end(), watch);
    return Json::parse(text.begin(), text.end());
  } catch (nlohmann::json::exception const& error) {
    std::string_view reason = error.what();
    // The library's own prefix, "[json.exception.parse_error.101] ", tells people nothing.
    if (auto const end = reason.find("] "); end != std::string_view::npos) {
      reason.remove_prefix(end + 2);
    }
    throw IoError(where + ": this is not valid JSON (" + std::string(reason) + ").");
  }
}

/// The whole number that a JSON value holds. Reading one from a number with a fraction would cut
/// it, and from one beyond the range of 64 bits is undefined behaviour; nlohmann-json does both
/// without a word.
/// @throws IoError that begins with `where` for anything but a whole number of 64 bits
inline std::int64_t whole_number(Json const& value, std::string const& where) {
  bool const beyond = value.is_number_unsigned() &&
                      value.get<std::uint64_t>() >
                          static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (!value.is_number_integer() || beyond) {
    throw IoError(where + ": a whole number was expected, not " +
                  value.dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 40) + ".");
  }
  return value.get<std::int64_t>();
}

/// Reads a file that holds one JSON object.
/// @throws IoError naming the file
inline Json read_json_file(std::filesystem::path const& path) {
  std::string const text = read_file(path);
  if (is_blank(text)) throw IoError(path.string() + ": the file is empty; JSON was expected.");
  Json value = parse_json(without_byte_order_mark(text), path.string());
  if (!value.is_object()) throw IoError(path.string() + ": a JSON object was expected.");
  return value;
}

/// Writes a JSON file, indented, ending in a newline, all or nothing; text that is not UTF-8 is
/// mended with U+FFFD.
/// @throws IoError naming the file
inline void write_json_file(std::filesystem::path const& path, Json const& value) {
  write_file_atomically(path, value.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

}  // namespace emprl::io
