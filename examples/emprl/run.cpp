// SPDX-License-Identifier: Apache-2.0

// emprl run: the whole of EmpRL, from dialogues to a report. Every stage has a folder of its own; a
// stage that is done is not done again, and one that was interrupted goes on from its last
// checkpoint.

#include "commands.hpp"
#include "configuration.hpp"

#include <fmt/core.h>

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <functional>

#include "emprl/data/pairs.hpp"
#include "emprl/io/file.hpp"
#include "emprl/io/json_lines.hpp"
#include "emprl/train/interrupt.hpp"
#include "emprl/train/model_folder.hpp"
#include "engine.hpp"

namespace emprl::program {

namespace {

struct RunOptions {
  fs::path dialogues, empathy_data, model, out;
  std::string preset;
  index_t vocabulary = 8000;
  FinetuneOptions generator;
  IdentifyOptions identifiers;
  AlignOptions ppo;
  std::vector<std::string> controls{"no-kl", "permuted"};
  index_t limit = 2000;
  index_t best_of = 4;
  std::string title = "EmpRL";
  std::string note;
  data::ContextOptions context;
};

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The stages of a run: what is done, and how long it took.
class Stages {
 public:
  explicit Stages(fs::path out) : out_(std::move(out)), path_(out_ / "stages.json") {
    if (fs::exists(path_)) done_ = io::read_json_file(path_);
    if (!done_.is_object()) throw IoError(path_.string() + ": an object was expected.");
  }

  void operator()(std::string const& name, std::function<void()> const& work) {
    if (done_.contains(name)) {
      fmt::print("== {} (done before)\n", name);
      return;
    }
    if (train::interrupted())
      throw train::Interrupted("the same command goes on with the stage \"" + name + "\".");
    fmt::print("== {}\n", name);
    std::fflush(stdout);
    double const begin = seconds_now();
    work();
    double const seconds = seconds_now() - begin;
    done_[name] = seconds;
    io::write_json_file(path_, done_);
    fmt::print("   {:.1f} s\n", seconds);
    std::fflush(stdout);
  }

  io::Json const& seconds() const { return done_; }

