// SPDX-License-Identifier: Apache-2.0
#pragma once

// Supervised training and PPO on an engine: on the CPU by the templates of sequence_task.hpp,
// identifier_task.hpp and align.hpp, elsewhere by the device. Folders, checkpoints and logs are the
// same; a run that began on one device goes on from its checkpoint on another, within the number
// format. A device adds one file to its checkpoints, by which algorithms it multiplied matrices
// (products_file): going on there, those are taken and not timed again. Shapes that a run meets
// later are timed when it meets them, so that on such a device a run goes on bit for bit only where
// that was asked for (Determinism::on); on the host it always does.

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "emprl/io/file.hpp"
#include "emprl/ops/gemm_cpu.hpp"
#include "emprl/train/align.hpp"
#include "emprl/train/checkpoint.hpp"
#include "emprl/train/engine.hpp"
#include "emprl/train/fit.hpp"
#include "emprl/train/identifier_task.hpp"
#include "emprl/train/progress.hpp"
#include "emprl/train/sequence_task.hpp"

namespace emprl::train {

namespace detail {

/// The engine as one that trains in a memory of its own.
/// @throws Error if it is the host's, which trains by the templates on Cpu
inline DeviceEngine& training_device(Engine& engine) {
  DeviceEngine* const device = engine.device();
  if (device == nullptr) throw Error("an engine of the host has no device to train on.");
  return *device;
}

/// What a run's checkpoint says of its engine. Devices are not told apart; formats are, and whether
/// the same bits are promised. What is not said is float32, and that they are not.
inline io::Json engine_identity(Engine const& engine) {
  io::Json identity = io::Json::object();
  if (engine.precision() == Precision::bf16) identity["precision"] = "bf16";
  if (engine.determinism() == Determinism::on) identity["deterministic"] = true;
  return identity;
}

/// fit of a task on the host, whose checkpoint says what a device's would.
template <FitTask Task>
FitResult fit_on_host(Engine const& engine, Cpu& cpu, Task& task, FitOptions const& options,
                      MetricsLog* log) {
  options.validate();
  HostLearner<Task> learner(cpu, task, options.optimizer, engine_identity(engine));
  return fit(learner, options, log);
}

/// Writes by which algorithms a device multiplies matrices. @throws IoError naming the file
inline void write_products(std::filesystem::path const& folder, DeviceEngine const& device) {
  io::write_file_atomically(folder / products_file, device.products());
}

/// Takes them up, if the checkpoint has them. Those of another kind of device are set aside, and
/// standard error is told.
/// @throws IoError naming the file if it is damaged
inline void read_products(std::filesystem::path const& folder, DeviceEngine& device) {
  auto const path = folder / products_file;
  if (!is_there(path)) return;
  try {
    if (device.restore_products(io::read_file(path))) return;
  } catch (ConfigError const& error) {
    throw IoError(path.string() + ": " + error.what());
  }
  standard_error_output().write(
      path.string() +
      " is of another kind of GPU or another version of its library and is set "
      "aside: " +
      (device.determinism() == Determinism::on
           ? "from here on the bits are those of this one.\n"
           : "the algorithms of matrix products are chosen anew.\n"));
}

/// The optimiser's half of a FitLearner on a device.
class EngineLearner {
 public:
  using Scalar = float;

  EngineLearner(DeviceEngine& device, EngineTraining& training, double max_gradient_norm)
      : device_(device), training_(training), max_gradient_norm_(max_gradient_norm) {}

