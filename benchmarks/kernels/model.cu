// SPDX-License-Identifier: Apache-2.0

// T5 as a whole on the GPU, by the entry points that programs use (train/engine.hpp,
// rl::PpoTrainer): generation, supervised training, a step of PPO. T5-base with random weights.
// Times are between events of the engine's stream and so hold what the host needs in between.

#include <iterator>
#include <memory>
#include <type_traits>
#include <utility>

#include "emprl/train/cuda_engine.cuh"
#include "kernels/measure.cuh"
#include "kernels/model.hpp"
#if !defined(__CUDACC__)
#include "emprl/ops/gemm_cpu.hpp"
#endif

namespace emprl::bench {

namespace {

/// What errors may come to, as a part of the largest value: a dozen roundings to 8 bits follow each
/// other in a pass; in float some forty ops have their sums in another order, and training puts
/// several passes one after the other: as tests/cuda has it for one pass, and twice that.
template <class T>
constexpr double tolerance = std::is_same_v<T, Bf16> ? 12 * unit<Bf16> : 256 * unit<float>;

t5::Config measured_model(KernelRun const& run) {
  return run.small ? tiny_model() : t5::Config::preset("base");
}

/// The weights that everything is measured with, made once.
train::T5Weights<float, Cpu> const& measured_weights(KernelRun const& run) {
  static train::T5Weights<float, Cpu> const weights = random_model<float>(measured_model(run));
  return weights;
}

/// 32 contexts of 200 tokens, the longest that the method reads.
struct Batch {
  index_t rows, context;
  explicit Batch(KernelRun const& run) : rows(run.small ? 4 : 32), context(run.small ? 9 : 200) {}

