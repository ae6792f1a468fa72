// SPDX-License-Identifier: Apache-2.0
#pragma once

// EmpatheticDialogues (Rashkin et al. 2019), official CSV:
//   conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags
// There is no quoting: every comma separates, a double quote is data, and a comma inside text is
// written "_comma_". The listener's turns are those of even utterance_idx; speaker_idx differs
// between public copies and is not used.
//
// A row that is broken (a wrong column count, an utterance_idx that is no positive number, a blank
// utterance, a turn given twice) is reported and left out. The turns that remain are never moved
// together: a listener's turn becomes a pair only if all turns before it are there, so whatever
// follows a lost row in its conversation is left out as well, and reported.
//
// Some copies append a ninth column to the listener's rows, the candidate answers separated by "|".
// A row of nine is taken as such when its seventh column holds ratings and its ninth a "|"; any
// other row of nine is broken, because then a comma inside the text was not escaped.

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/data/dialogue.hpp"
#include "emprl/io/csv.hpp"
#include "emprl/io/file.hpp"
#include "emprl/io/lines.hpp"
#include "emprl/io/utf8.hpp"

namespace emprl::data {

/// The 32 emotions of EmpatheticDialogues, in alphabetical order.
inline constexpr std::array<std::string_view, 32> emotions{
    "afraid",    "angry",       "annoyed",   "anticipating", "anxious",     "apprehensive",
    "ashamed",   "caring",      "confident", "content",      "devastated",  "disappointed",
    "disgusted", "embarrassed", "excited",   "faithful",     "furious",     "grateful",
    "guilty",    "hopeful",     "impressed", "jealous",      "joyful",      "lonely",
    "nostalgic", "prepared",    "proud",     "sad",          "sentimental", "surprised",
    "terrified", "trusting"};

/// The place of an emotion in `emotions`, if it is one of them.
inline std::optional<std::size_t> emotion_index(std::string_view name) {
  auto const found = std::lower_bound(emotions.begin(), emotions.end(), name);
  if (found == emotions.end() || *found != name) return std::nullopt;
  return static_cast<std::size_t>(found - emotions.begin());
}

/// How contexts are made of turns.
struct ContextOptions {
  std::string separator = " ";  ///< what stands between two turns
  index_t turns = 0;            ///< at most this many of the latest turns; 0 keeps all
};

/// @throws ConfigError naming the field
inline void validate(ContextOptions const& options) {
  expects<ConfigError>(options.turns >= 0, "the number of context turns must be 0 (all) or more.");
}

/// A conversation: its turns in order, as far as they are there without a hole.
struct Conversation {
  std::string id;
  std::string emotion;
  std::string prompt;
  std::vector<std::string> turns;
};

/// What a file of EmpatheticDialogues holds.
struct Conversations {
  std::vector<Conversation> conversations;  ///< in order of first appearance
  std::vector<DataWarning> warnings;        ///< rows left out
};

namespace detail {

/// The text with commas restored.
inline std::string restore_commas(std::string_view text) {
  constexpr std::string_view mark = "_comma_";
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0;;) {
    std::size_t const found = text.find(mark, at);
    out += text.substr(at, found == std::string_view::npos ? found : found - at);
    if (found == std::string_view::npos) return out;
    out += ',';
    at = found + mark.size();
  }
}

inline bool has_candidates_column(std::vector<std::string_view> const& fields) {
  return fields.size() == 9 && fields[8].find('|') != std::string_view::npos &&
         fields[6].find_first_not_of("0123456789|_") == std::string_view::npos;
}

}  // namespace detail