  std::size_t size() const { return static_cast<std::size_t>(training_.size()); }
  std::span<float const> parameters() {
    values_.resize(size());
    training_.fetch(values_);
    return values_;
  }
  void set_parameters(std::span<float const> values) { training_.put(values); }
  void zero_gradients() { training_.zero_gradients(); }
  double step(double rate) { return training_.step(rate, max_gradient_norm_); }
  void write_optimizer(std::filesystem::path const& folder) {
    OptimizerState const state = training_.optimizer();
    write_moments<float>(folder, state.steps, state.first_moment, state.second_moment);
    write_products(folder, device_);
  }
  void read_optimizer(std::filesystem::path const& folder) {
    OptimizerState state;
    state.first_moment.resize(size());
    state.second_moment.resize(size());
    state.steps = read_moments<float>(folder, state.first_moment, state.second_moment);
    training_.restore(state);
    read_products(folder, device_);
  }
  io::Json identity() const { return engine_identity(device_); }

 private:
  DeviceEngine& device_;
  EngineTraining& training_;
  double max_gradient_norm_;
  std::vector<float> values_;
};

/// A generator that learns responses on a device, as SequenceTask.
class EngineSequenceLearner : public EngineLearner {
 public:
  EngineSequenceLearner(DeviceEngine& device, EngineT5Training& training,
                        Generator<float>& generator, SequenceExamples train,
                        text::EncodedPairs const& valid,
                        SequenceTask<float>::Options const& options, double max_gradient_norm)
      : EngineLearner(device, training, max_gradient_norm),
        training_(training),
        generator_(generator),
        train_(std::move(train)),
        valid_(valid),
        options_(options) {}

  index_t examples() const { return train_.rows; }
  double loss(std::span<index_t const> rows, std::uint32_t step) {
    text::EncodedPairs const batch = train_.batch(rows, step);
    tokens_ += batch.tokens();
    return training_.sequence_loss(
        batch.contexts.view(), batch.responses.view(),
        DropoutSites(options_.dropout, options_.seed, step, generator_.lora_shape().dropout));
  }
  index_t tokens() const { return tokens_; }
  bool has_validation() const { return valid_.rows() > 0; }
  double validate() {
    training_.update_prefix();
    return likelihood(training_.model(), valid_).loss();
  }
  void finish() { training_.bring_home(generator_); }
  io::Json identity() const {
    io::Json identity = EngineLearner::identity();
    identity["task"] = SequenceTask<float>::identity(generator_, train_, options_);
    return identity;
  }

 private:
  EngineT5Training& training_;
  Generator<float>& generator_;
  SequenceExamples train_;
  text::EncodedPairs const& valid_;
  SequenceTask<float>::Options options_;
  index_t tokens_ = 0;
};

/// An identifier that learns levels on a device, as IdentifierTask.
class EngineIdentifierLearner : public EngineLearner {
 public:
  EngineIdentifierLearner(DeviceEngine& device, EngineIdentifierTraining& training,
                          IdentifierModel<float>& identifier, EncodedPosts const& train,
                          EncodedPosts const& valid, IdentifierTask<float>::Options const& options,
                          double max_gradient_norm)
      : EngineLearner(device, training, max_gradient_norm),
        training_(training),
        identifier_(identifier),
        train_(train),
        valid_(valid),
        options_(options),
        weight_(level_weights<float>(train, options.class_weights)) {}

  index_t examples() const { return train_.rows(); }
  double loss(std::span<index_t const> rows, std::uint32_t step) {
    text::EncodedPairs const batch = text::gather_pairs(train_.pairs, rows);
    std::vector<std::int32_t> targets;
    std::vector<float> const shares = level_shares<float>(train_, rows, weight_, targets);
    return training_.loss(batch.contexts.view(), batch.responses.view(), targets, shares,
                          DropoutSites(options_.dropout, options_.seed, step));
  }
  bool has_validation() const { return valid_.rows() > 0; }
  double validate() {
    return mean_cross_entropy(level_probabilities(training_.model(), valid_.pairs), valid_.levels);
  }
  void finish() { training_.fetch(identifier_.weights.span()); }