  Ragged contexts(t5::Config const& c) const {
    return random_tokens(rows, context, c.vocab_size, 3);
  }
  ModelCost cost(t5::Config const& c, index_t response) const {
    return {c, static_cast<double>(rows), static_cast<double>(context),
            static_cast<double>(response)};
  }
};

std::vector<double> in_double(std::vector<float> const& x) {
  return {x.begin(), x.end()};
}

std::vector<double> logprobs(train::EngineT5& model, TinyWork const& work) {
  std::vector<float> logp(work.responses.ids.size());
  model.logprobs(work.contexts.view(), work.responses.view(), logp);
  return in_double(logp);
}

template <class T>
std::string named(char const* what) {
  return std::string(what) + ", " + format_name<T>;
}

// --- generation ---------------------------------------------------------------------------------

template <class T>
void check_generation(KernelRun& run, TinyWork const& work, TinyTruth const& truth) {
  train::CudaEngine<T> engine;
  auto const weights = random_model<float>(tiny_model());
  auto const model = engine.load(weights);
  run.check(named<T>("generation: log-probabilities"), logprobs(*model, work), truth.logprobs,
            tolerance<T>);
  Ragged const decoded = model->generate(work.contexts.view(), work.decoding, 1, 0);
  // Where two tokens are nearly as likely either may be taken; logits are of size 1.
  std::vector<double> const regret = regrets(work, decoded.view());
  run.check(named<T>("generation: greedy tokens"), regret, std::vector<double>(regret.size(), 0.0),
            tolerance<T>);
  if constexpr (std::is_same_v<T, float>) {
    run.check(named<T>("generation: the CPU's tokens"), {decoded.ids.begin(), decoded.ids.end()},
              {truth.decoded.ids.begin(), truth.decoded.ids.end()}, 0);
  }
}

template <class T>
void time_generation(KernelBench& bench) {
  KernelRun const& run = bench.run;
  train::CudaEngine<T> engine;
  Cuda& dev = engine.context();
  auto const model = engine.load(measured_weights(run));
  t5::Config const& c = model->config();
  Batch const batch(run);
  Ragged const contexts = batch.contexts(c);
  index_t const length = run.small ? 6 : 30, short_length = run.small ? 2 : 6;
  ModelCost const cost = batch.cost(c, length);
  std::string const shape = shape_of({batch.rows, batch.context});

  {
    // Into memory that is there, as generation has it: what the driver needs to give it and take it
    // back is no part of the pass.
    train::T5Weights<T, Cuda> const weights(dev, measured_weights(run));
    train::T5Decoder<T, Cuda> decoder(dev, weights);
    auto state = decoder.in_place(batch.rows, contexts.tokens(), 1);
    bench.keep({"t5_encode", format_name<T>, shape + ", with the decoder's keys and values", 0,
                cost.encoder() + cost.cross_keys()},
               bench.microseconds(dev, [&] { decoder.start_in_place(state, contexts.view()); }));
  }

  gen::SamplingConfig sampling = gen::SamplingConfig::emprl();
  std::uint32_t step = 0;
  auto const generate = [&](index_t tokens) {
    // No row ends earlier.
    sampling.min_new_tokens = sampling.max_new_tokens = tokens;
    return bench.microseconds(dev, [&] {
      expects(model->generate(contexts.view(), sampling, 1, step++).rows() == batch.rows,
              "a response for each context");
    });
  };
  // What a token more costs: the decoder's step, the draw, and what the host looks at.
  double const before = static_cast<double>(length + short_length) / 2;
  auto const keep_step = [&](std::string const& how, std::vector<double> const& whole) {
    std::vector<double> steps;
    double const less = spread_of(generate(short_length)).median;
    for (double const t : whole) {
      steps.push_back((t - less) / static_cast<double>(length - short_length));
    }
    bench.keep({"t5_decode_step", format_name<T>, shape + how,
                cost.step_numbers(before) * sizeof(T), cost.step(before)},
               steps);
  };
  auto const whole = generate(length);
  bench.keep(
      {"t5_generate", format_name<T>, shape + " -> " + std::to_string(length),
       cost.generation_numbers() * sizeof(T), cost.encoder() + cost.cross_keys() + cost.decoder()},
      whole);
  keep_step("", whole);
  if constexpr (std::is_same_v<T, Bf16>) {
    // What two of its parts are worth.
    bool const overlaps = std::exchange(dev.overlap_launches, false);
    keep_step(", launches one after the other", generate(length));
    index_t const few_rows = std::exchange(dev.products.few_rows, 0);
    keep_step(", and all products by cuBLASLt", generate(length));
    dev.overlap_launches = overlaps;
    dev.products.few_rows = few_rows;
  }
}

// --- supervised training ------------------------------------------------------------------------

template <class T>
void check_training(KernelRun& run, TinyWork const& work, TinyTruth const& truth) {
  train::CudaEngine<T> engine;
  auto const weights = random_model<float>(tiny_model());
  auto const training = engine.train(weights, {.optimizer = work.adam}, false);
  std::vector<double> losses;
  for (std::size_t i = 0; i < truth.losses.size(); ++i) {
    training->zero_gradients();
    losses.push_back(training->sequence_loss(
        work.contexts.view(), work.responses.view(),
        DropoutSites(weights.config().dropout_rate, 4, static_cast<std::uint32_t>(i))));
    training->step(work.learning_rate, work.adam.max_gradient_norm);
  }
  run.check(named<T>("training: losses"), losses, {truth.losses.begin(), truth.losses.end()},
            tolerance<T>);
  run.check(named<T>("training: log-probabilities after"), logprobs(training->model(), work),
            truth.after_training, tolerance<T>);
}

template <class T>
void time_training(KernelBench& bench) {
  KernelRun const& run = bench.run;
  train::CudaEngine<T> engine;
  Cuda& dev = engine.context();
  t5::Config const c = measured_model(run);
  auto const training = engine.train(measured_weights(run), {}, false);
  Batch batch(run);
  index_t const response = run.small ? 5 : 50;
  std::uint32_t step = 0;
  // The batch of the method, that of a step of PPO, and one that fills the GPU.
  for (index_t const rows :
       run.small ? std::vector<index_t>{4} : std::vector<index_t>{8, 32, 128}) {
    batch.rows = rows;
    Ragged const contexts = batch.contexts(c);
    Ragged const responses = random_tokens(rows, response, c.vocab_size, 4);
    // The optimiser reads the gradient twice, reads and writes the parameter and two moments, and
    // writes the copy in Bf16 (as adamw_step has it).
    double const bytes = (sizeof(T) == 2 ? 34.0 : 32.0) * static_cast<double>(training->size());
    bench.keep({"t5_training_step", format_name<T>,
                shape_of({rows, batch.context}) + " -> " + std::to_string(response) + ", dropout",
                bytes, batch.cost(c, response).training()},
               bench.microseconds(dev, [&] {
                 training->zero_gradients();
                 training->sequence_loss(contexts.view(), responses.view(),
                                         DropoutSites(c.dropout_rate, 5, step++));
                 training->step(1e-5, 1.0);
               }));
  }
}

// --- PPO ----------------------------------------------------------------------------------------

/// The identifiers on the engine's device.
class Identifiers {
 public:
  Identifiers(train::Engine& engine, train::T5Weights<float, Cpu> const& generator) {
    empathy::Identifier<float, Cpu> const model(generator.config());
    for (std::uint64_t k = 0; k < 3; ++k) {
      identifiers_.push_back(engine.load(model, random_identifier(generator, k)));
    }
  }

