// SPDX-License-Identifier: Apache-2.0
#pragma once

// Mental Health Subreddits (Sharma et al. 2020): three CSVs, one a mechanism, quoted, with newlines
// inside fields:
//   sp_id,rp_id,seeker_post,response_post,level,rationales
// Some (sp_id, rp_id) repeat, and one seeker's post has several responses: a split by row would
// leak.

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/data/dialogue.hpp"
#include "emprl/io/csv.hpp"
#include "emprl/io/utf8.hpp"

namespace emprl::data {

/// The file of a mechanism's levels.
constexpr std::string_view mental_health_file(Mechanism mechanism) {
  constexpr std::array<std::string_view, 3> files{
      "emotional-reactions-reddit.csv", "interpretations-reddit.csv", "explorations-reddit.csv"};
  return files[static_cast<std::size_t>(mechanism)];
}

/// Reads the posts of one mechanism from CSV that is in memory or in a file.
/// @throws IoError naming file:line for a wrong header, a wrong column count, a blank post or
/// response, a level other
///         than 0, 1, 2, and invalid UTF-8
inline std::vector<Post> parse_posts(io::QuotedCsvReader& reader, std::string const& name) {
  std::vector<std::string> row;
  if (!reader.next(row)) throw IoError(name + ": the file is empty.");
  std::vector<std::string> const header{"sp_id",         "rp_id", "seeker_post",
                                        "response_post", "level", "rationales"};
  bool right = row.size() >= 5;
  for (std::size_t i = 0; right && i < 5; ++i) right = row[i] == header[i];
  if (!right) {
    throw IoError(reader.where() +
                  ": this is not a file of Mental Health Subreddits; its first line must be "
                  "sp_id,rp_id,seeker_post,response_post,level,rationales.");
  }
  std::size_t const columns = row.size();
  std::vector<Post> posts;
  while (reader.next(row)) {
    auto const check = [&](bool ok, std::string const& what) {
      if (!ok) throw IoError(reader.where() + ": " + what);
    };
    check(row.size() == columns, "the row has " + std::to_string(row.size()) +
                                     " columns instead of " + std::to_string(columns) + ".");
    check(!row[0].empty(), "sp_id is empty.");
    check(!io::is_blank(row[2]), "seeker_post is empty.");
    check(!io::is_blank(row[3]), "response_post is empty.");
    check(row[4].size() == 1 && row[4][0] >= '0' && row[4][0] < '0' + level_count,
          "level \"" + row[4] + "\" is not one of 0, 1, 2.");
    posts.push_back({row[0], row[1], row[2], row[3], row[4][0] - '0'});
  }
  if (posts.empty()) throw IoError(name + ": the file holds no posts.");
  return posts;
}

/// Reads one CSV of posts.
/// @throws IoError as parse_posts, and naming the file if it cannot be read
inline std::vector<Post> read_posts(std::filesystem::path const& file) {
  io::QuotedCsvReader reader(file);
  return parse_posts(reader, file.string());
}

/// Reads the posts of one mechanism from the folder of the three CSVs.
/// @throws IoError naming the missing file, or as read_posts
inline std::vector<Post> load_mental_health(std::filesystem::path const& folder,
                                            Mechanism mechanism) {
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error)) {
    throw IoError("the folder " + folder.string() + " of the empathy data does not exist.");
  }
  auto const file = folder / mental_health_file(mechanism);
  if (!std::filesystem::exists(file, error)) {
    throw IoError("the folder " + folder.string() + " has no " +
                  std::string(mental_health_file(mechanism)) + ".");
  }
  return read_posts(file);
}

/// What part of the seekers trains, selects, and judges; the rest of 1 trains.
struct SplitFractions {
  double valid = 0.1;
  double test = 0.1;
};

/// The part that a seeker belongs to: a function of the id and the seed alone, so that it is the
/// same for every mechanism, for every file, and whatever other rows there are.
inline Split part_of_seeker(std::string_view seeker_id, std::uint64_t seed,
                            SplitFractions const& fractions = {}) {
  // FNV-1a turns the id into an address; Philox makes the draws at neighbouring addresses
  // independent.
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (char const c : seeker_id) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  }
  RngAddress const at{seed, Stream::split, static_cast<std::uint32_t>(hash >> 32),
                      static_cast<std::uint32_t>(hash), 0};
  double const u = uniform(at);
  if (u < fractions.test) return Split::test;
  if (u < fractions.test + fractions.valid) return Split::valid;
  return Split::train;
}

/// Posts by part.
struct PostSplits {
  std::vector<Post> train;
  std::vector<Post> valid;
  std::vector<Post> test;
};

/// Splits posts by seeker; no seeker is in two parts, and the order of rows is kept.
/// @throws ConfigError unless the fractions are not negative and leave something to train on
inline PostSplits split_by_seeker(std::span<Post const> posts, std::uint64_t seed,
                                  SplitFractions const& fractions = {}) {
  expects<ConfigError>(
      fractions.valid >= 0.0 && fractions.test >= 0.0 && fractions.valid + fractions.test < 1.0,
      "the fractions of seekers to select and to judge on must not be negative and must leave some "
      "to train on.");
  PostSplits parts;
  for (Post const& post : posts) {
    switch (part_of_seeker(post.seeker_id, seed, fractions)) {
      case Split::train:
        parts.train.push_back(post);
        break;
      case Split::valid:
        parts.valid.push_back(post);
        break;
      case Split::test:
        parts.test.push_back(post);
        break;
    }
  }
  return parts;
}

/// How many posts have level 0, 1, 2.
inline std::array<index_t, 3> level_counts(std::span<Post const> posts) {
  std::array<index_t, 3> counts{};
  for (Post const& post : posts) ++counts[static_cast<std::size_t>(post.level)];
  return counts;
}

}  // namespace emprl::data
