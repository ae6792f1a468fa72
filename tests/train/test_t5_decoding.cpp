// SPDX-License-Identifier: Apache-2.0
// T5 decoded greedily, by beams and by sampling, against what transformers recorded.
#include "emprl/gen/beam_search.hpp"

#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "emprl/train/t5_adaptors.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/t5_golden.hpp"

using namespace emprl;
using gen::DrawSite;
using gen::EarlyStopping;
using train::T5Decoder;
using train::T5Weights;

namespace {

/// A recorded model with the row of </s> that its decoding was recorded with, and the records.
template <class T>
struct RecordedDecoding {
  nlohmann::json records;
  T5Weights<T> weights;
  Ragged contexts;

  explicit RecordedDecoding(std::string const& folder) : weights(support::golden_config(folder)) {
    std::ifstream file(std::string(EMPRL_GOLDEN_DIR) + "/" + folder + "/decoding.json");
    records = nlohmann::json::parse(file);
    support::GoldenT5<T> const golden(folder);
    std::copy(golden.parameters.span().begin(), golden.parameters.span().end(),
              weights.weights.span().begin());
    // The output embedding is the input's where the two are tied.
    std::string const output =
        golden.config.tie_word_embeddings ? "shared.weight" : "lm_head.weight";
    auto const row = records.at("end_row").get<std::vector<double>>();
    bool found = false;
    for (auto const& info : weights.weights.infos()) {
      if (info.name != output) continue;
      auto const to = weights.weights.span(info).subspan(row.size(), row.size());
      std::transform(row.begin(), row.end(), to.begin(),
                     [](double x) { return static_cast<T>(x); });
      found = true;
    }
    REQUIRE(found);
    for (auto const& row_of_ids : records.at("contexts")) {
      contexts.push_back(row_of_ids.template get<std::vector<std::int32_t>>());
    }
  }
};

/// generate()'s options in our terms; every one must be known.
void read_options(nlohmann::json const& options, gen::SamplingConfig& config,
                  gen::BeamConfig& beams) {
  beams.beams = 0;
  for (auto const& [name, value] : options.items()) {
    if (name == "num_beams") {
      beams.beams = value.get<index_t>();
    } else if (name == "num_return_sequences") {
      beams.n_best = value.get<index_t>();
    } else if (name == "length_penalty") {
      beams.length_penalty = value.get<double>();
    } else if (name == "early_stopping") {
      beams.early_stopping = value.is_string()   ? EarlyStopping::never
                             : value.get<bool>() ? EarlyStopping::at_once
                                                 : EarlyStopping::heuristic;
    } else if (name == "repetition_penalty") {
      config.repetition_penalty = value.get<double>();
    } else if (name == "no_repeat_ngram_size") {
      config.no_repeat_ngram = value.get<index_t>();
    } else if (name == "min_length") {
      // The start token counts there, and the token that is about to come here: the same number.
      config.min_new_tokens = value.get<index_t>();
    } else if (name == "suppress_tokens") {
      config.barred = value.get<std::vector<std::int32_t>>();
    } else {
      FAIL("an option that is not understood: " << name);
    }
  }
}

}  // namespace

TEMPLATE_TEST_CASE("t5 decoding: greedy and beam search give transformers' tokens and scores",
                   "[train][beam_search][golden]", float, double) {
  using T = TestType;
  using Rows = std::vector<std::vector<std::vector<std::int32_t>>>;
  for (auto const* folder : {"t5_v1_0", "t5_v1_1"}) {
    RecordedDecoding<T> const recorded(folder);
    Cpu dev(2);
    T5Decoder<T> decoder(dev, recorded.weights);
    std::size_t searched = 0;
    for (auto const& record : recorded.records.at("cases")) {
      INFO(folder << ": " << record.at("name"));
      gen::SamplingConfig config;
      gen::BeamConfig beams;
      read_options(record.at("options"), config, beams);
      config.max_new_tokens = recorded.records.at("max_new_tokens").template get<index_t>();
      Rows rows;
      if (beams.beams == 0) {
        config.greedy = true;
        Ragged const responses = gen::generate(decoder, recorded.contexts.view(), config, 0, 0);
        for (index_t i = 0; i < responses.rows(); ++i) {
          rows.push_back({{responses.row(i).begin(), responses.row(i).end()}});
        }
        CHECK(rows == record.at("responses").template get<Rows>());
        continue;
      }
      ++searched;
      std::vector<float> scores;
      std::vector<double> expected;
      for (auto const& best : gen::beam_search(decoder, recorded.contexts.view(), config, beams)) {
        rows.emplace_back();
        for (gen::Hypothesis const& h : best) {
          rows.back().push_back(h.tokens);
          scores.push_back(static_cast<float>(h.score));
        }
      }
      CHECK(rows == record.at("responses").template get<Rows>());
      for (auto const& of : record.at("scores")) {
        for (double const x : of) expected.push_back(x);
      }
      // The record itself is rounded to float.
      double const plain =
          std::is_same_v<T, double> ? 0.0 : record.at("float32_error").template get<double>();
      support::check_error("scores", scores, expected, plain, std::is_same_v<T, double> ? 2 : 8);
    }
    CHECK(searched > 30);
  }
}

