// SPDX-License-Identifier: Apache-2.0
// The program's side of a device: supervised training, identifiers, rewards and PPO on the GPU's
// engine, whose kernels the host executor runs, against the same on the CPU.
#include "emprl/ops/gemm_cpu.hpp"
//
#include "emprl/train/engine_tasks.hpp"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "emprl/gen/beam_search.hpp"
#include "emprl/io/file.hpp"
#include "emprl/rl/reward_combinators.hpp"
#include "emprl/text/span_corruption.hpp"
#include "emprl/text/train_tokenizer.hpp"
#include "emprl/text/windows.hpp"
#include "emprl/train/cpu_engine.hpp"
#include "emprl/train/cuda_engine.cuh"
#include "emprl/train/empathy_reward.hpp"
#include "emprl/train/model_rewards.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/small_dialogues.hpp"

using namespace emprl;

namespace {

namespace on_engines {

std::vector<data::Pair> dialogues() {
  return support::small_dialogues(6);
}

text::SentencePieceTokenizer tokenizer() {
  return support::small_tokenizer(dialogues());
}

t5::Config config(text::SentencePieceTokenizer const& spiece) {
  t5::Config c;
  c.vocab_size = spiece.size();
  c.d_model = 16;
  c.d_kv = 32;
  c.num_heads = 1;
  c.d_ff = 24;
  c.num_layers = c.num_decoder_layers = 1;
  return c;
}

/// With a LoRA that already does something.
void give_lora(train::Generator<float>& g) {
  t5::LoraConfig lora;
  lora.rank = 2;
  lora.dropout = 0.1;
  train::start_lora(g, lora, 7);
  for (float& x : g.lora().span()) x += 0.05f;
}

train::Generator<float> generator() {
  text::SentencePieceTokenizer spiece = tokenizer();
  t5::Config const c = config(spiece);
  train::Generator<float> g(c, std::move(spiece));
  t5::initialise(g.weights, c, 5);
  return g;
}

text::EncodedPairs encoded(train::Generator<float> const& g) {
  std::vector<data::Pair> const pairs = dialogues();
  return text::encode_pairs(g.tokenizer, std::span<data::Pair const>(pairs));
}

std::vector<double> response_logprobs(train::Engine& engine, train::Generator<float> const& g) {
  std::vector<double> rows;
  train::likelihood(*engine.load(g), encoded(g), 4, &rows);
  return rows;
}

void check_close(std::string const& what, std::vector<double> const& actual,
                 std::vector<double> const& expected, double share) {
  REQUIRE(actual.size() == expected.size());
  double const allowed = share * support::max_abs(expected);
  for (std::size_t i = 0; i < actual.size(); ++i) {
    INFO(what << " " << i << ": " << actual[i] << ", CPU " << expected[i]);
    CHECK(std::abs(actual[i] - expected[i]) <= allowed);
  }
}

/// A step of Adam along a gradient that is rounding alone has the size of any other: this epsilon
/// is above it.
train::FitOptions fit_options(index_t epochs) {
  train::FitOptions o;
  o.epochs = epochs;
  o.batch_size = 3;
  o.learning_rate = 1e-2;
  o.optimizer.epsilon = 1e-3;
  return o;
}

std::vector<double> losses(train::FitResult const& result) {
  std::vector<double> all;
  for (auto const& epoch : result.epochs) {
    all.push_back(epoch.train_loss);
    all.push_back(epoch.valid_loss);
  }
  return all;
}

train::AlignSettings align_settings(index_t steps) {
  train::AlignSettings s;
  s.steps = steps;
  s.ppo.batch_size = 6;
  s.ppo.mini_batch_size = 3;
  s.ppo.gradient_accumulation = 2;
  s.ppo.epochs = 2;
  s.ppo.learning_rate = 1e-3;
  s.sampling.max_new_tokens = 6;
  s.sampling.min_new_tokens = 2;
  return s;
}

/// Another number for nearly every response.
auto likes_e = [](rl::EpisodeBatch const& episodes, std::span<float> scores) {
  for (std::size_t i = 0; i < episodes.size(); ++i) {
    auto const text = episodes[i].response;
    auto const count = static_cast<float>(std::count(text.begin(), text.end(), 'e'));
    scores[i] = count / (1.0f + static_cast<float>(text.size()));
  }
};

}  // namespace on_engines

}  // namespace

