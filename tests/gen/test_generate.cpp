// SPDX-License-Identifier: Apache-2.0
#include "emprl/gen/generate.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <vector>

#include "gen/hash_model.hpp"
#include "support/catch.hpp"

using namespace emprl;
using gen::DrawSite;
using gen::SamplingConfig;
using gen_tests::contexts_of;
using gen_tests::HashModel;
using gen_tests::to_vector;

namespace {

struct NoStep {
  using value_type = float;
  struct State {};
  index_t vocabulary() const { return 1; }
  State start(RaggedView) { return {}; }
};

static_assert(!gen::Decoder<NoStep>);

// A Decoder is no BeamDecoder by itself.
struct NoReorder {
  using value_type = float;
  struct State {};
  index_t vocabulary() const { return 1; }
  State start(RaggedView) { return {}; }
  void step(State&, std::span<index_t const>, std::span<std::int32_t const>,
            TensorView<float, 2, Cpu>) {}
};

static_assert(gen::Decoder<NoReorder> && !gen::BeamDecoder<NoReorder>);

}  // namespace

TEST_CASE("generate: responses keep the limits of length and end with </s>",
          "[gen][generate][unit]") {
  HashModel model;
  Ragged const contexts = contexts_of(97);
  SamplingConfig config = SamplingConfig::emprl();
  Ragged const responses = gen::generate(model, contexts.view(), config, 42, 0);
  REQUIRE(responses.rows() == 97);
  bool cut = false;
  bool ended = false;
  for (index_t i = 0; i < responses.rows(); ++i) {
    auto const row = responses.row(i);
    REQUIRE(row.size() >= 5);
    REQUIRE(row.size() <= 29);
    REQUIRE(std::count(row.begin(), row.end() - 1, 1) == 0);
    (row.back() == 1 ? ended : cut) = true;
    if (row.back() != 1) REQUIRE(row.size() == 29);
  }
  CHECK(cut);
  CHECK(ended);
}

TEST_CASE("generate: a row's response depends on its id, not on the batch",
          "[gen][generate][unit]") {
  HashModel model;
  Ragged const contexts = contexts_of(33);
  SamplingConfig const config = SamplingConfig::emprl();
  Ragged const all = gen::generate(model, contexts.view(), config, 7, 3, 100U);

  SECTION("batches of another size") {
    for (index_t begin = 0; begin < 33; begin += 5) {
      std::vector<index_t> rows;
      for (index_t i = begin; i < std::min<index_t>(33, begin + 5); ++i) rows.push_back(i);
      Ragged const part = gen::generate(model, gather_rows(contexts.view(), rows).view(), config, 7,
                                        3, static_cast<std::uint32_t>(100 + begin));
      for (std::size_t i = 0; i < rows.size(); ++i) {
        REQUIRE(to_vector(part.row(static_cast<index_t>(i))) == to_vector(all.row(rows[i])));
      }
    }
  }
  SECTION("another order") {
    std::vector<index_t> rows(33);
    std::vector<std::uint32_t> ids(33);
    for (std::size_t i = 0; i < 33; ++i) {
      rows[i] = static_cast<index_t>((i * 7) % 33);
      ids[i] = static_cast<std::uint32_t>(100 + rows[i]);
    }
    Ragged const shuffled = gather_rows(contexts.view(), rows);
    Ragged const part =
        gen::generate(model, shuffled.view(), config, 7, 3, std::span<std::uint32_t const>(ids));
    for (std::size_t i = 0; i < 33; ++i) {
      REQUIRE(to_vector(part.row(static_cast<index_t>(i))) == to_vector(all.row(rows[i])));
    }
  }
  SECTION("another seed or step draws otherwise") {
    CHECK(gen::generate(model, contexts.view(), config, 8, 3, 100U).ids != all.ids);
    CHECK(gen::generate(model, contexts.view(), config, 7, 4, 100U).ids != all.ids);
    CHECK(gen::generate(model, contexts.view(), config, 7, 3, 100U).ids == all.ids);
  }
}

