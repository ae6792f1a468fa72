// SPDX-License-Identifier: Apache-2.0
#pragma once

// The loop of supervised learning: epochs of shuffled batches, AdamW, validation after each epoch
// or every so many steps, the best of these kept, checkpoints from which a stopped run goes on as
// if it had never stopped.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "emprl/optim/adamw.hpp"
#include "emprl/optim/schedule.hpp"
#include "emprl/text/batching.hpp"
#include "emprl/train/checkpoint.hpp"
#include "emprl/train/interrupt.hpp"
#include "emprl/train/metrics_log.hpp"
#include "emprl/train/progress.hpp"

namespace emprl::train {

/// Something that learns from numbered examples.
///   t.examples()               how many there are
///   t.parameters(), gradients()  flat spans of the same extent
///   t.loss(rows, step)      the mean loss of some examples; adds its gradient to gradients();
///                           `step` addresses dropout
///   t.has_validation()
///   t.validate()            a loss on other examples, lower is better
///   t.finish()              brings what is trained in line with parameters(), after they changed
/// A task may have settings of its own that a run does not change on its way:
///   t.identity()            them, as JSON; a checkpoint of a task with others is not gone on from
/// and may count what it reads (CountsTokens), so that a run says how fast it is.
template <class K>
concept FitTask = requires(K& t, std::span<index_t const> rows, std::uint32_t step) {
  typename K::Scalar;
  { t.examples() } -> std::same_as<index_t>;
  { t.parameters() } -> std::same_as<std::span<typename K::Scalar>>;
  { t.gradients() } -> std::same_as<std::span<typename K::Scalar>>;
  { t.loss(rows, step) } -> std::same_as<double>;
  { t.has_validation() } -> std::same_as<bool>;
  { t.validate() } -> std::same_as<double>;
  { t.finish() } -> std::same_as<void>;
};

/// A task or a learner that counts:
///   k.tokens()   the tokens that all calls of loss have read
template <class K>
concept CountsTokens = requires(K const& k) {
  { k.tokens() } -> std::same_as<index_t>;
};

struct FitOptions {
  std::string phase = "finetune";  ///< the name in progress and logs
  index_t epochs = 3;
  index_t steps = 0;            ///< in all, whatever the epochs; 0: as many as the epochs have
  index_t validate_every = 0;   ///< steps between validations; 0: after each epoch. The end has one
  index_t batch_size = 8;       ///< examples in an optimiser step
  double learning_rate = 1e-4;  ///< at its peak
  optim::Decay decay = optim::Decay::linear;
  index_t warmup_steps = 0;  ///< at most the run's length
  optim::AdamWConfig optimizer;
  std::uint64_t seed = 42;  ///< of the order of examples
  index_t save_every = 0;   ///< optimiser steps between checkpoints; 0: after each epoch
  index_t patience = 0;  ///< stop after so many epochs without a better validation loss; 0: never
  std::filesystem::path checkpoint;  ///< the folder for checkpoints; empty: none

  /// @throws ConfigError naming the setting that is out of range
  void validate() const {
    expects<ConfigError>(epochs >= 1, "epochs must be at least 1.");
    expects<ConfigError>(steps >= 0 && validate_every >= 0,
                         "steps and validate-every must not be negative.");
    expects<ConfigError>(batch_size >= 1, "the batch size must be at least 1.");
    expects<ConfigError>(std::isfinite(learning_rate) && learning_rate >= 0,
                         "the learning rate must be finite and not negative.");
    expects<ConfigError>(warmup_steps >= 0, "warm-up steps must not be negative.");
    expects<ConfigError>(save_every >= 0 && patience >= 0,
                         "save-every and patience must not be negative.");
    optimizer.validate();
  }
};

/// The rows of each step of an epoch (counted from 0), in the order in which `fit` takes them: a
/// function of the number of examples, the batch size and the seed.
inline std::vector<std::vector<index_t>> epoch_batches(index_t examples, FitOptions const& options,
                                                       index_t epoch) {
  std::vector<index_t> const order = text::shuffled_rows(examples, options.seed, epoch);
  std::vector<std::vector<index_t>> batches;
  for (auto const rows : text::cut_into_batches(order, options.batch_size)) {
    batches.emplace_back(rows.begin(), rows.end());
  }
  return batches;
}

/// What lies between two validations: an epoch, or as many steps as FitOptions says.
struct EpochResult {
  double train_loss = 0;  ///< mean over the epoch's batches, with dropout
  double valid_loss = 0;  ///< after the epoch; the training loss where there is no validation part
};

struct FitResult {
  std::vector<EpochResult> epochs;
  index_t best_epoch = 0;  ///< counted from 0; its parameters are the ones kept
  double best_loss = 0;
  index_t steps = 0;
  index_t tokens = 0;  ///< of the steps since this process began, if the task counts them
  double seconds = 0;  ///< that these steps took, without validation and checkpoints

