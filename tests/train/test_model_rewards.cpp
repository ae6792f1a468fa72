// SPDX-License-Identifier: Apache-2.0

#include "emprl/train/model_rewards.hpp"

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "emprl/ops/gemm_cpu.hpp"
#include "emprl/rl/reward_combinators.hpp"
#include "emprl/rl/reward_rules.hpp"
#include "emprl/text/train_tokenizer.hpp"
#include "emprl/train/cpu_engine.hpp"
#include "emprl/train/model_folder.hpp"
#include "emprl/train/t5_adaptors.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

using namespace emprl;

namespace {

using Scores = std::vector<double>;

text::SentencePieceTokenizer tokenizer() {
  std::vector<std::string> const texts{"my dog ran away",           "i passed the test",
                                       "what happened then ?",      "that is great .",
                                       "i am sorry to hear that .", "how did you do it ?"};
  text::TokenizerTraining settings;
  settings.vocabulary = 60;
  settings.allow_smaller = true;
  return {text::train_tokenizer(texts, settings), "test tokenizer"};
}

t5::Config config(text::SentencePieceTokenizer const& spiece) {
  t5::Config c;
  c.vocab_size = spiece.size();
  c.d_model = 16;
  c.d_kv = 8;
  c.num_heads = 2;
  c.d_ff = 32;
  c.num_layers = c.num_decoder_layers = 1;
  return c;
}

/// Random weights large enough that responses differ.
template <class Parameters>
void randomise(Parameters& parameters, std::uint64_t seed) {
  RandomSequence random(seed, Stream::initialise);
  for (nn::ParameterInfo const& info : parameters.infos()) {
    bool const norm = info.name.find("norm") != std::string::npos;
    for (auto& x : parameters.span(info)) {
      x = static_cast<std::remove_reference_t<decltype(x)>>((norm ? 1.0 : 0.0) +
                                                            0.3 * random.normal());
    }
  }
}

template <class T>
train::Generator<T> generator() {
  text::SentencePieceTokenizer spiece = tokenizer();
  t5::Config const c = config(spiece);
  train::Generator<T> g(c, std::move(spiece));
  randomise(g.weights, 5);
  return g;
}

template <class T>
train::IdentifierModel<T> classifier() {
  text::SentencePieceTokenizer spiece = tokenizer();
  t5::Config const c = config(spiece);
  train::IdentifierModel<T> m(c, std::move(spiece));
  randomise(m.weights, 7);
  return m;
}

struct Talk {
  std::string context, response;
};

/// Lengths of all kinds: nothing, a word, a sentence, more than the limits.
std::vector<Talk> talks() {
  return {{"my dog ran away", "i am sorry to hear that ."},
          {"i passed the test", ""},
          {"", "how did you do it ?"},
          {"my dog ran away", "great"},
          {"i passed the test i passed the test i passed the test", "that is great ."},
          {"my dog", "i am sorry i am sorry i am sorry to hear that what happened then ?"},
          {"", ""}};
}

text::TokenLimits const limits{.context = 12, .response = 20};

template <class R>
Scores score(R& reward, std::vector<Talk> const& talks) {
  std::vector<rl::Episode> episodes;
  for (Talk const& talk : talks) {
    rl::Episode e;
    e.id = "talk";
    e.context = talk.context;
    e.response = talk.response;
    episodes.push_back(e);
  }
  rl::ScoreLog log(episodes.size());
  return rl::score_episodes(reward, {episodes}, log);
}

/// The definition: the response's tokens one after the other by cached decoding, each with its
/// log-softmax.
double mean_logprob(Cpu& dev, train::Generator<double> const& g, std::string const& context,
                    std::string const& response) {
  Ragged contexts;
  contexts.push_back(text::encode_with_end(g.tokenizer, context, limits.context));
  auto const tokens = text::encode_with_end(g.tokenizer, response, limits.response);
  train::T5Decoder<double> decoder(dev, g);
  auto state = decoder.start(contexts.view());
  Tensor<double, 2, Cpu> logits({1, g.config().vocab_size});
  std::vector<index_t> const rows{0};
  std::vector<std::int32_t> previous{t5::decoder_start_id};
  double sum = 0;
  for (std::int32_t const token : tokens) {
    decoder.step(state, rows, previous, logits.view());
    double total = 0;
    for (double const x : logits.span()) total += std::exp(x);
    sum += logits.span()[static_cast<std::size_t>(token)] - std::log(total);
    previous[0] = token;
  }
  return sum / static_cast<double>(tokens.size());
}

/// Softmax of one pair's logits.
empathy::MechanismProbabilities probabilities(Cpu& dev, train::IdentifierModel<double> const& m,
                                              Talk const& talk) {
  Ragged contexts, responses;
  contexts.push_back(text::encode_with_end(m.tokenizer, talk.context, limits.context));
  responses.push_back(text::encode_with_end(m.tokenizer, talk.response, limits.response));
  Tensor<double, 2, Cpu> logits({1, empathy::level_count});
  m.model.inference(dev, m.weights.views(), contexts.view(), responses.view(), logits.view());
  empathy::MechanismProbabilities p{};
  double sum = 0;
  for (std::size_t l = 0; l < 3; ++l) sum += p[l] = std::exp(logits.span()[l]);
  for (double& x : p) x /= sum;
  return p;
}

/// Checks scores against numbers in double: scores are floats, so half a unit in the last place,
/// 6e-8 of them, is lost.
void check_near(Scores const& scores, Scores const& expected) {
  REQUIRE(scores.size() == expected.size());
  for (std::size_t i = 0; i < scores.size(); ++i) {
    INFO("episode " << i);
    CHECK(scores[i] == Approx(expected[i]).epsilon(1.2e-7));
  }
}

/// Neither the order of a batch nor how it is cut changes an episode's score.
template <class MakeReward>
void check_independence(MakeReward const& make) {
  std::vector<Talk> batch = talks();
  auto whole = make(index_t{64});
  Scores const scores = score(whole, batch);
  CHECK(*std::min_element(scores.begin(), scores.end()) <
        *std::max_element(scores.begin(), scores.end()) - 0.01);
  for (index_t const rows_at_once : {1, 2, 7}) {
    auto cut = make(rows_at_once);
    check_near(score(cut, batch), scores);
  }
  std::rotate(batch.begin(), batch.begin() + 3, batch.end());
  std::swap(batch[0], batch[5]);
  Scores permuted = score(whole, batch);
  std::swap(permuted[0], permuted[5]);
  std::rotate(permuted.begin(), permuted.end() - 3, permuted.end());
  check_near(permuted, scores);
  CHECK(score(whole, {}).empty());
}

}  // namespace