TEST_CASE("engine: score and generate give on the GPU what they give on the CPU",
          "[cuda][train][engine]") {
  namespace test = on_engines;
  train::Generator<float> const g = test::generator();
  train::CpuEngine cpu(2);
  train::CudaEngine<float> gpu;
  test::check_close("score", test::response_logprobs(gpu, g), test::response_logprobs(cpu, g),
                    1e-5);
  train::CudaEngine<Bf16> half;
  test::check_close("score in 16 bits", test::response_logprobs(half, g),
                    test::response_logprobs(cpu, g), 12 * 0x1p-8);
  gen::SamplingConfig sampling = gen::SamplingConfig::emprl();
  sampling.max_new_tokens = 8;
  sampling = train::barred_beyond_tokenizer(sampling, g);
  Ragged const contexts = test::encoded(g).contexts;
  for (bool const greedy : {false, true}) {
    sampling.greedy = greedy;
    auto const expected = cpu.load(g)->generate(contexts.view(), sampling, 42, 0);
    auto const drawn = gpu.load(g)->generate(contexts.view(), sampling, 42, 0);
    CHECK(drawn.ids == expected.ids);
    CHECK(drawn.offsets == expected.offsets);
  }
}

TEST_CASE("engine: a LoRA scores and generates on the GPU as on the CPU",
          "[cuda][train][lora][engine]") {
  namespace test = on_engines;
  train::Generator<float> const plain = test::generator();
  train::Generator<float> g = test::generator();
  test::give_lora(g);
  train::CpuEngine cpu(2);
  train::CudaEngine<float> gpu;
  auto const expected = test::response_logprobs(cpu, g);
  test::check_close("score", test::response_logprobs(gpu, g), expected, 1e-5);
  CHECK(expected != test::response_logprobs(cpu, plain));
  gen::SamplingConfig sampling;
  sampling.max_new_tokens = 8;
  Ragged const contexts = test::encoded(g).contexts;
  CHECK(gpu.load(g)->generate(contexts.view(), sampling, 42, 0).ids ==
        cpu.load(g)->generate(contexts.view(), sampling, 42, 0).ids);
}

TEST_CASE("engine: whatever decoding looks at, on the GPU it is the CPU's",
          "[cuda][train][gen][engine]") {
  namespace test = on_engines;
  train::Generator<float> const g = test::generator();
  train::CpuEngine cpu(2);
  train::CudaEngine<float> gpu;
  auto const here = cpu.load(g);
  auto const there = gpu.load(g);
  text::EncodedPairs const set = test::encoded(g);
  RaggedView const contexts = set.contexts.view();
  gen::SamplingConfig sampling;
  sampling.max_new_tokens = 8;
  sampling.repetition_penalty = 1.4;
  sampling.no_repeat_ngram = 2;
  // Rows of several seeds and steps, and what looks back.
  std::vector<gen::DrawSite> sites;
  for (std::uint32_t i = 0; i < 6; ++i) sites.push_back({40 + i % 2, i % 3, i});
  auto const expected = here->generate(contexts, sampling, sites);
  CHECK(there->generate(contexts, sampling, sites).ids == expected.ids);
  sampling.repetition_penalty = 1;
  sampling.no_repeat_ngram = 0;
  auto const mixed = here->generate(contexts, sampling, sites);
  CHECK(mixed.ids != expected.ids);
  CHECK(there->generate(contexts, sampling, sites).ids == mixed.ids);
  // A row's draw is its site's, whether the host takes it or, of one seed and step, the GPU.
  std::vector<gen::DrawSite> const same(6, {41, 1, 1});
  CHECK(std::ranges::equal(there->generate(contexts, sampling, same).row(1), mixed.row(1)));
  CHECK(there->generate(contexts, sampling, same).ids ==
        here->generate(contexts, sampling, same).ids);

  train::EngineDecoder on_cpu(*here), on_gpu(*there);
  gen::BeamConfig const beams{.beams = 3, .n_best = 2};
  auto const best = gen::beam_search(on_cpu, contexts, sampling, beams);
  auto const found = gen::beam_search(on_gpu, contexts, sampling, beams);
  REQUIRE(found.size() == best.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    REQUIRE(found[i].size() == best[i].size());
    for (std::size_t k = 0; k < found[i].size(); ++k)
      CHECK(found[i][k].tokens == best[i][k].tokens);
  }
  std::vector<gen::DrawSite> samples;
  for (std::uint32_t i = 0; i < 12; ++i) samples.push_back({8, i % 2, i / 2});
  gen::DetailsObserver details(12), their_details(12);
  auto const drawn = gen::generate_samples(on_cpu, contexts, 2, sampling, samples, details);
  CHECK(gen::generate_samples(on_gpu, contexts, 2, sampling, samples, their_details).ids ==
        drawn.ids);
  for (std::size_t i = 0; i < 12; ++i) {
    test::check_close("entropy", their_details.details[i].entropy, details.details[i].entropy,
                      1e-5);
  }

  auto const entropies = [&](train::EngineT5& model) {
    std::vector<float> logp(set.responses.ids.size()), entropy(logp.size());
    model.logprobs(contexts, set.responses.view(), logp, entropy);
    return std::vector<double>(entropy.begin(), entropy.end());
  };
  test::check_close("entropy", entropies(*there), entropies(*here), 1e-5);
}

