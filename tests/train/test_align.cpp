// SPDX-License-Identifier: Apache-2.0

// T5 with PPO and supervised learning, on a model small enough to watch.

#include "emprl/train/align.hpp"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "emprl/ops/gemm_cpu.hpp"
#include "emprl/text/train_tokenizer.hpp"
#include "emprl/train/fit.hpp"
#include "emprl/train/sequence_task.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"
#include "support/gradient_check.hpp"

using namespace emprl;

namespace {

std::vector<data::Pair> dialogues() {
  std::vector<data::Pair> pairs;
  char const* const things[] = {"my dog ran away", "i passed the test", "the rain ruined it",
                                "we won a prize"};
  char const* const answers[] = {"what happened then ?", "that is great .",
                                 "i am sorry to hear that .", "how did you do it ?"};
  for (std::size_t i = 0; i < 16; ++i) {
    data::Pair pair;
    pair.id = "pair " + std::to_string(i);
    pair.context = things[i % 4];
    pair.response = answers[(i * 7 + i / 4) % 4];
    pair.levels = data::Levels{static_cast<int>(i % 3), 0, 1};
    pairs.push_back(pair);
  }
  return pairs;
}

text::SentencePieceTokenizer tokenizer() {
  std::vector<std::string> texts;
  for (data::Pair const& pair : dialogues()) {
    texts.push_back(pair.context);
    texts.push_back(pair.response);
  }
  text::TokenizerTraining settings;
  settings.vocabulary = 60;
  settings.allow_smaller = true;
  return {text::train_tokenizer(texts, settings), "test tokenizer"};
}

/// The double one is for central differences, which step over the kinks of ReLU: it has gated GELU.
template <class T>
train::Generator<T> generator(std::uint64_t seed = 5) {
  text::SentencePieceTokenizer spiece = tokenizer();
  t5::Config c;
  c.vocab_size = spiece.size();
  c.d_model = 16;
  c.d_kv = 8;
  c.num_heads = 2;
  c.d_ff = 32;
  c.num_layers = c.num_decoder_layers = 1;
  if (std::is_same_v<T, double>) c.feed_forward = nn::Activation::gated_gelu;
  train::Generator<T> g(c, std::move(spiece));
  t5::initialise(g.weights, c, seed);
  return g;
}

auto asks_back = [](rl::EpisodeBatch const& episodes, std::span<float> scores) {
  for (std::size_t i = 0; i < episodes.size(); ++i) {
    scores[i] = episodes[i].response.find('?') != std::string_view::npos ? 1.0f : 0.0f;
  }
};

train::AlignSettings settings(index_t steps) {
  train::AlignSettings s;
  s.steps = steps;
  s.ppo.batch_size = 16;
  s.ppo.mini_batch_size = 8;
  s.ppo.gradient_accumulation = 2;
  s.ppo.learning_rate = 3e-3;
  s.ppo.decay_steps = 1000;
  s.sampling.max_new_tokens = 8;
  return s;
}

std::vector<float> bits(train::Generator<float> const& g) {
  std::vector<float> all(g.weights.span().begin(), g.weights.span().end());
  all.insert(all.end(), g.value_head.span().begin(), g.value_head.span().end());
  return all;
}

}  // namespace

