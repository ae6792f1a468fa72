// SPDX-License-Identifier: Apache-2.0
#pragma once

// Options as JSON and back: what a command was told, so that it can be told again.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstddef>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/io/json.hpp"
#include "emprl/io/json_lines.hpp"

namespace emprl::program {

using Words = std::vector<std::string>;

/// Edits (insert, delete, replace) between two words.
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i + 1);
    for (std::size_t j = 0; j < b.size(); ++j) {
      std::size_t const replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({row[j] + 1, row[j + 1] + 1, replaced});
    }
  }
  return row.back();
}

/// " (did you mean X?)" if one of the known words is near.
inline std::string suggestion(std::string const& word, Words const& known) {
  std::string best;
  std::size_t distance = 3;
  for (std::string const& candidate : known) {
    std::size_t const d = edit_distance(word, candidate);
    if (d < distance && d < candidate.size() / 2) {
      distance = d;
      best = candidate;
    }
  }
  return best.empty() ? "" : " (did you mean " + best + "?)";
}

/// Whether the option takes no value.
inline bool is_flag(CLI::Option const& option) {
  return option.get_items_expected_max() == 0;
}

/// The option's name without dashes, its key in configuration files; empty for --help and for
/// --config.
inline std::string key_of(CLI::App const& command, CLI::Option const& option) {
  if (option.get_lnames().empty()) return {};
  std::string const& name = option.get_lnames().front();
  // `init` is the exception: its --config is a model's configuration and an option like others.
  bool const file_of_options = name == "config" && command.get_name() != "init";
  return name == "help" || file_of_options ? std::string() : name;
}

/// A value as configuration files hold it: numbers as numbers where the option takes some.
inline io::Json typed(CLI::Option const& option, std::string const& text) {
  std::string const type = option.get_type_name();
  if (type.starts_with("INT") || type.starts_with("UINT") || type.starts_with("FLOAT")) {
    io::Json value = io::Json::parse(text, nullptr, false);
    if (value.is_number()) return value;
  }
  return text;
}

/// Whether the option makes a list.
inline bool takes_many(CLI::Option const& option) {
  return option.get_items_expected_max() > 1;
}

/// The elements of "[a,b,c]", which is how CLI11 writes the default of a list.
inline Words elements_of(std::string const& text) {
  Words out;
  if (!text.starts_with('[')) return {text};
  if (text.size() <= 2) return out;
  for (std::size_t begin = 1; begin < text.size();) {
    std::size_t const end = std::min(text.find(',', begin), text.size() - 1);
    out.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return out;
}

/// Whether the key itself is the flag's negative ("!--fixed-kl"): giving it makes the variable
/// false.
inline bool is_negative(CLI::Option const& flag, std::string const& key) {
  auto const& names = flag.get_fnames();
  return std::find(names.begin(), names.end(), key) != names.end();
}

/// Every option with its value after parsing. Options without a value, and those that a given one
/// excludes, are left out, so that the result can be read back.
inline io::Json resolve(CLI::App const& command) {
  io::Json out = io::Json::object();
  for (CLI::Option const* option : command.get_options()) {
    std::string const key = key_of(command, *option);
    if (key.empty()) continue;
    bool const given = option->count() > 0;
    if (is_flag(*option)) {
      // true says that the key was given, also where giving it means no. A flag that has a positive
      // and a negative name may be on by itself: not given, it is left out.
      bool const negative = is_negative(*option, key);
      if (given) {
        out[key] = (option->results().back() != "false") != negative;
      } else if (negative || option->get_fnames().empty()) {
        out[key] = false;
      }
      continue;
    }
    auto const excluded = option->get_excludes();
    if (!given && std::any_of(excluded.begin(), excluded.end(),
                              [](CLI::Option const* other) { return other->count() > 0; })) {
      continue;
    }
    std::string const preset = option->get_default_str();
    if (takes_many(*option)) {
      io::Json list = io::Json::array();
      for (std::string const& text : given ? Words(option->results()) : elements_of(preset)) {
        list.push_back(typed(*option, text));
      }
      if (!list.empty()) out[key] = std::move(list);
    } else if (given) {
      out[key] = typed(*option, option->results().back());
    } else if (!preset.empty()) {
      out[key] = typed(*option, preset);
    }
  }
  return out;
}

/// Whether words of a command line name the option.
inline bool is_given(CLI::Option const& option, Words const& words) {
  return std::any_of(words.begin(), words.end(), [&](std::string const& word) {
    auto const names = [&](std::string const& name) {
      return word == "--" + name || word.starts_with("--" + name + "=");
    };
    auto const shorts = [&](std::string const& name) { return word.starts_with("-" + name); };
    return std::any_of(option.get_lnames().begin(), option.get_lnames().end(), names) ||
           std::any_of(option.get_snames().begin(), option.get_snames().end(), shorts);
  });
}

/// Appends --key and its value. @throws ConfigError unless that is text or a number
inline void append_value(Words& words, std::string const& key, io::Json const& value,
                         std::string const& where) {
  if (!value.is_string() && !value.is_number()) {
    throw ConfigError(where + ": \"" + key + "\" must be text or a number, not " +
                      io::to_json_line(value).substr(0, 40) + ".");
  }
  words.push_back("--" + key);
  words.push_back(value.is_string() ? value.get<std::string>() : value.dump());
}

/// The keys that a command's configuration may hold.
inline Words known_keys(CLI::App const& command) {
  Words keys;
  for (CLI::Option const* option : command.get_options()) {
    if (std::string key = key_of(command, *option); !key.empty()) keys.push_back(std::move(key));
  }
  return keys;
}

/// The options that a configuration gives and the command line, which wins, does not: words to
/// parse before it.
/// @param where the file's name, for messages
/// @throws ConfigError naming file and key
inline Words options_from(CLI::App const& command, io::Json const& json, std::string const& where,
                          Words const& words) {
  Words out;
  for (auto const& [key, value] : json.items()) {
    CLI::Option const* const option = command.get_option_no_throw("--" + key);
    if (option == nullptr || key_of(command, *option).empty()) {
      throw ConfigError(where + ": \"" + key + "\" is not an option of emprl " +
                        command.get_name() + suggestion(key, known_keys(command)) + ".");
    }
    auto const excluded = option->get_excludes();
    bool const overruled = is_given(*option, words) || std::any_of(excluded.begin(), excluded.end(),
                                                                   [&](CLI::Option const* other) {
                                                                     return is_given(*other, words);
                                                                   });
    if (overruled || value.is_null()) continue;
    if (is_flag(*option)) {
      if (!value.is_boolean()) {
        throw ConfigError(where + ": \"" + key + "\" must be true or false.");
      }
      if (value.get<bool>()) {
        out.push_back("--" + key);
      } else if (!option->get_fnames().empty() && !is_negative(*option, key)) {
        out.push_back("--" + key + "=false");
      }
    } else if (value.is_array()) {
      if (!takes_many(*option)) {
        throw ConfigError(where + ": \"" + key + "\" takes one value, not a list.");
      }
      for (io::Json const& element : value) append_value(out, key, element, where);
    } else {
      append_value(out, key, value, where);
    }
  }
  return out;
}

}  // namespace emprl::program