TEST_CASE("engine: finetune has on the GPU the losses and the model of the CPU",
          "[cuda][train][engine]") {
  namespace test = on_engines;
  train::Generator<float> const start = test::generator();
  text::EncodedPairs const pairs = test::encoded(start);
  train::CpuEngine cpu(2);
  auto const run = [&](train::Engine& engine, train::Tuning tuning) {
    train::Generator<float> g = test::generator();
    auto const result =
        train::fit_sequences(engine, g, pairs, pairs,
                             {.tuning = tuning,
                              .prefix_length = 2,
                              .prefix_hidden = 6,
                              .lora = {.rank = 2, .dropout = 0.1, .targets = {"q", "wo"}}},
                             test::fit_options(2));
    CHECK((g.lora().size() > 0) == (tuning == train::Tuning::lora));
    return std::pair(test::losses(result), test::response_logprobs(cpu, g));
  };
  for (train::Tuning const tuning :
       {train::Tuning::full, train::Tuning::prefix, train::Tuning::lora}) {
    auto const [losses, rows] = run(cpu, tuning);
    train::CudaEngine<float> gpu;
    auto const [their_losses, their_rows] = run(gpu, tuning);
    // Four steps in float.
    test::check_close("loss", their_losses, losses, 1e-4);
    test::check_close("response", their_rows, rows, 1e-4);
    CHECK(losses.back() < losses.front());
  }
  train::CudaEngine<Bf16> half;
  auto const [losses, rows] = run(cpu, train::Tuning::full);
  auto const [their_losses, their_rows] = run(half, train::Tuning::full);
  test::check_close("loss in 16 bits", their_losses, losses, 12 * 0x1p-8);
  auto const [lora_losses, lora_rows] = run(cpu, train::Tuning::lora);
  test::check_close("loss of a LoRA in 16 bits", run(half, train::Tuning::lora).first, lora_losses,
                    12 * 0x1p-8);
}

TEST_CASE("engine: span corruption has on the GPU the losses and the model of the CPU",
          "[cuda][train][span_corruption][engine]") {
  namespace test = on_engines;
  train::Generator<float> const start = test::generator();
  std::vector<std::string> texts;
  for (data::Pair const& pair : test::dialogues()) {
    texts.push_back(pair.context);
    texts.push_back(pair.response);
  }
  auto const sentinels = start.tokenizer.sentinel_ids();
  Ragged windows;
  text::append_windows(start.tokenizer, std::span<std::string const>(texts), 12, sentinels,
                       windows);
  REQUIRE(windows.rows() >= 6);
  // Two steps of three windows an epoch, other spans in the second.
  std::vector<index_t> seen;
  train::SequenceExamples const examples(6,
                                         [&](std::span<index_t const> rows, std::uint32_t step) {
                                           seen.insert(seen.end(), rows.begin(), rows.end());
                                           return text::corrupt_windows(windows.view(), rows, {},
                                                                        sentinels, 5, step / 2);
                                         },
                                         {{"made", "by hand"}});
  std::vector<index_t> const first{0, 1, 2};
  auto const valid = text::corrupt_windows(windows.view(), first, {0.4, 2}, sentinels, 5, 9);
  train::CpuEngine cpu(2);
  auto const run = [&](train::Engine& engine, std::filesystem::path const& checkpoint = {}) {
    train::Generator<float> g = test::generator();
    train::FitOptions options = test::fit_options(2);
    options.checkpoint = checkpoint;
    seen.clear();
    auto const result = train::fit_sequences(engine, g, examples, valid, {}, options);
    CHECK(seen.size() == 12);
    CHECK(result.tokens > 0);
    return std::pair(test::losses(result), test::response_logprobs(cpu, g));
  };
  auto const [losses, rows] = run(cpu);
  CHECK(losses.back() < losses.front());
  train::CudaEngine<float> gpu;
  emprl::test::TemporaryFolder const folder;
  auto const [their_losses, their_rows] = run(gpu, folder / "checkpoint");
  // Four steps in float.
  test::check_close("loss", their_losses, losses, 1e-4);
  test::check_close("response", their_rows, rows, 1e-4);
  train::CudaEngine<Bf16> half;
  test::check_close("loss in 16 bits", run(half).first, losses, 12 * 0x1p-8);
  // What examples depend on is what a checkpoint is held against.
  train::Generator<float> g = test::generator();
  train::FitOptions options = test::fit_options(2);
  options.checkpoint = folder / "checkpoint";
  train::SequenceExamples const others(6, examples.batch, {{"made", "otherwise"}});
  CHECK_THROWS_WITH(train::fit_sequences(cpu, g, others, valid, {}, options),
                    Catch::Matchers::ContainsSubstring("otherwise"));
}