  void score(rl::EpisodeBatch const& episodes, std::span<float> scores) const {
    score_by_identifiers(episodes, scores, [&](std::size_t k, RaggedView from, RaggedView to) {
      std::vector<float> logits(scores.size() * 3);
      identifiers_[k]->logits(from, to, {logits.data(), {to.rows(), empathy::level_count}});
      return logits;
    });
  }

 private:
  std::vector<std::unique_ptr<train::EngineIdentifier>> identifiers_;
};

template <class T>
void check_ppo(KernelRun& run, TinyWork const& work, TinyTruth const& truth) {
  train::CudaEngine<T> engine;
  auto const weights = random_model<float>(tiny_model());
  auto const training = engine.train(weights, {.value_head = true, .optimizer = work.adam}, true);
  Identifiers const identifiers(engine, weights);
  train::EngineActor actor(*training);
  train::EngineReference reference(*training);
  train::EngineTraining& optimizer = *training;
  auto reward = [&](rl::EpisodeBatch const& episodes, std::span<float> scores) {
    identifiers.score(episodes, scores);
  };
  std::vector<double> numbers = ppo_numbers(work, actor, reference, reward, optimizer);
  std::vector<double> expected = truth.ppo;
  // Each within the tolerance of its own size, or of 1 if it is smaller.
  expects(numbers.size() == expected.size(), "PPO reports the same numbers on every device");
  for (std::size_t i = 0; i < numbers.size(); ++i) {
    double const scale = std::max(1.0, std::abs(expected[i]));
    numbers[i] /= scale;
    expected[i] /= scale;
  }
  expected.push_back(1.0);
  numbers.push_back(1.0);
  run.check(named<T>("ppo: what a step reports"), numbers, expected, tolerance<T>);
  run.check(named<T>("ppo: log-probabilities after"), logprobs(training->model(), work),
            truth.after_ppo, tolerance<T>);
}

/// What a step of PPO consists of.
enum class PpoPart { generation, rewards, inference, reference, forward, backward, optimiser };

constexpr char const* ppo_part_names[] = {"ppo: generation", "ppo: rewards", "ppo: inference",
                                          "ppo: reference",  "ppo: forward", "ppo: backward",
                                          "ppo: optimiser",  "ppo: the rest"};
constexpr std::size_t ppo_parts = std::size(ppo_part_names) - 1;

/// Times the parts of repeated work by events of a stream, or by the host's clock where there is no
/// GPU.
class PartClock {
#if defined(__CUDACC__)
  using Point = Event;
#else
  using Point = double;
#endif

 public:
  explicit PartClock(Cuda& dev) : dev_(dev) {}

  /// A new repetition.
  void begin() {
    repetitions_.emplace_back();
  }

  /// Does a part of it.
  template <class F>
  auto operator()(PpoPart part, F&& work) {
    Point begin = point();
    auto const keep = [&] { repetitions_.back().push_back({part, std::move(begin), point()}); };
    if constexpr (std::is_void_v<std::invoke_result_t<F>>) {
      work();
      keep();
    } else {
      auto result = work();
      keep();
      return result;
    }
  }

