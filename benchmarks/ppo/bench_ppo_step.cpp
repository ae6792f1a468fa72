// SPDX-License-Identifier: Apache-2.0

// Where the time of one step of PPO goes: rl::PpoTrainer on a T5 with random weights, every part
// that it is composed of behind a stopwatch. What is left is the trainer's own.
//   bench_ppo_step [--preset NAME] [--steps N] [--threads N] [--batch N] [--json FILE]
//                  [--rows-per-pass N] [--no-shared-pass]
//
// --rows-per-pass 1 --no-shared-pass is PPO as published: a pass for each mini-batch, and one of
// its own for the policy that sampled. What a step takes of all processors is printed beside its
// time: on a machine that is shared it tells more.
//
// Contexts are random ids. The responses' lengths are drawn too, from 5 to 29, since a model with
// random weights does not end by itself: the decoder bars </s> before a row's length is reached and
// forces it then, so that rows leave the batch as they do in a real run. Ids are not turned into
// text by a tokenizer, but written as numbers.

#include "emprl/ops/gemm_cpu.hpp"
//
#include "emprl/train/align.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <ctime>
#include <limits>
#include <numeric>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "emprl/core/error.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/rl/ppo.hpp"
#include "emprl/text/train_tokenizer.hpp"
#include "support/program.hpp"
#include "support/timing.hpp"

namespace emprl::bench {
namespace {

struct Options {
  std::string preset = "small";
  int steps = 2;
  int threads = 0;
  index_t batch = 32;
  index_t mini_batch = 8;
  index_t epochs = 4;
  index_t rows_per_pass = rl::PpoConfig{}.rows_per_pass;
  bool share_old_pass = true;
  std::uint64_t seed = 42;
  std::string json;
};

/// The parts of a step. None is called by another.
struct Parts {
  Part encode, decode, generate, text, reward, inference, reference;
  Part forward, entropy, backward, zero, optimise;
};

/// A gen::Decoder timed, whose rows end where they are told to.
template <gen::Decoder M>
class TimedDecoder {
 public:
  using value_type = typename M::value_type;

  struct State {
    typename M::State inner;
    index_t position = 0;
  };

  TimedDecoder(M& model, Parts& parts) : model_(model), parts_(parts) {}

  /// The length of each row of the next batch, `</s>` included.
  void set_lengths(std::vector<index_t> lengths) { lengths_ = std::move(lengths); }

  index_t vocabulary() const { return model_.vocabulary(); }

  State start(RaggedView contexts) {
    Stopwatch const watch(parts_.encode);
    return {model_.start(contexts), 0};
  }

  void step(State& state, std::span<index_t const> rows, std::span<std::int32_t const> tokens,
            TensorView<value_type, 2, Cpu> logits) {
    Stopwatch const watch(parts_.decode);
    model_.step(state.inner, rows, tokens, logits);
    ++state.position;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      bool const ends = state.position >= lengths_[static_cast<std::size_t>(rows[i])];
      logits(static_cast<index_t>(i), t5::end_id) =
          ends ? value_type(1e4) : -std::numeric_limits<value_type>::infinity();
    }
  }

 private:
  M& model_;
  Parts& parts_;
  std::vector<index_t> lengths_;
};

/// An rl::ActorCritic timed.
template <rl::InferringActor A>
requires rl::ReportsEntropy<A>
struct TimedActor {
  using Scalar = typename A::Scalar;
  using Context = typename A::Context;
  using Out = std::span<Scalar>;
  using In = std::span<Scalar const>;

  A& actor;
  Parts& parts;

  void forward(rl::TokenBatch const& batch, Out logp, Out values, Context& context) {
    Stopwatch const watch(parts.forward);
    actor.forward(batch, logp, values, context);
  }
  void inference(rl::TokenBatch const& batch, Out logp, Out values) {
    Stopwatch const watch(parts.inference);
    actor.inference(batch, logp, values);
  }
  void entropy(Out out, Context const& context) {
    Stopwatch const watch(parts.entropy);
    actor.entropy(out, context);
  }
  void backward(In dlogp, In dvalues, Context& context) {
    Stopwatch const watch(parts.backward);
    actor.backward(dlogp, dvalues, context);
  }
};

/// An rl::ReferencePolicy timed.
template <class R>
struct TimedReference {
  R& reference;
  Parts& parts;

  template <class T>
  void logprobs(rl::TokenBatch const& batch, std::span<T> logp) {
    Stopwatch const watch(parts.reference);
    reference.logprobs(batch, logp);
  }
};

/// AdamW as an rl::Optimizer, timed.
struct TimedOptimizer {
  Cpu& dev;
  optim::AdamW<float>& optimizer;
  Parts& parts;

