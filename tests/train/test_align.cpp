// SPDX-License-Identifier: Apache-2.0

// T5 with PPO and supervised learning, on a model small enough to watch.

#include "emprl/train/align.hpp"

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "emprl/ops/gemm_cpu.hpp"
#include "emprl/rl/reward_combinators.hpp"
#include "emprl/text/train_tokenizer.hpp"
#include "emprl/train/fit.hpp"
#include "emprl/train/sequence_task.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"
#include "support/gradient_check.hpp"
#include "support/small_dialogues.hpp"

using namespace emprl;

namespace {

std::vector<data::Pair> dialogues() {
  return support::small_dialogues(16);
}

text::SentencePieceTokenizer tokenizer() {
  return support::small_tokenizer(dialogues());
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

/// Another number for nearly every response, also of a model that has learnt nothing.
auto likes_e = [](rl::EpisodeBatch const& episodes, std::span<float> scores) {
  for (std::size_t i = 0; i < episodes.size(); ++i) {
    auto const text = episodes[i].response;
    auto const count = static_cast<float>(std::count(text.begin(), text.end(), 'e'));
    scores[i] = count / (1.0f + static_cast<float>(text.size()));
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
  all.insert(all.end(), g.prefix.span().begin(), g.prefix.span().end());
  all.insert(all.end(), g.lora().span().begin(), g.lora().span().end());
  return all;
}

train::Generator<float> prefix_generator() {
  train::Generator<float> g = generator<float>();
  g.prefix =
      train::PrefixParameters<float>(typename t5::Prefixes<float, Cpu>::Shape{g.config(), 3});
  RandomSequence random(8, Stream::initialise);
  for (float& p : g.prefix.span()) p = static_cast<float>(0.3 * random.normal());
  return g;
}

t5::LoraConfig lora_everywhere() {
  t5::LoraConfig config;
  config.rank = 3;
  config.alpha = 6;
  config.dropout = 0.1;
  config.targets = {"all-linear"};
  return config;
}

/// With a LoRA that is no longer zero.
template <class T>
train::Generator<T> lora_generator() {
  train::Generator<T> g = generator<T>();
  train::start_lora(g, lora_everywhere(), 3);
  RandomSequence random(8, Stream::initialise);
  for (T& x : g.lora().span()) x += static_cast<T>(0.1 * random.normal());
  return g;
}

using OnStep = std::function<void(rl::PpoStats const&)>;
using Numbers = std::map<std::int64_t, std::vector<double>>;

/// Every number of every step; one that is done twice must be the same twice.
OnStep recorded_in(Numbers& all) {
  return [&all](rl::PpoStats const& stats) {
    std::vector<double> numbers;
    rl::for_each_number(stats, [&](std::string_view, double x) { numbers.push_back(x); });
    auto const [at, is_new] = all.emplace(stats.step, numbers);
    if (!is_new) CHECK(at->second == numbers);
  };
}

/// Names and contents of all files under a folder; empty where there is none.
std::map<std::string, std::string> contents(std::filesystem::path const& folder) {
  std::map<std::string, std::string> all;
  if (!std::filesystem::exists(folder)) return all;
  for (auto const& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    all[entry.path().lexically_relative(folder).string()] = emprl::test::slurp(entry.path());
  }
  return all;
}

/// Runs fifteen steps at once, and again with five stops at random steps, deaths and interruptions
/// in turn, each time with a new model, reward and strategies.
/// @param run run(settings, on_step) trains a model made for it and returns it
template <class Run>
void check_resumes_to_the_same_bits(std::uint64_t seed, Run run) {
  emprl::test::TemporaryFolder const folder;
  train::AlignSettings s = settings(15);
  s.save_every = 3;
  s.checkpoint = folder / "whole/checkpoint";
  s.best = folder / "whole/best";
  Numbers expected;
  auto const whole = bits(run(s, recorded_in(expected)));
  REQUIRE(expected.size() == 15);

  s.checkpoint = folder / "parts/checkpoint";
  s.best = folder / "parts/best";
  RandomSequence random(seed, Stream::split);
  std::set<std::int64_t> stops;
  while (stops.size() < 5) stops.insert(random.below(14));
  Numbers numbers;
  bool dies = true;
  for (std::int64_t const stop : stops) {
    CAPTURE(stop, dies);
    train::InterruptGuard const guard;
    OnStep const record = recorded_in(numbers);
    OnStep const until_stop = [&](rl::PpoStats const& stats) {
      record(stats);
      if (stats.step != stop) return;
      if (dies) throw std::runtime_error("killed");
      std::raise(SIGINT);
    };
    CHECK_THROWS_AS(run(s, until_stop), std::runtime_error);
    CHECK(train::interrupted() == !dies);
    train::clear_interrupt();
    dies = !dies;
  }
  CHECK(bits(run(s, recorded_in(numbers))) == whole);
  CHECK(numbers == expected);

  // Weights, moments and the trainer's state, byte for byte; and the same best.
  auto const last = contents(folder / "whole/checkpoint/step-000015");
  CHECK(last.count("optimizer.safetensors") + last.count("state.json") == 2);
  CHECK(contents(folder / "parts/checkpoint/step-000015") == last);
  auto const best = train::CheckpointSeries(folder / "whole/checkpoint").best();
  auto const resumed_best = train::CheckpointSeries(folder / "parts/checkpoint").best();
  REQUIRE(best);
  REQUIRE(resumed_best);
  CHECK(resumed_best->step == best->step);
  CHECK(resumed_best->score == best->score);
  CHECK(contents(folder / "whole/best") == contents(folder / "parts/best"));
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
    "sequence task: the loss's gradient matches central differences, for all weights, a prefix and "
    "a LoRA",
    "[train][finetune][grad]") {
  auto const tuning = GENERATE(train::Tuning::full, train::Tuning::prefix, train::Tuning::lora);
  bool const full = tuning == train::Tuning::full;
  Cpu dev(1);
  train::Generator<double> g =
      tuning == train::Tuning::lora ? lora_generator<double>() : generator<double>();
  std::vector<data::Pair> const pairs = dialogues();
  auto const encoded = text::encode_pairs(g.tokenizer, std::span<data::Pair const>(pairs));
  std::vector<double> const base(g.weights.span().begin(), g.weights.span().end());
  train::SequenceTask<double> task(
      dev, g, encoded, encoded,
      {.tuning = tuning, .dropout = 0.1, .prefix_length = 2, .prefix_hidden = 6});
  std::vector<index_t> const rows{0, 5, 2};
  task.loss(rows, 9);
  std::vector<double> const gradient(task.gradients().begin(), task.gradients().end());
  std::vector<double> spare(gradient);
  support::GradientCheckOptions options;
  options.most = 60;
  support::check_gradients([&] { return task.loss(rows, 9); },
                           {{"parameters", task.parameters(), gradient}}, options);
  if (!full) {
    for (std::size_t i = 0; i < base.size(); ++i) REQUIRE(g.weights.span()[i] == base[i]);
  }
}

TEST_CASE(
    "sequence task: a LoRA learns, its base does not move by a bit, and a stop changes nothing",
    "[train][finetune][lora][resume]") {
  Cpu dev(1);
  std::vector<data::Pair> const pairs = dialogues();
  emprl::test::TemporaryFolder const folder;
  train::FitOptions fit;
  fit.epochs = 8;
  fit.batch_size = 4;
  fit.learning_rate = 1e-2;
  // Interrupts itself in a step.
  struct Task : train::SequenceTask<float> {
    using SequenceTask::SequenceTask;
    double loss(std::span<index_t const> rows, std::uint32_t step) {
      if (static_cast<int>(step) == stop) std::raise(SIGINT);
      return SequenceTask::loss(rows, step);
    }
    int stop = -1;
  };
  auto const run = [&](train::Generator<float>& g, train::FitOptions const& options, int stop = -1,
                       t5::LoraConfig const& lora = lora_everywhere()) {
    auto const encoded = text::encode_pairs(g.tokenizer, std::span<data::Pair const>(pairs));
    Task task(dev, g, encoded, encoded,
              {.tuning = train::Tuning::lora, .dropout = 0.1, .lora = lora});
    task.stop = stop;
    return train::fit(dev, task, options);
  };
  train::Generator<float> whole = generator<float>();
  train::Generator<float> const untrained = generator<float>();
  auto const result = run(whole, fit);
  CHECK(result.epochs.back().valid_loss < 0.9 * result.epochs.front().valid_loss);
  CHECK(std::ranges::equal(whole.weights.span(), untrained.weights.span()));

  fit.checkpoint = folder / "checkpoint";
  fit.save_every = 3;
  for (int const stop : {5, 14}) {
    train::InterruptGuard const guard;
    train::Generator<float> part = generator<float>();
    CHECK_THROWS_AS(run(part, fit, stop), train::Interrupted);
    train::clear_interrupt();
  }
  // Other settings of the adapter, or another base, are another run.
  auto const refused = [&](train::Generator<float> g, t5::LoraConfig const& lora) {
    return emprl::test::message_of<ConfigError>([&] { run(g, fit, -1, lora); });
  };
  t5::LoraConfig other = lora_everywhere();
  other.alpha = 7;
  CHECK(refused(generator<float>(), other).find("task.lora.lora_alpha is 6 there and 7 here") !=
        std::string::npos);
  CHECK(refused(generator<float>(6), lora_everywhere()).find("task.base_fingerprint") !=
        std::string::npos);
  train::Generator<float> resumed = generator<float>();
  run(resumed, fit);
  CHECK(bits(resumed) == bits(whole));
}

TEST_CASE(
    "sequence task: a LoRA changes nothing when it is new, when it is taken away, and in a copy",
    "[train][finetune][lora]") {
  Cpu dev(1);
  std::vector<data::Pair> const pairs = dialogues();
  train::Generator<float> g = generator<float>();
  auto const encoded = text::encode_pairs(g.tokenizer, std::span<data::Pair const>(pairs));
  double const base = train::likelihood(dev, g, encoded).nats;
  train::start_lora(g, lora_everywhere(), 3);
  CHECK(train::likelihood(dev, g, encoded).nats == base);
  g.detach_lora();
  CHECK(g.lora().size() == 0);
  CHECK(train::likelihood(dev, g, encoded).nats == base);
  // A copy has a LoRA of its own.
  train::Generator<float> adapted = lora_generator<float>();
  train::Generator<float> copy = adapted.clone();
  double const with = train::likelihood(dev, adapted, encoded).nats;
  CHECK(with != base);
  CHECK(train::likelihood(dev, copy, encoded).nats == with);
  for (float& x : adapted.lora().span()) x = 0;
  CHECK(train::likelihood(dev, copy, encoded).nats == with);
  CHECK(train::likelihood(dev, adapted, encoded).nats == base);
  // What would not be saved with what is trained is not there.
  for (auto const tuning : {train::Tuning::full, train::Tuning::prefix}) {
    CHECK_THROWS_AS(train::SequenceTask<float>(dev, copy, encoded, encoded, {.tuning = tuning}),
                    ConfigError);
  }
  train::Generator<float> prefixed = prefix_generator();
  CHECK_THROWS_AS(
      train::SequenceTask<float>(dev, prefixed, encoded, encoded, {.tuning = train::Tuning::lora}),
      ConfigError);
  train::Generator<float> const moved = std::move(copy);
  CHECK(train::likelihood(dev, moved, encoded).nats == with);
}

TEMPLATE_TEST_CASE("T5 decoder: a LoRA generates the same beside the weights and merged into them",
                   "[train][t5][lora]", float, double) {
  using T = TestType;
  Cpu dev(1);
  train::Generator<T> g = lora_generator<T>();
  std::vector<data::Pair> const pairs = dialogues();
  auto const encoded = text::encode_pairs(g.tokenizer, std::span<data::Pair const>(pairs));
  gen::SamplingConfig sampling;
  sampling.greedy = true;
  sampling.max_new_tokens = 12;
  auto const greedy = [&](train::Generator<T> const& of) {
    train::T5Decoder<T> decoder(dev, of);
    return gen::generate(decoder, encoded.contexts.view(), sampling, 1, 0).ids;
  };
  auto const beside = greedy(g);
  CHECK(beside != greedy(generator<T>()));
  train::merge_lora(dev, g);
  CHECK(g.lora().size() == 0);
  CHECK(greedy(g) == beside);
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
  CHECK(emprl::test::message_of<ConfigError>([&] {
          train::align(dev, another, asks_back, pairs, other);
        }).find("ppo.learning_rate is 0.003 there and 0.0001 here") != std::string::npos);
}

TEST_CASE("align: stopped at five random steps, a run with all weights ends in the same bits",
          "[train][align][resume]") {
  Cpu dev(1);
  std::vector<data::Pair> const pairs = dialogues();
  check_resumes_to_the_same_bits(1, [&](train::AlignSettings const& s, OnStep const& on_step) {
    train::Generator<float> g = generator<float>();
    train::align(dev, g, likes_e, pairs, s, nullptr, on_step);
    return g;
  });
}

TEST_CASE("align: stopped at five random steps, strategies and a reward that remember end the same",
          "[train][align][resume]") {
  Cpu dev(1);
  std::vector<data::Pair> const pairs = dialogues();
  check_resumes_to_the_same_bits(2, [&](train::AlignSettings s, OnStep const& on_step) {
    s.ppo.score_scaling = rl::ScoreScaling::scale;
    train::Generator<float> g = generator<float>();
    rl::Normalised reward{likes_e};
    train::align(dev, g, reward, pairs, s,
                 train::Composition{rl::KlK3{}, rl::AdaptiveKl(0.2, 0.5, 100.0),
                                    rl::RunningBaseline(1.0, 0.8), rl::PpoClipObjective{}},
                 nullptr, on_step);
    return g;
  });
}

TEST_CASE("align: stopped at five random steps, a trained prefix ends in the same bits",
          "[train][align][resume]") {
  Cpu dev(1);
  std::vector<data::Pair> const pairs = dialogues();
  auto const untrained = prefix_generator();
  check_resumes_to_the_same_bits(3, [&](train::AlignSettings const& s, OnStep const& on_step) {
    train::Generator<float> g = prefix_generator();
    train::align(dev, g, likes_e, pairs, s, nullptr, on_step);
    CHECK(std::equal(g.weights.span().begin(), g.weights.span().end(),
                     untrained.weights.span().begin()));
    CHECK_FALSE(std::equal(g.prefix.span().begin(), g.prefix.span().end(),
                           untrained.prefix.span().begin()));
    return g;
  });
}

TEST_CASE("align: stopped at five random steps, a trained LoRA ends in the same bits",
          "[train][align][resume][lora]") {
  Cpu dev(1);
  std::vector<data::Pair> const pairs = dialogues();
  auto const untrained = lora_generator<float>();
  check_resumes_to_the_same_bits(4, [&](train::AlignSettings const& s, OnStep const& on_step) {
    train::Generator<float> g = lora_generator<float>();
    train::align(dev, g, likes_e, pairs, s, nullptr, on_step);
    CHECK(std::ranges::equal(g.weights.span(), untrained.weights.span()));
    CHECK_FALSE(std::ranges::equal(g.lora().span(), untrained.lora().span()));
    return g;
  });
}

TEST_CASE("align: the reference is the generator as it came, its LoRA included",
          "[train][align][lora]") {
  Cpu dev(1);
  std::vector<data::Pair> const pairs = dialogues();
  train::Generator<float> g = lora_generator<float>();
  std::vector<double> kl;
  train::align(dev, g, likes_e, pairs, settings(2), nullptr,
               [&](rl::PpoStats const& stats) { kl.push_back(stats.kl); });
  // Before the first update policy and reference are one function.
  REQUIRE(kl.size() == 2);
  CHECK(kl[0] == Approx(0).margin(1e-5));
  CHECK(std::abs(kl[1]) > 1e-3);

  train::Generator<float> both = lora_generator<float>();
  both.prefix = prefix_generator().prefix;
  CHECK(emprl::test::message_of<ConfigError>([&] {
          train::align(dev, both, likes_e, pairs, settings(1));
        }).find("at once") != std::string::npos);
}

TEST_CASE("align: a checkpoint is a model folder, or, of a prefix, an adapter",
          "[train][align][folder]") {
  Cpu dev(1);
  std::vector<data::Pair> const pairs = dialogues();
  emprl::test::TemporaryFolder const folder;
  train::AlignSettings s = settings(3);
  s.save_every = 1;
  s.checkpoint = folder / "checkpoint";
  train::Generator<float> g = generator<float>();
  train::align(dev, g, asks_back, pairs, s);
  train::Generator<float> const back =
      train::load_generator<float>(folder / "checkpoint/step-000003");
  CHECK(bits(back) == bits(g));
  CHECK(back.warnings.empty());
  CHECK(back.tokenizer.serialized() == g.tokenizer.serialized());

  s.checkpoint = folder / "prefix";
  train::Generator<float> with_prefix = prefix_generator();
  train::save_generator(folder / "model", with_prefix);
  train::align(dev, with_prefix, asks_back, pairs, s);
  auto const adapter = folder / "prefix/step-000003";
  train::Generator<float> const adapted = train::load_generator<float>(folder / "model", adapter);
  CHECK(std::equal(adapted.prefix.span().begin(), adapted.prefix.span().end(),
                   with_prefix.prefix.span().begin()));
  CHECK_FALSE(std::filesystem::exists(adapter / "model.safetensors"));
  CHECK(std::filesystem::exists(adapter / "value_head.safetensors"));

  s.checkpoint = folder / "lora";
  train::Generator<float> with_lora = lora_generator<float>();
  train::align(dev, with_lora, asks_back, pairs, s);
  train::Generator<float> const lora =
      train::load_generator<float>(folder / "model", folder / "lora/step-000003");
  CHECK(std::ranges::equal(lora.lora().span(), with_lora.lora().span()));
  CHECK_FALSE(std::filesystem::exists(folder / "lora/step-000003/model.safetensors"));
}

TEST_CASE("align: the best checkpoint is left as a model folder unless the end is the best",
          "[train][align][folder]") {
  Cpu dev(1);
  std::vector<data::Pair> const pairs = dialogues();
  emprl::test::TemporaryFolder const folder;
  std::vector<float> scores;
  auto by_step = [&](rl::EpisodeBatch const& episodes, std::span<float> out) {
    std::fill(out.begin(), out.end(), scores.at(episodes.step));
  };
  int runs = 0;
  // Saves after steps 2, 4 and 6. @return the weights after each step
  auto const run = [&](std::vector<float> of_steps, bool keep_best = true) {
    scores = std::move(of_steps);
    train::AlignSettings s = settings(static_cast<index_t>(scores.size()));
    s.save_every = 2;
    s.keep_last = 1;
    s.keep_best = keep_best;
    s.checkpoint = folder / ("checkpoint " + std::to_string(++runs));
    s.best = folder / "best";
    train::Generator<float> g = generator<float>();
    std::vector<std::vector<float>> after{bits(g)};
    train::align(dev, g, by_step, pairs, s, nullptr,
                 [&](rl::PpoStats const&) { after.push_back(bits(g)); });
    return after;
  };
  auto const left = [&] { return bits(train::load_generator<float>(folder / "best")); };

  // Means 0.5, 0.75 and 0.25: the second.
  auto after = run({0, 1, 0.5, 1, 0.5, 0});
  CHECK(left() == after[4]);
  for (char const* name : {"state.json", "optimizer.safetensors", "checkpoint.json"}) {
    CHECK_FALSE(std::filesystem::exists(folder / "best" / name));
  }
  // Of equals the first, in the place of what was left there before.
  after = run({0.5, 0.5, 0, 1, 1, 0});
  CHECK(left() == after[2]);
  // The end is the best: as a checkpoint, or by the step after the last one.
  run({0, 0, 0.5, 0.5, 1, 0.5});
  CHECK_FALSE(std::filesystem::exists(folder / "best"));
  after = run({0, 0, 0.5, 0.5, 0.25});
  CHECK(left() == after[4]);
  run({0, 0, 0.5, 0.5, 0.75});
  CHECK_FALSE(std::filesystem::exists(folder / "best"));
  // Who wants none gets none, not even an old one.
  after = run({1, 1, 0, 0});
  CHECK(left() == after[2]);
  run({1, 1, 0, 0}, false);
  CHECK_FALSE(std::filesystem::exists(folder / "best"));

  folder.put("best/thesis", "dear");
  CHECK(emprl::test::message_of<ConfigError>([&] {
          run({1, 1, 0, 0});
        }).find("something else") != std::string::npos);
  CHECK(emprl::test::slurp(folder / "best/thesis") == "dear");
}

TEST_CASE("align: every setting that moves a number is part of what a run is",
          "[train][align][resume]") {
  Cpu dev(1);
  std::vector<data::Pair> const pairs = dialogues();
  emprl::test::TemporaryFolder const folder;
  train::AlignSettings s = settings(3);
  s.save_every = 1;
  s.checkpoint = folder / "checkpoint";
  s.ppo.value_clip = std::numeric_limits<double>::infinity();  // which JSON does not know
  auto const dies = [](rl::PpoStats const& stats) {
    if (stats.step == 1) throw std::runtime_error("killed");
  };
  train::Generator<float> first = generator<float>();
  CHECK_THROWS_AS(train::align(dev, first, asks_back, pairs, s, nullptr, dies), std::runtime_error);

  auto const expect_refused = [&](std::string const& name, auto change) {
    train::AlignSettings other = s;
    change(other);
    train::Generator<float> g = generator<float>();
    std::string const text = emprl::test::message_of<ConfigError>(
        [&] { train::align(dev, g, asks_back, pairs, other); });
    CAPTURE(name, text);
    CHECK(text.find("step-000001") != std::string::npos);
    CHECK(text.find(": " + name + " is ") != std::string::npos);
  };
  using S = train::AlignSettings;
  expect_refused("phase", [](S& a) { a.phase = "control"; });
  expect_refused("steps", [](S& a) { a.steps = 4; });
  expect_refused("seed", [](S& a) { a.seed = 43; });
  expect_refused("adaptive_kl", [](S& a) { a.adaptive_kl = false; });
  expect_refused("logprobs", [](S& a) { a.logprobs = train::LogProbs::tempered; });
  expect_refused("samples_per_context", [](S& a) { a.samples_per_context = 2; });
  expect_refused("limits.context", [](S& a) { a.limits.context = 3; });
  expect_refused("sampling.top_k", [](S& a) { a.sampling.top_k = 4; });
  expect_refused("sampling.barred", [](S& a) { a.sampling.barred = {7}; });
  expect_refused("sampling.repetition_penalty", [](S& a) { a.sampling.repetition_penalty = 1.5; });
  expect_refused("sampling.no_repeat_ngram", [](S& a) { a.sampling.no_repeat_ngram = 3; });
  expect_refused("reward_name", [](S& a) { a.reward_name = "another"; });
  expect_refused("ppo.mode", [](S& a) { a.ppo.mode = rl::PpoMode::trl_0_9_6; });
  expect_refused("ppo.mini_batch_size", [](S& a) { a.ppo.mini_batch_size = 4; });
  expect_refused("ppo.gamma", [](S& a) { a.ppo.gamma = 0.99; });
  expect_refused("ppo.value_clip", [](S& a) { a.ppo.value_clip = 0.2; });
  expect_refused("ppo.decay_steps", [](S& a) { a.ppo.decay_steps = 3; });
  expect_refused("ppo.whiten_rewards", [](S& a) { a.ppo.whiten_rewards = false; });
  expect_refused("ppo.score_scaling", [](S& a) { a.ppo.score_scaling = rl::ScoreScaling::none; });
  expect_refused("ppo.ratio_tolerance", [](S& a) { a.ppo.ratio_tolerance = 0.5; });

  auto const message = [&](train::Generator<float> g, std::vector<data::Pair> const& of,
                           auto reward) {
    return emprl::test::message_of<ConfigError>([&] { train::align(dev, g, reward, of, s); });
  };
  auto other = pairs;
  other[5].response += " !";
  CHECK(message(generator<float>(), other, asks_back).find(": dialogues_fingerprint is ") !=
        std::string::npos);
  other = pairs;
  other[5].levels = data::Levels{0, 0, 2};
  CHECK(message(generator<float>(), other, asks_back).find(": dialogues_fingerprint is ") !=
        std::string::npos);
  other.pop_back();
  CHECK(message(generator<float>(), other, asks_back).find(": dialogues is 16 there and 15 here") !=
        std::string::npos);
  CHECK(message(generator<float>(6), pairs, asks_back).find(": model_fingerprint is ") !=
        std::string::npos);
  CHECK(message(generator<float>(), pairs, rl::Normalised{asks_back}).find(": reward is ") !=
        std::string::npos);

  // When and where it is written is not, nor which rows a model sees at once.
  s.ppo.rows_per_pass = 1;
  s.ppo.share_old_pass = false;
  s.save_every = 2;
  s.keep_last = 5;
  s.keep_best = false;
  s.best = folder / "best";
  train::Generator<float> g = generator<float>();
  CHECK(train::align(dev, g, asks_back, pairs, s) == 3);
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