TEST_CASE("perplexity reward: the mean log-probability a token, </s> included, as decoding has it",
          "[train][rewards][unit]") {
  Cpu dev(1);
  train::Generator<double> const g = generator<double>();
  Scores answers, alone;
  for (Talk const& talk : talks()) {
    answers.push_back(mean_logprob(dev, g, talk.context, talk.response));
    alone.push_back(mean_logprob(dev, g, "", talk.response));
  }
  train::PerplexityReward reward(dev, g.clone(), {.limits = limits});
  check_near(score(reward, talks()), answers);
  train::PerplexityReward blind(dev, g.clone(), {.read_context = false, .limits = limits});
  check_near(score(blind, talks()), alone);
  CHECK(std::abs(answers[0] - alone[0]) > 0.01);
  // An empty response is its </s>.
  CHECK(answers[1] < 0);
}

TEST_CASE("perplexity reward: an episode's score depends on that episode alone",
          "[train][rewards][unit]") {
  Cpu dev(1);
  train::Generator<double> const g = generator<double>();
  check_independence([&](index_t rows_at_once) {
    return train::PerplexityReward<double>(dev, g.clone(),
                                           {.limits = limits, .rows_at_once = rows_at_once});
  });
}

TEST_CASE(
    "classifier reward: a level's probability, and the expected level as a share of the highest",
    "[train][rewards][unit]") {
  Cpu dev(1);
  train::IdentifierModel<double> const m = classifier<double>();
  Scores level[3], expected;
  for (Talk const& talk : talks()) {
    auto const p = probabilities(dev, m, talk);
    for (std::size_t l = 0; l < 3; ++l) level[l].push_back(p[l]);
    expected.push_back(0.5 * p[1] + p[2]);
  }
  for (int l = 0; l < 3; ++l) {
    train::ClassifierReward<double> reward(dev, classifier<double>(),
                                           {.level = l, .limits = limits});
    check_near(score(reward, talks()), level[l]);
  }
  train::ClassifierReward reward(dev, classifier<double>(), {.limits = limits});
  check_near(score(reward, talks()), expected);
}