  void zero_gradients() {
    Stopwatch const watch(parts.zero);
    optimizer.zero_gradients();
  }
  double step(double learning_rate, double max_norm) {
    Stopwatch const watch(parts.optimise);
    return optimizer.step(dev, learning_rate, max_norm);
  }
};

/// A tokenizer because a generator has one; nothing here reads text.
text::SentencePieceTokenizer some_tokenizer() {
  std::vector<std::string> const texts{"my sister moved away and i miss her very much",
                                       "that sounds hard, how are you coping with it",
                                       "i passed the exam after three long years",
                                       "you must be so proud of what you have done"};
  return {text::train_tokenizer(texts, {.vocabulary = 40, .allow_smaller = true}), "spiece.model"};
}

/// Contexts of 40 to 80 random ids, `</s>` the last of them.
rl::PromptBatch random_prompts(index_t rows, index_t vocabulary, RandomSequence& random) {
  rl::PromptBatch prompts;
  for (index_t i = 0; i < rows; ++i) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(40 + random.below(41)));
    for (std::int32_t& id : ids) {
      id = static_cast<std::int32_t>(3 + random.below(vocabulary - 3));
    }
    ids.back() = t5::end_id;
    prompts.contexts.push_back(ids);
    prompts.texts.push_back("context " + std::to_string(i));
    prompts.ids.push_back("row:" + std::to_string(i));
  }
  return prompts;
}

