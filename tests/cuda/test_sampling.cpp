// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <set>
#include <span>
#include <vector>

#include "emprl/gen/sampling.cuh"
#include "reference/cross_entropy.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/device_array.hpp"

using namespace emprl;
using gen::SamplingConfig;
using support::DeviceArray;

namespace {

constexpr std::uint64_t seed = 5;
constexpr std::uint32_t step = 3;
constexpr std::size_t small[] = {1, 2, 31, 33, 97, 257, 1031};
/// 2048 logits fit in the list.
constexpr std::size_t large[] = {2049, 3001, 32128};
constexpr std::size_t equal[] = {2, 1000, 5000, 5001};

struct Drawn {
  std::vector<std::int32_t> token;
  std::vector<float> logp, lse, entropy;
};

/// Row r of the batch has the id first_row + r. Without statistics their views are empty, and so is
/// that of another key; they point into memory all the same.
Drawn sample(Cuda& dev, std::vector<float> const& logits, index_t vocabulary,
             SamplingConfig const& config, std::vector<index_t> const& generated,
             std::uint32_t first_row = 0, bool statistics = true) {
  auto const rows = static_cast<index_t>(generated.size());
  std::vector<std::uint32_t> ids(generated.size());
  for (std::size_t r = 0; r < ids.size(); ++r) ids[r] = first_row + static_cast<std::uint32_t>(r);
  DeviceArray<float> x(logits);
  DeviceArray<std::int32_t> barred(config.barred);
  DeviceArray<std::uint32_t> row_ids(ids);
  DeviceArray<index_t> lengths(generated);
  auto token = DeviceArray<std::int32_t>::poisoned(rows);
  auto logp = DeviceArray<float>::poisoned(rows);
  auto lse = DeviceArray<float>::poisoned(rows);
  auto entropy = DeviceArray<float>::poisoned(rows);
  DeviceArray<gen::SampleKey> other_key(std::vector<gen::SampleKey>{{seed + 1, step + 1}});
  index_t const asked = statistics ? rows : 0;
  gen::sample_tokens(
      dev,
      {{token.data(), {rows}},
       {logp.data(), {asked}},
       {lse.data(), {asked}},
       {entropy.data(), {asked}}},
      {x.data(), {rows, vocabulary}}, config,
      {barred.data(), {static_cast<index_t>(config.barred.size())}},
      {seed, step, {row_ids.data(), {rows}}, {lengths.data(), {rows}}, {other_key.data(), {0}}});
  dev.synchronize();
  return {token.values(), logp.values(), lse.values(), entropy.values()};
}

/// True if `got` instead of `expected` is a matter of rounding: no weight but that of the two lies
/// between them, and the random number meets the sum before the second within 1e-12 of all.
bool is_rounding(gen::SamplerWorkspace<float> const& cpu, double random, std::int32_t expected,
                 std::int32_t got) {
  double total = 0;
  for (double const w : cpu.weights) total += w;
  std::int32_t const second = std::max(expected, got);
  double before = 0;
  bool found = false;
  for (std::size_t i = 0; i < cpu.ids.size(); ++i) {
    if (cpu.ids[i] == got) found = true;
    if (cpu.ids[i] < second) before += cpu.weights[i];
    if (cpu.ids[i] > std::min(expected, got) && cpu.ids[i] < second && cpu.weights[i] > 0) {
      return false;
    }
  }
  return found && std::abs(random * total - before) <= 1e-12 * total;
}

/// Random logits, of every third row rounded so that many tie.
std::vector<float> random_rows(std::uint32_t first_row, std::size_t rows, std::size_t vocabulary,
                               double scale) {
  std::vector<float> x;
  for (std::size_t r = 0; r < rows; ++r) {
    RandomSequence random(11, Stream::initialise, 0, first_row + static_cast<std::uint32_t>(r));
    for (std::size_t i = 0; i < vocabulary; ++i) {
      double const v = scale * random.normal();
      x.push_back(static_cast<float>((first_row + r) % 3 == 0 ? std::round(v) : v));
    }
  }
  return x;
}

struct Agreement {
  int rows = 0;
  int different = 0;
};

/// Compares `rows` draws with those of the CPU.
void compare(Cuda& dev, Agreement& agreement, std::size_t rows, std::size_t vocabulary,
             double scale, SamplingConfig const& config) {
  static std::uint32_t first_row = 0;
  auto const logits = random_rows(first_row, rows, vocabulary, scale);
  std::vector<index_t> generated;
  for (std::size_t r = 0; r < rows; ++r) generated.push_back(static_cast<index_t>(r % 8));
  auto const drawn =
      sample(dev, logits, static_cast<index_t>(vocabulary), config, generated, first_row);
  gen::SamplerWorkspace<float> workspace;
  for (std::size_t r = 0; r < rows; ++r) {
    RngAddress const at{seed, Stream::sample, step, first_row + static_cast<std::uint32_t>(r),
                        static_cast<std::uint32_t>(generated[r])};
    std::span<float const> const row(logits.data() + r * vocabulary, vocabulary);
    std::int32_t expected = gen::sample_exhausted;
    try {
      expected = gen::sample_token(row, config, generated[r], at, workspace);
    } catch (Error const&) {
      // A vocabulary of one token that is barred.
    }
    ++agreement.rows;
    if (drawn.token[r] == expected) continue;
    ++agreement.different;
    CAPTURE(vocabulary, scale, config.top_k, config.top_p, config.temperature, r, expected,
            drawn.token[r]);
    CHECK(is_rounding(workspace, uniform(at), expected, drawn.token[r]));
  }
  first_row += static_cast<std::uint32_t>(rows);
}

std::vector<SamplingConfig> many_configs() {
  std::vector<SamplingConfig> configs(10);
  configs[1].temperature = 0.7;
  configs[2].top_k = 5;
  configs[3].top_p = 0.8;
  configs[4] = SamplingConfig::emprl();
  configs[5].temperature = 1.6;
  configs[5].top_k = 40;
  configs[5].top_p = 0.9;
  configs[6].top_k = 300;
  configs[6].top_p = 0.97;
  configs[6].barred = {0, 5, 1000000};
  configs[7].greedy = true;
  configs[7].barred = {3};
  configs[8].top_k = 2100;
  configs[8].top_p = 0.9;
  configs[9].top_k = 1;
  return configs;
}

}  // namespace