/// Reads one CSV of EmpatheticDialogues from memory.
/// @param name the file's name, for messages and warnings
/// @throws IoError naming file:line for a wrong header or invalid UTF-8
inline Conversations parse_empathetic_dialogues(std::string_view text, std::string const& name) {
  constexpr std::size_t columns = 8;
  io::LineReader lines(text, name);
  std::string_view line;
  if (!lines.next(line)) throw IoError(name + ": the file is empty.");
  if (!line.starts_with("conv_id,utterance_idx,context,prompt,speaker_idx,utterance")) {
    throw IoError(lines.where() +
                  ": this is not a file of EmpatheticDialogues; its first line must be "
                  "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags.");
  }

  struct Turn {
    index_t index;
    index_t line;
    std::string text;
  };
  Conversations out;
  std::vector<std::vector<Turn>> turns;
  std::unordered_map<std::string, std::size_t> known;
  auto const warn = [&](index_t at, std::string message) {
    out.warnings.push_back({name, at, std::move(message)});
  };
  while (lines.next(line)) {
    if (io::is_blank(line)) continue;
    lines.check_utf8(line);
    auto const fields = io::split_unquoted_csv(line);
    if (fields.size() != columns && !detail::has_candidates_column(fields)) {
      warn(lines.number(), "the row has " + std::to_string(fields.size()) +
                               " columns instead of 8 and is left out.");
      continue;
    }
    index_t index = 0;
    auto const parsed =
        std::from_chars(fields[1].data(), fields[1].data() + fields[1].size(), index);
    if (parsed.ec != std::errc{} || parsed.ptr != fields[1].data() + fields[1].size() ||
        index < 1) {
      warn(lines.number(), "utterance_idx is not a positive number; the row is left out.");
      continue;
    }
    if (io::is_blank(fields[5])) {
      warn(lines.number(), "the utterance is blank; the row is left out.");
      continue;
    }
    auto const [place, is_new] = known.try_emplace(std::string(fields[0]), turns.size());
    if (is_new) {
      turns.emplace_back();
      out.conversations.push_back(
          {std::string(fields[0]), std::string(fields[2]), detail::restore_commas(fields[3]), {}});
    }
    turns[place->second].push_back({index, lines.number(), detail::restore_commas(fields[5])});
  }

  for (std::size_t i = 0; i < turns.size(); ++i) {
    auto& rows = turns[i];
    Conversation& conversation = out.conversations[i];
    std::stable_sort(rows.begin(), rows.end(),
                     [](Turn const& a, Turn const& b) { return a.index < b.index; });
    index_t expected = 1;
    for (Turn& turn : rows) {
      if (turn.index < expected) {
        warn(turn.line, "turn " + std::to_string(turn.index) + " of " + conversation.id +
                            " was there before; the row is left out.");
      } else if (turn.index > expected) {
        warn(turn.line, "turn " + std::to_string(expected) + " of " + conversation.id +
                            " is missing; turn " + std::to_string(turn.index) +
                            " and what follows are left out.");
        break;
      } else {
        conversation.turns.push_back(std::move(turn.text));
        ++expected;
      }
    }
  }
  std::erase_if(out.conversations, [](Conversation const& c) { return c.turns.empty(); });
  std::stable_sort(out.warnings.begin(), out.warnings.end(),
                   [](DataWarning const& a, DataWarning const& b) { return a.line < b.line; });
  return out;
}

/// Reads one CSV of EmpatheticDialogues.
/// @throws IoError naming the file, and the line where there is one
inline Conversations read_empathetic_dialogues(std::filesystem::path const& file) {
  return parse_empathetic_dialogues(io::read_file(file), file.string());
}

/// The listener's turns with what was said before: the turns of even utterance_idx, counted from 1.
/// @throws ConfigError for options out of range
inline std::vector<Pair> listener_pairs(Conversations const& from,
                                        ContextOptions const& options = {}) {
  validate(options);
  std::vector<Pair> pairs;
  for (Conversation const& conversation : from.conversations) {
    auto const& turns = conversation.turns;
    for (std::size_t i = 1; i < turns.size(); i += 2) {
      std::size_t const kept =
          options.turns == 0 ? i : std::min(i, static_cast<std::size_t>(options.turns));
      Pair pair;
      pair.id = conversation.id + ":" + std::to_string(i + 1);
      pair.emotion = conversation.emotion;
      pair.response = turns[i];
      for (std::size_t k = i - kept; k < i; ++k) {
        if (k > i - kept) pair.context += options.separator;
        pair.context += turns[k];
      }
      pairs.push_back(std::move(pair));
    }
  }
  return pairs;
}

/// All utterances, of both speakers, in order: what a tokenizer is trained on.
inline std::vector<std::string> utterances(Conversations const& from) {
  std::vector<std::string> all;
  for (Conversation const& conversation : from.conversations) {
    all.insert(all.end(), conversation.turns.begin(), conversation.turns.end());
  }
  return all;
}

}  // namespace emprl::data
