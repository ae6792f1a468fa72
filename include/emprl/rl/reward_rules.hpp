// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rewards that are rules: each needs nothing but the text or the tokens of an episode. Alone they
// are easily exploited (a rule is satisfied by nonsense too); combine them with a model's reward
// (reward_combinators.hpp), or use them as gates.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/rl/concepts.hpp"
#include "emprl/rl/rewards.hpp"
#include "emprl/rl/types.hpp"

namespace emprl::rl {

/// Rewards a response that does not repeat itself:
///   score = distinct n-grams / n-grams, over the generated tokens, the end token included,
/// in (0, 1]; 1 for a response of fewer than n tokens. (Distinct-n of one response; that of a
/// corpus is metrics/distinct.hpp.)
class RepetitionReward {
 public:
  /// @throws ConfigError unless n is at least 1
  explicit RepetitionReward(int n) : n_(static_cast<std::size_t>(n)) {
    expects<ConfigError>(n >= 1, "the n of a repetition reward must be at least 1");
  }

  void operator()(EpisodeBatch const& episodes, std::span<float> scores) const {
    score_each(episodes, scores, [this](Episode const& e) { return distinct(e.response_ids); });
  }

 private:
  double distinct(std::span<std::int32_t const> ids) const {
    if (ids.size() < n_) return 1.0;
    std::vector<std::span<std::int32_t const>> ngrams;
    for (std::size_t i = 0; i + n_ <= ids.size(); ++i) ngrams.push_back(ids.subspan(i, n_));
    auto const total = static_cast<double>(ngrams.size());
    std::sort(ngrams.begin(), ngrams.end(), [](auto const& a, auto const& b) {
      return std::lexicographical_compare(a.begin(), a.end(), b.begin(), b.end());
    });
    auto const last = std::unique(ngrams.begin(), ngrams.end(), [](auto const& a, auto const& b) {
      return std::equal(a.begin(), a.end(), b.begin(), b.end());
    });
    return static_cast<double>(last - ngrams.begin()) / total;
  }

  std::size_t n_;
};

/// Rewards a response of the wanted length:
///   score = max(0, 1 - |length - target| / width),
/// the length in generated tokens, the end token included.
class LengthReward {
 public:
  /// @throws ConfigError unless target is at least 0 and width at least 1
  LengthReward(index_t target, index_t width) : target_(target), width_(width) {
    expects<ConfigError>(target >= 0, "the target of a length reward must be at least 0");
    expects<ConfigError>(width >= 1, "the width of a length reward must be at least 1");
  }

  void operator()(EpisodeBatch const& episodes, std::span<float> scores) const {
    score_each(episodes, scores, [this](Episode const& e) {
      double const off =
          std::abs(static_cast<double>(e.response_ids.size()) - static_cast<double>(target_));
      return std::max(0.0, 1.0 - off / static_cast<double>(width_));
    });
  }

 private:
  index_t target_;
  index_t width_;
};

/// Rewards words shared with the episode's reference, whatever their order:
///   score = F1 = 2 common / (words of the response + words of the reference),
/// where a word counts as common as often as it is in both; 0 if either has no word. A word is a
/// run of ASCII letters and digits, capitals made small, and of bytes beyond ASCII, left as they
/// are; all else divides ("I'm" is two words).
class OverlapReward {
 public:
  /// @throws Error naming the first episode without a reference
  void operator()(EpisodeBatch const& episodes, std::span<float> scores) const {
    score_each(episodes, scores, [](Episode const& e) {
      if (e.reference.empty()) {
        throw Error("an overlap reward compares with a reference, but episode \"" +
                    std::string(e.id) + "\" has none");
      }
      return overlap(e.response, e.reference);
    });
  }

 private:
  static std::vector<std::string> words(std::string_view text) {
    std::vector<std::string> all;
    bool inside = false;
    for (char const c : text) {
      bool const capital = c >= 'A' && c <= 'Z';
      bool const part = capital || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
                        static_cast<unsigned char>(c) >= 0x80;
      if (part) {
        if (!inside) all.emplace_back();
        all.back().push_back(capital ? static_cast<char>(c - 'A' + 'a') : c);
      }
      inside = part;
    }
    return all;
  }

  static double overlap(std::string_view response, std::string_view reference) {
    auto const wanted = words(reference);
    auto const got = words(response);
    std::unordered_map<std::string, index_t> left;
    for (std::string const& word : wanted) ++left[word];
    index_t common = 0;
    for (std::string const& word : got) {
      auto const found = left.find(word);
      if (found == left.end() || found->second == 0) continue;
      --found->second;
      ++common;
    }
    if (common == 0) return 0.0;
    return 2.0 * static_cast<double>(common) / static_cast<double>(got.size() + wanted.size());
  }
};

/// Whether the response has a text in it, byte for byte:  score = 1 or 0.
class ContainsReward {
 public:
  /// @throws ConfigError if the text is empty
  explicit ContainsReward(std::string text) : text_(std::move(text)) {
    expects<ConfigError>(!text_.empty(),
                         "the text of a contains reward must not be empty: every response has it");
  }

  void operator()(EpisodeBatch const& episodes, std::span<float> scores) const {
    score_each(episodes, scores, [this](Episode const& e) {
      return e.response.find(text_) != std::string_view::npos ? 1.0 : 0.0;
    });
  }

 private:
  std::string text_;
};

static_assert(RewardModel<RepetitionReward> && RewardModel<LengthReward> &&
              RewardModel<OverlapReward> && RewardModel<ContainsReward>);

}  // namespace emprl::rl