 private:
  EngineIdentifierTraining& training_;
  IdentifierModel<float>& identifier_;
  EncodedPosts const& train_;
  EncodedPosts const& valid_;
  IdentifierTask<float>::Options options_;
  std::array<float, 3> weight_;
};

/// A generator in PPO on a device, as HostPpo.
class EnginePpo {
 public:
  EnginePpo(DeviceEngine& engine, Generator<float>& generator, AlignSettings const& settings,
            bool with_values)
      : generator_(generator),
        precision_(engine.precision()),
        training_(engine.train(generator,
                               {.part = part_of(generator, settings),
                                .value_head = with_values,
                                .temperature = static_cast<float>(temperature_of(settings)),
                                .optimizer = adamw_of(settings)},
                               true)),
        learner_(engine, *training_, settings.ppo.max_gradient_norm),
        actor_(*training_),
        reference_(*training_) {}
  EnginePpo(EnginePpo const&) = delete;
  EnginePpo& operator=(EnginePpo const&) = delete;

  EngineActor& actor() { return actor_; }
  EngineReference& reference() { return reference_; }
  EngineTraining& optimizer() { return *training_; }
  Ragged sample(RaggedView contexts, gen::SamplingConfig const& sampling, std::uint64_t seed,
                std::uint32_t step) {
    return training_->model().generate(contexts, sampling, seed, step);
  }
  void bring_home() { training_->bring_home(generator_); }
  void take_up() {
    // In the order of the device's parameters.
    auto const trained = trained_numbers(generator_);
    std::vector<float> values(trained.begin(), trained.end());
    if (static_cast<index_t>(values.size()) < training_->size()) {
      auto const head = generator_.value_head.span();
      values.insert(values.end(), head.begin(), head.end());
    }
    training_->put(values);
  }
  void write_optimizer(std::filesystem::path const& folder) { learner_.write_optimizer(folder); }
  void read_optimizer(std::filesystem::path const& folder) { learner_.read_optimizer(folder); }
  io::Json identity() const { return learner_.identity(); }
  /// In 16 bits a product of other rows may be another algorithm's: with states of 8 bits and
  /// logits of ten or twenty that may move a log-probability by some tenths. An estimate, wide on
  /// purpose; no GPU has been asked.
  std::optional<double> ratio_tolerance() const {
    if (precision_ == Precision::bf16) return 0.5;
    return {};
  }

 private:
  static T5TrainingOptions::Part part_of(Generator<float> const& generator,
                                         AlignSettings const& settings) {
    expect_one_adapter(generator, settings.phase);
    if (generator.prefix.size() > 0) return T5TrainingOptions::Part::prefix;
    return generator.lora().size() > 0 ? T5TrainingOptions::Part::lora
                                       : T5TrainingOptions::Part::weights;
  }