TEST_CASE("classifier reward: an episode's score depends on that episode alone",
          "[train][rewards][unit]") {
  Cpu dev(1);
  check_independence([&](index_t rows_at_once) {
    return train::ClassifierReward<double>(
        dev, classifier<double>(), {.level = 1, .limits = limits, .rows_at_once = rows_at_once});
  });
}

TEST_CASE("model rewards: parts of a sum, moved in or lent, under their names",
          "[train][rewards][unit]") {
  Cpu dev(1);
  train::PerplexityReward<float> fluent(dev, generator<float>());
  train::ClassifierReward<float> kind(dev, classifier<float>(), {.level = 2});
  Scores const a = score(fluent, talks());
  Scores const b = score(kind, talks());
  auto sum = rl::weighted_sum(0.25, rl::Named{"fluent", std::move(fluent)},  //
                              2, rl::Named{"kind", std::ref(kind)},          //
                              0, rl::Named{"short", rl::LengthReward{1, 1}});
  std::vector<rl::Episode> episodes(talks().size());
  std::vector<Talk> const all = talks();
  for (std::size_t i = 0; i < all.size(); ++i) {
    episodes[i].context = all[i].context;
    episodes[i].response = all[i].response;
  }
  rl::ScoreLog log(episodes.size());
  Scores const scores = rl::score_episodes(sum, {episodes}, log);
  REQUIRE(log.components().size() == 3);
  CHECK(log.components()[0].name == "fluent");
  CHECK(log.components()[0].values == a);
  CHECK(log.components()[1].name == "kind");
  CHECK(log.components()[1].values == b);
  Scores expected;
  for (std::size_t i = 0; i < a.size(); ++i) expected.push_back(0.25 * a[i] + 2 * b[i]);
  check_near(scores, expected);
}

TEST_CASE("model rewards: a folder gives the scores of the model that was saved in it",
          "[train][rewards][folder]") {
  Cpu dev(1);
  emprl::test::TemporaryFolder const folder;
  train::save_generator(folder / "judge", generator<float>());
  train::save_identifier(folder / "warm", classifier<float>());
  train::PerplexityReward<float> fluent(dev, folder / "judge");
  train::PerplexityReward<float> same_fluent(dev, generator<float>());
  CHECK(score(fluent, talks()) == score(same_fluent, talks()));
  train::ClassifierReward<float> warm(dev, folder / "warm", {.level = 0});
  train::ClassifierReward<float> same_warm(dev, classifier<float>(), {.level = 0});
  CHECK(score(warm, talks()) == score(same_warm, talks()));

  using emprl::test::message_of;
  auto const absent = (folder / "absent").string();
  CHECK(message_of<IoError>([&] {
          train::PerplexityReward<float>(dev, folder / "absent");
        }).find(absent) != std::string::npos);
  CHECK(message_of<IoError>([&] {
          train::ClassifierReward<float>(dev, folder / "absent");
        }).find(absent) != std::string::npos);
  // A T5 is no classifier: its tensors have other names.
  CHECK(message_of<IoError>([&] {
          train::ClassifierReward<float>(dev, folder / "judge");
        }).find("model.safetensors") != std::string::npos);
}

