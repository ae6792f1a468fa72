// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/gemm_cpu.hpp"

// Targets of train/ and of the program: a model's configuration, checkpoints, and the program's
// configuration file.

#include <CLI/CLI.hpp>
#include <cstddef>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/configuration.hpp"
#include "emprl/io/json.hpp"
#include "emprl/optim/adamw.hpp"
#include "emprl/train/align.hpp"
#include "emprl/train/checkpoint.hpp"
#include "emprl/train/fit.hpp"
#include "emprl/train/model_folder.hpp"
#include "fuzz/harness.hpp"

namespace emprl::fuzz {

namespace {

void model_config(std::string_view bytes) {
  t5::Config config;
  bool const read = accepted([&] {
    config = train::config_from_json(io::parse_json(bytes, "config.json"), "config.json");
  });
  if (!read) return;
  config.validate();
  auto const json = train::config_to_json(config);
  auto const again = train::config_from_json(io::parse_json(json.dump(), "again"), "again");
  require(train::config_to_json(again) == json, "a configuration comes back");
}

void run_state(std::string_view bytes) {
  using train::detail::fit_state_from_json;
  using train::detail::ppo_state_from_json;
  using train::detail::to_json;
  static ScratchFolder const scratch;
  scratch.put("state.json", bytes);
  io::Json state;
  train::TrainerState whole;
  if (!accepted([&] { whole = train::read_trainer_state(scratch.path()); })) return;
  train::write_trainer_state(scratch.path(), whole);
  require(train::read_trainer_state(scratch.path()).numbers == whole.numbers, "a state comes back");
  bool const of_run = accepted([&] {
    io::Json const identity = whole.numbers.value("identity", io::Json::object());
    state = train::read_run_state(scratch.path(), identity);
  });
  accepted([&] { train::read_run_state(scratch.path(), {{"batch", 4}, {"mode", {{"a", 1}}}}); });
  if (!of_run) return;
  for (io::Json const& part : {state, state.is_object() ? state.value("ppo", state) : state}) {
    io::Json ppo;
    io::Json fit;
    if (accepted([&] { ppo = to_json(ppo_state_from_json(part, "state.json")); })) {
      require(to_json(ppo_state_from_json(ppo, "again")) == ppo, "the state of PPO comes back");
    }
    if (accepted([&] { fit = to_json(fit_state_from_json(part, "state.json")); })) {
      require(to_json(fit_state_from_json(fit, "again")) == fit, "the state of a fit comes back");
    }
    accepted([&] { static_cast<void>(train::detail::judged_from_json(part, "state.json")); });
  }
}

void optimizer_state(std::string_view bytes) {
  static ScratchFolder const scratch;
  std::vector<float> parameters(3, 0.0F);
  std::vector<float> gradients(3, 0.0F);
  optim::AdamW<float> read({}, std::span<float>(parameters), std::span<float>(gradients));
  optim::AdamW<float> again({}, std::span<float>(parameters), std::span<float>(gradients));
  MemoryFile const memory(bytes);
  if (!accepted([&] { train::read_optimizer(MemoryFile::folder(), read, memory.name()); })) return;
  require(read.steps() >= 0, "steps are counted from 0");
  train::write_optimizer(scratch.path(), read);
  train::read_optimizer(scratch.path(), again);
  auto const same = [](std::span<float const> a, std::span<float const> b) {
    return std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;  // bit for bit, NaN included
  };
  require(read.steps() == again.steps() && same(read.first_moment(), again.first_moment()) &&
              same(read.second_moment(), again.second_moment()),
          "an optimiser's state comes back");
}

/// A command with an option of each kind.
struct Command {
  CLI::App app{"a command", "command"};
  std::string text = "text";
  std::int64_t number = 3;
  double real = 0.5;
  bool flag = false;
  bool adaptive = true;
  std::vector<std::string> list{"er", "ip"};
  std::string either, other;

  Command() {
    app.option_defaults()->always_capture_default();
    app.add_option("--text", text);
    app.add_option("--number", number)->check(CLI::Range(std::int64_t{0}, std::int64_t{99}));
    app.add_option("--real", real);
    app.add_flag("--flag", flag);
    app.add_flag("!--fixed", adaptive);
    app.add_option("--list", list)->delimiter(',');
    auto* const first = app.add_option("--either", either);
    app.add_option("--other", other)->excludes(first);
  }

  /// What the command makes of words; nothing if it does not understand them.
  bool parse(std::vector<std::string> words) {
    std::vector<std::string> reversed(words.rbegin(), words.rend());
    try {
      app.parse(std::move(reversed));
      return true;
    } catch (CLI::ParseError const&) {
      return false;
    }
  }
};

void options_file(std::string_view bytes) {
  Command first;
  std::vector<std::string> words;
  bool const read = accepted([&] {
    io::Json const json = io::parse_json(bytes, "options.json");
    if (!json.is_object()) throw IoError("options.json: a JSON object was expected.");
    words = program::options_from(first.app, json, "options.json", {});
  });
  if (!read || !first.parse(words)) return;
  auto const resolved = program::resolve(first.app);
  Command second;
  auto const again = program::options_from(second.app, resolved, "again.json", {});
  require(second.parse(again), "options that were resolved are options");
  require(program::resolve(second.app) == resolved, "resolved options come back");
}

}  // namespace

Targets train_targets() {
  return {{"model_config", model_config},
          {"run_state", run_state},
          {"optimizer_state", optimizer_state},
          {"options_file", options_file}};
}

}  // namespace emprl::fuzz
