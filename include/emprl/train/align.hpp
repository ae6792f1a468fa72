// SPDX-License-Identifier: Apache-2.0
#pragma once

// PPO on a T5 generator with any reward: the adaptors, the order of the data, checkpoints and logs
// around rl::PpoTrainer.

#include <cxxabi.h>

#include <any>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include "emprl/data/dialogue.hpp"
#include "emprl/rl/ppo.hpp"
#include "emprl/text/batching.hpp"
#include "emprl/train/checkpoint.hpp"
#include "emprl/train/checkpoint_series.hpp"
#include "emprl/train/fingerprint.hpp"
#include "emprl/train/interrupt.hpp"
#include "emprl/train/metrics_log.hpp"
#include "emprl/train/model_folder.hpp"
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
  /// PPO steps between checkpoints; 0: none but the one of an interruption.
  index_t save_every = 50;
  index_t keep_last = 2;  ///< the newest checkpoints that stay; at least 1
  /// Besides, the best checkpoint stays: the one with the largest mean of score_mean over the steps
  /// since the checkpoint before, the first of equals. One that an interruption asked for is not
  /// judged; its steps count for the next.
  bool keep_best = true;
  std::uint64_t seed = 42;  ///< of sampling, of the order of dialogues, and of a new value head
  /// What tells the reward from others of its C++ type (mechanisms, a command). A run goes on from
  /// a checkpoint only with the same.
  std::string reward_name;
  std::filesystem::path checkpoint;  ///< the folder for checkpoints; empty: none
  /// Where the weights of the best checkpoint are left when the run ends, as a checkpoint has them,
  /// if the final state is not the best; what an earlier run left there goes. Empty: nowhere.
  std::filesystem::path best;
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

/// What divides the logits of log-probabilities.
inline double temperature_of(AlignSettings const& settings) {
  return settings.logprobs == LogProbs::tempered ? settings.sampling.temperature : 1.0;
}

inline optim::AdamWConfig adamw_of(AlignSettings const& settings) {
  optim::AdamWConfig adam;
  adam.max_gradient_norm = settings.ppo.max_gradient_norm;
  return adam;
}

/// PPO's own strategies with the numbers of the settings: run(Composition) with one controller of
/// the KL coefficient or the other.
template <class Run>
index_t with_own_strategies(AlignSettings const& settings, Run&& run) {
  rl::PpoConfig const& ppo = settings.ppo;
  auto const with = [&](auto controller) {
    return run(
        Composition{rl::KlK1{}, std::move(controller), rl::Gae{ppo.gamma, ppo.lambda},
                    rl::PpoClipObjective{ppo.policy_clip, ppo.value_clip, ppo.value_coefficient}});
  };
  if (settings.adaptive_kl) {
    return with(rl::AdaptiveKl(ppo.kl_coefficient, ppo.kl_target, ppo.kl_horizon));
  }
  return with(rl::FixedKl(ppo.kl_coefficient));
}

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
    s.step = io::whole_number(json.at("step"), where);
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

/// The scores of the steps since the last checkpoint that was judged by them.
struct JudgedSteps {
  double sum = 0;
  index_t steps = 0;

  void add(double score) {
    sum += score;
    ++steps;
  }
  double mean() const { return sum / static_cast<double>(steps); }
  /// The mean, and the next steps count from 0.
  double take() {
    double const x = mean();
    *this = {};
    return x;
  }
};

inline io::Json to_json(JudgedSteps const& j) {
  return {{"score_sum", j.sum}, {"steps", j.steps}};
}

inline JudgedSteps judged_from_json(io::Json const& json, std::string const& where) {
  try {
    return {json.at("score_sum").get<double>(), io::whole_number(json.at("steps"), where)};
  } catch (io::Json::exception const&) {
    throw IoError(where + ": this is not the state of PPO.");
  }
}

/// A number of a run's identity; JSON has no infinity, which some limits may be.
inline io::Json exact_number(double x) {
  return std::isfinite(x) ? io::Json(x) : io::Json(std::to_string(x));
}

