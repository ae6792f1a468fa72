// SPDX-License-Identifier: Apache-2.0
#include "emprl/gen/sampling.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "support/catch.hpp"

using namespace emprl;
using gen::SamplingConfig;

namespace {

// The definition, step by step, in double, with full sorts.
std::vector<double> naive_probabilities(std::vector<double> x, SamplingConfig const& config,
                                        index_t generated,
                                        std::vector<std::int32_t> const& seen = {}) {
  double const inf = std::numeric_limits<double>::infinity();
  std::size_t const n = x.size();
  for (std::int32_t const token : std::set<std::int32_t>(seen.begin(), seen.end())) {
    double& score = x[static_cast<std::size_t>(token)];
    score *= score < 0 ? config.repetition_penalty : 1.0 / config.repetition_penalty;
  }
  auto const gram = static_cast<std::ptrdiff_t>(config.no_repeat_ngram);
  if (gram > 0) {
    for (std::size_t v = 0; v < n; ++v) {
      auto longer = seen;
      longer.push_back(static_cast<std::int32_t>(v));
      if (static_cast<std::ptrdiff_t>(longer.size()) < gram) continue;
      // It is in `seen` already if it is found before the end of `longer`.
      if (std::search(longer.begin(), longer.end(), longer.end() - gram, longer.end()) !=
          longer.end() - gram) {
        x[v] = -inf;
      }
    }
  }
  if (generated + 1 < config.min_new_tokens) x[static_cast<std::size_t>(config.eos)] = -inf;
  for (auto const token : config.barred) x[static_cast<std::size_t>(token)] = -inf;
  for (double& v : x) v /= config.temperature;
  if (config.top_k > 0 && static_cast<std::size_t>(config.top_k) < n) {
    std::vector<double> sorted = x;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    double const kth = sorted[static_cast<std::size_t>(config.top_k) - 1];
    for (double& v : x) v = v < kth ? -inf : v;
  }
  auto const softmax = [&] {
    double const top = *std::max_element(x.begin(), x.end());
    std::vector<double> p(n);
    double sum = 0.0;
    for (std::size_t i = 0; i < n; ++i) sum += p[i] = std::exp(x[i] - top);
    for (double& v : p) v /= sum;
    return p;
  };
  std::vector<double> p = softmax();
  if (config.top_p < 1.0) {
    std::vector<std::size_t> order(n);
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return p[a] > p[b]; });
    double before = 0.0;
    for (std::size_t const i : order) {
      if (before >= config.top_p) x[i] = -inf;
      before += p[i];
    }
    p = softmax();
  }
  return p;
}

std::vector<double> random_logits(std::uint32_t row, std::size_t n, double scale) {
  RandomSequence random(11, Stream::initialise, 0, row);
  std::vector<double> x(n);
  for (double& v : x) v = static_cast<double>(static_cast<float>(scale * random.normal()));
  return x;
}

// The token at a uniform number u, from exact probabilities.
std::int32_t naive_draw(std::vector<double> const& p, double u) {
  double sum = 0.0;
  std::int32_t last = -1;
  for (std::size_t i = 0; i < p.size(); ++i) {
    if (p[i] == 0.0) continue;
    last = static_cast<std::int32_t>(i);
    sum += p[i];
    if (u < sum) break;
  }
  return last;
}

}  // namespace

TEMPLATE_TEST_CASE("sampling: every draw is the one of the definition", "[gen][sampling][unit]",
                   float, double) {
  std::vector<SamplingConfig> configs(7);
  configs[1].temperature = 0.7;
  configs[2].top_k = 5;
  configs[3].top_p = 0.8;
  configs[4] = SamplingConfig::emprl();
  configs[5].temperature = 1.6;
  configs[5].top_k = 40;
  configs[5].top_p = 0.9;
  configs[6].top_k = 300;
  configs[6].top_p = 0.97;
  configs[6].barred = {0, 5};
  gen::SamplerWorkspace<TestType> workspace;
  std::uint32_t row = 0;
  for (std::size_t const n : {std::size_t{7}, std::size_t{97}, std::size_t{1031}}) {
    for (SamplingConfig const& config : configs) {
      for (int repeat = 0; repeat < 40; ++repeat, ++row) {
        std::vector<double> x = random_logits(row, n, 2.0);
        if (repeat % 3 == 0) {
          for (double& v : x) v = std::round(v);  // many ties
        }
        std::vector<TestType> const logits(x.begin(), x.end());
        index_t const generated = repeat % 8;
        RngAddress const at{5, Stream::sample, 3, row, 1};
        std::int32_t const expected =
            naive_draw(naive_probabilities(x, config, generated), uniform(at));
        CAPTURE(n, config.top_k, config.top_p, config.temperature, repeat);
        REQUIRE(gen::sample_token(std::span<TestType const>(logits), config, generated, at,
                                  workspace) == expected);
      }
    }
  }
}