/// What this process has used of all processors, in seconds.
double processor_seconds() {
  return static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

/// Seconds that the loss and its gradients take for the tokens of a rollout in as many mini-batches
/// as the epochs have: the same calls as the trainer's, made again, as a stopwatch for each token
/// would cost more than what it measures.
double seconds_of_loss(rl::Rollout const& rollout, rl::PpoConfig const& config) {
  rl::PpoClipObjective const objective{config.policy_clip, config.value_clip,
                                       config.value_coefficient};
  Part part;
  std::vector<index_t> order(static_cast<std::size_t>(rollout.rows()));
  std::iota(order.begin(), order.end(), index_t{0});
  for (index_t epoch = 0; epoch < config.epochs; ++epoch) {
    std::span<index_t const> left = order;
    while (!left.empty()) {
      auto const rows =
          left.first(std::min(left.size(), static_cast<std::size_t>(config.mini_batch_size)));
      left = left.subspan(rows.size());
      rl::RowTokens const mini = rl::take_tokens(rollout, rows);
      std::vector<float> logp, value;
      for (rl::TokenContext const& t : mini.tokens) {
        logp.push_back(static_cast<float>(t.old_logp));
        value.push_back(static_cast<float>(t.old_value));
      }
      std::vector<float> dlogp(logp.size()), dvalue(logp.size());
      Stopwatch const watch(part);
      rl::ObjectiveSums const sums = rl::evaluate_objective<float>(
          objective, std::span<float const>(logp), std::span<float const>(value), mini.tokens,
          mini.mask, static_cast<double>(mini.tokens.size()), std::span<float>(dlogp),
          std::span<float>(dvalue));
      keep(&sums);
      keep(dlogp.data());
    }
  }
  return part.seconds;
}

int benchmark(Options const& options) {
  int const threads = options.threads > 0
                          ? options.threads
                          : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  io::Json const machine = describe_machine(threads);
  t5::Config const config = t5::Config::preset(options.preset);
  Cpu dev(threads);

  train::Generator<float> generator(config, some_tokenizer());
  t5::initialise(generator.weights, config, options.seed);
  train::ensure_value_head(generator, options.seed);
  train::Generator<float> const reference_model = generator.clone();
  t5::Parameters<float, Cpu> gradients(config);
  train::ValueHeadParameters<float> const value_gradients(config.d_model);
  optim::AdamW<float> adam({}, {{generator.weights.span(), gradients.span()},
                                {generator.value_head.span(), value_gradients.span()}});

  rl::PpoConfig ppo = rl::PpoConfig::emprl();
  ppo.seed = options.seed;
  ppo.batch_size = options.batch;
  ppo.mini_batch_size = std::min(options.mini_batch, options.batch);
  ppo.gradient_accumulation = (ppo.batch_size + ppo.mini_batch_size - 1) / ppo.mini_batch_size;
  ppo.epochs = options.epochs;
  ppo.rows_per_pass = options.rows_per_pass;
  ppo.share_old_pass = options.share_old_pass;
  gen::SamplingConfig sampling = gen::SamplingConfig::emprl();
  sampling.barred.push_back(t5::pad_id);

  Parts parts;
  train::T5ActorCritic<float> inner_actor(dev, generator, gradients.views(), {},
                                          value_gradients.views());
  train::T5Reference<float> inner_reference(dev, reference_model);
  train::T5Decoder<float> inner_decoder(dev, generator);
  TimedActor<train::T5ActorCritic<float>> actor{inner_actor, parts};
  TimedReference<train::T5Reference<float>> reference{inner_reference, parts};
  TimedDecoder<train::T5Decoder<float>> decoder(inner_decoder, parts);
  TimedOptimizer optimizer{dev, adam, parts};
  auto sampler = [&](RaggedView contexts, std::uint32_t step) {
    Stopwatch const watch(parts.generate);
    RandomSequence random(options.seed, Stream::sample, step, 1u << 31);
    std::vector<index_t> lengths(static_cast<std::size_t>(contexts.rows()));
    for (index_t& n : lengths) {
      n = sampling.min_new_tokens +
          random.below(sampling.max_new_tokens - sampling.min_new_tokens + 1);
    }
    decoder.set_lengths(std::move(lengths));
    return gen::generate(decoder, contexts, sampling, options.seed, step);
  };
  auto decode = [&](std::span<std::int32_t const> ids) {
    Stopwatch const watch(parts.text);
    std::string text;
    for (std::int32_t const id : ids) text += std::to_string(id) + " ";
    return text;
  };
  auto reward = [&](rl::EpisodeBatch const& episodes, std::span<float> scores) {
    Stopwatch const watch(parts.reward);
    for (std::size_t i = 0; i < episodes.size(); ++i) {
      auto const& ids = episodes[i].response_ids;
      auto const even = std::ranges::count_if(ids, [](std::int32_t id) { return id % 2 == 0; });
      scores[i] = static_cast<float>(even) / static_cast<float>(ids.size());
    }
  };
  rl::PpoTrainer trainer(
      ppo, rl::make_ppo_spec(ppo, actor, reference, reward, sampler, decode, optimizer));

  print_machine(machine);
  fmt::print(
      "T5 preset {}: d_model {}, d_ff {}, {} + {} layers, {} heads of {}, vocabulary {}; {} "
      "parameters, random.\n{} contexts a step, mini-batches of {}, {} to an optimiser step, {} "
      "passes over\nthem; at most {} contexts in a forward and backward, {}; contexts of "
      "40 to 80\nids, responses of {} to {}; float.\n\n",
      options.preset, config.d_model, config.d_ff, config.num_layers, config.num_decoder_layers,
      config.num_heads, config.d_kv, config.vocab_size, generator.weights.size(), ppo.batch_size,
      ppo.mini_batch_size, ppo.gradient_accumulation, ppo.epochs, ppo.rows_at_once(),
      ppo.share_old_pass ? "the first shared with the evaluation" : "none shared",
      sampling.min_new_tokens, sampling.max_new_tokens);
  std::fflush(stdout);

  RandomSequence random(options.seed, Stream::initialise, 0, 1u << 31);
  // Memory is asked for and threads are started before anything counts.
  static_cast<void>(
      trainer.step(random_prompts(std::min<index_t>(2, options.batch), config.vocab_size, random)));
  parts = {};
  std::vector<double> totals, processor;
  Part loss;
  double context_tokens = 0, response_tokens = 0;
  std::int64_t optimizer_steps = 0;
  for (int i = 0; i < options.steps; ++i) {
    rl::PromptBatch const prompts = random_prompts(options.batch, config.vocab_size, random);
    double const begin = now();
    double const busy = processor_seconds();
    rl::PpoStats const stats = trainer.step(prompts);
    totals.push_back(now() - begin);
    processor.push_back(processor_seconds() - busy);
    context_tokens += static_cast<double>(prompts.contexts.tokens());
    response_tokens += static_cast<double>(stats.tokens);
    optimizer_steps += stats.optimizer_steps;
    loss.seconds += seconds_of_loss(trainer.rollout(), ppo);
  }

  double const steps = static_cast<double>(options.steps);
  double const total = std::accumulate(totals.begin(), totals.end(), 0.0);
  Part draws = parts.generate;
  draws.seconds -= parts.encode.seconds + parts.decode.seconds;
  draws.calls = parts.decode.calls;
  struct Line {
    char const* name;
    Part part;
  };
  Line const lines[] = {{"generation: encoder", parts.encode},
                        {"generation: decoder steps", parts.decode},
                        {"generation: draws", draws},
                        {"responses to text", parts.text},
                        {"reward", parts.reward},
                        {"actor: inference", parts.inference},
                        {"reference", parts.reference},
                        {"actor: forward", parts.forward},
                        {"actor: entropy", parts.entropy},
                        {"actor: backward", parts.backward},
                        {"optimiser: gradients to 0", parts.zero},
                        {"optimiser: step", parts.optimise}};
  double rest = total;
  for (Line const& line : lines) rest -= line.part.seconds;
  expects<Error>(rest >= 0, "the parts of a step took longer than the step");

  auto const row = [&](std::string name, std::string calls, double seconds) {
    return std::vector<std::string>{std::move(name), std::move(calls),
                                    fmt::format("{:.2f}", 1e3 * seconds / steps),
                                    fmt::format("{:.3f} %", 100 * seconds / total)};
  };
  std::vector<std::vector<std::string>> table{{"part", "calls", "ms a step", "share"}};
  io::Json list = io::Json::array();
  auto const add = [&](std::string const& name, double calls, double seconds) {
    table.push_back(row(name, calls > 0 ? fmt::format("{:.4g}", calls / steps) : "", seconds));
    list.push_back({{"part", name},
                    {"calls_a_step", calls / steps},
                    {"seconds_a_step", seconds / steps},
                    {"share", seconds / total}});
  };
  for (Line const& line : lines) {
    add(line.name, static_cast<double>(line.part.calls), line.part.seconds);
  }
  add("the trainer itself", 0, rest);
  add("  of it: loss and gradients", 0, loss.seconds);
  add("step", steps, total);
  print_table(table);
  Spread const spread = spread_of(totals);
  Spread const busy = spread_of(processor);
  fmt::print(
      "\nSteps timed: {}, after a small one to warm up; seconds of a step, median [quartiles]: "
      "{:.3f} "
      "[{:.3f},{:.3f}];\nof all processors {:.3f} [{:.3f},{:.3f}].\nA step has {:.0f} context "
      "tokens, {:.0f} response tokens and {:g} "
      "optimiser "
      "steps. Most memory held: {:.0f} MiB.\n",
      options.steps, spread.median, spread.low, spread.high, busy.median, busy.low, busy.high,
      context_tokens / steps, response_tokens / steps, static_cast<double>(optimizer_steps) / steps,
      peak_memory());
  if (!options.json.empty()) {
    io::write_json_file(options.json,
                        {{"benchmark", "ppo_step"},
                         {"machine", machine},
                         {"model", train::config_to_json(config)},
                         {"preset", options.preset},
                         {"parameters", generator.weights.size()},
                         {"batch", ppo.batch_size},
                         {"mini_batch", ppo.mini_batch_size},
                         {"gradient_accumulation", ppo.gradient_accumulation},
                         {"epochs", ppo.epochs},
                         {"rows_per_pass", ppo.rows_per_pass},
                         {"share_old_pass", ppo.share_old_pass},
                         {"seed", options.seed},
                         {"context_tokens_a_step", context_tokens / steps},
                         {"response_tokens_a_step", response_tokens / steps},
                         {"optimizer_steps_a_step", static_cast<double>(optimizer_steps) / steps},
                         {"seconds_of_steps", totals},
                         {"processor_seconds_of_steps", processor},
                         {"peak_memory_mib", peak_memory()},
                         {"parts", list}});
  }
  return 0;
}

}  // namespace
}  // namespace emprl::bench