TEST_CASE("engine: an adapter that is not what is trained is refused on every device",
          "[cuda][train][lora][engine]") {
  namespace test = on_engines;
  train::CpuEngine cpu(2);
  train::CudaEngine<float> gpu;
  for (train::Engine* const engine : std::initializer_list<train::Engine*>{&cpu, &gpu}) {
    train::Generator<float> g = test::generator();
    test::give_lora(g);
    text::EncodedPairs const pairs = test::encoded(g);
    CHECK_THROWS_WITH(train::fit_sequences(*engine, g, pairs, pairs, {}, test::fit_options(1)),
                      Catch::Matchers::ContainsSubstring("has a LoRA"));
    g.prefix =
        train::PrefixParameters<float>(typename t5::Prefixes<float, Cpu>::Shape{g.config(), 2});
    std::vector<data::Pair> const dialogues = test::dialogues();
    CHECK_THROWS_WITH(train::align(*engine, g, test::likes_e, dialogues, test::align_settings(1)),
                      Catch::Matchers::ContainsSubstring("a prefix and a LoRA"));
  }
}

TEST_CASE("engine: an identifier learns on the GPU as on the CPU, and rewards as there",
          "[cuda][train][engine]") {
  namespace test = on_engines;
  train::Generator<float> const encoder = test::generator();
  std::vector<data::Post> posts;
  for (data::Pair const& pair : test::dialogues()) {
    data::Post post;
    post.seeker = pair.context;
    post.response = pair.response;
    post.level = (*pair.levels)[0];
    posts.push_back(post);
  }
  auto const encoded = train::encode_posts(encoder.tokenizer, posts);
  train::CpuEngine cpu(2);
  train::CudaEngine<float> gpu;
  emprl::test::TemporaryFolder const folder;
  auto const run = [&](train::Engine& engine, std::filesystem::path const& to) {
    train::IdentifierModel<float> identifier(
        encoder.config(),
        text::SentencePieceTokenizer(encoder.tokenizer.serialized(), "spiece.model"));
    empathy::initialise(identifier.weights, encoder.config(), encoder.weights, 3);
    auto const result = train::fit_identifier(engine, identifier, encoded, encoded,
                                              {.class_weights = train::ClassWeights::balanced},
                                              test::fit_options(2));
    for (char const* const name : {"er", "ip", "ex"}) train::save_identifier(to / name, identifier);
    return test::losses(result);
  };
  test::check_close("loss", run(gpu, folder / "gpu"), run(cpu, folder / "cpu"), 1e-4);

  // Scorers: the same identifiers on both devices, and those that the other trained.
  std::vector<std::string> contexts, responses;
  for (data::Pair const& pair : test::dialogues()) {
    contexts.push_back(pair.context);
    responses.push_back(pair.response);
  }
  auto const levels = [&](auto& where, std::filesystem::path const& from) {
    std::vector<double> all;
    train::EmpathyScorer<float> const scorer(where, from);
    for (auto const& p : scorer(contexts, responses)) {
      for (auto const& one : p) all.insert(all.end(), one.begin(), one.end());
    }
    return all;
  };
  auto const expected = levels(*cpu.cpu(), folder / "cpu");
  CHECK(levels(cpu, folder / "cpu") == expected);
  test::check_close("level", levels(gpu, folder / "cpu"), expected, 1e-5);
  test::check_close("level", levels(gpu, folder / "gpu"), expected, 1e-3);
}