  double tokens_per_second() const {
    return seconds > 0 ? static_cast<double>(tokens) / seconds : 0.0;
  }
};

namespace detail {

/// Everything about a fit in progress except the weights.
struct FitState {
  index_t step = 0;     // optimiser steps done
  index_t epoch = 0;    // the epoch under way
  index_t batch = 0;    // its batches done
  index_t losses = 0;   // the steps since the last validation
  double loss_sum = 0;  // and the sum of their losses
  FitResult result;
};

inline io::Json to_json(FitState const& s) {
  io::Json epochs = io::Json::array();
  for (EpochResult const& e : s.result.epochs) epochs.push_back({e.train_loss, e.valid_loss});
  return {{"step", s.step},
          {"epoch", s.epoch},
          {"batch", s.batch},
          {"losses", s.losses},
          {"loss_sum", s.loss_sum},
          {"epochs", epochs},
          {"best_epoch", s.result.best_epoch},
          {"best_loss", s.result.best_loss}};
}

inline FitState fit_state_from_json(io::Json const& json, std::string const& where) {
  try {
    FitState s;
    s.step = io::whole_number(json.at("step"), where);
    s.epoch = io::whole_number(json.at("epoch"), where);
    s.batch = io::whole_number(json.at("batch"), where);
    // A state written before there were validations inside of an epoch has none.
    s.losses = json.contains("losses") ? io::whole_number(json.at("losses"), where) : s.batch;
    s.loss_sum = json.at("loss_sum").get<double>();
    for (auto const& e : json.at("epochs")) {
      s.result.epochs.push_back({e.at(0).get<double>(), e.at(1).get<double>()});
    }
    s.result.best_epoch = io::whole_number(json.at("best_epoch"), where);
    s.result.best_loss = json.at("best_loss").get<double>();
    return s;
  } catch (io::Json::exception const&) {
    throw IoError(where + ": this is not the state of a supervised run.");
  }
}

/// Fixed-point text for progress lines; fmt stays out of library headers.
inline std::string short_number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4f", x);
  return text;
}

}  // namespace detail

/// A task together with what moves its parameters, wherever they are: what the loop itself asks
/// for. `parameters()` shows them on the host, until the next call of a function.
///   l.examples(), loss(rows, step), has_validation(), validate(), finish()   as of a FitTask
///   l.size()                              how many parameters there are
///   l.parameters(), set_parameters(x)     their values, on the host
///   l.zero_gradients(), l.step(rate)      of the optimiser; the second returns the gradients' norm
///   l.write_optimizer(folder), l.read_optimizer(folder)    its state beside a checkpoint, and what
///                                         else its device needs to go on as it began
///   l.identity()                          what its arithmetic depends on besides the options
/// It may count its tokens (CountsTokens).
template <class L>
concept FitLearner = requires(L& l, std::span<index_t const> rows, std::uint32_t number,
                              std::span<typename L::Scalar const> values, double rate,
                              std::filesystem::path const& folder) {
  { l.examples() } -> std::same_as<index_t>;
  { l.size() } -> std::same_as<std::size_t>;
  { l.parameters() } -> std::same_as<std::span<typename L::Scalar const>>;
  { l.set_parameters(values) } -> std::same_as<void>;
  { l.zero_gradients() } -> std::same_as<void>;
  { l.loss(rows, number) } -> std::same_as<double>;
  { l.step(rate) } -> std::same_as<double>;
  { l.has_validation() } -> std::same_as<bool>;
  { l.validate() } -> std::same_as<double>;
  { l.finish() } -> std::same_as<void>;
  { l.write_optimizer(folder) } -> std::same_as<void>;
  { l.read_optimizer(folder) } -> std::same_as<void>;
  { l.identity() } -> std::same_as<io::Json>;
};

/// A FitTask on the CPU and AdamW as a FitLearner.
template <FitTask Task>
class HostLearner {
 public:
  using Scalar = typename Task::Scalar;

  /// @param settings  an object: what is to be in identity() beside the task's own
  HostLearner(Cpu& dev, Task& task, optim::AdamWConfig const& optimizer,
              io::Json settings = io::Json::object())
      : dev_(dev),
        task_(task),
        optimizer_(optimizer, task.parameters(), task.gradients()),
        settings_(std::move(settings)) {}