TEST_CASE("sampling: frequencies agree with the probabilities", "[gen][sampling][unit]") {
  // The start token, and a response in which (7, 3) was followed by 9 and by 4.
  std::vector<std::int32_t> const seen{0, 7, 3, 9, 12, 7, 3, 4, 7, 3};
  std::vector<SamplingConfig> configs(8);
  configs[0] = SamplingConfig::emprl();
  configs[0].top_p = 0.95;
  configs[1].temperature = 1.7;
  configs[2].top_k = 6;
  configs[3].top_p = 0.7;
  configs[4].repetition_penalty = 1.8;
  configs[5].repetition_penalty = 0.6;
  configs[5].top_k = 10;
  configs[6].temperature = 0.6;
  configs[6].repetition_penalty = 1.3;
  configs[6].top_p = 0.9;
  configs[7].no_repeat_ngram = 3;
  configs[7].repetition_penalty = 1.2;
  configs[7].temperature = 1.2;
  configs[7].top_k = 20;
  configs[7].top_p = 0.9;
  configs[7].barred = {2, 30};
  std::vector<double> const x = random_logits(1, 30, 1.5);
  std::vector<float> const logits(x.begin(), x.end());
  std::set<std::vector<double>> different;
  for (std::size_t c = 0; c < configs.size(); ++c) {
    CAPTURE(c);
    SamplingConfig const& config = configs[c];
    auto without = config;
    std::erase(without.barred, 30);  // outside the vocabulary; the definition does not know it
    auto const generated = static_cast<index_t>(seen.size()) - 1;
    std::vector<double> const p = naive_probabilities(x, without, generated, seen);
    different.insert(p);
    constexpr int draws = 40000;
    std::vector<int> count(30, 0);
    gen::SamplerWorkspace<float> workspace;
    for (std::uint32_t i = 0; i < draws; ++i) {
      auto const token = gen::sample_token(
          std::span<float const>(logits), config, std::span<std::int32_t const>(seen),
          {42, Stream::sample, static_cast<std::uint32_t>(c), i, 0}, workspace);
      auto const at = static_cast<std::size_t>(token);
      ++count[at];
      if (i >= 100) continue;
      CHECK(workspace.drawn_weight / workspace.total_weight == Approx(p[at]).epsilon(1e-5));
    }
    double chi_square = 0.0;
    int cells = 0;
    // Cells in which few draws are expected are taken together: chi-square wants five and more.
    double rare = 0;
    int rare_count = 0;
    for (std::size_t i = 0; i < p.size(); ++i) {
      if (p[i] == 0.0) {
        CHECK(count[i] == 0);
        continue;
      }
      double const expected = p[i] * draws;
      if (expected < 10) {
        rare += expected;
        rare_count += count[i];
        continue;
      }
      chi_square += (count[i] - expected) * (count[i] - expected) / expected;
      ++cells;
    }
    if (rare >= 5) {
      chi_square += (rare_count - rare) * (rare_count - rare) / rare;
      ++cells;
    }
    REQUIRE(cells > 3);
    // The 99.9 % point of chi-square by Wilson and Hilferty's approximation.
    double const dof = cells - 1;
    double const bound =
        dof * std::pow(1.0 - 2.0 / (9.0 * dof) + 3.09 * std::sqrt(2.0 / (9.0 * dof)), 3);
    CHECK(chi_square < bound);
  }
  CHECK(different.size() == configs.size());
}

TEST_CASE("sampling: ties at the k-th place are all kept", "[gen][sampling][unit]") {
  std::vector<double> const logits{3.0, 1.0, 2.0, 2.0, 2.0, 0.0};
  SamplingConfig config;
  config.top_k = 2;
  config.min_new_tokens = 0;
  std::set<std::int32_t> seen;
  for (std::uint32_t i = 0; i < 500; ++i) {
    seen.insert(gen::sample_token(std::span<double const>(logits), config, 0,
                                  {1, Stream::sample, 0, i, 0}));
  }
  CHECK(seen == std::set<std::int32_t>{0, 2, 3, 4});
}

TEST_CASE("sampling: the nucleus is the smallest set that reaches top-p", "[gen][sampling][unit]") {
  // Probabilities 1/2, 1/4, 1/8, 1/8.
  std::vector<double> const logits{std::log(4.0), std::log(2.0), 0.0, 0.0};
  auto const kept = [&](double top_p) {
    SamplingConfig config;
    config.top_p = top_p;
    config.min_new_tokens = 0;
    std::set<std::int32_t> seen;
    for (std::uint32_t i = 0; i < 400; ++i) {
      seen.insert(gen::sample_token(std::span<double const>(logits), config, 0,
                                    {1, Stream::sample, 0, i, 0}));
    }
    return seen;
  };
  CHECK(kept(0.01) == std::set<std::int32_t>{0});
  CHECK(kept(0.49) == std::set<std::int32_t>{0});
  CHECK(kept(0.51) == std::set<std::int32_t>{0, 1});
  CHECK(kept(0.8) == std::set<std::int32_t>{0, 1, 2});
  CHECK(kept(0.99) == std::set<std::int32_t>{0, 1, 2, 3});
}