TEST_CASE(
    "T5 actor-critic: gradients of any function of log-probabilities, values and entropies match "
    "central differences",
    "[train][t5][grad]") {
  double const temperature = GENERATE(1.0, 0.7);
  Cpu dev(1);
  dev.saved.poison(true);
  train::Generator<double> g = generator<double>();
  train::ensure_value_head(g, 3);
  t5::Parameters<double, Cpu> gradients(g.config());
  train::ValueHeadParameters<double> value_gradients(g.config().d_model);
  train::T5ActorCritic<double> actor(dev, g, gradients.views(), {}, value_gradients.views(),
                                     temperature);
  std::vector<data::Pair> const pairs = dialogues();
  auto const encoded = text::encode_pairs(g.tokenizer, std::span<data::Pair const>(pairs).first(3));
  rl::TokenBatch const batch{encoded.contexts.view(), encoded.responses.view()};
  auto const n = static_cast<std::size_t>(batch.tokens());
  std::vector<double> logp(n), values(n), dlogp(n), dvalues(n);
  for (std::size_t i = 0; i < n; ++i) {
    dlogp[i] = 0.3 + 0.1 * static_cast<double>(i);
    dvalues[i] = i % 2 == 0 ? 0.5 : -0.25;
  }
  std::vector<double> entropy(n), dentropy(n);
  bool const of_entropy = GENERATE(false, true);
  for (std::size_t i = 0; i < n; ++i) dentropy[i] = 0.4 - 0.2 * static_cast<double>(i % 4);
  typename train::T5ActorCritic<double>::Context context;
  actor.forward(batch, logp, values, context);
  if (of_entropy) {
    actor.backward(dlogp, dvalues, dentropy, context);
  } else {
    actor.backward(dlogp, dvalues, context);
  }
  auto const f = [&] {
    actor.forward(batch, logp, values, context);
    actor.entropy(entropy, context);
    double sum = 0;
    for (std::size_t i = 0; i < n; ++i) {
      sum += dlogp[i] * logp[i] + dvalues[i] * values[i];
      if (of_entropy) sum += dentropy[i] * entropy[i];
    }
    return sum;
  };
  std::vector<support::GradientInput> inputs;
  for (nn::ParameterInfo const& info : g.weights.infos()) {
    auto const d = gradients.span(info);
    inputs.push_back({info.name, g.weights.span(info), {d.begin(), d.end()}});
  }
  inputs.push_back({"value head",
                    g.value_head.span(),
                    {value_gradients.span().begin(), value_gradients.span().end()}});
  support::GradientCheckOptions options;
  options.most = 10;
  support::check_gradients(f, inputs, options);
}

TEST_CASE("T5 actor-critic: the full KL is the sum over the vocabulary of what inference says",
          "[train][t5][unit]") {
  double const temperature = GENERATE(1.0, 0.7);
  Cpu dev(1);
  train::Generator<double> g = generator<double>();
  train::ensure_value_head(g, 3);
  train::Generator<double> other = generator<double>();
  RandomSequence random(5, Stream::initialise);
  for (double& w : other.weights.span()) w += 0.05 * random.normal();
  train::T5ActorCritic<double> actor(dev, g, {}, {}, {}, temperature);
  train::T5Reference<double> reference(dev, other, temperature);
  Ragged contexts;
  contexts.push_back(std::vector<std::int32_t>{5, 9, 4, 1});
  // The first token's distribution, one token of the vocabulary at a time.
  double exact = 0;
  for (index_t v = 0; v < g.config().vocab_size; ++v) {
    Ragged response;
    response.push_back(std::vector<std::int32_t>{static_cast<std::int32_t>(v)});
    std::vector<double> p(1), q(1), value(1);
    actor.inference({contexts.view(), response.view()}, p, value);
    reference.logprobs({contexts.view(), response.view()}, q);
    exact += std::exp(p[0]) * (p[0] - q[0]);
  }
  Ragged response;
  response.push_back(std::vector<std::int32_t>{7, 3, 1});
  std::vector<double> kl(3);
  actor.full_kl(reference, {contexts.view(), response.view()}, kl);
  CHECK(kl[0] == Approx(exact).epsilon(1e-11));
  CHECK(exact > 0.001);
  for (double const x : kl) CHECK(x > 0);
  train::T5Reference<double> itself(dev, g, temperature);
  actor.full_kl(itself, {contexts.view(), response.view()}, kl);
  for (double const x : kl) CHECK(x == 0);
}

TEST_CASE(
    "sequence task: the loss's gradient matches central differences, for all weights and for a "
    "prefix",
    "[train][finetune][grad]") {
  bool const prefix = GENERATE(false, true);
  Cpu dev(1);
  train::Generator<double> g = generator<double>();
  std::vector<data::Pair> const pairs = dialogues();
  auto const encoded = text::encode_pairs(g.tokenizer, std::span<data::Pair const>(pairs));
  std::vector<double> const base(g.weights.span().begin(), g.weights.span().end());
  train::SequenceTask<double> task(dev, g, encoded, encoded,
                                   {.tuning = prefix ? train::Tuning::prefix : train::Tuning::full,
                                    .dropout = 0.1,
                                    .prefix_length = 2,
                                    .prefix_hidden = 6});
  std::vector<index_t> const rows{0, 5, 2};
  task.loss(rows, 9);
  std::vector<double> const gradient(task.gradients().begin(), task.gradients().end());
  std::vector<double> spare(gradient);
  support::GradientCheckOptions options;
  options.most = 60;
  support::check_gradients([&] { return task.loss(rows, 9); },
                           {{"parameters", task.parameters(), gradient}}, options);
  if (prefix) {
    for (std::size_t i = 0; i < base.size(); ++i) REQUIRE(g.weights.span()[i] == base[i]);
  }
}