  index_t examples() const { return task_.examples(); }
  std::size_t size() const { return task_.parameters().size(); }
  std::span<Scalar const> parameters() const { return task_.parameters(); }
  void set_parameters(std::span<Scalar const> values) {
    std::copy(values.begin(), values.end(), task_.parameters().begin());
  }
  void zero_gradients() { optimizer_.zero_gradients(); }
  double loss(std::span<index_t const> rows, std::uint32_t step) { return task_.loss(rows, step); }
  double step(double rate) { return optimizer_.step(dev_, rate); }
  bool has_validation() const { return task_.has_validation(); }
  double validate() { return task_.validate(); }
  void finish() { task_.finish(); }
  index_t tokens() const requires CountsTokens<Task> { return task_.tokens(); }
  void write_optimizer(std::filesystem::path const& folder) const {
    train::write_optimizer(folder, optimizer_);
  }
  void read_optimizer(std::filesystem::path const& folder) {
    train::read_optimizer(folder, optimizer_);
  }
  io::Json identity() const {
    io::Json identity = settings_;
    if constexpr (requires(Task const& task) { task.identity(); }) {
      identity["task"] = task_.identity();
    }
    return identity;
  }

 private:
  Cpu& dev_;
  Task& task_;
  optim::AdamW<Scalar> optimizer_;
  io::Json settings_;
};

