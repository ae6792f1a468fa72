// SPDX-License-Identifier: Apache-2.0
#include "emprl/gen/beam_search.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "gen/hash_model.hpp"
#include "support/catch.hpp"

using namespace emprl;
using gen::BeamConfig;
using gen::EarlyStopping;
using gen::Hypothesis;
using gen::SamplingConfig;
using gen_tests::contexts_of;
using gen_tests::HashModel;

namespace {

using Ids = std::vector<std::int32_t>;

/// p(next | previous) from a table.
struct BeamBigrams {
  using value_type = float;
  struct State {};
  std::vector<std::vector<double>> table;
  index_t vocabulary() const { return static_cast<index_t>(table[0].size()); }
  State start(RaggedView) { return {}; }
  void step(State&, std::span<index_t const> rows, std::span<std::int32_t const> tokens,
            TensorView<float, 2, Cpu> logits) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      auto const& p = table[static_cast<std::size_t>(tokens[i])];
      std::transform(p.begin(), p.end(), logits.row(static_cast<index_t>(i)),
                     [](double x) { return static_cast<float>(std::log(x)); });
    }
  }
  void reorder(State&, std::span<index_t const>) {}
};

/// The only context, of no tokens.
Ragged beam_context() {
  Ragged one;
  one.push_back({});
  return one;
}

struct Scored {
  Ids tokens;
  double score;
};

/// All responses that the limits allow, best first, with no search: log-probabilities under the
/// full softmax, -inf for what is barred.
std::vector<Scored> all_responses(HashModel& model, RaggedView contexts, index_t row,
                                  SamplingConfig const& config, double length_penalty) {
  std::vector<Scored> found;
  auto const extend = [&](auto const& self, Ids const& seen, double sum) -> void {
    auto const x = gen_tests::logits_after(model, contexts, row, seen);
    double total = 0;
    for (double const v : x) total += std::exp(v);
    for (std::int32_t v = 0; v < HashModel::size; ++v) {
      bool const barred =
          std::count(config.barred.begin(), config.barred.end(), v) > 0 ||
          (v == config.eos && static_cast<index_t>(seen.size()) < config.min_new_tokens);
      if (barred) continue;
      Ids longer = seen;
      longer.push_back(v);
      double const score = sum + x[static_cast<std::size_t>(v)] - std::log(total);
      auto const length = static_cast<index_t>(longer.size()) - 1;
      if (v == config.eos || length == config.max_new_tokens) {
        found.push_back({Ids(longer.begin() + 1, longer.end()),
                         score / std::pow(static_cast<double>(length), length_penalty)});
      } else {
        self(self, longer, score);
      }
    }
  };
  extend(extend, {config.start}, 0.0);
  std::sort(found.begin(), found.end(),
            [](Scored const& a, Scored const& b) { return a.score > b.score; });
  return found;
}

}  // namespace

TEST_CASE("beam search: wide beams find every response in the order of its score",
          "[gen][beam_search][unit]") {
  HashModel model;
  Ragged const contexts = contexts_of(2);
  SamplingConfig config;
  config.max_new_tokens = 4;
  config.min_new_tokens = 2;
  config.barred = {0, 5, 6, 7, 8, 9, 10, 11};
  for (double const penalty : {0.0, 1.0, 2.0, -1.5}) {
    for (auto const early :
         {EarlyStopping::heuristic, EarlyStopping::at_once, EarlyStopping::never}) {
      BeamConfig beams{.beams = 200, .length_penalty = penalty, .early_stopping = early};
      beams.n_best = 200;
      auto const found = gen::beam_search(model, contexts.view(), config, beams);
      REQUIRE(found.size() == 2);
      for (index_t row = 0; row < 2; ++row) {
        auto const truth = all_responses(model, contexts.view(), row, config, penalty);
        // 3 + 9 that end after two and three tokens, and 27 times 4 of four.
        REQUIRE(truth.size() == 3 + 9 + 27 * 4);
        auto const& best = found[static_cast<std::size_t>(row)];
        REQUIRE(best.size() == truth.size());
        for (std::size_t i = 0; i < truth.size(); ++i) {
          CHECK(best[i].tokens == truth[i].tokens);
          CHECK(best[i].score == Approx(truth[i].score).epsilon(1e-12));
        }
      }
    }
  }
}