TEST_CASE("generate: greedy follows the largest logit of its own history",
          "[gen][generate][unit]") {
  HashModel model;
  Ragged const contexts = contexts_of(3);
  SamplingConfig config;
  config.greedy = true;
  config.min_new_tokens = 3;
  config.max_new_tokens = 9;
  Ragged const responses = gen::generate(model, contexts.view(), config, 0, 0);
  for (index_t i = 0; i < 3; ++i) {
    std::vector<index_t> const only{i};
    auto state = model.start(gather_rows(contexts.view(), only).view());
    std::vector<index_t> const first{0};
    std::vector<std::int32_t> fed{config.start};
    std::vector<std::int32_t> expected;
    Tensor<double, 2, Cpu> const logits({1, HashModel::size});
    while (expected.size() < 9 && (expected.empty() || expected.back() != 1)) {
      model.step(state, first, fed, logits.view());
      if (expected.size() + 1 < 3) logits(0, 1) = -1.0;
      auto const row = logits.span();
      fed[0] = static_cast<std::int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
      expected.push_back(fed[0]);
    }
    CHECK(to_vector(responses.row(i)) == expected);
  }
}

TEST_CASE("generate: no contexts give no responses", "[gen][generate][unit]") {
  HashModel model;
  CHECK(gen::generate(model, Ragged{}.view(), SamplingConfig::emprl(), 1, 1).rows() == 0);
}

TEST_CASE("generate: mistakes are errors that name the row", "[gen][generate][unit]") {
  using Catch::Matchers::ContainsSubstring;
  HashModel model;
  Ragged const contexts = contexts_of(2);
  SamplingConfig config;
  std::vector<std::uint32_t> const one_id{0};
  CHECK_THROWS_AS(
      gen::generate(model, contexts.view(), config, 0, 0, std::span<std::uint32_t const>(one_id)),
      ShapeError);
  config.temperature = -1.0;
  CHECK_THROWS_AS(gen::generate(model, contexts.view(), config, 0, 0), ConfigError);
  config.temperature = 1.0;
  model.poison = config.start;
  CHECK_THROWS_WITH(gen::generate(model, contexts.view(), config, 0, 0, 30U),
                    ContainsSubstring("response 30, token 0") && ContainsSubstring("NaN"));
}

TEST_CASE("generate: samples of a context are those of single responses at the same sites",
          "[gen][generate][unit]") {
  HashModel model;
  Ragged const contexts = contexts_of(5);
  SamplingConfig const config = SamplingConfig::emprl();
  constexpr index_t samples = 7;
  std::vector<DrawSite> sites;
  for (std::uint32_t i = 0; i < 5; ++i) {
    for (std::uint32_t j = 0; j < samples; ++j) sites.push_back({9, j, 20 + i});
  }
  Ragged const all = gen::generate_samples(model, contexts.view(), samples, config,
                                           std::span<DrawSite const>(sites));
  // Each context was read once.
  CHECK(model.starts == 5);
  REQUIRE(all.rows() == 5 * samples);
  std::set<std::vector<std::int32_t>> of_first;
  for (index_t j = 0; j < samples; ++j) {
    Ragged const round =
        gen::generate(model, contexts.view(), config, 9, static_cast<std::uint32_t>(j), 20U);
    for (index_t i = 0; i < 5; ++i) {
      CHECK(to_vector(all.row(i * samples + j)) == to_vector(round.row(i)));
    }
    of_first.insert(to_vector(all.row(j)));
  }
  CHECK(of_first.size() == samples);
  CHECK_THROWS_AS(gen::generate_samples(model, contexts.view(), samples + 1, config,
                                        std::span<DrawSite const>(sites)),
                  ShapeError);
  CHECK_THROWS_AS(
      gen::generate_samples(model, contexts.view(), 0, config, std::span<DrawSite const>()),
      ConfigError);
}

TEST_CASE("generate: a row with a seed of its own does not see the batch",
          "[gen][generate][unit]") {
  HashModel model;
  Ragged const contexts = contexts_of(6);
  SamplingConfig const config = SamplingConfig::emprl();
  std::vector<DrawSite> sites(6);
  for (std::size_t i = 0; i < 6; ++i) sites[i] = {1000 + i, 0, 0};
  Ragged const all =
      gen::generate(model, contexts.view(), config, std::span<DrawSite const>(sites));
  for (index_t i = 0; i < 6; ++i) {
    std::vector<index_t> const only{i};
    auto const site = std::span<DrawSite const>(sites).subspan(static_cast<std::size_t>(i), 1);
    Ragged const alone =
        gen::generate(model, gather_rows(contexts.view(), only).view(), config, site);
    CHECK(to_vector(alone.row(0)) == to_vector(all.row(i)));
  }
}