/// Trains a learner, as fit below. Its optimiser has the settings of options.optimizer.
template <FitLearner Learner>
FitResult fit(Learner& learner, FitOptions const& options, MetricsLog* log = nullptr) {
  using T = typename Learner::Scalar;
  options.validate();
  index_t const examples = learner.examples();
  expects<ConfigError>(examples > 0, options.phase + ": there is nothing to train on.");
  index_t const batches = (examples + options.batch_size - 1) / options.batch_size;
  index_t const total = options.steps > 0 ? options.steps : batches * options.epochs;
  optim::Schedule schedule;
  schedule.decay = options.decay;
  schedule.peak = options.learning_rate;
  schedule.warmup_steps = std::min(options.warmup_steps, total - 1);
  schedule.total_steps = total;

  detail::FitState state;
  state.result.best_loss = std::numeric_limits<double>::max();
  std::vector<T> best;

  // What a checkpoint must agree with to be gone on from.
  io::Json identity = {{"phase", options.phase},
                       {"examples", examples},
                       {"parameters", learner.size()},
                       {"epochs", options.epochs},
                       {"batch_size", options.batch_size},
                       {"learning_rate", options.learning_rate},
                       {"decay", static_cast<int>(options.decay)},
                       {"warmup_steps", options.warmup_steps},
                       {"seed", options.seed}};
  if (options.steps > 0) {
    identity.erase("epochs");
    identity["steps"] = options.steps;
  }
  if (options.validate_every > 0) identity["validate_every"] = options.validate_every;
  identity.update(learner.identity());
  auto const save = [&] {
    if (options.checkpoint.empty()) return;
    if (log != nullptr) log->sync();
    save_checkpoint(options.checkpoint, [&](std::filesystem::path const& folder) {
      auto const n = static_cast<index_t>(learner.size());
      std::span<T const> const now = learner.parameters();
      std::vector<io::TensorToWrite> tensors{io::tensor_to_write<T>("parameters", {n}, now)};
      if (!best.empty())
        tensors.push_back(io::tensor_to_write<T>("best", {n}, std::span<T const>(best)));
      io::write_safetensors(folder / "parameters.safetensors", tensors);
      learner.write_optimizer(folder);
      write_run_state(folder, identity, detail::to_json(state));
    });
  };
  if (!options.checkpoint.empty()) {
    if (auto const folder = find_checkpoint(options.checkpoint)) {
      state = detail::fit_state_from_json(read_run_state(*folder, identity),
                                          (*folder / "state.json").string());
      io::SafeTensorsFile const file(*folder / "parameters.safetensors");
      auto const n = static_cast<index_t>(learner.size());
      std::vector<T> values(learner.size());
      file.copy_to("parameters", std::span<T>(values), {n});
      learner.set_parameters(values);
      if (file.contains("best")) {
        best.resize(learner.size());
        file.copy_to("best", std::span<T>(best), {n});
      }
      learner.read_optimizer(*folder);
    }
  }
  // Validations are counted in epochs, or by the step that they follow.
  bool const by_epoch = options.validate_every == 0;
  std::string const validations = options.phase + (by_epoch ? " epoch" : " validation");
  if (log != nullptr) {
    log->resume(options.phase, state.step);
    log->resume(validations,
                by_epoch ? static_cast<index_t>(state.result.epochs.size()) : state.step);
  }

  constexpr bool counts_tokens = CountsTokens<Learner>;
  auto const tokens_so_far = [&]() -> index_t {
    if constexpr (counts_tokens) return learner.tokens();
    return 0;
  };
  index_t const tokens_before = tokens_so_far();
  auto const speed = [&] {
    state.result.tokens = tokens_so_far() - tokens_before;
    return state.result.tokens_per_second();
  };
  auto const speed_note = [&]() -> std::string {
    if (!counts_tokens) return {};
    return ", " + std::to_string(std::llround(speed())) + " tokens/s";
  };

  Progress progress(options.phase, total, "steps", state.step);
  std::vector<std::vector<index_t>> rows;
  while (state.step < total) {
    if (options.patience > 0 && state.losses == 0 &&
        static_cast<index_t>(state.result.epochs.size()) >
            state.result.best_epoch + options.patience) {
      break;
    }
    if (interrupted()) {
      save();
      throw Interrupted("the same command goes on from step " + std::to_string(state.step) +
                        " of " + options.phase + ".");
    }
    if (rows.empty() || state.batch == 0) rows = epoch_batches(examples, options, state.epoch);
    auto const begin = std::chrono::steady_clock::now();
    learner.zero_gradients();
    double const loss = learner.loss(rows[static_cast<std::size_t>(state.batch)],
                                     static_cast<std::uint32_t>(state.step));
    if (!std::isfinite(loss)) {
      throw Error(options.phase + ": the loss of step " + std::to_string(state.step + 1) +
                  " is not finite; try a smaller learning rate.");
    }
    double const rate = schedule(state.step);
    double const norm = learner.step(rate);
    state.result.seconds +=
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::string const epoch_number = std::to_string(state.epoch + 1);
    ++state.step;
    ++state.batch;
    ++state.losses;
    state.loss_sum += loss;
    bool const epoch_ended = state.batch == batches;
    if (epoch_ended) {
      ++state.epoch;
      state.batch = 0;
    }
    progress.advance(state.step,
                     "epoch " + epoch_number + ", loss " +
                         detail::short_number(state.loss_sum / static_cast<double>(state.losses)) +
                         speed_note());
    if (log != nullptr) {
      log->write(options.phase, state.step,
                 {{"loss", loss}, {"learning_rate", rate}, {"gradient_norm", norm}});
    }
    bool const validates =
        state.step == total || (by_epoch ? epoch_ended : state.step % options.validate_every == 0);
    if (!validates) {
      if (options.save_every > 0 && state.step % options.save_every == 0) save();
      continue;
    }
    EpochResult epoch;
    epoch.train_loss = state.loss_sum / static_cast<double>(state.losses);
    epoch.valid_loss = learner.has_validation() ? learner.validate() : epoch.train_loss;
    if (log != nullptr) {
      Metrics numbers = {{"train_loss", epoch.train_loss}, {"valid_loss", epoch.valid_loss}};
      if (counts_tokens) numbers.emplace_back("tokens_per_second", speed());
      log->write(validations,
                 by_epoch ? static_cast<index_t>(state.result.epochs.size()) + 1 : state.step,
                 numbers);
    }
    state.result.epochs.push_back(epoch);
    if (epoch.valid_loss < state.result.best_loss) {
      state.result.best_loss = epoch.valid_loss;
      state.result.best_epoch = static_cast<index_t>(state.result.epochs.size()) - 1;
      std::span<T const> const now = learner.parameters();
      best.assign(now.begin(), now.end());
    }
    progress.print(options.phase + ": " +
                   (by_epoch && options.steps == 0
                        ? "epoch " + epoch_number + " of " + std::to_string(options.epochs)
                        : "step " + std::to_string(state.step) + " of " + std::to_string(total)) +
                   ", training loss " + detail::short_number(epoch.train_loss) +
                   ", validation loss " + detail::short_number(epoch.valid_loss) + speed_note());
    state.losses = 0;
    state.loss_sum = 0;
    save();
  }
  progress.finish();
  if (!best.empty()) learner.set_parameters(best);
  learner.finish();
  state.result.steps = state.step;
  return state.result;
}

/// Trains a task. Resumes from options.checkpoint if it holds a checkpoint of a run with the same
/// options.
/// @param log where losses go, as phase/step; null for nowhere
/// @throws ConfigError for options out of range, or naming the first in which the run of the
/// checkpoint differs
/// @throws Interrupted after a signal, once a checkpoint is written
/// @throws Error if a loss or a gradient is not finite
template <FitTask Task>
FitResult fit(Cpu& dev, Task& task, FitOptions const& options, MetricsLog* log = nullptr) {
  options.validate();
  HostLearner<Task> learner(dev, task, options.optimizer);
  return fit(learner, options, log);
}

}  // namespace emprl::train