TEST_CASE(
    "engine: rewards that are models score on the GPU as on the CPU, and train a policy there",
    "[cuda][train][rewards][engine]") {
  namespace test = on_engines;
  auto const judge = [](bool lora) {
    train::Generator<float> g = test::generator();
    if (lora) test::give_lora(g);
    return g;
  };
  auto const classifier = [] {
    text::SentencePieceTokenizer spiece = test::tokenizer();
    t5::Config const c = test::config(spiece);
    train::IdentifierModel<float> identifier(c, std::move(spiece));
    empathy::initialise(identifier.weights, c, test::generator().weights, 3);
    // The head of a new identifier says nearly the same of everything.
    RandomSequence random(9, Stream::initialise);
    for (float& x : identifier.weights.span()) x += static_cast<float>(0.1 * random.normal());
    return identifier;
  };
  std::vector<data::Pair> const pairs = test::dialogues();
  std::vector<rl::Episode> episodes;
  for (data::Pair const& pair : pairs) {
    rl::Episode e;
    e.context = pair.context;
    e.response = pair.response;
    episodes.push_back(e);
  }
  episodes.front().response = {};  // `</s>` alone
  auto const score = [&](auto&& reward) {
    std::vector<float> scores(episodes.size());
    reward(rl::EpisodeBatch{episodes}, scores);
    auto const [least, most] = std::minmax_element(scores.begin(), scores.end());
    CHECK(*most - *least > 0.01f);
    return std::vector<double>(scores.begin(), scores.end());
  };
  train::CpuEngine cpu(2);
  train::CudaEngine<float> gpu;
  train::CudaEngine<Bf16> half;
  auto const check = [&](std::string const& what, auto make) {
    auto const expected = score(make(static_cast<train::Engine&>(cpu)));
    test::check_close(what, score(make(static_cast<train::Engine&>(gpu))), expected, 1e-5);
    test::check_close(what + " in 16 bits", score(make(static_cast<train::Engine&>(half))),
                      expected, 12 * 0x1p-8);
  };
  for (bool const lora : {false, true}) {
    check("perplexity", [&](train::Engine& engine) {
      return train::PerplexityReward<float>(engine, judge(lora), {.rows_at_once = 4});
    });
  }
  check("expected level", [&](train::Engine& engine) {
    return train::ClassifierReward<float>(engine, classifier(), {.rows_at_once = 4});
  });
  check("level", [&](train::Engine& engine) {
    return train::ClassifierReward<float>(engine, classifier(), {.level = 2});
  });

  // One source for both devices: the reward's models stand on the engine that trains.
  auto const aligned = [&](train::Engine& engine) {
    auto reward = rl::weighted_sum(
        0.5, rl::Named{"fluent", train::PerplexityReward<float>(engine, judge(false))},  //
        2, rl::Named{"warm", train::ClassifierReward<float>(engine, classifier())});
    train::Generator<float> g = test::generator();
    std::vector<double> numbers;
    train::align(engine, g, reward, pairs, test::align_settings(1), nullptr,
                 [&](rl::PpoStats const& stats) {
                   numbers.push_back(stats.score_mean);
                   REQUIRE(stats.components.size() == 2);
                   for (rl::ComponentStats const& part : stats.components) {
                     numbers.push_back(part.mean);
                   }
                 });
    return numbers;
  };
  // The same responses are drawn, so the scores are those of the same texts.
  auto const expected = aligned(cpu);
  CHECK(expected.size() == 3);
  test::check_close("score of a step", aligned(gpu), expected, 1e-5);
}