TEST_CASE("sampling on the GPU: the CPU's draw, in small vocabularies", "[cuda][sampling][unit]") {
  Cuda dev;
  dev.scratch.poison(true);
  Agreement agreement;
  support::for_each_schedule(2, [&] {
    for (std::size_t const vocabulary : small) {
      for (SamplingConfig const& config : many_configs()) {
        compare(dev, agreement, vocabulary > 300 ? 4 : 12, vocabulary, 2.0, config);
      }
    }
  });
  INFO(agreement.different << " of " << agreement.rows << " rows differ");
  CHECK(agreement.rows > 1500);
  CHECK(agreement.different * 1000 <= agreement.rows);
}

TEST_CASE("sampling on the GPU: the CPU's draw, in vocabularies that no list holds",
          "[cuda][sampling][unit]") {
  Cuda dev;
  Agreement agreement;
  for (std::size_t const vocabulary : large) {
    for (SamplingConfig const& config : many_configs()) {
      // At scale 6 a nucleus is small, at 0.5 it is most of the vocabulary.
      for (double const scale : {0.5, 2.0, 6.0}) {
        compare(dev, agreement, vocabulary > 10000 ? 2 : 8, vocabulary, scale, config);
      }
    }
  }
  INFO(agreement.different << " of " << agreement.rows << " rows differ");
  CHECK(agreement.rows > 500);
  CHECK(agreement.different * 1000 <= agreement.rows);
}

