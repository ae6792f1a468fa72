// SPDX-License-Identifier: Apache-2.0
#pragma once

// Identifiers that a test can read off: a word "er2" in the response makes its emotional reaction
// level 2, and so on; the last such word counts, without one the level is 0. The likeliest level
// has probability 0.8, the others 0.1.

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "emprl/data/dialogue.hpp"
#include "emprl/empathy/levels.hpp"

namespace emprl::train_test {

inline data::Levels toy_levels(std::string const& response) {
  data::Levels levels{0, 0, 0};
  for (data::Mechanism const mechanism : data::all_mechanisms) {
    std::string const name(data::mechanism_name(mechanism));
    auto const at = response.rfind(name);
    if (at == std::string::npos || at + 2 >= response.size()) continue;
    char const digit = response[at + 2];
    if (digit >= '0' && digit <= '2') levels[static_cast<std::size_t>(mechanism)] = digit - '0';
  }
  return levels;
}

struct ToyScorer {
  std::size_t calls = 0;

  std::vector<empathy::LevelProbabilities> operator()(std::span<std::string const> contexts,
                                                      std::span<std::string const> responses) {
    ++calls;
    std::vector<empathy::LevelProbabilities> out;
    for (std::size_t i = 0; i < contexts.size(); ++i) {
      empathy::LevelProbabilities p;
      auto const levels = toy_levels(responses[i]);
      for (std::size_t k = 0; k < 3; ++k) {
        p[k] = {0.1, 0.1, 0.1};
        p[k][static_cast<std::size_t>(levels[k])] = 0.8;
      }
      out.push_back(p);
    }
    return out;
  }
};

/// Pairs of dialogues of one, two and three turns whose responses have the levels that they name.
inline std::vector<data::Pair> toy_pairs(std::size_t n) {
  std::vector<data::Pair> pairs;
  for (std::size_t dialogue = 0; pairs.size() < n; ++dialogue) {
    std::string context = "dialogue " + std::to_string(dialogue);
    for (std::size_t turn = 0; turn <= dialogue % 3 && pairs.size() < n; ++turn) {
      std::size_t const i = pairs.size();
      data::Levels const levels{static_cast<int>(i % 3), static_cast<int>(i / 2 % 3),
                                static_cast<int>(i * i / 3 % 3)};
      data::Pair pair;
      pair.id = "hit:" + std::to_string(dialogue) + ":" + std::to_string(turn);
      pair.context = context;
      pair.response = "reply " + std::to_string(i % 11) + " er" + std::to_string(levels[0]) +
                      " ip" + std::to_string(levels[1]) + " ex" + std::to_string(levels[2]);
      pair.emotion = i % 2 == 0 ? "joyful" : "sad";
      pair.levels = levels;
      context += " " + pair.response + " and so on";
      pairs.push_back(pair);
    }
  }
  return pairs;
}

}  // namespace emprl::train_test
