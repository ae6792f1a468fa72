// SPDX-License-Identifier: Apache-2.0
#pragma once

// What the rest of the library knows of data: pairs of a context and a response, posts with a
// level, and the three mechanisms of empathy (Sharma et al. 2020).

#include <array>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"

namespace emprl::data {

/// The mechanisms of empathy: emotional reactions, interpretations, explorations.
enum class Mechanism { er, ip, ex };

/// All mechanisms, in the order in which levels are listed.
inline constexpr std::array<Mechanism, 3> all_mechanisms{Mechanism::er, Mechanism::ip,
                                                         Mechanism::ex};

/// How many levels a mechanism has: 0 none, 1 weak, 2 strong.
inline constexpr int level_count = 3;

/// Levels of er, ip, ex; each 0 .. 2.
using Levels = std::array<int, 3>;

/// "er", "ip" or "ex".
constexpr std::string_view mechanism_name(Mechanism mechanism) {
  constexpr std::array<std::string_view, 3> names{"er", "ip", "ex"};
  return names[static_cast<std::size_t>(mechanism)];
}

/// "emotional reactions", "interpretations" or "explorations".
constexpr std::string_view mechanism_title(Mechanism mechanism) {
  constexpr std::array<std::string_view, 3> titles{"emotional reactions", "interpretations",
                                                   "explorations"};
  return titles[static_cast<std::size_t>(mechanism)];
}

/// The mechanism of a short name.
/// @throws ConfigError for any other name
inline Mechanism mechanism_of(std::string_view name) {
  for (Mechanism const mechanism : all_mechanisms) {
    if (mechanism_name(mechanism) == name) return mechanism;
  }
  throw ConfigError("\"" + std::string(name) + "\" is no mechanism: er, ip or ex was expected.");
}

/// One example: what was said so far, and what was answered.
struct Pair {
  std::string id;        ///< the file's own name for it, conversation:utterance, or file:line
  std::string context;   ///< never blank
  std::string response;  ///< never blank where the loader was asked for responses
  std::string emotion;   ///< empty where unknown
  std::optional<Levels> levels;
};

/// One row of Mental Health Subreddits: a seeker's post, a peer's response, and one mechanism's
/// level of the response.
struct Post {
  std::string seeker_id;
  std::string response_id;
  std::string seeker;
  std::string response;
  int level = 0;
};

/// Something in a file that was passed over.
struct DataWarning {
  std::string file;
  index_t line = 0;
  std::string message;
};

/// "file:line: message".
inline std::string to_string(DataWarning const& warning) {
  return warning.file + ":" + std::to_string(warning.line) + ": " + warning.message;
}

/// Which part of a data set.
enum class Split { train, valid, test };

/// "train", "valid" or "test".
constexpr std::string_view split_name(Split split) {
  constexpr std::array<std::string_view, 3> names{"train", "valid", "test"};
  return names[static_cast<std::size_t>(split)];
}

}  // namespace emprl::data
