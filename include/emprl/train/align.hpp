// SPDX-License-Identifier: Apache-2.0
#pragma once

// PPO on a T5 generator with any reward: the adaptors, the order of the data, checkpoints and logs
// around rl::PpoTrainer.

#include <any>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "emprl/data/dialogue.hpp"
#include "emprl/rl/ppo.hpp"
#include "emprl/text/batching.hpp"
#include "emprl/train/checkpoint.hpp"
#include "emprl/train/interrupt.hpp"
#include "emprl/train/metrics_log.hpp"
#include "emprl/train/progress.hpp"
#include "emprl/train/t5_adaptors.hpp"

namespace emprl::train {

/// Which distribution PPO's log-probabilities are of. Responses are sampled with temperature and
/// filters either way.
enum class LogProbs {
  raw,      ///< the full softmax at temperature 1, as the original
  tempered  ///< the full softmax at the sampling temperature
};

/// @throws ConfigError for a name that is none
inline LogProbs logprobs_of(std::string_view name) {
  if (name == "raw") return LogProbs::raw;
  if (name == "tempered") return LogProbs::tempered;
  throw ConfigError("log-probabilities \"" + std::string(name) +
                    "\" are unknown; raw and tempered are understood.");
}

struct AlignSettings {
  std::string phase = "align";
  rl::PpoConfig ppo = rl::PpoConfig::emprl();
  gen::SamplingConfig sampling = gen::SamplingConfig::emprl();
  text::TokenLimits limits;
  LogProbs logprobs = LogProbs::raw;
  bool adaptive_kl = true;
  index_t steps = 0;  ///< PPO steps; 0: three passes over the dialogues
  /// Responses sampled for each context, side by side in the batch, as GroupRelative and
  /// LeaveOneOut compare them; ppo.batch_size counts responses and must be a multiple.
  index_t samples_per_context = 1;
  index_t save_every =
      50;  ///< PPO steps between checkpoints; 0: none but the one of an interruption
  std::uint64_t seed = 42;  ///< of sampling, of the order of dialogues, and of a new value head
  std::filesystem::path checkpoint;  ///< the folder for checkpoints; empty: none
};

/// The strategies of PPO: which KL estimate where, how its coefficient moves, how tokens are
/// credited, and the loss. What align takes when it is told nothing else is k1 in the reward, the
/// coefficient of the settings, GAE and the clipped objective.
///   train::Composition{rl::KlInLoss<rl::KlK3>{}, rl::FixedKl(0.05), rl::GroupRelative{4},
///                      rl::PpoClipObjective{}}
template <class Kl, class Controller, class Advantages, class Loss>
struct Composition {
  Kl kl;
  Controller kl_controller;
  Advantages advantages;
  Loss objective;
};
template <class K, class C, class A, class L>
Composition(K, C, A, L) -> Composition<K, C, A, L>;

/// Gives a generator a value head if it has none: uniform in +-1/sqrt(d_model), as PyTorch's
/// Linear.
template <Scalar T>
void ensure_value_head(Generator<T>& generator, std::uint64_t seed) {
  if (generator.value_head.size() > 0) return;
  generator.value_head = ValueHeadParameters<T>(generator.config().d_model);
  double const bound = 1.0 / std::sqrt(static_cast<double>(generator.config().d_model));
  RandomSequence random(seed, Stream::initialise, 3);
  for (T& x : generator.value_head.span())
    x = static_cast<T>(bound * (2.0 * random.uniform() - 1.0));
}

/// Prompts of some dialogues: the context, the response that a human gave, and the target levels as
/// payload if there are any.
inline rl::PromptBatch prompts_of(text::SentencePieceTokenizer const& tokenizer,
                                  std::span<data::Pair const> pairs, std::span<index_t const> rows,
                                  text::TokenLimits const& limits = {}) {
  rl::PromptBatch prompts;
  for (index_t const i : rows) {
    data::Pair const& pair = pairs[static_cast<std::size_t>(i)];
    prompts.contexts.push_back(text::encode_with_end(tokenizer, pair.context, limits.context));
    prompts.texts.push_back(pair.context);
    prompts.references.push_back(pair.response);
    prompts.payloads.push_back(pair.levels ? std::any(*pair.levels) : std::any{});
    prompts.ids.push_back(pair.id);
  }
  return prompts;
}

/// The dialogues of PPO step `step`: passes over all of them, each in its own order, the last batch
/// of a pass as large as what is left.
inline std::vector<index_t> rows_of_step(index_t dialogues, index_t batch, index_t step,
                                         std::uint64_t seed) {
  index_t const batches = (dialogues + batch - 1) / batch;
  std::vector<index_t> const order = text::shuffled_rows(dialogues, seed, step / batches);
  auto const begin = static_cast<std::size_t>(step % batches * batch);
  auto const end = std::min(order.size(), begin + static_cast<std::size_t>(batch));
  return {order.begin() + static_cast<std::ptrdiff_t>(begin),
          order.begin() + static_cast<std::ptrdiff_t>(end)};
}

/// Whether step `step` takes what is left of a pass.
inline bool is_last_of_pass(index_t dialogues, index_t batch, index_t step) {
  index_t const batches = (dialogues + batch - 1) / batch;
  return step % batches == batches - 1;
}

namespace detail {

/// AdamW as an rl::Optimizer.
template <Scalar T>
struct BoundOptimizer {
  Cpu& dev;
  optim::AdamW<T>& optimizer;
  void zero_gradients() { optimizer.zero_gradients(); }
  double step(double learning_rate, double max_norm) {
    return optimizer.step(dev, learning_rate, max_norm);
  }
};

inline io::Json to_json(rl::PpoState const& s) {
  return {{"step", s.step},
          {"score_mean", s.score_moments.mean},
          {"score_variance", s.score_moments.variance},
          {"score_deviation", s.score_moments.deviation},
          {"score_count", s.score_moments.count},
          {"kl_controller", s.kl_controller},
          {"advantages", s.advantages},
          {"clipped", s.clipped},
          {"reward", s.reward}};
}

inline rl::PpoState ppo_state_from_json(io::Json const& json, std::string const& where) {
  try {
    rl::PpoState s;
    s.step = json.at("step").get<std::int64_t>();
    s.score_moments.mean = json.at("score_mean").get<double>();
    s.score_moments.variance = json.at("score_variance").get<double>();
    s.score_moments.deviation = json.at("score_deviation").get<double>();
    s.score_moments.count = json.at("score_count").get<double>();
    s.kl_controller = json.at("kl_controller").get<std::vector<double>>();
    // Checkpoints of earlier versions do not hold these.
    s.advantages = json.value("advantages", std::vector<double>{});
    s.clipped = json.value("clipped", false);
    s.reward = json.value("reward", std::vector<double>{});
    return s;
  } catch (io::Json::exception const&) {
    throw IoError(where + ": this is not the state of PPO.");
  }
}

/// The loop around a trainer; Strategies is a Composition.
template <Scalar T, class Reward, class Strategies>
index_t run_ppo(Cpu& dev, Generator<T>& generator, Reward& reward,
                std::span<data::Pair const> pairs, AlignSettings const& settings,
                Strategies strategies, MetricsLog* log,
                std::function<void(rl::PpoStats const&)> const& on_step) {
  constexpr bool with_values = rl::uses_values<decltype(strategies.advantages)>;
  if constexpr (with_values) ensure_value_head(generator, settings.seed);
  Generator<T> const reference_model = generator.clone();
  bool const prefix_only = generator.prefix.size() > 0;
  t5::Parameters<T, Cpu> gradients;
  PrefixParameters<T> prefix_gradients;
  ValueHeadParameters<T> value_gradients;
  std::vector<optim::ParameterSpan<T>> trained;
  if (prefix_only) {
    prefix_gradients = PrefixParameters<T>(generator.prefix_shape());
    trained.push_back({generator.prefix.span(), prefix_gradients.span()});
  } else {
    gradients = t5::Parameters<T, Cpu>(generator.config());
    trained.push_back({generator.weights.span(), gradients.span()});
  }
  if constexpr (with_values) {
    value_gradients = ValueHeadParameters<T>(generator.config().d_model);
    trained.push_back({generator.value_head.span(), value_gradients.span()});
  }
  optim::AdamWConfig adam;
  adam.max_gradient_norm = settings.ppo.max_gradient_norm;
  optim::AdamW<T> optimizer(adam, trained);

  auto const dialogues = static_cast<index_t>(pairs.size());
  expects<ConfigError>(dialogues > 0, settings.phase + ": there are no dialogues to train on.");
  rl::PpoConfig ppo = settings.ppo;
  ppo.seed = settings.seed;
  index_t const samples = settings.samples_per_context;
  expects<ConfigError>(samples >= 1 && ppo.batch_size % samples == 0,
                       settings.phase + ": batch_size must be a multiple of samples_per_context, " +
                           std::to_string(samples) + ", but is " + std::to_string(ppo.batch_size) +
                           ".");
  index_t const dialogues_a_step = ppo.batch_size / samples;
  index_t const pass = (dialogues + dialogues_a_step - 1) / dialogues_a_step;
  index_t const steps = settings.steps > 0 ? settings.steps : 3 * pass;
  if (ppo.decay_steps == 0) ppo.decay_steps = steps;

  T const temperature = settings.logprobs == LogProbs::tempered
                            ? static_cast<T>(settings.sampling.temperature)
                            : T(1);
  T5Policy<T> policy(dev, generator, gradients.views(), prefix_gradients.views(), temperature);
  auto actor = [&] {
    if constexpr (with_values) {
      return T5ActorCritic<T>(dev, generator, gradients.views(), prefix_gradients.views(),
                              value_gradients.views(), temperature);
    } else {
      return rl::PolicyOnly(policy);
    }
  }();
  T5Reference<T> reference(dev, reference_model, temperature);
  T5Decoder<T> decoder(dev, generator);
  gen::SamplingConfig const sampling = barred_beyond_tokenizer(settings.sampling, generator);
  auto sampler = [&](RaggedView contexts, std::uint32_t step) {
    return gen::generate(decoder, contexts, sampling, settings.seed, step);
  };
  auto decode = [&](std::span<std::int32_t const> ids) { return generator.tokenizer.decode(ids); };
  BoundOptimizer<T> bound{dev, optimizer};
  rl::PpoTrainer trainer(
      ppo, rl::make_ppo_spec(actor, reference, reward, sampler, decode, bound,
                             std::move(strategies.kl), std::move(strategies.kl_controller),
                             std::move(strategies.advantages), std::move(strategies.objective)));

  io::Json const identity = {
      {"phase", settings.phase},
      {"dialogues", dialogues},
      {"steps", steps},
      {"batch_size", ppo.batch_size},
      {"samples_per_context", samples},
      {"learning_rate", ppo.learning_rate},
      {"mode", ppo.mode == rl::PpoMode::corrected ? "corrected" : "trl_0_9_6"},
      {"kl_coefficient", ppo.kl_coefficient},
      {"seed", settings.seed}};
  char const* const names[] = {"trained", "value_head"};
  auto const save = [&] {
    if (settings.checkpoint.empty()) return;
    train::save_checkpoint(settings.checkpoint, [&](std::filesystem::path const& folder) {
      std::vector<io::TensorToWrite> tensors;
      for (std::size_t i = 0; i < trained.size(); ++i) {
        std::span<T const> const values = trained[i].parameters;
        tensors.push_back(
            io::tensor_to_write<T>(names[i], {static_cast<index_t>(values.size())}, values));
      }
      io::write_safetensors(folder / "parameters.safetensors", tensors);
      write_optimizer(folder, optimizer);
      write_trainer_state(folder, {{{"identity", identity}, {"state", to_json(trainer.state())}}});
    });
  };
  if (!settings.checkpoint.empty()) {
    if (auto const folder = find_checkpoint(settings.checkpoint)) {
      io::Json const numbers = read_trainer_state(*folder).numbers;
      expects<ConfigError>(
          numbers.contains("identity") && numbers["identity"] == identity &&
              numbers.contains("state"),
          "the checkpoint " + folder->string() +
              " belongs to a run with other options or data; remove it, or choose another "
              "output folder.");
      io::SafeTensorsFile const file(*folder / "parameters.safetensors");
      for (std::size_t i = 0; i < trained.size(); ++i) {
        file.copy_to(names[i], trained[i].parameters,
                     {static_cast<index_t>(trained[i].parameters.size())});
      }
      read_optimizer(*folder, optimizer);
      trainer.restore(ppo_state_from_json(numbers["state"], (*folder / "state.json").string()));
    }
  }
  auto done = static_cast<index_t>(trainer.state().step);
  if (log != nullptr) log->resume(settings.phase, done);

  Progress progress(settings.phase, steps, "steps", done);
  while (done < steps) {
    if (interrupted()) {
      save();
      throw Interrupted("the same command goes on from step " + std::to_string(done) + " of " +
                        settings.phase + ".");
    }
    std::vector<index_t> rows;
    for (index_t const row : rows_of_step(dialogues, dialogues_a_step, done, settings.seed)) {
      rows.insert(rows.end(), static_cast<std::size_t>(samples), row);
    }
    rl::PromptBatch prompts = prompts_of(generator.tokenizer, pairs, rows, settings.limits);
    prompts.last_of_pass = is_last_of_pass(dialogues, dialogues_a_step, done);
    rl::PpoStats const stats = trainer.step(prompts);
    ++done;
    char note[96];
    std::snprintf(note, sizeof note, "score %.3f, KL %.2f, length %.1f", stats.score_mean, stats.kl,
                  stats.response_length);
    progress.advance(done, note);
    if (log != nullptr) {
      Metrics numbers;
      rl::for_each_number(stats, [&](std::string_view name, double value) {
        if (name != "step") numbers.emplace_back(std::string(name), value);
      });
      log->write(settings.phase, done, numbers);
    }
    if (on_step) on_step(stats);
    if (settings.save_every > 0 && done % settings.save_every == 0) save();
  }
  progress.finish();
  return done;
}

}  // namespace detail

/// PPO, as below, with strategies of one's own; the settings' numbers that belong to the strategies
/// (KL coefficient, gamma, lambda, clips) are then theirs. No value head is built, and none that is
/// there is trained, where the advantages use no values (rl::uses_values).
template <Scalar T, rl::RewardModel Reward, class K, class C, class A, class L>
index_t align(Cpu& dev, Generator<T>& generator, Reward& reward, std::span<data::Pair const> pairs,
              AlignSettings const& settings, Composition<K, C, A, L> composition,
              MetricsLog* log = nullptr,
              std::function<void(rl::PpoStats const&)> const& on_step = {}) {
  settings.ppo.validate();
  return detail::run_ppo(dev, generator, reward, pairs, settings, std::move(composition), log,
                         on_step);
}

/// Trains a generator by PPO with a reward. All weights are trained, a value head that is added if
/// there is none included; of a generator with prefixes, prefixes and value head alone. The
/// generator as it comes is the frozen reference. Goes on from settings.checkpoint if it holds a
/// checkpoint of such a run.
/// @param reward   an rl::RewardModel; sees each dialogue's context, the sampled and the human
/// response, and the target levels
/// @param log      where the statistics go, by step; null for nowhere
/// @param on_step  called after each step; may be empty
/// @return the steps done in all
/// @throws ConfigError for settings out of range or a checkpoint of another run; Interrupted after
/// a signal, once a
///         checkpoint is written; Error naming the episode if a number is not finite
template <Scalar T, rl::RewardModel Reward>
index_t align(Cpu& dev, Generator<T>& generator, Reward& reward, std::span<data::Pair const> pairs,
              AlignSettings const& settings, MetricsLog* log = nullptr,
              std::function<void(rl::PpoStats const&)> const& on_step = {}) {
  settings.ppo.validate();
  rl::PpoConfig const& ppo = settings.ppo;
  auto const with = [&](auto controller) {
    return align(
        dev, generator, reward, pairs, settings,
        Composition{rl::KlK1{}, std::move(controller), rl::Gae{ppo.gamma, ppo.lambda},
                    rl::PpoClipObjective{ppo.policy_clip, ppo.value_clip, ppo.value_coefficient}},
        log, on_step);
  };
  if (settings.adaptive_kl) {
    return with(rl::AdaptiveKl(ppo.kl_coefficient, ppo.kl_target, ppo.kl_horizon));
  }
  return with(rl::FixedKl(ppo.kl_coefficient));
}

}  // namespace emprl::train