TEST_CASE("engine: align samples, reports and ends on the GPU as on the CPU",
          "[cuda][train][ppo][engine]") {
  namespace test = on_engines;
  train::CpuEngine cpu(2);
  std::vector<data::Pair> const pairs = test::dialogues();
  auto const run = [&](train::Engine& engine, auto align) {
    train::Generator<float> g = test::generator();
    std::vector<double> numbers;
    align(engine, g, [&](rl::PpoStats const& stats) {
      rl::for_each_number(stats, [&](std::string_view, double value) { numbers.push_back(value); });
    });
    return std::pair(numbers, test::response_logprobs(cpu, g));
  };
  auto const check = [&](auto align) {
    auto const [numbers, rows] = run(cpu, align);
    train::CudaEngine<float> gpu;
    auto const [their_numbers, their_rows] = run(gpu, align);
    REQUIRE(numbers.size() == their_numbers.size());
    for (std::size_t i = 0; i < numbers.size(); ++i) {
      INFO("number " << i);
      CHECK(std::abs(their_numbers[i] - numbers[i]) <= 2e-3 * std::max(1.0, std::abs(numbers[i])));
    }
    // That both have gone the same way is compared sharply in tests/cuda/test_engine.cpp: Adam's
    // small epsilon makes steps here of gradients that are rounding alone.
    test::check_close("response", their_rows, rows, 1e-3);
    auto const before = test::response_logprobs(cpu, test::generator());
    double moved = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      moved = std::max(moved, std::abs(rows[i] - before[i]));
    }
    CHECK(moved > 1e-3);
  };
  check([&](train::Engine& engine, train::Generator<float>& g, auto on_step) {
    train::align(engine, g, test::likes_e, pairs, test::align_settings(1), nullptr, on_step);
  });
  // Of a LoRA alone: the weights stay.
  check([&](train::Engine& engine, train::Generator<float>& g, auto on_step) {
    test::give_lora(g);
    std::vector<float> const weights(g.weights.span().begin(), g.weights.span().end());
    std::vector<float> const matrices(g.lora().span().begin(), g.lora().span().end());
    train::AlignSettings settings = test::align_settings(1);
    settings.ppo.learning_rate = 1e-2;
    train::align(engine, g, test::likes_e, pairs, settings, nullptr, on_step);
    CHECK(std::ranges::equal(weights, g.weights.span()));
    CHECK_FALSE(std::ranges::equal(matrices, g.lora().span()));
  });
  // Without values: no head is built, and the policy alone is trained.
  check([&](train::Engine& engine, train::Generator<float>& g, auto on_step) {
    train::AlignSettings settings = test::align_settings(1);
    settings.samples_per_context = 2;
    train::align(engine, g, test::likes_e, pairs, settings,
                 train::Composition{rl::KlK1{}, rl::FixedKl(0.05), rl::GroupRelative{2},
                                    rl::PpoClipObjective{0.2, 0.2, 0.0}},
                 nullptr, on_step);
    CHECK(g.value_head.size() == 0);
  });
}

TEST_CASE("engine: a run that was stopped on one device goes on on the other",
          "[cuda][train][ppo][engine]") {
  namespace test = on_engines;
  train::CpuEngine cpu(2);
  train::CudaEngine<float> gpu;
  std::vector<data::Pair> const pairs = test::dialogues();
  // PPO of two steps: one here, one there.
  auto const ppo = [&](train::Engine& first, train::Engine& second, bool lora = false) {
    emprl::test::TemporaryFolder const folder;
    train::AlignSettings settings = test::align_settings(2);
    settings.checkpoint = folder / "checkpoint";
    train::Generator<float> g = test::generator();
    if (lora) test::give_lora(g);
    {
      train::InterruptGuard const guard;
      CHECK_THROWS_AS(train::align(first, g, test::likes_e, pairs, settings, nullptr,
                                   [](rl::PpoStats const&) { std::raise(SIGINT); }),
                      train::Interrupted);
      train::clear_interrupt();
    }
    train::Generator<float> again = test::generator();
    if (lora) test::give_lora(again);
    index_t steps = 0;
    CHECK(train::align(second, again, test::likes_e, pairs, settings, nullptr,
                       [&](rl::PpoStats const&) { ++steps; }) == 2);
    CHECK(steps == 1);
    return test::response_logprobs(cpu, again);
  };
  auto const expected = ppo(cpu, cpu);
  test::check_close("response", ppo(cpu, gpu), expected, 1e-3);
  test::check_close("response", ppo(gpu, cpu), expected, 1e-3);
  auto const of_lora = ppo(cpu, cpu, true);
  test::check_close("response of a LoRA", ppo(cpu, gpu, true), of_lora, 1e-3);
  test::check_close("response of a LoRA", ppo(gpu, cpu, true), of_lora, 1e-3);

  // Of supervised training the whole checkpoint: nothing is left to do, and the model is there.
  train::Generator<float> const start = test::generator();
  text::EncodedPairs const set = test::encoded(start);
  emprl::test::TemporaryFolder const folder;
  auto const fit = [&](train::Engine& engine) {
    train::Generator<float> g = test::generator();
    train::FitOptions options = test::fit_options(1);
    options.checkpoint = folder / "checkpoint";
    train::fit_sequences(engine, g, set, set, {}, options);
    return test::response_logprobs(cpu, g);
  };
  auto const made = fit(gpu);
  CHECK(fit(cpu) == made);
  // Another format is another run.
  train::CudaEngine<Bf16> half;
  CHECK_THROWS_WITH(fit(half), Catch::Matchers::ContainsSubstring("precision"));
}