/// Every field, but for those that say only which rows a model sees at once: like the number of
/// threads they move nothing but roundings, and a run may go on with others, on a machine of less
/// memory for one. A field that is added and not named here does not compile.
inline io::Json to_json(rl::PpoConfig const& config) {
  auto const& [mode, seed, batch_size, mini_batch_size, gradient_accumulation,
               /*not told*/ rows_per_pass, /*not told*/ share_old_pass, epochs, end_token,
               learning_rate, decay_steps, max_gradient_norm, gamma, lambda, policy_clip,
               value_clip, value_coefficient, kl_coefficient, kl_target, kl_horizon, score_scaling,
               whiten_rewards, whiten_advantages, ratio_threshold, ratio_tolerance] = config;
  char const* const scalings[] = {"none", "scale", "normalise"};
  return {{"mode", mode == rl::PpoMode::corrected ? "corrected" : "trl_0_9_6"},
          {"seed", seed},
          {"batch_size", batch_size},
          {"mini_batch_size", mini_batch_size},
          {"gradient_accumulation", gradient_accumulation},
          {"epochs", epochs},
          {"end_token", end_token},
          {"learning_rate", exact_number(learning_rate)},
          {"decay_steps", decay_steps},
          {"max_gradient_norm", exact_number(max_gradient_norm)},
          {"gamma", exact_number(gamma)},
          {"lambda", exact_number(lambda)},
          {"policy_clip", exact_number(policy_clip)},
          {"value_clip", exact_number(value_clip)},
          {"value_coefficient", exact_number(value_coefficient)},
          {"kl_coefficient", exact_number(kl_coefficient)},
          {"kl_target", exact_number(kl_target)},
          {"kl_horizon", exact_number(kl_horizon)},
          {"score_scaling", scalings[static_cast<std::size_t>(score_scaling)]},
          {"whiten_rewards", whiten_rewards},
          {"whiten_advantages", whiten_advantages},
          {"ratio_threshold", exact_number(ratio_threshold)},
          {"ratio_tolerance", ratio_tolerance ? exact_number(*ratio_tolerance) : io::Json()}};
}

/// Every field, as above.
inline io::Json to_json(gen::SamplingConfig const& config) {
  auto const& [greedy, temperature, top_k, top_p, min_new_tokens, max_new_tokens, start, eos,
               barred, repetition_penalty, no_repeat_ngram] = config;
  return {{"greedy", greedy},
          {"temperature", exact_number(temperature)},
          {"top_k", top_k},
          {"top_p", exact_number(top_p)},
          {"min_new_tokens", min_new_tokens},
          {"max_new_tokens", max_new_tokens},
          {"start", start},
          {"eos", eos},
          {"barred", barred},
          {"repetition_penalty", exact_number(repetition_penalty)},
          {"no_repeat_ngram", no_repeat_ngram}};
}

/// The C++ type, as the compiler spells it.
template <class X>
std::string type_name() {
  char const* const mangled = typeid(X).name();
  int status = 0;
  std::unique_ptr<char, void (*)(void*)> const text(
      abi::__cxa_demangle(mangled, nullptr, nullptr, &status), std::free);
  return status == 0 ? text.get() : mangled;
}

/// What the dialogues say: contexts, responses and levels, in their order; ids are names and do not
/// count.
inline std::string fingerprint_of(std::span<data::Pair const> pairs) {
  Fingerprint f;
  for (data::Pair const& pair : pairs) {
    f.text(pair.context);
    f.text(pair.response);
    f.numbers(pair.levels ? std::span<int const>(*pair.levels) : std::span<int const>());
  }
  return f.name();
}

/// A model: configuration, tokenizer, every weight.
template <Scalar T>
std::string fingerprint_of(Generator<T> const& generator) {
  Fingerprint f;
  f.text(config_to_json(generator.config()).dump());
  f.text(generator.tokenizer.serialized());
  f.numbers(std::span<T const>(generator.weights.span()));
  f.numbers(std::span<T const>(generator.prefix.span()));
  f.numbers(std::span<T const>(generator.value_head.span()));
  if (generator.lora().size() > 0) {
    f.text(lora_config_to_json(generator.lora_shape(), "").dump());
    f.numbers(std::span<T const>(generator.lora().span()));
  }
  return f.name();
}