TEST_CASE("beam search: a narrow search finds no better response than there is, and often the best",
          "[gen][beam_search][unit]") {
  HashModel model;
  constexpr index_t rows = 12;
  Ragged const contexts = contexts_of(rows);
  SamplingConfig config;
  config.max_new_tokens = 4;
  config.barred = {0, 5, 6, 7, 8, 9, 10, 11};
  std::vector<int> hits;
  for (index_t const width : {1, 2, 6}) {
    auto const found = gen::beam_search(model, contexts.view(), config, {.beams = width});
    int hit = 0;
    for (index_t row = 0; row < rows; ++row) {
      auto const truth = all_responses(model, contexts.view(), row, config, 1.0);
      Hypothesis const& best = found[static_cast<std::size_t>(row)].at(0);
      CHECK(best.score <= truth.front().score + 1e-12);
      auto const same = std::find_if(truth.begin(), truth.end(),
                                     [&](Scored const& s) { return s.tokens == best.tokens; });
      REQUIRE(same != truth.end());
      CHECK(best.score == Approx(same->score).epsilon(1e-12));
      hit += best.tokens == truth.front().tokens ? 1 : 0;
    }
    hits.push_back(hit);
  }
  CHECK(hits[0] < hits[2]);
  CHECK(hits[2] >= 9);
}

TEST_CASE("beam search: a context's responses do not depend on the batch",
          "[gen][beam_search][unit]") {
  HashModel model;
  Ragged const contexts = contexts_of(9);
  SamplingConfig config;
  config.max_new_tokens = 15;
  BeamConfig const beams{.beams = 3, .n_best = 3};
  auto const together = gen::beam_search(model, contexts.view(), config, beams);
  std::set<std::size_t> lengths;
  for (index_t i = 0; i < 9; ++i) {
    std::vector<index_t> const only{i};
    auto const alone =
        gen::beam_search(model, gather_rows(contexts.view(), only).view(), config, beams);
    auto const& batch = together[static_cast<std::size_t>(i)];
    REQUIRE(alone[0].size() == batch.size());
    for (std::size_t k = 0; k < batch.size(); ++k) {
      CHECK(alone[0][k].tokens == batch[k].tokens);
      CHECK(alone[0][k].score == batch[k].score);
      lengths.insert(batch[k].tokens.size());
    }
  }
  // Contexts were done at different steps.
  CHECK(lengths.size() > 4);
}

TEST_CASE("beam search: one beam is greedy decoding", "[gen][beam_search][unit]") {
  HashModel model;
  Ragged const contexts = contexts_of(15);
  SamplingConfig config;
  config.max_new_tokens = 12;
  auto const found = gen::beam_search(model, contexts.view(), config, {.beams = 1});
  config.greedy = true;
  Ragged const greedy = gen::generate(model, contexts.view(), config, 0, 0);
  for (index_t i = 0; i < 15; ++i) {
    CHECK(found[static_cast<std::size_t>(i)].at(0).tokens == gen_tests::to_vector(greedy.row(i)));
  }
}

TEST_CASE("beam search: details are the model's numbers and sum up to the score",
          "[gen][beam_search][unit]") {
  HashModel model;
  Ragged const contexts = contexts_of(4);
  SamplingConfig config;
  config.max_new_tokens = 9;
  config.repetition_penalty = 1.5;
  auto const found = gen::beam_search(model, contexts.view(), config,
                                      {.beams = 3, .length_penalty = 0.7, .n_best = 3});
  bool penalised = false;
  for (index_t row = 0; row < 4; ++row) {
    for (Hypothesis const& h : found[static_cast<std::size_t>(row)]) {
      REQUIRE(h.details.logp.size() == h.tokens.size());
      Ids seen{config.start};
      double sum = 0;
      for (std::size_t t = 0; t < h.tokens.size(); ++t) {
        auto const x = gen_tests::logits_after(model, contexts.view(), row, seen);
        double total = 0;
        for (double const v : x) total += std::exp(v);
        double entropy = 0;
        for (double const v : x) entropy -= std::exp(v) / total * (v - std::log(total));
        auto const token = static_cast<std::size_t>(h.tokens[t]);
        double const logp = x[token] - std::log(total);
        bool const again = std::count(seen.begin(), seen.end(), h.tokens[t]) > 0;
        penalised = penalised || again;
        CHECK(h.details.logp[t] == Approx(logp).epsilon(1e-12));
        CHECK(h.details.drawn_logp[t] == Approx(again ? 1.5 * logp : logp).epsilon(1e-12));
        CHECK(h.details.entropy[t] == Approx(entropy).epsilon(1e-12));
        sum += h.details.drawn_logp[t];
        seen.push_back(h.tokens[t]);
      }
      CHECK(h.score ==
            Approx(sum / std::pow(static_cast<double>(h.tokens.size()), 0.7)).epsilon(1e-12));
    }
  }
  CHECK(penalised);
}