TEST_CASE("generate: details are the probabilities of the model and of the draw",
          "[gen][generate][unit]") {
  HashModel model;
  Ragged const contexts = contexts_of(5);
  SamplingConfig config = SamplingConfig::emprl();
  config.top_k = 4;
  config.repetition_penalty = 1.4;
  config.barred = {0};
  std::vector<DrawSite> sites(5);
  for (std::uint32_t i = 0; i < 5; ++i) sites[i].row = i;
  auto const made =
      gen::generate_with_details(model, contexts.view(), config, std::span<DrawSite const>(sites));
  CHECK(made.responses.ids == gen::generate(model, contexts.view(), config, 0, 0).ids);
  REQUIRE(made.details.size() == 5);
  for (index_t i = 0; i < 5; ++i) {
    auto const response = made.responses.row(i);
    auto const& details = made.details[static_cast<std::size_t>(i)];
    REQUIRE(details.logp.size() == response.size());
    REQUIRE(details.drawn_logp.size() == response.size());
    REQUIRE(details.entropy.size() == response.size());
    std::vector<std::int32_t> seen{config.start};
    for (std::size_t t = 0; t < response.size(); ++t) {
      auto x = gen_tests::logits_after(model, contexts.view(), i, seen);
      auto const token = static_cast<std::size_t>(response[t]);
      double sum = 0;
      for (double const v : x) sum += std::exp(v);
      double entropy = 0;
      for (double const v : x) entropy -= std::exp(v) / sum * std::log(std::exp(v) / sum);
      CHECK(details.logp[t] == Approx(x[token] - std::log(sum)).epsilon(1e-12));
      CHECK(details.entropy[t] == Approx(entropy).epsilon(1e-12));
      // The definition of the draw: penalty, bars, the four largest, temperature.
      std::set<std::int32_t> const once(seen.begin(), seen.end());
      for (auto const v : once) x[static_cast<std::size_t>(v)] /= 1.4;  // no logit is negative
      std::vector<double> kept;
      for (std::size_t v = 1; v < x.size(); ++v) {
        if (v == 1 && t + 1 < 5) continue;
        kept.push_back(x[v]);
      }
      std::sort(kept.rbegin(), kept.rend());
      double total = 0;
      for (std::size_t k = 0; k < 4; ++k) total += std::exp(kept[k] / 0.9);
      CHECK(details.drawn_logp[t] == Approx(x[token] / 0.9 - std::log(total)).epsilon(1e-12));
      seen.push_back(response[t]);
    }
    // The state has read all but the last token.
    CHECK(made.state.tokens_fed[static_cast<std::size_t>(i)] ==
          static_cast<index_t>(response.size()));
  }
  config.greedy = true;
  auto const greedy =
      gen::generate_with_details(model, contexts.view(), config, std::span<DrawSite const>(sites));
  for (double const x : greedy.details[0].drawn_logp) CHECK(x == 0.0);
}

TEST_CASE("generate: no n-gram comes twice, the start token counted in", "[gen][generate][unit]") {
  HashModel model;
  Ragged const contexts = contexts_of(20);
  for (index_t const n : {1, 2, 3}) {
    SamplingConfig config;
    config.no_repeat_ngram = n;
    config.max_new_tokens = n == 1 ? 10 : 40;
    config.min_new_tokens = config.max_new_tokens;
    auto const repeats = [&](SamplingConfig const& c) {
      Ragged const responses = gen::generate(model, contexts.view(), c, 4, 0);
      index_t count = 0;
      for (index_t i = 0; i < responses.rows(); ++i) {
        std::vector<std::int32_t> seen{c.start};
        for (auto const id : responses.row(i)) seen.push_back(id);
        std::set<std::vector<std::int32_t>> grams;
        for (auto at = seen.begin(); at + n <= seen.end(); ++at) {
          count += grams.insert({at, at + n}).second ? 0 : 1;
        }
      }
      return count;
    };
    CAPTURE(n);
    CHECK(repeats(config) == 0);
    config.no_repeat_ngram = 0;
    CHECK(repeats(config) > 0);
  }
}