  /// Microseconds of each part in each of the last n repetitions, which have been waited for.
  std::array<std::vector<double>, ppo_parts> microseconds(std::size_t n) const {
    std::array<std::vector<double>, ppo_parts> sums;
    for (auto& s : sums) s.assign(n, 0.0);
    for (std::size_t i = 0; i < n; ++i) {
      for (Interval const& x : repetitions_[repetitions_.size() - n + i]) {
#if defined(__CUDACC__)
        double const t = x.end.microseconds_since(x.begin);
#else
        double const t = 1e6 * (x.end - x.begin);
#endif
        sums[static_cast<std::size_t>(x.part)][i] += t;
      }
    }
    return sums;
  }

 private:
  struct Interval {
    PpoPart part;
    Point begin, end;
  };

  Point point() {
#if defined(__CUDACC__)
    Event event;
    event.record(dev_);
    return event;
#else
    return now();
#endif
  }

  Cuda& dev_;
  std::vector<std::vector<Interval>> repetitions_;
};

/// The engine's roles with a clock. What is not named here they are as they were.
struct TimedActor : train::EngineActor {
  PartClock& clock;

  TimedActor(train::EngineT5Training& model, PartClock& its_clock)
      : EngineActor(model), clock(its_clock) {}

  void forward(rl::TokenBatch const& batch, std::span<float> logp, std::span<float> values,
               Context& context) {
    clock(PpoPart::forward, [&] { EngineActor::forward(batch, logp, values, context); });
  }
  void inference(rl::TokenBatch const& batch, std::span<float> logp, std::span<float> values) {
    clock(PpoPart::inference, [&] { EngineActor::inference(batch, logp, values); });
  }
  void backward(In dlogp, In dvalues, Context& context) { backward(dlogp, dvalues, {}, context); }
  void backward(In dlogp, In dvalues, In dentropy, Context& context) {
    clock(PpoPart::backward, [&] { EngineActor::backward(dlogp, dvalues, dentropy, context); });
  }
};

struct TimedReference : train::EngineReference {
  PartClock& clock;

  TimedReference(train::EngineT5Training& model, PartClock& its_clock)
      : EngineReference(model), clock(its_clock) {}

  void logprobs(rl::TokenBatch const& batch, std::span<float> logp) {
    clock(PpoPart::reference, [&] { EngineReference::logprobs(batch, logp); });
  }
};

struct TimedOptimizer {
  train::EngineTraining& optimizer;
  PartClock& clock;