TEST_CASE(
    "engine: PPO in 16 bits lets ratios be off by more at first, unless it is told by how much",
    "[cuda][train][ppo][engine]") {
  namespace test = on_engines;
  std::vector<data::Pair> const pairs = test::dialogues();
  train::CudaEngine<Bf16> half;
  emprl::test::TemporaryFolder const folder;
  auto const align = [&](std::optional<double> tolerance, bool stops) {
    train::AlignSettings settings = test::align_settings(2);
    settings.checkpoint = folder / "checkpoint";
    settings.ppo.ratio_tolerance = tolerance;
    train::Generator<float> g = test::generator();
    return train::align(half, g, test::likes_e, pairs, settings, nullptr, [&](rl::PpoStats const&) {
      if (stops) std::raise(SIGINT);
    });
  };
  {
    train::InterruptGuard const guard;
    CHECK_THROWS_AS(align({}, true), train::Interrupted);
    train::clear_interrupt();
  }
  // The run's checkpoint says what it was.
  CHECK_THROWS_WITH(align(0.25, false), Catch::Matchers::ContainsSubstring("ratio_tolerance"));
  CHECK(align(0.5, false) == 2);
}

TEST_CASE("engine: a checkpoint keeps the GPU's choice of algorithms for the run that goes on",
          "[cuda][train][ppo][engine]") {
  namespace test = on_engines;
  emprl::test::TemporaryFolder const folder;
  cuda::ProductKey const shape{.m = 40, .n = 16, .k = 24};
  auto const engine_with = [&](std::uint64_t algorithm) {
    auto gpu = std::make_unique<train::CudaEngine<float>>();
    if (algorithm > 0) gpu->context().products.plans.insert(shape, {algorithm});
    return gpu;
  };
  auto const found = [&](train::CudaEngine<float>& gpu) {
    cuda::ProductAlgorithm const* const plan = gpu.context().products.plans.find(shape);
    return plan == nullptr ? 0 : static_cast<int>((*plan)[0]);
  };

  SECTION("of supervised training") {
    train::Generator<float> const start = test::generator();
    text::EncodedPairs const set = test::encoded(start);
    auto const fit = [&](train::Engine& engine) {
      train::Generator<float> g = test::generator();
      train::FitOptions options = test::fit_options(1);
      options.checkpoint = folder / "checkpoint";
      train::fit_sequences(engine, g, set, set, {}, options);
      return std::vector<float>(g.weights.span().begin(), g.weights.span().end());
    };
    auto const made = fit(*engine_with(7));
    auto const file = folder / "checkpoint" / train::products_file;
    auto const fresh = engine_with(0);
    CHECK(fit(*fresh) == made);
    CHECK(found(*fresh) == 7);
    auto const other = engine_with(5);
    CHECK(fit(*other) == made);
    CHECK(found(*other) == 7);
    // Of another GPU: set aside. Of nothing at all: the file is named. Of an earlier version: none.
    io::write_file_atomically(file, std::string_view("products for another GPU\n"));
    auto const elsewhere = engine_with(5);
    CHECK(fit(*elsewhere) == made);
    CHECK(found(*elsewhere) == 5);
    io::write_file_atomically(file, std::string_view("nothing of the kind"));
    CHECK_THROWS_WITH(fit(*engine_with(0)), Catch::Matchers::ContainsSubstring(file.string()));
    CHECK_THROWS_AS(fit(*engine_with(0)), IoError);
    std::filesystem::remove(file);
    auto const later = engine_with(0);
    CHECK(fit(*later) == made);
    CHECK(found(*later) == 0);
  }

  SECTION("of PPO, and not beyond a part of the run on the CPU") {
    std::vector<data::Pair> const pairs = test::dialogues();
    train::AlignSettings settings = test::align_settings(3);
    settings.checkpoint = folder / "checkpoint";
    settings.save_every = 1;
    settings.keep_last = 3;
    auto const align = [&](train::Engine& engine, bool stop) {
      train::Generator<float> g = test::generator();
      train::InterruptGuard const guard;
      index_t done = 0;
      try {
        done = train::align(engine, g, test::likes_e, pairs, settings, nullptr,
                            [&](rl::PpoStats const&) {
                              if (stop) std::raise(SIGINT);
                            });
      } catch (train::Interrupted const&) {
        train::clear_interrupt();
      }
      return done;
    };
    auto const has_products = [&](char const* step) {
      return std::filesystem::exists(folder / "checkpoint" / step / train::products_file);
    };
    align(*engine_with(7), true);
    CHECK(has_products("step-000001"));
    auto const second = engine_with(0);
    align(*second, true);
    CHECK(found(*second) == 7);
    CHECK(has_products("step-000002"));
    train::CpuEngine cpu(2);
    CHECK(align(cpu, false) == 3);
    CHECK_FALSE(has_products("step-000003"));
    auto const third = engine_with(0);
    CHECK(align(*third, false) == 3);
    CHECK(found(*third) == 0);
  }
}