TEST_CASE("sampling on the GPU: a thousand draws of EmpRL's settings from T5's vocabulary",
          "[cuda][sampling][.slow]") {
  Cuda dev;
  Agreement agreement;
  for (int i = 0; i < 50; ++i) {
    compare(dev, agreement, 40, 32128, i % 2 == 0 ? 2.0 : 6.0, SamplingConfig::emprl());
  }
  WARN(agreement.different << " of " << agreement.rows << " rows differ");
  CHECK(agreement.different * 1000 <= agreement.rows);
}

TEST_CASE(
    "sampling on the GPU: of equal logits all tie with the k-th, and a nucleus keeps the lowest "
    "ids",
    "[cuda][sampling][unit]") {
  Cuda dev;
  constexpr std::size_t rows = 12;
  // In a list, and more than one holds. Half of an even number is reached exactly.
  for (std::size_t const vocabulary : equal) {
    std::vector<float> const logits(rows * vocabulary, -3.0f);
    for (bool const nucleus : {false, true}) {
      SamplingConfig config;
      config.min_new_tokens = 0;
      if (nucleus) {
        config.top_p = 0.5;
      } else {
        config.top_k = 5;
      }
      auto const drawn = sample(dev, logits, static_cast<index_t>(vocabulary), config,
                                std::vector<index_t>(rows, 2));
      for (std::size_t r = 0; r < rows; ++r) {
        RngAddress const at{seed, Stream::sample, step, static_cast<std::uint32_t>(r), 2};
        auto const kept = static_cast<double>(nucleus ? (vocabulary + 1) / 2 : vocabulary);
        CHECK(drawn.token[r] == static_cast<std::int32_t>(uniform(at) * kept));
      }
    }
  }
}

TEST_CASE("sampling on the GPU: statistics are those of the logits as they came",
          "[cuda][sampling][unit]") {
  Cuda dev;
  SamplingConfig config = SamplingConfig::emprl();
  config.barred = {2, 4};
  for (index_t const vocabulary : {31, 257, 3001}) {
    auto const logits = support::random_matrix<float>(5, vocabulary, 3, 3.0);
    auto const in_double = reference::convert<double>(logits);
    auto const drawn = sample(dev, logits.values, vocabulary, config, {0, 1, 2, 3, 7});
    auto const lp = reference::log_softmax(logits);
    auto const lp_double = reference::log_softmax(in_double);
    std::vector<float> logp, lse;
    std::vector<double> logp_double, lse_double;
    for (index_t r = 0; r < 5; ++r) {
      auto const token = drawn.token[static_cast<std::size_t>(r)];
      logp.push_back(lp(r, token));
      logp_double.push_back(lp_double(r, token));
      lse.push_back(logits(r, 0) - lp(r, 0));
      lse_double.push_back(in_double(r, 0) - lp_double(r, 0));
    }
    double const floor = 8 * support::rounding<float> * support::max_abs(logits.values);
    auto const check = [&](std::string const& what, std::vector<float> const& found,
                           std::vector<float> const& plain, std::vector<double> const& truth) {
      support::check_error(what, found, truth,
                           std::max(support::max_difference(plain, truth), floor));
    };
    check("logp", drawn.logp, logp, logp_double);
    check("lse", drawn.lse, lse, lse_double);
    check("entropy", drawn.entropy, reference::entropy(logits), reference::entropy(in_double));
  }
}

TEST_CASE(
    "sampling on the GPU: greedy takes the lowest id among equals; the end waits for its turn",
    "[cuda][sampling][unit]") {
  Cuda dev;
  SamplingConfig config;
  config.greedy = true;
  config.min_new_tokens = 3;
  std::vector<float> row{0.0f, 9.0f, 4.0f, 2.0f, 4.0f, -0.0f};
  std::vector<float> logits;
  for (int r = 0; r < 4; ++r) logits.insert(logits.end(), row.begin(), row.end());
  CHECK(sample(dev, logits, 6, config, {0, 1, 2, 3}).token ==
        std::vector<std::int32_t>{2, 2, 1, 1});
  config.barred = {2};
  CHECK(sample(dev, logits, 6, config, {0, 1, 2, 3}).token ==
        std::vector<std::int32_t>{4, 4, 1, 1});
  // Both zeros are the same number.
  CHECK(sample(dev, {-1.0f, -2.0f, -0.0f, 0.0f}, 4, config, {0}).token ==
        std::vector<std::int32_t>{3});
  config.barred = {};
  CHECK(sample(dev, {-1.0f, -2.0f, -0.0f, 0.0f}, 4, config, {0}).token ==
        std::vector<std::int32_t>{2});
}

