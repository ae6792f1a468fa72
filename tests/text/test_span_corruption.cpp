// SPDX-License-Identifier: Apache-2.0
#include "emprl/text/span_corruption.hpp"

#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"

using namespace emprl;
using text::NoiseCounts;
using text::SpanCorruption;
using Ids = std::vector<std::int32_t>;

namespace {

constexpr std::int32_t first_sentinel = 999;

/// <extra_id_0>, <extra_id_1>, ... as T5 has them: falling.
Ids sentinels(std::size_t count = 100) {
  Ids ids;
  for (std::size_t k = 0; k < count; ++k) {
    ids.push_back(first_sentinel - static_cast<std::int32_t>(k));
  }
  return ids;
}

bool is_sentinel(std::int32_t id) {
  return id > first_sentinel - 100 && id <= first_sentinel;
}

/// A text of n tokens, no two neighbours alike.
Ids text_of(index_t n, std::int32_t from = 3) {
  Ids ids;
  for (index_t i = 0; i < n; ++i) {
    ids.push_back(3 + (from + static_cast<std::int32_t>(i)) % 700);
  }
  return ids;
}

struct Example {
  Ids input, target;
};

Example corrupted(Ids const& tokens, SpanCorruption const& options, RandomSequence random,
                  Ids const& marks = sentinels()) {
  text::EncodedPairs out;
  text::corrupt_spans(tokens, options, marks, random, out);
  auto const input = out.contexts.row(0), target = out.responses.row(0);
  return {{input.begin(), input.end()}, {target.begin(), target.end()}};
}

Example corrupted(Ids const& tokens, std::uint64_t seed, SpanCorruption const& options = {}) {
  return corrupted(tokens, options, RandomSequence(seed, Stream::corrupt));
}

/// Puts the target's spans into the input's places: nothing if a sentinel is missing, doubled or
/// out of its turn, or </s> stands anywhere but at the ends.
std::optional<Ids> restored(Example const& e) {
  auto const ends = [](Ids const& row) {
    return !row.empty() && row.back() == text::eos_id &&
           std::count(row.begin(), row.end(), text::eos_id) == 1;
  };
  if (!ends(e.input) || !ends(e.target)) return std::nullopt;
  Ids text;
  std::size_t at = 0;
  std::int32_t next = first_sentinel;
  for (std::size_t i = 0; i + 1 < e.input.size(); ++i) {
    if (!is_sentinel(e.input[i])) {
      text.push_back(e.input[i]);
      continue;
    }
    if (e.input[i] != next || e.target[at] != next) return std::nullopt;
    --next;
    ++at;
    std::size_t const begin = at;
    while (!is_sentinel(e.target[at]) && e.target[at] != text::eos_id)
      text.push_back(e.target[at++]);
    if (at == begin) return std::nullopt;  // a span is never empty
  }
  // The sentinel of a text that ends in shown tokens.
  if (e.target[at] == next) ++at;
  if (e.target[at] != text::eos_id) return std::nullopt;
  return text;
}

NoiseCounts counts_of(Example const& e) {
  NoiseCounts counts;
  for (std::int32_t const id : e.target) {
    if (is_sentinel(id)) {
      ++counts.spans;
    } else if (id != text::eos_id) {
      ++counts.tokens;
    }
  }
  return counts;
}

/// The statistic of Pearson's test that all categories are equally likely.
template <class Key>
double chi_square(std::map<Key, index_t> const& observed, std::size_t categories, index_t total) {
  double const expected = static_cast<double>(total) / static_cast<double>(categories);
  double sum = static_cast<double>(categories - observed.size()) * expected;
  for (auto const& [key, count] : observed) {
    double const d = static_cast<double>(count) - expected;
    sum += d * d / expected;
  }
  return sum;
}

}  // namespace

