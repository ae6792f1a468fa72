// SPDX-License-Identifier: Apache-2.0

#include "emprl/train/fit.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <vector>

#include "emprl/io/json_lines.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"

using namespace emprl;

namespace {

/// Learns the mean of its examples; can die at a step.
struct MeanTask {
  using Scalar = double;
  std::vector<double> data;
  std::vector<double> parameter{0.0};
  std::vector<double> gradient{0.0};
  index_t die_at = -1;
  index_t calls = 0;
  std::vector<std::vector<index_t>> seen;  // the rows of each step

  index_t examples() const { return static_cast<index_t>(data.size()); }
  std::span<double> parameters() { return parameter; }
  std::span<double> gradients() { return gradient; }
  double loss(std::span<index_t const> rows, std::uint32_t) {
    if (calls++ == die_at) throw std::runtime_error("killed");
    seen.emplace_back(rows.begin(), rows.end());
    double total = 0;
    for (index_t const i : rows) {
      double const d = parameter[0] - data[static_cast<std::size_t>(i)];
      total += 0.5 * d * d;
      gradient[0] += d / static_cast<double>(rows.size());
    }
    return total / static_cast<double>(rows.size());
  }
  bool has_validation() const { return true; }
  double validate() { return (parameter[0] - 3.0) * (parameter[0] - 3.0); }
  void finish() {}
};

MeanTask task() {
  MeanTask t;
  for (int i = 0; i < 23; ++i) t.data.push_back(3.0 + 0.1 * (i - 11));
  return t;
}

train::FitOptions options(std::filesystem::path const& checkpoint) {
  train::FitOptions o;
  o.epochs = 6;
  o.batch_size = 4;
  o.learning_rate = 0.3;
  o.save_every = 2;
  o.checkpoint = checkpoint;
  return o;
}

}  // namespace

TEST_CASE("fit: learns, and keeps the parameters of the best epoch", "[train][fit][unit]") {
  Cpu dev(1);
  MeanTask t = task();
  train::FitResult const result = train::fit(dev, t, options({}));
  CHECK(result.epochs.size() == 6);
  CHECK(result.steps == 36);
  CHECK(t.validate() == result.best_loss);
  for (train::EpochResult const& e : result.epochs) CHECK(e.valid_loss >= result.best_loss);
  CHECK(result.best_loss < 0.1);
}

TEST_CASE("fit: a run that died at any step goes on to the same bits", "[train][fit][resume]") {
  Cpu dev(1);
  MeanTask whole = task();
  train::FitResult const expected = train::fit(dev, whole, options({}));
  for (index_t const death : {1, 2, 5, 6, 7, 17, 35}) {
    INFO("died at step " << death);
    emprl::test::TemporaryFolder const folder;
    MeanTask first = task();
    first.die_at = death;
    CHECK_THROWS_AS(train::fit(dev, first, options(folder / "checkpoint")), std::runtime_error);
    MeanTask second = task();
    train::FitResult const result = train::fit(dev, second, options(folder / "checkpoint"));
    CHECK(second.parameter[0] == whole.parameter[0]);
    CHECK(result.best_epoch == expected.best_epoch);
    REQUIRE(result.epochs.size() == expected.epochs.size());
    for (std::size_t i = 0; i < result.epochs.size(); ++i) {
      CHECK(result.epochs[i].train_loss == expected.epochs[i].train_loss);
    }
    if (death > 2) CHECK(second.calls < whole.calls);
  }
}

TEST_CASE("fit: a checkpoint of other options is refused", "[train][fit][resume]") {
  Cpu dev(1);
  emprl::test::TemporaryFolder const folder;
  MeanTask first = task();
  first.die_at = 9;
  CHECK_THROWS_AS(train::fit(dev, first, options(folder / "checkpoint")), std::runtime_error);
  MeanTask second = task();
  train::FitOptions other = options(folder / "checkpoint");
  other.learning_rate = 0.1;
  CHECK(emprl::test::message_of<ConfigError>([&] {
          train::fit(dev, second, other);
        }).find("learning_rate is 0.3 there and 0.1 here") != std::string::npos);
}

TEST_CASE("fit: the rows of each step are those that epoch_batches says", "[train][fit][unit]") {
  Cpu dev(1);
  MeanTask t = task();
  train::FitOptions const o = options({});
  train::fit(dev, t, o);
  std::vector<std::vector<index_t>> expected;
  for (index_t epoch = 0; epoch < o.epochs; ++epoch) {
    auto const batches = train::epoch_batches(t.examples(), o, epoch);
    std::vector<index_t> all;
    for (auto const& rows : batches) all.insert(all.end(), rows.begin(), rows.end());
    std::sort(all.begin(), all.end());
    for (std::size_t i = 0; i < all.size(); ++i) CHECK(all[i] == static_cast<index_t>(i));
    expected.insert(expected.end(), batches.begin(), batches.end());
  }
  CHECK(t.seen == expected);
  CHECK(expected[0] != expected[6]);
}

TEST_CASE("fit: patience ends a run that no longer gains", "[train][fit][unit]") {
  Cpu dev(1);
  MeanTask t = task();
  train::FitOptions o = options({});
  o.epochs = 50;
  o.patience = 2;
  train::FitResult const result = train::fit(dev, t, o);
  CHECK(result.epochs.size() < 50);
  CHECK(static_cast<index_t>(result.epochs.size()) == result.best_epoch + 1 + o.patience);
}