/// Every setting on which the arithmetic of a run depends, by the names that AlignSettings gives
/// them, and what it works on. What only says when and where something is written is not among
/// them, nor is the number of threads. Of strategies and reward the caller adds the C++ types; the
/// numbers inside them are not seen, but for those that are settings here.
/// @param ppo   with the run's seed and decay
/// @param model the reference, which is the generator as it came
template <Scalar T>
io::Json align_identity(AlignSettings const& settings, rl::PpoConfig const& ppo, index_t steps,
                        std::span<data::Pair const> pairs, Generator<T> const& model) {
  return {
      {"phase", settings.phase},
      {"dialogues", pairs.size()},
      {"element_type", io::dtype_name(io::dtype_of<T>())},
      {"steps", steps},
      {"samples_per_context", settings.samples_per_context},
      {"seed", settings.seed},
      {"adaptive_kl", settings.adaptive_kl},
      {"logprobs", settings.logprobs == LogProbs::raw ? "raw" : "tempered"},
      {"limits", {{"context", settings.limits.context}, {"response", settings.limits.response}}},
      {"ppo", to_json(ppo)},
      {"sampling", to_json(settings.sampling)},
      {"reward_name", settings.reward_name},
      // Last, for a setting that is another says more: the seed makes a new value head.
      {"dialogues_fingerprint", fingerprint_of(pairs)},
      {"model_fingerprint", fingerprint_of(model)}};
}

/// Writes what PPO trains as others read it: a model folder, or, of a generator with an adapter,
/// the adapter alone; the value head, if there is one, beside it.
/// @throws IoError naming the file
template <Scalar T>
void save_trained(std::filesystem::path const& folder, Generator<T> const& generator) {
  if (!has_adapter(generator)) return save_generator(folder, generator);
  save_adapter(folder, generator);
  if (generator.value_head.size() > 0) {
    write_parameters(folder / "value_head.safetensors", generator.value_head);
  }
}

/// Reads what `save_trained` wrote into the memory that is there, bit for bit: the element type is
/// part of a run's identity.
/// @throws IoError naming the file and the tensor that is missing or has another shape
template <Scalar T>
void load_trained(std::filesystem::path const& folder, Generator<T> const& generator) {
  if (generator.lora().size() > 0) {
    read_parameters(io::SafeTensorsFile(folder / lora_file), generator.lora(), peft_root);
  } else if (generator.prefix.size() > 0) {
    read_parameters(io::SafeTensorsFile(folder / prefix_file), generator.prefix);
  } else {
    read_parameters(io::SafeTensorsFile(folder / "model.safetensors"), generator.weights);
  }
  if (generator.value_head.size() > 0) {
    read_parameters(io::SafeTensorsFile(folder / "value_head.safetensors"), generator.value_head);
  }
}

/// Leaves the weights of the best checkpoint in settings.best, unless the final state is the best:
/// as a checkpoint, or, where steps came after the last one that was judged, by their mean score.
/// Removes what an earlier run left there.
/// @throws IoError naming the file
inline void leave_best(CheckpointSeries const& series, AlignSettings const& settings, index_t done,
                       JudgedSteps const& since, Progress& progress) {
  auto const best = settings.keep_best ? series.best() : std::nullopt;
  bool const final_is_best =
      best && (best->step == done || (since.steps > 0 && since.mean() > *best->score));
  if (!best || final_is_best) return discard_checkpoint(settings.best);
  train::save_checkpoint(settings.best, [&](std::filesystem::path const& folder) {
    for (auto const& file : std::filesystem::directory_iterator(best->folder)) {
      std::string const name = file.path().filename().string();
      if (name == complete_marker || name == series_file || name == "state.json" ||
          name == "optimizer.safetensors" || name == products_file) {
        continue;
      }
      std::error_code error;
      std::filesystem::copy_file(file.path(), folder / name, error);
      if (error) io::detail::fail("write", folder / name, error.value());
    }
  });
  progress.print(settings.phase + ": the best mean score between checkpoints, " +
                 std::to_string(*best->score) + ", was that of step " + std::to_string(best->step) +
                 "; its weights are in " + settings.best.string());
}