int main(int argc, char** argv) {
  using namespace emprl::bench;
  using emprl::index_t;
  Options o;
  CLI::App app{
      "Where the time of one step of PPO goes, on a T5 with random weights: every part timed by "
      "itself, and what is left to the trainer.",
      "bench_ppo_step"};
  app.add_option("--preset", o.preset, "The model's shapes: tiny, small (T5-small) or base")
      ->check(CLI::IsMember({"tiny", "small", "base"}))
      ->capture_default_str();
  app.add_option("--steps", o.steps, "Steps that are timed, after a small one that is not")
      ->check(CLI::Range(1, 10000))
      ->capture_default_str();
  app.add_option("--threads", o.threads, "Threads; 0: one for each processor")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--batch", o.batch, "Contexts in a step")
      ->check(CLI::Range(index_t{1}, index_t{4096}))
      ->capture_default_str();
  app.add_option("--mini-batch", o.mini_batch, "Contexts in a mini-batch")
      ->check(CLI::Range(index_t{1}, index_t{4096}))
      ->capture_default_str();
  app.add_option("--epochs", o.epochs, "Passes over a batch")
      ->check(CLI::Range(index_t{1}, index_t{100}))
      ->capture_default_str();
  app.add_option("--rows-per-pass", o.rows_per_pass,
                 "Contexts in one forward and backward, in whole mini-batches; 1: one mini-batch")
      ->check(CLI::Range(index_t{1}, index_t{4096}))
      ->capture_default_str();
  app.add_flag("!--no-shared-pass", o.share_old_pass,
               "Evaluate the policy that sampled by passes of its own");
  app.add_option("--seed", o.seed, "Where random numbers start")->capture_default_str();
  app.add_option("--json", o.json, "Write everything to this file too");
  return run(app, argc, argv, [&] { return benchmark(o); });
}