TEST_CASE("sampling: the end is barred until the fifth token of EmpRL", "[gen][sampling][unit]") {
  std::vector<float> logits(40, 0.0F);
  logits[1] = 50.0F;
  SamplingConfig const config = SamplingConfig::emprl();
  SamplingConfig greedy = config;
  greedy.greedy = true;
  for (index_t t = 0; t < 10; ++t) {
    RngAddress const at{9, Stream::sample, 0, 0, static_cast<std::uint32_t>(t)};
    bool const ends = gen::sample_token(std::span<float const>(logits), config, t, at) == 1;
    CHECK(ends == (t >= 4));
    CHECK((gen::sample_token(std::span<float const>(logits), greedy, t, at) == 1) == (t >= 4));
  }
}

TEST_CASE("sampling: greedy takes the largest logit, the lowest id among equals",
          "[gen][sampling][unit]") {
  std::vector<float> const logits{0.0F, -1.0F, 4.0F, 2.0F, 4.0F};
  SamplingConfig config;
  config.greedy = true;
  CHECK(gen::sample_token(std::span<float const>(logits), config, 0, {}) == 2);
  config.barred = {2};
  CHECK(gen::sample_token(std::span<float const>(logits), config, 0, {}) == 4);
}

TEMPLATE_TEST_CASE("sampling: logits that are no numbers are errors", "[gen][sampling][unit]",
                   float, double) {
  using Limits = std::numeric_limits<TestType>;
  SamplingConfig config;
  config.min_new_tokens = 0;
  std::vector<TestType> logits(33, TestType{1});
  auto const draw = [&] {
    return gen::sample_token(std::span<TestType const>(logits), config, 0, RngAddress{});
  };
  logits[32] = Limits::quiet_NaN();
  CHECK_THROWS_AS(draw(), Error);
  logits[32] = Limits::infinity();
  CHECK_THROWS_AS(draw(), Error);
  logits.assign(33, -Limits::infinity());
  CHECK_THROWS_AS(draw(), Error);
  logits[7] = TestType{-3};
  CHECK(draw() == 7);
  logits.clear();
  CHECK_THROWS_AS(draw(), Error);
}

TEST_CASE("sampling: a setting out of range is named", "[gen][sampling][unit]") {
  using Catch::Matchers::ContainsSubstring;
  auto const broken = [](auto change) {
    SamplingConfig config;
    change(config);
    config.validate();
  };
  CHECK_NOTHROW(broken([](SamplingConfig&) {}));
  CHECK_NOTHROW(SamplingConfig::emprl().validate());
  CHECK_THROWS_WITH(broken([](SamplingConfig& c) { c.temperature = 0; }),
                    ContainsSubstring("temperature"));
  CHECK_THROWS_WITH(broken([](SamplingConfig& c) { c.top_k = -1; }), ContainsSubstring("top_k"));
  CHECK_THROWS_WITH(broken([](SamplingConfig& c) { c.top_p = 0; }), ContainsSubstring("top_p"));
  CHECK_THROWS_WITH(broken([](SamplingConfig& c) { c.top_p = std::nan(""); }),
                    ContainsSubstring("top_p"));
  CHECK_THROWS_WITH(broken([](SamplingConfig& c) { c.max_new_tokens = 0; }),
                    ContainsSubstring("max_new_tokens"));
  CHECK_THROWS_WITH(broken([](SamplingConfig& c) { c.repetition_penalty = 0; }),
                    ContainsSubstring("repetition_penalty"));
  CHECK_THROWS_WITH(broken([](SamplingConfig& c) { c.no_repeat_ngram = -1; }),
                    ContainsSubstring("no_repeat_ngram"));
  CHECK_THROWS_WITH(broken([](SamplingConfig& c) { c.min_new_tokens = 60; }),
                    ContainsSubstring("min_new_tokens"));
}

TEST_CASE("sampling: what looks at earlier tokens cannot be asked without them",
          "[gen][sampling][unit]") {
  std::vector<float> const logits{0.0F, 1.0F, 2.0F};
  SamplingConfig penalised, ngrams;
  penalised.repetition_penalty = 1.1;
  ngrams.no_repeat_ngram = 3;
  for (SamplingConfig const& config : {penalised, ngrams}) {
    CHECK_THROWS_AS(gen::sample_token(std::span<float const>(logits), config, 4, {}), ConfigError);
  }
  SamplingConfig overflowing;
  overflowing.repetition_penalty = 1e-40;
  gen::SamplerWorkspace<float> workspace;
  std::vector<std::int32_t> const seen{0, 2};
  CHECK_THROWS_WITH(gen::sample_token(std::span<float const>(logits), overflowing,
                                      std::span<std::int32_t const>(seen), {}, workspace),
                    Catch::Matchers::ContainsSubstring("repetition_penalty"));
}