/// @throws ConfigError if a generator has a prefix and a LoRA
template <Scalar T>
void expect_one_adapter(Generator<T> const& generator, std::string const& phase) {
  expects<ConfigError>(generator.prefix.size() == 0 || generator.lora().size() == 0,
                       phase + ": a prefix and a LoRA cannot be trained at once.");
}

/// What PPO trains of a generator, but for the value head.
template <Scalar T>
std::span<T> trained_numbers(Generator<T> const& generator) {
  if (generator.prefix.size() > 0) return generator.prefix.span();
  return generator.lora().size() > 0 ? generator.lora().span() : generator.weights.span();
}

/// A generator in PPO on the CPU: the roles of PPO, and the trained weights on their way from and
/// to checkpoints. run_ppo takes anything with these members; engine_tasks.hpp has the one of
/// devices.
template <Scalar T, bool WithValues>
class HostPpo {
 public:
  /// @param identity  an object: what a run's identity is to have beside the settings
  HostPpo(Cpu& dev, Generator<T>& generator, AlignSettings const& settings,
          io::Json identity = io::Json::object())
      : dev_(dev),
        generator_(generator),
        reference_model_(generator.clone()),
        optimizer_(adamw_of(settings), parameters(settings.phase)),
        temperature_(static_cast<T>(temperature_of(settings))),
        policy_(dev, generator, gradient_views_, prefix_gradients_.views(), temperature_),
        actor_([&] {
          if constexpr (WithValues) {
            return T5ActorCritic<T>(dev, generator, gradient_views_, prefix_gradients_.views(),
                                    value_gradients_.views(), temperature_);
          } else {
            return rl::PolicyOnly(policy_);
          }
        }()),
        reference_(dev, reference_model_, temperature_),
        decoder_(dev, generator),
        bound_{dev, optimizer_},
        identity_(std::move(identity)) {}
  HostPpo(HostPpo const&) = delete;
  HostPpo& operator=(HostPpo const&) = delete;

  auto& actor() { return actor_; }
  auto& reference() { return reference_; }
  auto& optimizer() { return bound_; }
  Ragged sample(RaggedView contexts, gen::SamplingConfig const& sampling, std::uint64_t seed,
                std::uint32_t step) {
    return gen::generate(decoder_, contexts, sampling, seed, step);
  }

  /// generator = what is trained, and back: here they are one.
  void bring_home() {}
  void take_up() {}

  void write_optimizer(std::filesystem::path const& folder) const {
    train::write_optimizer(folder, optimizer_);
  }
  void read_optimizer(std::filesystem::path const& folder) {
    train::read_optimizer(folder, optimizer_);
  }
  io::Json identity() const { return identity_; }
  /// PpoConfig::ratio_tolerance where the settings have none; none: the trainer's own.
  static std::optional<double> ratio_tolerance() { return {}; }

 private:
  /// What is trained, with new gradients.
  std::vector<optim::ParameterSpan<T>> parameters(std::string const& phase) {
    expect_one_adapter(generator_, phase);
    std::vector<optim::ParameterSpan<T>> trained;
    if (generator_.prefix.size() > 0) {
      prefix_gradients_ = PrefixParameters<T>(generator_.prefix_shape());
      trained.push_back({generator_.prefix.span(), prefix_gradients_.span()});
    } else if (generator_.lora().size() > 0) {
      lora_gradients_ = t5::LoraParameters<T, Cpu>(generator_.lora_shape());
      lora_gradients_.views().attach(generator_.lora_shape(), gradient_views_);
      trained.push_back({generator_.lora().span(), lora_gradients_.span()});
    } else {
      gradients_ = t5::Parameters<T, Cpu>(generator_.config());
      gradient_views_ = gradients_.views();
      trained.push_back({generator_.weights.span(), gradients_.span()});
    }
    if constexpr (WithValues) {
      value_gradients_ = ValueHeadParameters<T>(generator_.config().d_model);
      trained.push_back({generator_.value_head.span(), value_gradients_.span()});
    }
    return trained;
  }

  using Actor = std::conditional_t<WithValues, T5ActorCritic<T>, rl::PolicyOnly<T5Policy<T>>>;

