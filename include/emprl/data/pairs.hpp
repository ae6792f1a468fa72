// SPDX-License-Identifier: Apache-2.0
#pragma once

// Pairs from wherever they come: JSON lines, or a folder of EmpatheticDialogues.
//
// JSON lines hold "context" and "response", and may hold "emotion" and "levels": {"er": 0..2, "ip":
// 0..2, "ex": 0..2}. "id" (text or a whole number) names the pair; without it its name is
// file:line.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/data/dialogue.hpp"
#include "emprl/data/empathetic_dialogues.hpp"
#include "emprl/io/json.hpp"
#include "emprl/io/json_lines.hpp"
#include "emprl/io/utf8.hpp"

namespace emprl::data {

/// Whether a line must hold a response.
enum class Responses { required, optional };

namespace detail {

inline std::string text_field(io::Json const& object, char const* key, bool required,
                              std::string const& where) {
  auto const field = object.find(key);
  if (field == object.end()) {
    if (required) throw IoError(where + ": there is no \"" + key + "\".");
    return {};
  }
  if (!field->is_string()) throw IoError(where + ": \"" + key + "\" must be text.");
  auto const& text = field->get_ref<std::string const&>();
  if (required && io::is_blank(text)) throw IoError(where + ": \"" + key + "\" is empty.");
  return text;
}

}  // namespace detail

/// {"er": a, "ip": b, "ex": c} as levels.
/// @throws IoError that begins with `where` unless all three are there, each 0, 1 or 2
inline Levels levels_from_json(io::Json const& value, std::string const& where) {
  if (!value.is_object()) {
    throw IoError(where + R"(: "levels" must be {"er": 0..2, "ip": 0..2, "ex": 0..2}.)");
  }
  Levels levels{};
  for (Mechanism const mechanism : all_mechanisms) {
    std::string const key(mechanism_name(mechanism));
    auto const level = value.find(key);
    if (level == value.end()) throw IoError(where + ": \"levels\" has no \"" + key + "\".");
    if (!level->is_number_integer() || level->get<std::int64_t>() < 0 ||
        level->get<std::int64_t>() >= level_count) {
      throw IoError(where + ": level " + level->dump() + " of \"" + key +
                    "\" is not one of 0, 1, 2.");
    }
    levels[static_cast<std::size_t>(mechanism)] = level->get<int>();
  }
  return levels;
}

/// Levels as {"er": a, "ip": b, "ex": c}.
inline io::Json levels_to_json(Levels const& levels) {
  io::Json value = io::Json::object();
  for (Mechanism const mechanism : all_mechanisms) {
    value[std::string(mechanism_name(mechanism))] = levels[static_cast<std::size_t>(mechanism)];
  }
  return value;
}

/// One object as a pair.
/// @param where "file:line", for messages and for the id of a pair without one
/// @throws IoError for a context or (where required) a response that is missing, not text or blank;
/// for bad levels
inline Pair pair_from_json(io::Json const& object, std::string const& where,
                           Responses responses = Responses::required) {
  Pair pair;
  pair.context = detail::text_field(object, "context", true, where);
  pair.response = detail::text_field(object, "response", responses == Responses::required, where);
  if (auto const emotion = object.find("emotion"); emotion != object.end() && !emotion->is_null()) {
    pair.emotion = detail::text_field(object, "emotion", false, where);
  }
  if (auto const levels = object.find("levels"); levels != object.end() && !levels->is_null()) {
    pair.levels = levels_from_json(*levels, where);
  }
  pair.id = where;
  if (auto const id = object.find("id"); id != object.end()) {
    if (id->is_string()) pair.id = id->get<std::string>();
    if (id->is_number_integer()) pair.id = id->dump();
  }
  return pair;
}

/// A pair as an object, for JSON lines.
inline io::Json pair_to_json(Pair const& pair) {
  io::Json object{{"id", pair.id}, {"context", pair.context}, {"response", pair.response}};
  if (!pair.emotion.empty()) object["emotion"] = pair.emotion;
  if (pair.levels) object["levels"] = levels_to_json(*pair.levels);
  return object;
}

/// All pairs of a file of JSON lines.
/// @throws IoError naming file:line; also for a file without any pair
inline std::vector<Pair> read_pairs(std::filesystem::path const& file,
                                    Responses responses = Responses::required) {
  io::JsonLinesReader reader(file);
  std::vector<Pair> pairs;
  for (io::JsonLine line; reader.next(line);) {
    pairs.push_back(pair_from_json(line.value, reader.where(), responses));
  }
  if (pairs.empty()) throw IoError(file.string() + ": the file holds no pairs.");
  return pairs;
}

/// Pairs, and where they came from.
struct PairSet {
  std::vector<Pair> pairs;
  std::filesystem::path file;
  Split split = Split::train;  ///< the split that was used; it may differ from the one asked for
  bool has_splits = false;  ///< false for a single file, which is used whole whatever was asked for
  std::vector<DataWarning> warnings;  ///< rows left out
};

namespace detail {

inline bool is_csv(std::filesystem::path const& path) {
  return path.extension() == ".csv";
}

inline PairSet read_pair_file(std::filesystem::path const& file, ContextOptions const& options) {
  PairSet set;
  set.file = file;
  if (is_csv(file)) {
    Conversations const conversations = read_empathetic_dialogues(file);
    set.pairs = listener_pairs(conversations, options);
    set.warnings = conversations.warnings;
    if (set.pairs.empty()) throw IoError(file.string() + ": the file holds no pairs.");
  } else {
    set.pairs = read_pairs(file);
  }
  return set;
}

}  // namespace detail

/// Loads one split. A folder holds train.csv, valid.csv, test.csv (EmpatheticDialogues) or the same
/// names with .jsonl; where test is absent valid is used instead, and `split` of the result says
/// so. A file (.csv, else JSON lines) is used whole.
/// @throws IoError naming what is missing or malformed
inline PairSet load_pairs(std::filesystem::path const& path, Split split,
                          ContextOptions const& options = {}) {
  validate(options);
  std::error_code error;
  if (!std::filesystem::is_directory(path, error)) {
    PairSet set = detail::read_pair_file(path, options);
    set.split = split;
    return set;
  }
  std::vector<Split> order{split};
  if (split == Split::test) order.push_back(Split::valid);
  for (Split const candidate : order) {
    for (char const* extension : {".csv", ".jsonl"}) {
      auto const file = path / (std::string(split_name(candidate)) + extension);
      if (!std::filesystem::exists(file, error)) continue;
      PairSet set = detail::read_pair_file(file, options);
      set.split = candidate;
      set.has_splits = true;
      return set;
    }
  }
  throw IoError("the folder " + path.string() + " has no " + std::string(split_name(split)) +
                ".csv" + (split == Split::test ? " and no valid.csv." : "."));
}

/// All texts that a tokenizer should see of one split: each utterance once for EmpatheticDialogues;
/// contexts that no later context of the same dialogue repeats, and responses, for JSON lines.
inline std::vector<std::string> load_texts(std::filesystem::path const& path, Split split) {
  PairSet const set = load_pairs(path, split);
  if (detail::is_csv(set.file)) return utterances(read_empathetic_dialogues(set.file));
  std::vector<std::string> texts;
  for (std::size_t i = 0; i < set.pairs.size(); ++i) {
    bool const repeated =
        i + 1 < set.pairs.size() && set.pairs[i + 1].context.starts_with(set.pairs[i].context);
    if (!repeated) texts.push_back(set.pairs[i].context);
    texts.push_back(set.pairs[i].response);
  }
  return texts;
}

/// A data set cut in two.
struct HeldOut {
  std::vector<Pair> kept;
  std::vector<Pair> held_out;
};

/// Cuts a set that has no splits of its own. A dialogue is never cut: a pair whose context begins
/// with the context of the pair before it belongs to the same dialogue. Which dialogues are held
/// out is a function of the seed and of their order; neither part is empty.
/// @throws ConfigError unless 0 < fraction < 1; IoError if there is but one dialogue
inline HeldOut hold_out(std::span<Pair const> pairs, double fraction, std::uint64_t seed) {
  expects<ConfigError>(fraction > 0.0 && fraction < 1.0,
                       "the fraction of dialogues to hold out must lie between 0 and 1.");
  std::vector<index_t> dialogue(pairs.size());
  index_t count = 0;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    bool const continues = i > 0 && pairs[i].context.starts_with(pairs[i - 1].context);
    if (!continues) ++count;
    dialogue[i] = count - 1;
  }
  expects<IoError>(count >= 2, "at least two dialogues are needed to hold some out.");
  std::vector<index_t> order(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<index_t>(i);
  RandomSequence(seed, Stream::split).shuffle(std::span<index_t>(order));
  auto const wanted = static_cast<index_t>(fraction * static_cast<double>(count) + 0.5);
  index_t const taken = std::min(std::max(wanted, index_t{1}), count - 1);
  std::vector<bool> out(order.size(), false);
  for (std::size_t i = 0; i < static_cast<std::size_t>(taken); ++i) {
    out[static_cast<std::size_t>(order[i])] = true;
  }
  HeldOut parts;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    auto& part = out[static_cast<std::size_t>(dialogue[i])] ? parts.held_out : parts.kept;
    part.push_back(pairs[i]);
  }
  return parts;
}

}  // namespace emprl::data