TEST_CASE("align: PPO raises a lambda's reward, from a policy that was trained on dialogues",
          "[train][align]") {
  Cpu dev(1);
  train::Generator<float> g = generator<float>();
  std::vector<data::Pair> const pairs = dialogues();
  auto const encoded = text::encode_pairs(g.tokenizer, std::span<data::Pair const>(pairs));
  train::SequenceTask<float> task(dev, g, encoded, encoded, {.dropout = 0});
  train::FitOptions fit;
  fit.epochs = 60;
  fit.batch_size = 16;
  fit.learning_rate = 1e-2;
  train::fit(dev, task, fit);

  std::vector<double> scores;
  train::align(dev, g, asks_back, pairs, settings(60), nullptr,
               [&](rl::PpoStats const& stats) { scores.push_back(stats.score_mean); });
  auto const mean = [&](std::size_t begin) {
    double sum = 0;
    for (std::size_t i = begin; i < begin + 10; ++i) sum += scores[i];
    return sum / 10;
  };
  INFO("first ten " << mean(0) << ", last ten " << mean(50));
  CHECK(mean(50) > mean(0) + 0.2);
}

TEST_CASE("align: strategies of one's own: groups of samples, a penalty in the loss, and a resume",
          "[train][align][resume]") {
  Cpu dev(1);
  std::vector<data::Pair> const pairs = dialogues();
  auto const strategies = [] {
    return train::Composition{rl::KlInLoss<rl::KlK3>{}, rl::LinearKl(0.1, 0.01, 5),
                              rl::GroupRelative{4}, rl::DualClipObjective{}};
  };
  train::AlignSettings s = settings(5);
  s.samples_per_context = 4;
  s.ppo.batch_size = 16;
  s.ppo.whiten_rewards = s.ppo.whiten_advantages = false;
  // Each context four times in a row.
  std::vector<std::string> seen;
  auto watch = [&](rl::EpisodeBatch const& b, std::span<float> scores) {
    seen.clear();
    for (rl::Episode const& e : b) seen.emplace_back(e.context);
    asks_back(b, scores);
  };
  train::Generator<float> whole = generator<float>();
  train::align(dev, whole, watch, pairs, s, strategies());
  REQUIRE(seen.size() == 16);
  for (std::size_t i = 0; i < 16; ++i) CHECK(seen[i] == seen[i / 4 * 4]);
  CHECK(seen[0] != seen[4]);

  emprl::test::TemporaryFolder const folder;
  s.checkpoint = folder / "checkpoint";
  s.save_every = 2;
  train::Generator<float> part = generator<float>();
  CHECK_THROWS_AS(train::align(dev, part, asks_back, pairs, s, strategies(), nullptr,
                               [&](rl::PpoStats const& stats) {
                                 if (stats.step == 3) throw std::runtime_error("killed");
                               }),
                  std::runtime_error);
  train::Generator<float> resumed = generator<float>();
  CHECK(train::align(dev, resumed, asks_back, pairs, s, strategies()) == 5);
  CHECK(bits(resumed) == bits(whole));

  s.ppo.batch_size = 18;
  s.checkpoint.clear();
  CHECK_THROWS_AS(train::align(dev, part, asks_back, pairs, s, strategies()), ConfigError);
}