  Cpu& dev_;
  Generator<T>& generator_;
  Generator<T> const reference_model_;
  t5::Parameters<T, Cpu> gradients_;
  t5::LoraParameters<T, Cpu> lora_gradients_;
  t5::Params<T, Cpu> gradient_views_;  // of weights or LoRA; empty where frozen
  PrefixParameters<T> prefix_gradients_;
  ValueHeadParameters<T> value_gradients_;
  optim::AdamW<T> optimizer_;
  T temperature_;
  T5Policy<T> policy_;
  Actor actor_;
  T5Reference<T> reference_;
  T5Decoder<T> decoder_;
  BoundOptimizer<T> bound_;
  io::Json identity_;
};

/// The loop around a trainer; Strategies is a Composition, Learner as HostPpo.
template <class Learner, Scalar T, class Reward, class Strategies>
index_t run_ppo(Learner& learner, Generator<T>& generator, Reward& reward,
                std::span<data::Pair const> pairs, AlignSettings const& settings,
                Strategies strategies, MetricsLog* log,
                std::function<void(rl::PpoStats const&)> const& on_step) {
  auto const dialogues = static_cast<index_t>(pairs.size());
  expects<ConfigError>(dialogues > 0, settings.phase + ": there are no dialogues to train on.");
  rl::PpoConfig ppo = settings.ppo;
  ppo.seed = settings.seed;
  if (!ppo.ratio_tolerance) ppo.ratio_tolerance = learner.ratio_tolerance();
  index_t const samples = settings.samples_per_context;
  expects<ConfigError>(samples >= 1 && ppo.batch_size % samples == 0,
                       settings.phase + ": batch_size must be a multiple of samples_per_context, " +
                           std::to_string(samples) + ", but is " + std::to_string(ppo.batch_size) +
                           ".");
  index_t const dialogues_a_step = ppo.batch_size / samples;
  index_t const pass = (dialogues + dialogues_a_step - 1) / dialogues_a_step;
  index_t const steps = settings.steps > 0 ? settings.steps : 3 * pass;
  if (ppo.decay_steps == 0) ppo.decay_steps = steps;

  gen::SamplingConfig const sampling = barred_beyond_tokenizer(settings.sampling, generator);
  auto sampler = [&](RaggedView contexts, std::uint32_t step) {
    return learner.sample(contexts, sampling, settings.seed, step);
  };
  auto decode = [&](std::span<std::int32_t const> ids) { return generator.tokenizer.decode(ids); };
  rl::PpoTrainer trainer(
      ppo, rl::make_ppo_spec(learner.actor(), learner.reference(), reward, sampler, decode,
                             learner.optimizer(), std::move(strategies.kl),
                             std::move(strategies.kl_controller), std::move(strategies.advantages),
                             std::move(strategies.objective)));

  bool const saves = !settings.checkpoint.empty();
  expects<ConfigError>(
      saves || settings.best.empty(),
      settings.phase + ": the best checkpoint cannot be left anywhere without checkpoints.");
  // Asked now, not after the last step.
  expects<ConfigError>(
      settings.best.empty() || is_complete(settings.best) || is_missing_or_empty(settings.best),
      settings.phase + ": the best checkpoint cannot be left in " + settings.best.string() +
          ", which holds something else.");
  CheckpointsToKeep const keep{settings.keep_last, settings.keep_best};
  keep.validate();
  CheckpointSeries const series(settings.checkpoint, keep);
  io::Json identity;
  if (saves) {
    identity = align_identity(settings, ppo, steps, pairs, generator);
    identity.update(learner.identity());
    identity["strategies"] = type_name<Strategies>();
    identity["reward"] = type_name<Reward>();
  }
  JudgedSteps judged;
  index_t saved = -1;
  auto const save = [&](std::optional<double> score) {
    auto const step = static_cast<index_t>(trainer.state().step);
    if (!saves || saved == step) return;
    // No checkpoint may be ahead of its log.
    if (log != nullptr) log->sync();
    series.save(step, score, [&](std::filesystem::path const& folder) {
      learner.bring_home();
      save_trained(folder, generator);
      learner.write_optimizer(folder);
      write_run_state(folder, identity,
                      {{"ppo", to_json(trainer.state())}, {"judged", to_json(judged)}});
    });
    saved = step;
  };
  if (auto const from = saves ? series.newest() : std::nullopt) {
    io::Json const state = read_run_state(from->folder, identity);
    std::string const where = (from->folder / "state.json").string();
    expects<IoError>(state.contains("ppo") && state.contains("judged"),
                     where + ": this is not the state of PPO.");
    load_trained(from->folder, generator);
    learner.take_up();
    learner.read_optimizer(from->folder);
    trainer.restore(ppo_state_from_json(state["ppo"], where));
    judged = judged_from_json(state["judged"], where);
    saved = from->step;
  }
  auto done = static_cast<index_t>(trainer.state().step);
  if (log != nullptr) log->resume(settings.phase, done);

  // The order of a pass and the tokens of a step's contexts take milliseconds, in which a GPU would
  // have nothing to do: another thread has those of the next step ready.
  auto const prompts_of_step = [&](index_t step) {
    std::vector<index_t> rows;
    for (index_t const row : rows_of_step(dialogues, dialogues_a_step, step, settings.seed)) {
      rows.insert(rows.end(), static_cast<std::size_t>(samples), row);
    }
    rl::PromptBatch prompts = prompts_of(generator.tokenizer, pairs, rows, settings.limits);
    prompts.last_of_pass = is_last_of_pass(dialogues, dialogues_a_step, step);
    return prompts;
  };
  std::future<rl::PromptBatch> next;
  auto const prepare = [&](index_t step) {
    if (step < steps) next = std::async(std::launch::async, prompts_of_step, step);
  };
  prepare(done);

  Progress progress(settings.phase, steps, "steps", done);
  while (done < steps) {
    if (interrupted()) {
      save(std::nullopt);
      throw Interrupted("the same command goes on from step " + std::to_string(done) + " of " +
                        settings.phase + ".");
    }
    rl::PromptBatch const prompts = next.get();
    prepare(done + 1);
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
    judged.add(stats.score_mean);
    if (settings.save_every > 0 && done % settings.save_every == 0) save(judged.take());
  }
  if (!settings.best.empty()) leave_best(series, settings, done, judged, progress);
  progress.finish();
  learner.bring_home();
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
  constexpr bool with_values = rl::uses_values<A>;
  if constexpr (with_values) ensure_value_head(generator, settings.seed);
  detail::HostPpo<T, with_values> learner(dev, generator, settings);
  return detail::run_ppo(learner, generator, reward, pairs, settings, std::move(composition), log,
                         on_step);
}