TEST_CASE("sampling on the GPU: the end waits for its turn with every filter, as on the CPU",
          "[cuda][sampling][unit]") {
  Cuda dev;
  constexpr std::size_t rows = 8;
  std::vector<SamplingConfig> configs(6);
  configs[1].top_k = 1;
  configs[2].top_k = 5;
  configs[3].top_p = 0.5;
  configs[4].top_k = 40;
  configs[4].top_p = 0.9;
  configs[4].temperature = 0.7;
  configs[5].top_k = 2100;
  std::vector<index_t> generated;
  for (std::size_t r = 0; r < rows; ++r) generated.push_back(static_cast<index_t>(r));
  // In a list, and more than one holds.
  for (std::size_t const vocabulary : {2, 33, 3001}) {
    auto logits = random_rows(1, rows, vocabulary, 2.0);
    for (std::size_t r = 0; r < rows; ++r) logits[r * vocabulary + 1] = 200.0f;
    for (SamplingConfig config : configs) {
      config.min_new_tokens = 5;
      CAPTURE(vocabulary, config.top_k, config.top_p);
      auto const drawn = sample(dev, logits, static_cast<index_t>(vocabulary), config, generated);
      gen::SamplerWorkspace<float> workspace;
      for (std::size_t r = 0; r < rows; ++r) {
        RngAddress const at{seed, Stream::sample, step, static_cast<std::uint32_t>(r),
                            static_cast<std::uint32_t>(generated[r])};
        std::span<float const> const row(logits.data() + r * vocabulary, vocabulary);
        CHECK(drawn.token[r] == gen::sample_token(row, config, generated[r], at, workspace));
        // The token that is drawn is the generated[r] + 1st.
        CHECK((drawn.token[r] == 1) == (generated[r] + 1 >= 5));
      }
      // An end that the vocabulary does not have bars nothing.
      config.eos = static_cast<std::int32_t>(vocabulary);
      auto const endless = sample(dev, logits, static_cast<index_t>(vocabulary), config, generated);
      CHECK(endless.token == std::vector<std::int32_t>(rows, 1));
    }
  }
}

TEST_CASE("sampling on the GPU: where the CPU throws, the token says why, and other rows go on",
          "[cuda][sampling][unit]") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  Cuda dev;
  constexpr std::size_t n = 33;
  std::vector<float> logits(5 * n, 1.0f);
  logits[n - 1] = std::numeric_limits<float>::quiet_NaN();
  logits[2 * n - 1] = infinity;
  std::fill_n(logits.begin() + 2 * n, 2 * n, -infinity);
  logits[3 * n + 7] = -3.0f;
  for (bool const greedy : {false, true}) {
    SamplingConfig config;
    config.greedy = greedy;
    auto const drawn = sample(dev, logits, n, config, {3, 3, 3, 3, 3});
    CHECK(drawn.token[0] == gen::sample_diverged);
    CHECK(drawn.token[1] == gen::sample_diverged);
    CHECK(drawn.token[2] == gen::sample_exhausted);
    CHECK(drawn.token[3] == 7);
    CHECK(drawn.logp[3] == 0.0f);
    CHECK(drawn.entropy[3] == 0.0f);
    CHECK(drawn.token[4] >= 0);
    for (std::size_t r = 0; r < 3; ++r) CHECK(std::isnan(drawn.logp[r]));
  }
  SamplingConfig all_barred;
  all_barred.barred = {0, 1, 2};
  CHECK(sample(dev, {1.0f, 2.0f, 3.0f}, 3, all_barred, {3}).token[0] == gen::sample_exhausted);
}