TEST_CASE("engine: deterministic, a run that goes on has the bits of one that never stopped",
          "[cuda][train][ppo][engine]") {
  namespace test = on_engines;
  using Catch::Matchers::ContainsSubstring;
  using train::Determinism;
  std::vector<data::Pair> const dialogues = test::dialogues();
  text::EncodedPairs const pairs = test::encoded(test::generator());
  emprl::test::TemporaryFolder const folder;
  constexpr index_t never = -1;
  auto const bits = [](train::Generator<float> const& g) {
    std::vector<float> all(g.weights.span().begin(), g.weights.span().end());
    all.insert(all.end(), g.value_head.span().begin(), g.value_head.span().end());
    return all;
  };
  // The weights after four steps; if it is told to stop in one of them, it does so behind it.
  auto const fit = [&](train::Engine& engine, std::string const& name, index_t stop) {
    train::Generator<float> g = test::generator();
    train::SequenceExamples const examples(pairs.rows(),
                                           [&](std::span<index_t const> rows, std::uint32_t step) {
                                             if (step == stop) std::raise(SIGINT);
                                             return text::gather_pairs(pairs, rows);
                                           },
                                           {{"made", "by hand"}});
    train::FitOptions options = test::fit_options(2);
    options.checkpoint = folder / name;
    train::fit_sequences(engine, g, examples, pairs, {.dropout = 0.1}, options);
    return bits(g);
  };
  // The same after three steps of PPO.
  auto const align = [&](train::Engine& engine, std::string const& name, index_t stop) {
    train::Generator<float> g = test::generator();
    train::AlignSettings settings = test::align_settings(3);
    settings.checkpoint = folder / name;
    train::align(engine, g, test::likes_e, dialogues, settings, nullptr,
                 [&](rl::PpoStats const& stats) {
                   if (stats.step == stop) std::raise(SIGINT);
                 });
    return bits(g);
  };
  auto const stopped = [&](auto const& run, train::Engine& engine, std::string const& name,
                           index_t stop) {
    train::InterruptGuard const guard;
    CHECK_THROWS_AS(run(engine, name, stop), train::Interrupted);
    train::clear_interrupt();
  };
  auto const holds = [&]<class E>(std::type_identity<E>, auto const& run, std::string const& name) {
    // Every process has an engine of its own.
    E one(Determinism::on), two(Determinism::on), three(Determinism::on);
    CHECK(one.context().products.choice == cuda::AlgorithmChoice::first);
    auto const straight = run(one, name + "_straight", never);
    stopped(run, two, name + "_stopped", 0);
    CHECK(run(three, name + "_stopped", never) == straight);
  };
  SECTION("of supervised training") {
    holds(std::type_identity<train::CudaEngine<float>>(), fit, "float");
    holds(std::type_identity<train::CudaEngine<Bf16>>(), fit, "half");
  }
  SECTION("of PPO") {
    holds(std::type_identity<train::CudaEngine<float>>(), align, "float");
    holds(std::type_identity<train::CudaEngine<Bf16>>(), align, "half");
  }
  SECTION("it is a setting of the run, on either device") {
    auto const check = [&](auto const& run, std::string const& name) {
      train::CudaEngine<float> timed, fixed(Determinism::on);
      train::CpuEngine cpu(2), fixed_cpu(2, Determinism::on);
      CHECK(timed.context().products.choice == cuda::AlgorithmChoice::timed);
      stopped(run, fixed, name, 0);
      CHECK_THROWS_WITH(run(timed, name, never), ContainsSubstring("deterministic is true there"));
      CHECK_THROWS_WITH(run(cpu, name, never), ContainsSubstring("deterministic is true there"));
      stopped(run, fixed_cpu, name, 1);
      CHECK_THROWS_AS(run(cpu, name, never), ConfigError);
      run(fixed, name, never);
      stopped(run, cpu, name + "_not", 0);
      CHECK_THROWS_WITH(run(fixed, name + "_not", never),
                        ContainsSubstring("deterministic is not recorded there"));
      CHECK_THROWS_AS(run(fixed_cpu, name + "_not", never), ConfigError);
      run(timed, name + "_not", never);
    };
    check(fit, "fit");
    check(align, "align");
    // Nothing was timed, so that there is nothing to keep.
    CHECK(io::read_file(folder / "fit" / train::products_file) ==
          "products for the host executor\n");
  }
}