TEST_CASE("beam search: early stopping ends the search where it says", "[gen][beam_search][unit]") {
  // Tokens: 0 start, 1 </s>, 2, 3. Once [</s>] and [2 </s>] are finished there are two, but
  // [2 3 </s>] would be better: 0.3 0.95 over three tokens.
  BeamBigrams model;
  model.table = {{0, 0.3, 0.6, 0.1}, {}, {0, 0.45, 0.05, 0.5}, {0, 0.95, 0.03, 0.02}};
  SamplingConfig config;
  config.max_new_tokens = 6;
  auto const best = [&](EarlyStopping early, index_t width, double penalty) {
    return gen::beam_search(model, beam_context().view(), config,
                            {.beams = width, .length_penalty = penalty, .early_stopping = early})
        .at(0)
        .at(0);
  };
  CHECK(best(EarlyStopping::at_once, 2, 1.0).tokens == Ids{2, 1});
  CHECK(best(EarlyStopping::heuristic, 2, 1.0).tokens == Ids{2, 3, 1});
  CHECK(best(EarlyStopping::heuristic, 2, 1.0).score ==
        Approx(std::log(0.6 * 0.5 * 0.95) / 3).epsilon(1e-6));

  // One beam: [</s>] is finished first and is better than what could end now. Only `never` knows
  // that a long response's length would make up for its probability.
  model.table = {{0, 0.5, 0.4, 0.1}, {}, {0, 0.04, 0.06, 0.9}, {0, 0.9, 0.05, 0.05}};
  config.max_new_tokens = 3;
  CHECK(best(EarlyStopping::at_once, 1, 2.0).tokens == Ids{1});
  CHECK(best(EarlyStopping::heuristic, 1, 2.0).tokens == Ids{1});
  CHECK(best(EarlyStopping::never, 1, 2.0).tokens == Ids{2, 3, 1});
  CHECK(best(EarlyStopping::never, 1, 2.0).score ==
        Approx(std::log(0.4 * 0.9 * 0.9) / 9).epsilon(1e-6));
  // A penalty below 0 makes short responses better: nothing later can be.
  CHECK(best(EarlyStopping::never, 1, -1.0).tokens == Ids{1});
}

TEST_CASE("beam search: an end below the first `beams` candidates is passed over",
          "[gen][beam_search][unit]") {
  BeamBigrams model;
  model.table = {{0, 0.2, 0.41, 0.39}, {}, {0, 0.3, 0.3, 0.4}, {0, 0.3, 0.3, 0.4}};
  SamplingConfig config;
  config.max_new_tokens = 1;
  auto const found =
      gen::beam_search(model, beam_context().view(), config, {.beams = 2, .n_best = 2});
  REQUIRE(found[0].size() == 2);
  CHECK(found[0][0].tokens == Ids{2});
  CHECK(found[0][1].tokens == Ids{3});
}

TEST_CASE("beam search: fewer continuations than beams give fewer responses",
          "[gen][beam_search][unit]") {
  BeamBigrams model;
  model.table = {{0, 0, 0.7, 0.3}, {}, {0, 1, 0, 0}, {0, 1, 0, 0}};
  SamplingConfig config;
  auto const found =
      gen::beam_search(model, beam_context().view(), config, {.beams = 8, .n_best = 8});
  REQUIRE(found[0].size() == 2);
  CHECK(found[0][0].tokens == Ids{2, 1});
  CHECK(found[0][1].tokens == Ids{3, 1});
}

TEST_CASE("beam search: mistakes are errors with the setting or the context",
          "[gen][beam_search][unit]") {
  using Catch::Matchers::ContainsSubstring;
  HashModel model;
  Ragged const contexts = contexts_of(2);
  auto const run = [&](BeamConfig const& beams, SamplingConfig const& config = {}) {
    return gen::beam_search(model, contexts.view(), config, beams);
  };
  CHECK_THROWS_WITH(run({.beams = 0}), ContainsSubstring("beams"));
  CHECK_THROWS_WITH(run({.beams = 2, .n_best = 3}), ContainsSubstring("n_best"));
  CHECK_THROWS_WITH(run({.beams = 2, .n_best = 0}), ContainsSubstring("n_best"));
  CHECK_THROWS_WITH(run({.length_penalty = std::nan("")}), ContainsSubstring("length_penalty"));
  SamplingConfig config;
  config.max_new_tokens = 0;
  CHECK_THROWS_AS(run({}, config), ConfigError);
  config = {};
  for (std::int32_t v = 0; v < HashModel::size; ++v) config.barred.push_back(v);
  CHECK_THROWS_WITH(run({}, config), ContainsSubstring("context 0, token 0: no token is left"));
  model.poison = 0;
  CHECK_THROWS_WITH(run({}), ContainsSubstring("context 0, token 0") && ContainsSubstring("NaN"));
  CHECK(gen::beam_search(model, Ragged{}.view(), {}, {}).empty());
}