  void zero_gradients() {
    clock(PpoPart::optimiser, [&] { optimizer.zero_gradients(); });
  }
  double step(double rate, double max_norm) {
    return clock(PpoPart::optimiser, [&] { return optimizer.step(rate, max_norm); });
  }
};

/// A step of METHOD 7 with the settings of the preset: 32 contexts, responses of 29 tokens after
/// the start, four epochs with one optimiser step each, mini-batches of 8.
template <class T>
void time_ppo(KernelBench& bench) {
  KernelRun const& run = bench.run;
  train::CudaEngine<T> engine;
  Cuda& dev = engine.context();
  auto const& weights = measured_weights(run);
  t5::Config const& c = weights.config();
  auto const training = engine.train(weights, {.value_head = true, .optimizer = {}}, true);
  Identifiers const identifiers(engine, weights);
  Batch const batch(run);

  rl::PpoConfig ppo = rl::PpoConfig::emprl();
  if (run.small) {
    ppo.batch_size = batch.rows;
    ppo.mini_batch_size = ppo.gradient_accumulation = ppo.epochs = 2;
  }
  // A pass over other rows may have its products from another algorithm, and in 16 bits that shows.
  if (std::is_same_v<T, Bf16>) ppo.ratio_tolerance = 0.5;
  gen::SamplingConfig sampling = gen::SamplingConfig::emprl();
  if (run.small) sampling.max_new_tokens = 5;
  sampling.min_new_tokens = sampling.max_new_tokens;

  PartClock clock(dev);
  TimedActor actor(*training, clock);
  TimedReference reference(*training, clock);
  TimedOptimizer optimizer{*training, clock};
  auto sampler = [&](RaggedView contexts, std::uint32_t step) {
    return clock(PpoPart::generation,
                 [&] { return training->model().generate(contexts, sampling, 1, step); });
  };
  auto reward = [&](rl::EpisodeBatch const& episodes, std::span<float> scores) {
    clock(PpoPart::rewards, [&] { identifiers.score(episodes, scores); });
  };
  auto decode = [](std::span<std::int32_t const>) { return std::string(); };
  rl::PpoTrainer trainer(
      ppo, rl::make_ppo_spec(ppo, actor, reference, reward, sampler, decode, optimizer));
  rl::PromptBatch const prompts = prompts_of(batch.contexts(c));
  std::int64_t optimizer_steps = 0;
  auto const times = bench.microseconds(dev, [&] {
    clock.begin();
    optimizer_steps = trainer.step(prompts).optimizer_steps;
  });
  expects(optimizer_steps == ppo.epochs, "a step of PPO has one optimiser step an epoch");

  // With the token that decoding starts from.
  index_t const tokens = sampling.max_new_tokens;
  ModelCost const cost = batch.cost(c, tokens);
  auto const epochs = static_cast<double>(ppo.epochs);
  double const adamw =
      epochs * (sizeof(T) == 2 ? 34.0 : 32.0) * static_cast<double>(training->size());
  double const generated = cost.generation_numbers() * sizeof(T);
  std::string const shape =
      shape_of({batch.rows, batch.context}) + "/" + std::to_string(tokens + 1);
  bench.keep({"ppo_iteration", format_name<T>,
              shape + ", " + std::to_string(ppo.epochs) + " epochs of mini-batches of " +
                  std::to_string(ppo.mini_batch_size),
              adamw + generated, cost.ppo(epochs)},
             times);
  auto parts = clock.microseconds(times.size());
  std::vector<double> rest = times;
  for (auto const& part : parts) {
    for (std::size_t i = 0; i < rest.size(); ++i) rest[i] -= part[i];
  }
  struct Cost {
    double bytes, flops;
  };
  // In the order of PpoPart.
  Cost const costs[] = {{generated, cost.forward()},
                        {0, 3 * cost.identifier()},
                        {0, cost.forward()},
                        {0, cost.forward()},
                        {0, epochs * cost.forward()},
                        {0, 2 * epochs * cost.forward()},
                        {adamw, 0}};
  for (std::size_t k = 0; k < ppo_parts; ++k) {
    // An actor may do without one of them.
    if (spread_of(parts[k]).high <= 0) continue;
    bench.keep({ppo_part_names[k], format_name<T>, shape, costs[k].bytes, costs[k].flops},
               parts[k]);
  }
  bench.keep({ppo_part_names[ppo_parts], format_name<T>, shape, 0, 0}, rest);
}

/// The truth is computed once for all three.
struct Tiny {
  TinyWork work;
  TinyTruth truth = tiny_truth(work);
};
Tiny const& tiny() {
  static Tiny const once;
  return once;
}

}  // namespace

void bench_generation(KernelRun& run) {
  check_generation<Bf16>(run, tiny().work, tiny().truth);
  check_generation<float>(run, tiny().work, tiny().truth);
  if (run.validate_only) return;
  KernelBench bench(run);
  time_generation<Bf16>(bench);
  time_generation<float>(bench);
}

void bench_training(KernelRun& run) {
  check_training<Bf16>(run, tiny().work, tiny().truth);
  check_training<float>(run, tiny().work, tiny().truth);
  if (run.validate_only) return;
  KernelBench bench(run);
  time_training<Bf16>(bench);
  time_training<float>(bench);
}

void bench_ppo(KernelRun& run) {
  check_ppo<Bf16>(run, tiny().work, tiny().truth);
  check_ppo<float>(run, tiny().work, tiny().truth);
  if (run.validate_only) return;
  KernelBench bench(run);
  time_ppo<Bf16>(bench);
  time_ppo<float>(bench);
}

}  // namespace emprl::bench