 private:
  fs::path out_, path_;
  io::Json done_ = io::Json::object();
};

/// Holds a folder for one process: two runs that write the same checkpoints and logs would spoil
/// both.
class FolderLock {
 public:
  /// @throws ConfigError if another process holds the folder
  explicit FolderLock(fs::path const& folder)
      : file_(::open((folder / ".lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644)) {
    // Where locks do not exist (some network file systems), nothing can be known and nothing is
    // refused.
    if (file_ >= 0 && ::flock(file_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
      ::close(file_);
      throw ConfigError("--out " + folder.string() + ": another emprl run is writing there.");
    }
  }
  FolderLock(FolderLock const&) = delete;
  FolderLock& operator=(FolderLock const&) = delete;
  ~FolderLock() {
    if (file_ >= 0) ::close(file_);
  }

 private:
  int file_;
};

/// Refuses to go on in a folder that other options made.
void expect_same_run(Common const& common, fs::path const& out) {
  fs::path const path = out / "configuration.json";
  if (!fs::exists(path)) return;
  io::Json const before = io::read_json_file(path);
  for (auto const& [key, value] : common.resolved.items()) {
    if (key == "threads" || key == "out" || key == "save-every" || key == "device" ||
        key == "rows-per-pass" || key == "no-shared-pass") {
      continue;
    }
    // Runs from before there was a choice computed in float32, and promised no bits on a GPU.
    if (!before.contains(key) && ((key == "precision" && value == "float32") ||
                                  (key == "deterministic" && value == false))) {
      continue;
    }
    if (!before.contains(key) || before[key] != value) {
      throw ConfigError(out.string() + " holds a run with another --" + key +
                        "; give the same options to go on with it, or another --out.");
    }
  }
}

/// The points (step, value) of one number in a stage's log.
io::Json points(fs::path const& folder, std::string const& phase, std::string const& name) {
  io::Json out = io::Json::array();
  fs::path const path = folder / "metrics.jsonl";
  if (!fs::exists(path)) return out;
  for (io::JsonLine const& line : io::read_json_lines(path)) {
    auto const value = line.value.find(name);
    if (line.value.value("phase", std::string()) != phase || value == line.value.end() ||
        !value->is_number())
      continue;
    out.push_back({line.value.value("step", 0), value->get<double>()});
  }
  return out;
}

io::Json curve(std::string title, std::string group, std::string x, std::string y, bool smooth,
               io::Json series) {
  return {{"title", std::move(title)}, {"group", std::move(group)}, {"x", std::move(x)},
          {"y", std::move(y)},         {"smooth", smooth},          {"series", std::move(series)}};
}

io::Json curves(fs::path const& out, std::vector<System> const& systems) {
  io::Json all = io::Json::array();
  all.push_back(curve("Loss of the generator", "Supervised training", "epoch", "nats a token",
                      false,
                      {{{"name", "training"},
                        {"points", points(out / "generator", "finetune epoch", "train_loss")}},
                       {{"name", "validation"},
                        {"points", points(out / "generator", "finetune epoch", "valid_loss")}}}));
  auto const ppo = [&](std::string title, std::string y, std::string const& number) {
    io::Json series = io::Json::array();
    for (std::size_t i = 1; i < systems.size(); ++i) {
      series.push_back(
          {{"name", systems[i].name}, {"points", points(systems[i].model, "align", number)}});
    }
    all.push_back(curve(std::move(title), "PPO", "step", std::move(y), true, series));
  };
  ppo("Empathy reward", "mean score", "score_mean");
  ppo("KL to the generator before PPO", "nats a response", "kl");
  ppo("KL coefficient", "beta", "kl_coefficient");
  ppo("Length of responses", "tokens", "response_length");
  ppo("Entropy", "nats a token", "entropy");
  ppo("Value loss", "loss", "value_loss");
  return all;
}

/// Mean of the last ten points.
double last_ten(io::Json const& series) {
  std::size_t const n = std::min<std::size_t>(10, series.size());
  double sum = 0;
  for (std::size_t i = series.size() - n; i < series.size(); ++i) sum += series[i][1].get<double>();
  return n > 0 ? sum / static_cast<double>(n) : 0.0;
}

void run(Common const& common, RunOptions o) {
  expect_there(o.dialogues, "--dialogues");
  expect_there(o.empathy_data, "--empathy-data");
  if (!o.model.empty()) expect_there(o.model, "--model");
  // Every stage opens the device for itself; one that is not there is an error before the first.
  open_engine(common);
  prepare_output(o.out);
  FolderLock const lock(o.out);
  expect_same_run(common, o.out);
  write_configuration(o.out, common);
  train::InterruptGuard const guard;
  double const begin = seconds_now();
  Stages stage(o.out);
  fs::path const labels = o.out / "labels";

  fs::path dialogues = o.dialogues;
  if (!fs::is_directory(dialogues)) {
    dialogues = o.out / "dialogues";
    stage("split the dialogues", [&] {
      data::PairSet const set = data::load_pairs(o.dialogues, data::Split::train, o.context);
      data::HeldOut const parts = data::hold_out(set.pairs, 0.1, common.seed);
      prepare_output(dialogues);
      auto const write = [&](char const* name, std::vector<data::Pair> const& pairs) {
        std::vector<io::Json> lines;
        for (data::Pair const& pair : pairs) lines.push_back(data::pair_to_json(pair));
        io::write_json_lines(dialogues / name, lines);
      };
      write("train.jsonl", parts.kept);
      write("valid.jsonl", parts.held_out);
    });
  }

  fs::path start = o.model;
  if (o.model.empty()) {
    start = o.out / "initial";
    stage("tokenizer", [&] {
      train_tokenizer(common, {dialogues, o.out / "tokenizer", o.vocabulary});
    });
    stage("initial model", [&] { init_model(common, {o.preset, {}, o.out / "tokenizer", start}); });
  }
  stage("generator", [&] {
    o.generator.model = start;
    o.generator.train = dialogues;
    o.generator.out = o.out / "generator";
    o.generator.context = o.context;
    finetune(common, o.generator);
  });
  stage("identifiers", [&] {
    o.identifiers.encoder = o.out / "generator";
    o.identifiers.data = o.empathy_data;
    o.identifiers.out = o.out / "identifiers";
    identify(common, o.identifiers);
  });
  stage("labels", [&] {
    prepare_output(labels);
    for (char const* const split : {"train", "valid", "test"}) {
      fs::path const csv = dialogues / (std::string(split) + ".csv");
      fs::path const jsonl = dialogues / (std::string(split) + ".jsonl");
      if (!fs::exists(csv) && !fs::exists(jsonl)) continue;
      fmt::print("{}\n", split);
      label(common, {.identifiers = o.out / "identifiers",
                     .input = fs::exists(csv) ? csv : jsonl,
                     .output = labels / (std::string(split) + ".jsonl"),
                     .split = split,
                     .context = o.context});
    }
  });

  std::vector<System> systems{{"before PPO", o.out / "generator", {}, "system"},
                              {"after PPO", o.out / "aligned", {}, "system"}};
  AlignOptions ppo = o.ppo;
  ppo.model = o.out / "generator";
  ppo.identifiers = o.out / "identifiers";
  ppo.data = labels;
  ppo.out = o.out / "aligned";
  stage("PPO", [&] { align(common, ppo); });
  for (std::string const& control : o.controls) {
    AlignOptions other = ppo;
    other.keep_best = false;  // nobody continues with a control
    if (control == "none") continue;
    if (control == "no-kl") {
      other.kl_coefficient = 0;
      other.out = o.out / "control_no_kl";
      systems.push_back({"PPO, no KL", other.out, {}, "control"});
    } else {
      other.permute_levels = true;
      other.out = o.out / "control_permuted";
      systems.push_back({"PPO, permuted", other.out, {}, "control"});
    }
    stage("control: " + control, [&] { align(common, other); });
  }

  EvaluateOptions judge;
  judge.systems = systems;
  judge.identifiers = o.out / "identifiers";
  judge.data = labels;
  judge.report = o.out / "report.json";
  judge.html = o.out / "report.html";
  judge.limit = o.limit;
  judge.best_of = o.best_of;
  judge.sampling = ppo.sampling;
  io::Json& extra = judge.extra;
  extra = io::Json::object();
  extra["title"] = o.title;
  extra["subtitle"] =
      "A T5 generator trained on dialogues, then aligned by PPO with the empathy reward.";
  if (!o.note.empty()) extra["note"] = o.note;
  extra["command"] = common.command_line;
  extra["configuration"] = common.resolved;
  extra["curves"] = curves(o.out, systems);
  fs::path const identifier_report = o.out / "identifiers" / "metrics.json";
  if (fs::exists(identifier_report)) {
    io::Json const metrics = io::read_json_file(identifier_report);
    if (metrics.contains("identifiers")) extra["identifiers"] = metrics["identifiers"];
  }
  double const kl = last_ten(points(o.out / "aligned", "align", "kl"));
  io::Json findings = io::Json::array();
  findings.push_back(fmt::format("KL of the last ten PPO steps: {:.2f} nats a response.", kl));
  if (!o.controls.empty()) {
    for (System const& system : systems) {
      if (system.kind != "control") continue;
      findings.push_back(
          fmt::format("KL of the last ten steps of the control \"{}\": {:.2f} nats a response.",
                      system.name, last_ten(points(system.model, "align", "kl"))));
    }
  }
  extra["findings"] = findings;
  extra["run"] = {{"seed", common.seed},
                  {"threads", common.thread_count()},
                  {"device", common.device},
                  {"precision", common.precision},
                  {"deterministic", common.deterministic},
                  {"seconds before evaluation", static_cast<std::int64_t>(seconds_now() - begin)}};
  fmt::print("== evaluation\n");
  std::fflush(stdout);
  evaluate(common, judge);
  fmt::print("\nKL of the last ten PPO steps: {:.2f} nats a response\n", kl);
  fmt::print("All of it took {:.0f} s; the aligned model is {}\n", seconds_now() - begin,
             (o.out / "aligned").string());
}

}  // namespace

void add_run(CLI::App& app, Common& common) {
  auto o = std::make_shared<RunOptions>();
  CLI::App* const c = app.add_subcommand("run", "The whole pipeline, from dialogues to a report");
  c->add_option("--dialogues", o->dialogues, "Dialogues: a folder of CSVs, or JSON lines")
      ->required();
  c->add_option("--empathy-data", o->empathy_data, "Folder of the Mental Health Subreddits CSVs")
      ->required();
  auto* const model = c->add_option("--model", o->model, "T5 folder to start from");
  auto* const preset = c->add_option("--preset", o->preset, "Or a new model: tiny, small or base")
                           ->check(CLI::IsMember({"tiny", "small", "base"}));
  model->excludes(preset);
  c->add_option("--out", o->out, "Folder to write; a run found there goes on")->required();
  auto* const vocabulary =
      c->add_option("--vocabulary", o->vocabulary, "Ids of a new tokenizer, sentinels included")
          ->check(CLI::PositiveNumber)
          ->capture_default_str()
          ->excludes(model);
  auto* const epochs = c->add_option("--generator-epochs", o->generator.epochs,
                                     "Epochs of the generator [3; new: 12]");
  auto* const batch =
      c->add_option("--generator-batch", o->generator.batch, "Pairs in a step [8; new: 64]");
  auto* const rate = c->add_option("--generator-lr", o->generator.learning_rate,
                                   "Learning rate [1e-4; new: 5e-3]");
  auto* const warmup =
      c->add_option("--generator-warmup", o->generator.warmup, "Warm-up steps [0; new: 500]");
  auto* const dropout =
      c->add_option("--generator-dropout", o->generator.dropout, "Dropout [0.1; new: 0.05]");
  c->add_option("--identifier-epochs", o->identifiers.epochs, "Epochs of an identifier at most")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  auto* const identifier_rate = c->add_option("--identifier-lr", o->identifiers.learning_rate,
                                              "Learning rate [1e-4; new: 1e-3]");
  c->add_flag("--class-weights", o->identifiers.class_weights, "Weigh the levels by their rarity");
  auto* const ppo_steps =
      c->add_option("--ppo-steps", o->ppo.steps,
                    "PPO steps; 0: three passes over the dialogues [0; new: 600]")
          ->check(CLI::NonNegativeNumber);
  auto* const ppo_rate =
      c->add_option("--ppo-lr", o->ppo.learning_rate, "Learning rate of PPO [1e-5; new: 3e-4]");
  c->add_option("--ppo-batch", o->ppo.batch, "Dialogues in a PPO step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_pass_options(*c, o->ppo);
  c->add_option("--kl", o->ppo.kl_coefficient, "KL coefficient at the start")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_option("--reward", o->ppo.reward,
                "The empathy reward of PPO, as align has it; the report gives the product")
      ->check(CLI::IsMember({"product", "sum", "match"}))
      ->capture_default_str();
  c->add_option("--controls", o->controls, "Controls beside it: no-kl, permuted, or none")
      ->check(CLI::IsMember({"no-kl", "permuted", "none"}))
      ->delimiter(',')
      ->capture_default_str();
  c->add_option("--limit", o->limit, "Pairs that are answered in the evaluation; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_option("--best-of", o->best_of, "Samples of the oracle floor; 1: none")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  c->add_option("--save-every", o->ppo.save_every,
                "PPO steps between checkpoints; 0: only when interrupted")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_option("--title", o->title, "Title of the report")->capture_default_str();
  c->add_option("--note", o->note, "A sentence about the data, for the report");
  add_context_options(*c, o->context);
  add_common(*c, common);
  c->footer(
      "Example:\n"
      "  emprl run --dialogues data/empathetic_dialogues \\\n"
      "    --empathy-data data/empathy_mental_health --preset tiny --out runs/ed");
  c->callback([=, &common] {
    RunOptions options = *o;
    bool const fresh = options.model.empty();
    if (fresh && options.preset.empty()) throw ConfigError("run needs --model or --preset.");
    // A default that depends on other options is written into the resolved configuration as the
    // value that is used.
    auto const otherwise = [](CLI::Option* option, auto& value, auto chosen) {
      if (option->count() > 0) return;
      value = chosen;
      option->default_str(fmt::format("{}", chosen));
    };
    // From scratch the learning rate is larger and warmed up; a pre-trained model takes the
    // published settings.
    if (fresh) {
      otherwise(epochs, options.generator.epochs, 12);
      otherwise(batch, options.generator.batch, 64);
      otherwise(rate, options.generator.learning_rate, 5e-3);
      otherwise(warmup, options.generator.warmup, 500);
      otherwise(dropout, options.generator.dropout, 0.05);
      otherwise(identifier_rate, options.identifiers.learning_rate, 1e-3);
      otherwise(ppo_steps, options.ppo.steps, 600);
      otherwise(ppo_rate, options.ppo.learning_rate, 3e-4);
    } else {
      otherwise(identifier_rate, options.identifiers.learning_rate, 1e-4);
    }
    if (options.preset == "small" || options.preset == "base")
      otherwise(vocabulary, options.vocabulary, 32100);
    common.resolved = resolve(*c);
    options.generator.save_every = 0;
    run(common, options);
  });
}

}  // namespace emprl::program