/// Trains a generator by PPO with a reward. All weights are trained, a value head that is added if
/// there is none included; of a generator with an adapter, adapter and value head alone. The
/// generator as it comes, adapter and all, is the frozen reference: the KL penalty is for leaving
/// what supervised learning made, not the model before it. LoRA's dropout is off, as all is. Goes
/// on from the newest checkpoint in settings.checkpoint, if there is one of the same run, bit for
/// bit; the checkpoints stay there until CheckpointSeries::discard. Each holds the weights as a
/// model folder (of a generator with an adapter the adapter alone), the value head, and the
/// trainer's state beside them.
/// @param reward   an rl::RewardModel; sees each dialogue's context, the sampled and the human
/// response, and the target levels
/// @param log      where the statistics go, by step; null for nowhere
/// @param on_step  called after each step; may be empty
/// @return the steps done in all
/// @throws ConfigError for settings out of range, or naming the first in which the run of the
/// checkpoint differs; Interrupted after a signal, once a checkpoint is written; Error naming the
/// episode if a number is not finite
template <Scalar T, rl::RewardModel Reward>
index_t align(Cpu& dev, Generator<T>& generator, Reward& reward, std::span<data::Pair const> pairs,
              AlignSettings const& settings, MetricsLog* log = nullptr,
              std::function<void(rl::PpoStats const&)> const& on_step = {}) {
  settings.ppo.validate();
  return detail::with_own_strategies(settings, [&](auto composition) {
    return align(dev, generator, reward, pairs, settings, std::move(composition), log, on_step);
  });
}

}  // namespace emprl::train