TEST_CASE("fit: a loss that is not finite stops the run before a weight moves",
          "[train][fit][unit]") {
  Cpu dev(1);
  MeanTask t = task();
  t.data[5] = std::numeric_limits<double>::quiet_NaN();
  train::FitOptions o = options({});
  o.batch_size = 23;
  CHECK_THROWS_AS(train::fit(dev, t, o), Error);
  CHECK(t.parameter[0] == 0.0);
}

TEST_CASE("fit: a number of steps ends a run inside of an epoch, or after several",
          "[train][fit][unit]") {
  Cpu dev(1);
  // 23 examples in batches of 4 are six steps an epoch.
  for (index_t const steps : {1, 4, 6, 7, 20}) {
    INFO(steps << " steps");
    MeanTask t = task();
    train::FitOptions o = options({});
    o.steps = steps;
    train::FitResult const result = train::fit(dev, t, o);
    CHECK(result.steps == steps);
    CHECK(t.calls == steps);
    // After each epoch and at the end.
    CHECK(static_cast<index_t>(result.epochs.size()) == (steps + 5) / 6);
    o.validate_every = 3;
    MeanTask again = task();
    CHECK(static_cast<index_t>(train::fit(dev, again, o).epochs.size()) == (steps + 2) / 3);
    // When it validates has no say in what it learns.
    CHECK(again.seen == t.seen);
  }
  train::FitOptions o = options({});
  o.steps = -1;
  MeanTask t = task();
  CHECK_THROWS_AS(train::fit(dev, t, o), ConfigError);
}

TEST_CASE("fit: the training loss is the mean since the validation before", "[train][fit][unit]") {
  struct Counting : MeanTask {
    double loss(std::span<index_t const> rows, std::uint32_t step) {
      MeanTask::loss(rows, step);
      return step;
    }
  };
  Cpu dev(1);
  Counting t;
  t.data = task().data;
  train::FitOptions o = options({});
  o.steps = 11;
  o.validate_every = 4;
  train::FitResult const result = train::fit(dev, t, o);
  REQUIRE(result.epochs.size() == 3);
  CHECK(result.epochs[0].train_loss == 1.5);
  CHECK(result.epochs[1].train_loss == 5.5);
  CHECK(result.epochs[2].train_loss == 9.0);
}

TEST_CASE("fit: a run with validations inside of epochs goes on to the same bits",
          "[train][fit][resume]") {
  Cpu dev(1);
  auto const with_steps = [](std::filesystem::path const& checkpoint) {
    train::FitOptions o = options(checkpoint);
    o.steps = 20;
    o.validate_every = 5;
    return o;
  };
  MeanTask whole = task();
  train::FitResult const expected = train::fit(dev, whole, with_steps({}));
  for (index_t const death : {3, 4, 5, 6, 9, 13, 19}) {
    INFO("died at step " << death);
    emprl::test::TemporaryFolder const folder;
    MeanTask first = task();
    first.die_at = death;
    CHECK_THROWS_AS(train::fit(dev, first, with_steps(folder / "checkpoint")), std::runtime_error);
    MeanTask second = task();
    train::FitResult const result = train::fit(dev, second, with_steps(folder / "checkpoint"));
    CHECK(second.calls < 20);
    CHECK(second.parameter[0] == whole.parameter[0]);
    CHECK(result.best_epoch == expected.best_epoch);
    REQUIRE(result.epochs.size() == 4);
    for (std::size_t i = 0; i < 4; ++i) {
      CHECK(result.epochs[i].train_loss == expected.epochs[i].train_loss);
      CHECK(result.epochs[i].valid_loss == expected.epochs[i].valid_loss);
    }
  }
  // Another number of steps is another schedule.
  emprl::test::TemporaryFolder const folder;
  MeanTask first = task();
  first.die_at = 9;
  CHECK_THROWS_AS(train::fit(dev, first, with_steps(folder / "checkpoint")), std::runtime_error);
  train::FitOptions other = with_steps(folder / "checkpoint");
  other.steps = 21;
  MeanTask second = task();
  CHECK(emprl::test::message_of<ConfigError>([&] {
          train::fit(dev, second, other);
        }).find("steps is 20 there and 21 here") != std::string::npos);
}

TEST_CASE("fit: a task that counts its tokens is told how fast it read them",
          "[train][fit][unit]") {
  struct Reading : MeanTask {
    index_t read = 500;  // of an earlier run, which does not count
    double loss(std::span<index_t const> rows, std::uint32_t step) {
      read += 10 * static_cast<index_t>(rows.size());
      return MeanTask::loss(rows, step);
    }
    index_t tokens() const { return read; }
  };
  Cpu dev(1);
  emprl::test::TemporaryFolder const folder;
  train::MetricsLog log(folder.path());
  Reading t;
  t.data = task().data;
  train::FitOptions o = options({});
  o.steps = 8;
  o.validate_every = 4;
  train::FitResult const result = train::fit(dev, t, o, &log);
  // Six steps are an epoch of 23 examples, two more have eight.
  CHECK(result.tokens == 310);
  CHECK(result.seconds > 0);
  CHECK(result.tokens_per_second() == 310 / result.seconds);
  std::vector<index_t> steps;
  for (auto const& line : io::read_json_lines(log.path())) {
    if (line.value.at("phase") != "finetune validation") continue;
    steps.push_back(line.value.at("step").get<index_t>());
    CHECK(line.value.at("tokens_per_second").get<double>() > 0);
  }
  CHECK(steps == std::vector<index_t>{4, 8});
  // One that does not count is not asked.
  MeanTask silent = task();
  CHECK(train::fit(dev, silent, o).tokens == 0);
}