TEST_CASE("t5 decoding: several samples of a context are those of single ones",
          "[train][generate][unit]") {
  RecordedDecoding<float> const recorded("t5_v1_1");
  Cpu dev(2);
  T5Decoder<float> decoder(dev, recorded.weights);
  gen::SamplingConfig config;
  config.max_new_tokens = 40;  // beyond the cache's first growth
  config.repetition_penalty = 1.2;
  constexpr index_t samples = 6;
  std::vector<DrawSite> sites;
  for (std::uint32_t i = 0; i < 5; ++i) {
    for (std::uint32_t j = 0; j < samples; ++j) sites.push_back({3, j, i});
  }
  Ragged const all = gen::generate_samples(decoder, recorded.contexts.view(), samples, config,
                                           std::span<DrawSite const>(sites));
  std::set<std::vector<std::int32_t>> different;
  for (index_t j = 0; j < samples; ++j) {
    Ragged const round =
        gen::generate(decoder, recorded.contexts.view(), config, 3, static_cast<std::uint32_t>(j));
    for (index_t i = 0; i < 5; ++i) {
      auto const a = all.row(i * samples + j);
      auto const b = round.row(i);
      CHECK(std::vector<std::int32_t>(a.begin(), a.end()) ==
            std::vector<std::int32_t>(b.begin(), b.end()));
      different.insert({a.begin(), a.end()});
    }
  }
  CHECK(different.size() > 20);
}

TEMPLATE_TEST_CASE("t5 decoding: details are what scoring the response says",
                   "[train][generate][contract]", float, double) {
  using T = TestType;
  RecordedDecoding<T> const recorded("t5_v1_0");
  Cpu dev(2);
  T5Decoder<T> decoder(dev, recorded.weights);
  gen::SamplingConfig config;
  config.max_new_tokens = 20;
  config.temperature = 1.5;
  std::vector<DrawSite> sites(5);
  for (std::uint32_t i = 0; i < 5; ++i) sites[i].row = i;
  auto const made = gen::generate_with_details(decoder, recorded.contexts.view(), config,
                                               std::span<DrawSite const>(sites));
  auto const n = made.responses.ids.size();
  std::vector<T> logp(n), entropy(n), logp_alone(n);
  train::token_logprobs<T>(dev, recorded.weights, recorded.contexts.view(), made.responses.view(),
                           std::span<T>(logp), {}, T(1), std::span<T>(entropy));
  train::token_logprobs<T>(dev, recorded.weights, recorded.contexts.view(), made.responses.view(),
                           std::span<T>(logp_alone));
  CHECK(logp == logp_alone);
  std::vector<double> generated_logp, generated_entropy;
  for (gen::TokenDetails const& d : made.details) {
    generated_logp.insert(generated_logp.end(), d.logp.begin(), d.logp.end());
    generated_entropy.insert(generated_entropy.end(), d.entropy.begin(), d.entropy.end());
  }
  // Logits of order ten from a cache and from a whole pass: two float computations.
  support::check_error("log-probabilities", logp, generated_logp, 0.0, 256);
  support::check_error("entropies", entropy, generated_entropy, 0.0, 256);
  CHECK(made.state.position > 0);
}
