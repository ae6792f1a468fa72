// SPDX-License-Identifier: Apache-2.0
#pragma once
/// Writes the synthetic corpus in the formats of the data sets that it stands in for:
///   DIR/dialogues/{train,valid,test}.csv   EmpatheticDialogues: no quoting, _comma_ for commas
///   DIR/dialogues/levels.jsonl             the known levels of every listener's turn, for checks
///   DIR/empathy/<mechanism>-reddit.csv     Mental Health Subreddits: RFC 4180 quoting
///   DIR/README.txt                         what this is, and what it is not

#include <array>
#include <cstdint>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/io/file.hpp"
#include "grammar.hpp"

namespace emprl::corpus {

/// What to write. A corpus is a function of these numbers alone.
struct CorpusConfig {
  index_t dialogues = 3000;   ///< conversations: 80 % train, 10 % valid, the rest test
  index_t posts = 900;        ///< (seeker, response) rows, the same in all three mechanisms
  std::uint64_t seed = 1;     ///< of every choice
  double label_noise = 0.04;  ///< share of the posts' levels that are replaced by another level

  /// @throws ConfigError that names the setting
  void validate() const {
    expects<ConfigError>(dialogues >= 10 && dialogues <= 200000,
                         "--dialogues must lie between 10 and 200000.");
    expects<ConfigError>(posts >= 1 && posts <= 1000000, "--posts must lie between 1 and 1000000.");
    expects<ConfigError>(label_noise >= 0.0 && label_noise <= 1.0,
                         "--label-noise must lie between 0 and 1.");
  }
};

/// What was written.
struct CorpusCounts {
  std::array<index_t, 3> dialogues{};  ///< train, valid, test
  index_t pairs = 0;                   ///< listener's turns in all three splits
  index_t posts = 0;
  index_t seekers = 0;
  double mode_share = 0.0;  ///< share of listener's turns that have their context's likely levels
};

namespace detail {

inline std::string dialogue_field(std::string_view text) {
  std::string out;
  for (char const c : text) {
    if (c == ',') {
      out += "_comma_";
    } else {
      out += c;
    }
  }
  return out;
}

inline std::string quoted_field(std::string_view text) {
  if (text.find_first_of(",\"\r\n") == std::string_view::npos) return std::string(text);
  std::string out = "\"";
  for (char const c : text) {
    if (c == '"') out += '"';
    out += c;
  }
  return out + '"';
}

inline std::string levels_json(Levels const& levels) {
  return "{\"er\": " + std::to_string(levels[0]) + ", \"ip\": " + std::to_string(levels[1]) +
         ", \"ex\": " + std::to_string(levels[2]) + "}";
}

inline std::string whole_text(Dialogue const& dialogue) {
  std::string out;
  for (Turn const& turn : dialogue.turns) out += turn.text + '\n';
  return out;
}

}  // namespace detail

inline constexpr std::array<std::string_view, 3> split_names{"train", "valid", "test"};
inline constexpr std::array<std::string_view, 3> mechanism_names{"emotional-reactions",
                                                                 "interpretations", "explorations"};

/// The conversations of the three splits. No conversation occurs twice, and no opening line is
/// shared by two splits.
/// @throws ConfigError if the settings ask for more conversations than the grammar can tell apart
inline std::array<std::vector<Dialogue>, 3> make_dialogues(CorpusConfig const& config) {
  index_t const held_out = config.dialogues / 10;
  std::array<index_t, 3> const counts{config.dialogues - 2 * held_out, held_out, held_out};
  std::array<std::vector<Dialogue>, 3> splits;
  std::map<std::string, std::size_t> openings;
  std::map<std::string, std::size_t> whole;
  auto const n = static_cast<index_t>(emotions().size());
  // Held-out splits come first: they are small, so the training split finds free openings more
  // easily than they would.
  for (std::size_t const split : {std::size_t{2}, std::size_t{1}, std::size_t{0}}) {
    for (index_t i = 0; i < counts[split]; ++i) {
      RandomSequence random(config.seed, Stream::corpus, static_cast<std::uint32_t>(split),
                            static_cast<std::uint32_t>(i));
      Emotion const& emotion = emotions()[static_cast<std::size_t>(i % n)];
      int tries = 0;
      for (;; ++tries) {
        expects<ConfigError>(tries < 1000,
                             "--dialogues asks for more different conversations about '" +
                                 std::string(emotion.name) + "' than there are.");
        Dialogue dialogue = make_dialogue(random, emotion);
        auto const opening = openings.try_emplace(dialogue.turns.front().text, split).first;
        if (opening->second != split) continue;
        if (!whole.try_emplace(detail::whole_text(dialogue), split).second) continue;
        splits[split].push_back(std::move(dialogue));
        break;
      }
    }
  }
  return splits;
}

/// Writes the whole corpus below `folder`; files of an earlier corpus are replaced one by one,
/// others are left alone.
/// @throws ConfigError, or IoError that names what could not be written
inline CorpusCounts write_corpus(std::filesystem::path const& folder, CorpusConfig const& config) {
  config.validate();
  CorpusCounts counts;
  io::ensure_directory(folder / "dialogues");
  io::ensure_directory(folder / "empathy");

  auto const splits = make_dialogues(config);
  std::string known;
  index_t likely = 0;
  index_t conversation = 0;
  for (std::size_t split = 0; split < splits.size(); ++split) {
    std::string csv = "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\n";
    for (Dialogue const& dialogue : splits[split]) {
      std::string const id = "synthetic:" + std::to_string(conversation++);
      for (std::size_t i = 0; i < dialogue.turns.size(); ++i) {
        Turn const& turn = dialogue.turns[i];
        csv += id + ',' + std::to_string(i + 1) + ',' + std::string(dialogue.emotion->name) + ',' +
               detail::dialogue_field(dialogue.prompt) + ',' + std::to_string(i % 2) + ',' +
               detail::dialogue_field(turn.text) + ",,\n";
        if (!turn.levels) continue;
        known += "{\"conv_id\": \"" + id + "\", \"utterance_idx\": " + std::to_string(i + 1) +
                 ", \"split\": \"" + std::string(split_names[split]) +
                 "\", \"levels\": " + detail::levels_json(*turn.levels) +
                 ", \"likely\": " + detail::levels_json(turn.mode) + "}\n";
        ++counts.pairs;
        if (*turn.levels == turn.mode) ++likely;
      }
    }
    counts.dialogues[split] = static_cast<index_t>(splits[split].size());
    io::write_file_atomically(folder / "dialogues" / (std::string(split_names[split]) + ".csv"),
                              csv);
  }
  counts.mode_share = static_cast<double>(likely) / static_cast<double>(counts.pairs);
  io::write_file_atomically(folder / "dialogues" / "levels.jsonl", known);

  std::array<std::string, 3> tables;
  for (std::string& table : tables) {
    table = "sp_id,rp_id,seeker_post,response_post,level,rationales\n";
  }
  constexpr std::uint32_t posts_step = 3;  // the splits took 0, 1 and 2
  while (counts.posts < config.posts) {
    RandomSequence random(config.seed, Stream::corpus, posts_step,
                          static_cast<std::uint32_t>(counts.seekers));
    Emotion const& emotion =
        emotions()[static_cast<std::size_t>(counts.seekers) % emotions().size()];
    auto const [post, scene] = make_seeker(random, emotion);
    std::array<double, 4> const replies{0.45, 0.3, 0.15, 0.1};
    int const n = 1 + detail::draw(random, replies);
    for (int j = 0; j < n && counts.posts < config.posts; ++j) {
      auto const [response, levels] = make_reply(random, scene);
      for (std::size_t k = 0; k < 3; ++k) {
        int level = levels[k];
        if (detail::chance(random, config.label_noise)) {
          level = (level + 1 + static_cast<int>(random.below(2))) % 3;
        }
        std::string const rationale =
            level > 0 && !response.clauses[k].empty() ? response.clauses[k] + "|" : "";
        tables[k] += "s" + std::to_string(counts.seekers) + ",r" + std::to_string(counts.posts) +
                     ',' + detail::quoted_field(post) + ',' + detail::quoted_field(response.text) +
                     ',' + std::to_string(level) + ',' + detail::quoted_field(rationale) + '\n';
      }
      ++counts.posts;
    }
    ++counts.seekers;
  }
  for (std::size_t k = 0; k < 3; ++k) {
    io::write_file_atomically(
        folder / "empathy" / (std::string(mechanism_names[k]) + "-reddit.csv"), tables[k]);
  }

  std::ostringstream digits;
  digits << config.label_noise;
  std::string const noise = digits.str();
  io::write_file_atomically(
      folder / "README.txt",
      "A synthetic corpus.\n\n"
      "Every line in this folder was composed by emprl-corpus from word lists and sentence "
      "templates.\n"
      "No person said or wrote any of it, and it is no part of EmpatheticDialogues or of the "
      "Mental\n"
      "Health Subreddits data, whose file formats it follows so that the same programs read it.\n"
      "It exists to show and to test the pipeline. Numbers measured on it say nothing about real\n"
      "conversations or about empathy.\n\n"
      "dialogues/     " +
          std::to_string(config.dialogues) + " conversations over 32 emotions, " +
          std::to_string(counts.pairs) +
          " (context, response) pairs\n"
          "               levels.jsonl holds the levels of each response, known by construction,\n"
          "               and the most likely levels of its context\n"
          "empathy/       " +
          std::to_string(counts.posts) + " responses to " + std::to_string(counts.seekers) +
          " posts, with the level of each of three mechanisms;\n"
          "               a share of " +
          noise +
          " of these levels is wrong on purpose\n\n"
          "made by        emprl-corpus --dialogues " +
          std::to_string(config.dialogues) + " --posts " + std::to_string(config.posts) +
          " --seed " + std::to_string(config.seed) + " --label-noise " + noise + "\n");
  return counts;
}

}  // namespace emprl::corpus