TEST_CASE("span corruption: input and target together give the text back",
          "[text][span_corruption][unit]") {
  SpanCorruption const settings[] = {{}, {0.5, 1}, {0.5, 3}, {0.9, 2}, {0.05, 10}, {0.3, 1.5}};
  index_t done = 0;
  for (SpanCorruption const& options : settings) {
    for (index_t n = 1; n <= 120; ++n) {
      for (std::uint64_t seed = 0; seed < 8; ++seed) {
        Ids const tokens = text_of(n, static_cast<std::int32_t>(seed * 31));
        Example const e = corrupted(tokens, seed, options);
        auto const back = restored(e);
        if (!back || *back != tokens) {
          FAIL("density " << options.density << ", mean " << options.mean_length << ", " << n
                          << " tokens, seed " << seed);
        }
        NoiseCounts const noise = text::noise_counts(options, n);
        if (n >= 2) REQUIRE(counts_of(e) == noise);
        REQUIRE(e.input.size() == static_cast<std::size_t>(n - noise.tokens + noise.spans + 1));
        ++done;
      }
    }
  }
  CHECK(done == 6 * 120 * 8);
  // Half a thousand tokens, as T5 had them, a thousand times.
  Ids const tokens = text_of(568);
  for (std::uint64_t seed = 0; seed < 1000; ++seed) {
    Example const e = corrupted(tokens, seed);
    REQUIRE(restored(e) == tokens);
    // Its own inputs and targets of 512 and 114 tokens, </s> among them.
    REQUIRE(e.input.size() == 512);
    REQUIRE(e.target.size() == 114);
  }
}

TEST_CASE("span corruption: the restoring of these tests sees what is wrong",
          "[text][span_corruption][unit]") {
  Ids const tokens = text_of(40);
  Example const good = corrupted(tokens, 1);
  REQUIRE(restored(good) == tokens);
  Example swapped = good;
  std::swap(swapped.target[1], swapped.target[2]);
  CHECK(restored(swapped) != tokens);
  Example renamed = good;
  *std::find(renamed.input.begin(), renamed.input.end(), first_sentinel) = first_sentinel - 1;
  CHECK(restored(renamed) != tokens);
  Example cut = good;
  cut.target.pop_back();
  CHECK(restored(cut) != tokens);
}

TEST_CASE("span corruption: the numbers of tokens and spans are T5's",
          "[text][span_corruption][golden]") {
  auto const of = [](index_t n) { return text::noise_counts({}, n); };
  CHECK(of(0) == NoiseCounts{0, 0});
  CHECK(of(1) == NoiseCounts{0, 0});
  CHECK(of(2) == NoiseCounts{1, 1});
  CHECK(of(3) == NoiseCounts{1, 1});
  CHECK(of(9) == NoiseCounts{1, 1});
  CHECK(of(10) == NoiseCounts{2, 1});  // 1.5 to the even 2
  CHECK(of(30) == NoiseCounts{4, 1});  // 4.5 to the even 4
  CHECK(of(33) == NoiseCounts{5, 2});
  // 28.5 is 28.500002 in float32, and so 29, where double would round to the even 28.
  CHECK(of(190) == NoiseCounts{29, 10});
  CHECK(of(256) == NoiseCounts{38, 13});
  CHECK(of(568) == NoiseCounts{85, 28});
  // Never nothing hidden, never nothing shown.
  CHECK(text::noise_counts({0.001, 3}, 5) == NoiseCounts{1, 1});
  CHECK(text::noise_counts({0.999, 3}, 5) == NoiseCounts{4, 1});
  // Every span has a shown token before it.
  CHECK(text::noise_counts({0.8, 1}, 10) == NoiseCounts{8, 2});
}

TEST_CASE("span corruption: texts of one, two and three tokens", "[text][span_corruption][unit]") {
  constexpr std::int32_t s = first_sentinel;
  Example const none = corrupted({}, 7);
  CHECK(none.input == Ids{1});
  CHECK(none.target == Ids{1});
  Example const one = corrupted({5}, 7);
  CHECK(one.input == Ids{5, 1});
  CHECK(one.target == Ids{s, 1});
  Example const two = corrupted({5, 6}, 7);
  CHECK(two.input == Ids{5, s, 1});
  CHECK(two.target == Ids{s, 6, 1});
  Example const three = corrupted({5, 6, 7}, 7);
  CHECK(three.input == Ids{5, 6, s, 1});
  CHECK(three.target == Ids{s, 7, 1});
}

TEST_CASE("span corruption: a hundred sentinels are enough for a hundred spans and no more",
          "[text][span_corruption][unit]") {
  // tokens = 0.15 n, spans = tokens / 3: 2,000 tokens have 300 in 100 spans.
  CHECK(text::noise_counts({}, 2000) == NoiseCounts{300, 100});
  Ids const fits = text_of(2000);
  Example const e = corrupted(fits, 3);
  CHECK(restored(e) == fits);
  CHECK(std::count(e.input.begin(), e.input.end(), first_sentinel - 99) == 1);
  CHECK(text::noise_counts({}, 2012).spans == 101);
  CHECK_THROWS_WITH(corrupted(text_of(2012), 3),
                    Catch::Matchers::ContainsSubstring("2012 tokens has 101 hidden spans") &&
                        Catch::Matchers::ContainsSubstring("100 sentinels"));
  // Longer spans make it fit.
  CHECK(restored(corrupted(text_of(2012), 3, {0.15, 10})) == text_of(2012));
  RandomSequence const random(1, Stream::corrupt);
  CHECK_THROWS_AS(corrupted({5, 6}, {}, random, {}), ConfigError);
  CHECK_THROWS_AS(corrupted({5, 6}, {0, 3}, random), ConfigError);
  CHECK_THROWS_AS(corrupted({5, 6}, {1, 3}, random), ConfigError);
  CHECK_THROWS_AS(corrupted({5, 6}, {0.15, 0.5}, random), ConfigError);
}