TEST_CASE("model rewards: on the host's engine they are bit for bit those on its context",
          "[train][rewards][engine]") {
  train::CpuEngine engine(1);
  Cpu dev(1);
  emprl::test::TemporaryFolder const folder;
  train::save_generator(folder / "judge", generator<float>());
  train::save_identifier(folder / "warm", classifier<float>());
  for (index_t const rows_at_once : {1, 3, 64}) {
    for (bool const read_context : {true, false}) {
      train::PerplexityRewardSettings const settings{
          .read_context = read_context, .limits = limits, .rows_at_once = rows_at_once};
      train::PerplexityReward here(dev, generator<float>(), settings);
      train::PerplexityReward there(engine, generator<float>(), settings);
      train::PerplexityReward<float> from_folder(engine, folder / "judge", settings);
      CHECK(score(there, talks()) == score(here, talks()));
      CHECK(score(from_folder, talks()) == score(here, talks()));
    }
    for (std::optional<int> const level : {std::optional<int>(), std::optional<int>(1)}) {
      train::ClassifierRewardSettings const settings{
          .level = level, .limits = limits, .rows_at_once = rows_at_once};
      train::ClassifierReward here(dev, classifier<float>(), settings);
      train::ClassifierReward there(engine, classifier<float>(), settings);
      train::ClassifierReward<float> from_folder(engine, folder / "warm", settings);
      CHECK(score(there, talks()) == score(here, talks()));
      CHECK(score(from_folder, talks()) == score(here, talks()));
    }
  }
}

TEST_CASE("model rewards: one on an engine may be moved away from where it was made",
          "[train][rewards][engine]") {
  train::CpuEngine engine(1);
  train::PerplexityReward<float> fluent(engine, generator<float>());
  train::ClassifierReward<float> kind(engine, classifier<float>());
  Scores const a = score(fluent, talks());
  Scores const b = score(kind, talks());
  std::vector<train::PerplexityReward<float>> judges;
  judges.push_back(std::move(fluent));
  judges.push_back(train::PerplexityReward<float>(engine, generator<float>()));
  train::ClassifierReward<float> moved(std::move(kind));
  CHECK(score(judges[0], talks()) == a);
  CHECK(score(moved, talks()) == b);
}

TEST_CASE("model rewards: settings out of range are refused by name", "[train][rewards][unit]") {
  Cpu dev(1);
  using emprl::test::message_of;
  auto const perplexity = [&](train::PerplexityRewardSettings const& s) {
    return message_of<ConfigError>([&] { train::PerplexityReward(dev, generator<float>(), s); });
  };
  auto const classified = [&](train::ClassifierRewardSettings const& s) {
    return message_of<ConfigError>([&] { train::ClassifierReward(dev, classifier<float>(), s); });
  };
  CHECK(perplexity({}).empty());
  CHECK(classified({}).empty());
  CHECK(perplexity({.limits = {.context = 0}}).starts_with("limits.context is 0"));
  CHECK(perplexity({.limits = {.response = 0}}).starts_with("limits.response is 0"));
  CHECK(perplexity({.rows_at_once = 0}).starts_with("rows_at_once is 0"));
  CHECK(classified({.level = 3}).starts_with("level is 3"));
  CHECK(classified({.level = -1}).starts_with("level is -1"));
  CHECK(classified({.rows_at_once = 0}).starts_with("rows_at_once is 0"));
  train::CpuEngine engine(1);
  CHECK(message_of<ConfigError>([&] {
          train::PerplexityReward(engine, generator<float>(), {.rows_at_once = 0});
        }).starts_with("rows_at_once is 0"));
  CHECK(message_of<ConfigError>([&] {
          train::ClassifierReward(engine, classifier<float>(), {.level = 3});
        }).starts_with("level is 3"));

  train::ClassifierReward<float> reward(dev, classifier<float>());
  std::vector<rl::Episode> const episodes(2);
  std::vector<float> scores(1);
  CHECK_THROWS_AS(reward({episodes}, scores), ShapeError);
}