TEST_CASE("align: advantages without values build no value head, and leave one alone",
          "[train][align]") {
  Cpu dev(1);
  std::vector<data::Pair> const pairs = dialogues();
  train::AlignSettings s = settings(2);
  s.samples_per_context = 4;
  auto const strategies = train::Composition{rl::KlK1{}, rl::FixedKl(0.05), rl::LeaveOneOut{4},
                                             rl::EntropyBonus{rl::PpoClipObjective{}}};
  train::Generator<float> g = generator<float>();
  std::vector<float> const before = bits(g);
  train::align(dev, g, asks_back, pairs, s, strategies);
  CHECK(g.value_head.size() == 0);
  CHECK(bits(g) != before);

  train::Generator<float> with_head = generator<float>();
  train::ensure_value_head(with_head, 3);
  std::vector<float> const head(with_head.value_head.span().begin(),
                                with_head.value_head.span().end());
  train::align(dev, with_head, asks_back, pairs, s, strategies);
  CHECK(std::ranges::equal(with_head.value_head.span(), head));
  // What was trained is the same: the value head takes no part.
  CHECK(std::ranges::equal(with_head.weights.span(), g.weights.span()));
}

TEST_CASE("align: a run that died goes on to the same bits", "[train][align][resume]") {
  Cpu dev(1);
  std::vector<data::Pair> const pairs = dialogues();
  train::Generator<float> whole = generator<float>();
  train::align(dev, whole, asks_back, pairs, settings(7));

  emprl::test::TemporaryFolder const folder;
  train::AlignSettings s = settings(7);
  s.checkpoint = folder / "checkpoint";
  s.save_every = 2;
  for (std::int64_t const death : {std::int64_t{2}, std::int64_t{5}}) {
    train::Generator<float> part = generator<float>();
    CHECK_THROWS_AS(train::align(dev, part, asks_back, pairs, s, nullptr,
                                 [&](rl::PpoStats const& stats) {
                                   if (stats.step == death) throw std::runtime_error("killed");
                                 }),
                    std::runtime_error);
  }
  train::Generator<float> resumed = generator<float>();
  CHECK(train::align(dev, resumed, asks_back, pairs, s) == 7);
  CHECK(bits(resumed) == bits(whole));

  train::AlignSettings other = s;
  other.ppo.learning_rate = 1e-4;
  train::Generator<float> another = generator<float>();
  CHECK_THROWS_AS(train::align(dev, another, asks_back, pairs, other), ConfigError);
}

TEST_CASE("model folder: what is saved is what is loaded, value head and prefix included",
          "[train][folder]") {
  emprl::test::TemporaryFolder const folder;
  train::Generator<float> g = generator<float>();
  train::ensure_value_head(g, 1);
  g.prefix =
      train::PrefixParameters<float>(typename t5::Prefixes<float, Cpu>::Shape{g.config(), 3});
  float x = 0;
  for (float& p : g.prefix.span()) p = x += 0.5f;
  train::save_generator(folder / "model", g);
  train::save_prefix(folder / "prefix", g);
  train::Generator<float> const back =
      train::load_generator<float>(folder / "model", folder / "prefix");
  CHECK(bits(back) == bits(g));
  CHECK(std::vector<float>(back.prefix.span().begin(), back.prefix.span().end()) ==
        std::vector<float>(g.prefix.span().begin(), g.prefix.span().end()));
  CHECK(back.warnings.empty());
  CHECK(back.tokenizer.serialized() == g.tokenizer.serialized());
  CHECK(bits(back.clone()) == bits(g));
}

TEST_CASE("model folder: configurations that cannot be are refused by field",
          "[train][folder][io]") {
  io::Json const good = train::config_to_json(t5::Config::preset("tiny"));
  CHECK(train::config_to_json(train::config_from_json(good, "config.json")) == good);
  auto const refused = [&](char const* field, io::Json value) {
    io::Json bad = good;
    bad[field] = std::move(value);
    try {
      train::config_from_json(bad, "folder/config.json");
    } catch (IoError const& error) {
      std::string const text = error.what();
      return text.find("folder/config.json") != std::string::npos;
    }
    return false;
  };
  CHECK(refused("d_model", "128"));
  CHECK(refused("d_model", -1));
  CHECK(refused("num_layers", 1000000));
  CHECK(refused("vocab_size", std::int64_t{1} << 40));
  CHECK(refused("feed_forward_proj", "swish"));
  CHECK(refused("model_type", "bert"));
  CHECK(refused("relative_attention_num_buckets", 3));
  CHECK(refused("dropout_rate", 1.5));
  io::Json missing = good;
  missing.erase("d_ff");
  CHECK_THROWS_AS(train::config_from_json(missing, "config.json"), IoError);
}