TEST_CASE("span corruption: every division is equally likely", "[text][span_corruption][unit]") {
  // 12 tokens, 5 of them hidden in 2 spans: 4 ways to cut 5 and 6 to cut 7.
  SpanCorruption const options{0.4, 2};
  REQUIRE(text::noise_counts(options, 12) == NoiseCounts{5, 2});
  Ids const tokens = text_of(12);
  std::map<Ids, index_t> inputs;
  constexpr index_t draws = 24'000;
  for (index_t i = 0; i < draws; ++i) {
    RandomSequence const random(11, Stream::corrupt, 0, static_cast<std::uint32_t>(i));
    ++inputs[corrupted(tokens, options, random).input];
  }
  CHECK(inputs.size() == 24);
  // The 99.9th percentile of chi-square with 23 degrees of freedom.
  CHECK(chi_square(inputs, 24, draws) < 49.73);
}

TEST_CASE("span corruption: spans begin where random cuts put them",
          "[text][span_corruption][unit]") {
  // 40 tokens, 6 hidden in 2 spans: the first span begins at 1 .. 33, each equally likely.
  REQUIRE(text::noise_counts({}, 40) == NoiseCounts{6, 2});
  Ids const tokens = text_of(40);
  std::map<index_t, index_t> starts;
  constexpr index_t draws = 33'000;
  for (index_t i = 0; i < draws; ++i) {
    RandomSequence const random(5, Stream::corrupt, 3, static_cast<std::uint32_t>(i));
    Ids const input = corrupted(tokens, {}, random).input;
    ++starts[std::find(input.begin(), input.end(), first_sentinel) - input.begin()];
  }
  CHECK(starts.size() == 33);
  CHECK(starts.begin()->first == 1);
  CHECK(starts.rbegin()->first == 33);
  // The 99.9th percentile of chi-square with 32 degrees of freedom.
  CHECK(chi_square(starts, 33, draws) < 62.49);
}

TEST_CASE("span corruption: a draw belongs to its seed, epoch and number, not to its batch",
          "[text][span_corruption][unit]") {
  Ragged windows;
  for (index_t i = 0; i < 6; ++i) windows.push_back(text_of(60, static_cast<std::int32_t>(i)));
  Ids const marks = sentinels();
  auto const draw = [&](std::vector<index_t> const& rows, std::uint64_t seed, index_t epoch,
                        index_t first = 0) {
    return text::corrupt_windows(windows.view(), rows, {}, marks, seed, epoch, first);
  };
  auto const row = [](text::EncodedPairs const& pairs, index_t i) {
    auto const ids = pairs.contexts.row(i);
    return Ids(ids.begin(), ids.end());
  };
  auto const all = draw({0, 1, 2, 3, 4, 5}, 8, 2);
  auto const some = draw({4, 1}, 8, 2);
  CHECK(row(some, 0) == row(all, 4));
  CHECK(row(some, 1) == row(all, 1));
  CHECK(row(draw({4}, 9, 2), 0) != row(all, 4));
  CHECK(row(draw({4}, 8, 3), 0) != row(all, 4));
  CHECK(row(draw({4}, 8, 2, 6), 0) != row(all, 4));
  // Two windows of one text are divided differently.
  Ragged twice;
  twice.push_back(text_of(60));
  twice.push_back(text_of(60));
  auto const pair =
      text::corrupt_windows(twice.view(), std::vector<index_t>{0, 1}, {}, marks, 8, 0);
  CHECK(row(pair, 0) != row(pair, 1));
  CHECK_THROWS_AS(draw({0}, 8, -1), ShapeError);
  CHECK_THROWS_AS(draw({0}, 8, index_t{1} << 32), ShapeError);
  CHECK_THROWS_AS(draw({0}, 8, 0, index_t{1} << 32), ShapeError);
}