TEST_CASE("sampling on the GPU: a row that has ended is left alone", "[cuda][sampling][unit]") {
  Cuda dev;
  auto const logits = random_rows(1, 3, 97, 2.0);
  auto const all = sample(dev, logits, 97, {}, {4, 4, 4});
  auto const some = sample(dev, logits, 97, {}, {4, -1, 4});
  CHECK(some.token == std::vector<std::int32_t>{all.token[0], -1, all.token[2]});
  CHECK(std::isnan(some.logp[1]));
  CHECK(std::isnan(some.lse[1]));
  CHECK(sample(dev, {}, 97, {}, {}).token.empty());
}

TEST_CASE("sampling on the GPU: the token is the same where no statistics are asked for",
          "[cuda][sampling][unit]") {
  Cuda dev;
  for (SamplingConfig const& config : many_configs()) {
    for (std::size_t const vocabulary : {31, 2500}) {
      auto logits = random_rows(1, 4, vocabulary, 2.0);
      logits[vocabulary + 7] = std::nanf("");
      logits[2 * vocabulary + 8] = std::numeric_limits<float>::infinity();
      auto const all =
          sample(dev, logits, static_cast<index_t>(vocabulary), config, {4, 9, 2, 0}, 3);
      auto const only =
          sample(dev, logits, static_cast<index_t>(vocabulary), config, {4, 9, 2, 0}, 3, false);
      CHECK(only.token == all.token);
      CHECK(only.token[1] == gen::sample_diverged);
      CHECK(only.token[2] == gen::sample_diverged);
      auto const untouched = [](std::vector<float> const& x) {
        return std::all_of(x.begin(), x.end(), [](float value) { return std::isnan(value); });
      };
      CHECK(untouched(only.logp));
      CHECK(untouched(only.lse));
      CHECK(untouched(only.entropy));
    }
  }
}

TEST_CASE("sampling on the GPU: the same bits in every schedule", "[cuda][sampling][unit]") {
  Cuda dev;
  for (SamplingConfig const& config : many_configs()) {
    auto const logits = random_rows(1, 2, 2500, 2.0);
    Drawn first;
    support::for_each_schedule(10, [&] {
      auto const now = sample(dev, logits, 2500, config, {4, 9});
      if (first.token.empty()) first = now;
      CHECK(now.token == first.token);
      CHECK(now.logp == first.logp);
      CHECK(now.lse == first.lse);
      CHECK(now.entropy == first.entropy);
    });
  }
}

TEST_CASE("sampling on the GPU: wrong shapes and settings throw", "[cuda][sampling][unit]") {
  Cuda dev;
  DeviceArray<float> x(std::vector<float>(10, 0.0f));
  DeviceArray<std::int32_t> tokens(std::vector<std::int32_t>(3, 0));
  DeviceArray<std::uint32_t> ids(std::vector<std::uint32_t>(3, 0));
  DeviceArray<index_t> lengths(std::vector<index_t>(3, 0));
  auto const run = [&](index_t out, index_t sites, index_t barred, SamplingConfig const& config) {
    gen::sample_tokens(dev, {{tokens.data(), {out}}, {}, {}, {}}, {x.data(), {2, 5}}, config,
                       {tokens.data(), {barred}},
                       {0, 0, {ids.data(), {sites}}, {lengths.data(), {sites}}});
  };
  CHECK_NOTHROW(run(2, 2, 0, {}));
  CHECK_THROWS_AS(run(3, 2, 0, {}), ShapeError);
  CHECK_THROWS_AS(run(2, 3, 0, {}), ShapeError);
  CHECK_THROWS_AS(run(2, 2, 1, {}), ShapeError);
  SamplingConfig cold;
  cold.temperature = 0.0;
  CHECK_THROWS_AS(run(2, 2, 0, cold), ConfigError);
}