  Generator<float>& generator_;
  Precision precision_;
  std::unique_ptr<EngineT5Training> training_;
  EngineLearner learner_;
  EngineActor actor_;
  EngineReference reference_;
};

static_assert(FitLearner<EngineSequenceLearner> && FitLearner<EngineIdentifierLearner>);
static_assert(rl::InferringActor<EngineActor> && rl::TrainsEntropy<EngineActor> &&
              rl::ReportsFullKl<EngineActor, EngineReference>);
static_assert(rl::ReferencePolicy<EngineReference, float> && rl::Optimizer<EngineTraining>);

}  // namespace detail

/// Teaches a generator its responses, on the engine's device: fit with a SequenceTask. The
/// generator has the best epoch's weights, or adapter, in the end.
/// @param train  encoded pairs, or what makes them
/// @throws what fit throws
inline FitResult fit_sequences(Engine& engine, Generator<float>& generator,
                               SequenceExamples const& train, text::EncodedPairs const& valid,
                               SequenceTask<float>::Options const& options, FitOptions const& fit,
                               MetricsLog* log = nullptr) {
  if (Cpu* const cpu = engine.cpu()) {
    SequenceTask<float> task(*cpu, generator, train, valid, options);
    return detail::fit_on_host(engine, *cpu, task, fit, log);
  }
  expect_adapter_in_training(generator, options.tuning);
  T5TrainingOptions training;
  training.seed = options.seed;
  training.optimizer = fit.optimizer;
  if (options.tuning == Tuning::prefix) {
    training.part = T5TrainingOptions::Part::prefix_network;
    training.prefix_length = options.prefix_length;
    training.prefix_hidden = options.prefix_hidden;
    expects<ConfigError>(options.prefix_length >= 1,
                         "prefix-tuning needs a prefix of at least one position.");
    generator.prefix = PrefixParameters<float>(
        typename t5::Prefixes<float, Cpu>::Shape{generator.config(), options.prefix_length});
  } else if (options.tuning == Tuning::lora) {
    training.part = T5TrainingOptions::Part::lora;
    if (generator.lora().size() == 0) start_lora(generator, options.lora, options.seed);
  }
  DeviceEngine& device = detail::training_device(engine);
  auto const trained = device.train(generator, training, false);
  detail::EngineSequenceLearner learner(device, *trained, generator, train, valid, options,
                                        fit.optimizer.max_gradient_norm);
  return train::fit(learner, fit, log);
}

/// Teaches an identifier its levels, on the engine's device: fit with an IdentifierTask.
/// @throws what fit throws
inline FitResult fit_identifier(Engine& engine, IdentifierModel<float>& identifier,
                                EncodedPosts const& train, EncodedPosts const& valid,
                                IdentifierTask<float>::Options const& options,
                                FitOptions const& fit, MetricsLog* log = nullptr) {
  if (Cpu* const cpu = engine.cpu()) {
    IdentifierTask<float> task(*cpu, identifier, train, valid, options);
    return detail::fit_on_host(engine, *cpu, task, fit, log);
  }
  expects<ConfigError>(train.rows() > 0, "an identifier needs posts to train on.");
  DeviceEngine& device = detail::training_device(engine);
  auto const trained = device.train(identifier.model.config(), identifier.weights, fit.optimizer);
  detail::EngineIdentifierLearner learner(device, *trained, identifier, train, valid, options,
                                          fit.optimizer.max_gradient_norm);
  return train::fit(learner, fit, log);
}

/// PPO on the engine's device, with strategies of one's own: align of align.hpp. The generator has
/// the trained weights in the end, and at every checkpoint.
/// @throws what align throws
template <rl::RewardModel Reward, class K, class C, class A, class L>
index_t align(Engine& engine, Generator<float>& generator, Reward& reward,
              std::span<data::Pair const> pairs, AlignSettings const& settings,
              Composition<K, C, A, L> composition, MetricsLog* log = nullptr,
              std::function<void(rl::PpoStats const&)> const& on_step = {}) {
  settings.ppo.validate();
  constexpr bool with_values = rl::uses_values<A>;
  if constexpr (with_values) ensure_value_head(generator, settings.seed);
  auto const run = [&](auto&& learner) {
    return detail::run_ppo(learner, generator, reward, pairs, settings, std::move(composition), log,
                           on_step);
  };
  if (Cpu* const cpu = engine.cpu()) {
    return run(detail::HostPpo<float, with_values>(*cpu, generator, settings,
                                                   detail::engine_identity(engine)));
  }
  return run(detail::EnginePpo(detail::training_device(engine), generator, settings, with_values));
}

/// The same with PPO's own strategies.
template <rl::RewardModel Reward>
index_t align(Engine& engine, Generator<float>& generator, Reward& reward,
              std::span<data::Pair const> pairs, AlignSettings const& settings,
              MetricsLog* log = nullptr,
              std::function<void(rl::PpoStats const&)> const& on_step = {}) {
  settings.ppo.validate();
  return detail::with_own_strategies(settings, [&](auto composition) {
    return align(engine, generator, reward, pairs, settings, std::move(composition), log, on_step);
  });
}

}  // namespace emprl::train
