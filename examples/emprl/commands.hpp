// SPDX-License-Identifier: Apache-2.0
#pragma once

// The commands of the program, each in a file of its own. A command adds its options to the parser
// and hangs its work on them; what `run` needs of a command is a function of a plain struct,
// declared here.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/device.hpp"
#include "emprl/data/empathetic_dialogues.hpp"
#include "emprl/gen/sampling.hpp"
#include "emprl/io/json.hpp"
#include "emprl/text/tokenizer.hpp"

namespace emprl::program {

namespace fs = std::filesystem;

/// Options that every command has.
struct Common {
  std::string device = "cpu";
  std::string precision = "float32";  ///< of a model's passes: float32 or, on a GPU, bf16
  bool deterministic = false;         ///< the same bits every time, on a GPU too
  int threads = 0;                    ///< 0: as many as there are processors
  std::uint64_t seed = 42;
  std::string command_line;  ///< as typed, for reports
  io::Json resolved;  ///< every option of the command with its value; written into output folders

  int thread_count() const;
};

/// Which devices a command can compute on.
enum class Devices { cpu, all };

/// Adds --device, --precision (where there is a choice), --deterministic, --threads, --seed (and,
/// for the help, --config, which main expands before parsing).
void add_common(CLI::App& command, Common& common, bool with_config_file = true,
                Devices devices = Devices::all);

/// Writes FOLDER/configuration.json: the options as they were resolved, readable by --config.
void write_configuration(fs::path const& folder, Common const& common);

/// @throws ConfigError if the folder is, or lies under, something that is no folder
void prepare_output(fs::path const& folder);

/// Refuses an input path that does not exist, with one sentence naming the option.
/// @throws ConfigError
void expect_there(fs::path const& path, std::string const& option);

void add_tokenizer(CLI::App& app, Common& common);
void add_init(CLI::App& app, Common& common);
void add_pretrain(CLI::App& app, Common& common);
void add_finetune(CLI::App& app, Common& common);
void add_identify(CLI::App& app, Common& common);
void add_label(CLI::App& app, Common& common);
void add_align(CLI::App& app, Common& common);
void add_generate(CLI::App& app, Common& common);
void add_score(CLI::App& app, Common& common);
void add_evaluate(CLI::App& app, Common& common);
void add_chat(CLI::App& app, Common& common);
void add_merge(CLI::App& app, Common& common);
void add_run(CLI::App& app, Common& common);

/// How contexts are built of conversations.
void add_context_options(CLI::App& command, data::ContextOptions& options);

/// The decoding flags that generate, evaluate and chat share: --greedy | --temperature --top-k
/// --top-p, --min-tokens,
/// --max-tokens. Defaults are EmpRL's sampling.
void add_sampling_options(CLI::App& command, gen::SamplingConfig& config);

struct TokenizerOptions {
  fs::path input;  ///< a file or folder of dialogues, or a plain text file with one sentence a line
  fs::path out;    ///< the folder that receives spiece.model
  index_t vocabulary = 8000;  ///< ids in all, the 100 sentinels among them
};
void train_tokenizer(Common const& common, TokenizerOptions const& options);

struct InitOptions {
  std::string preset;  ///< tiny, small, base; or empty
  fs::path config;     ///< a config.json; or empty
  fs::path tokenizer;  ///< a folder with spiece.model
  fs::path out;
};
void init_model(Common const& common, InitOptions const& options);

struct PretrainOptions {
  fs::path model, out;
  std::vector<fs::path> text;       ///< plain text, a paragraph a line
  std::vector<fs::path> dialogues;  ///< JSON lines with "turns"
  index_t length = 256;             ///< tokens of a window
  double density = 0.15;
  double mean_span = 3;
  index_t steps = 10'000;
  index_t batch_tokens = 16'384;
  double learning_rate = 1e-3;
  std::string schedule = "linear";
  index_t warmup = 500;
  double dropout = 0;
  index_t valid_windows = 256;  ///< held out
  index_t validate_every = 500;
  index_t save_every = 0;
};
/// Trains by span corruption, keeps the best weights that were validated, writes the model to
/// `out`.
void pretrain(Common const& common, PretrainOptions const& options);

struct FinetuneOptions {
  fs::path model, train, valid, out;
  std::string tuning = "full";
  index_t epochs = 3;
  index_t batch = 8;
  double learning_rate = 1e-4;
  std::string schedule = "linear";
  index_t warmup = 0;
  double dropout = 0.1;
  index_t prefix_length = 20;
  index_t prefix_hidden = 512;
  index_t lora_rank = 8;
  double lora_alpha = 16;
  double lora_dropout = 0.1;
  std::vector<std::string> lora_targets{"q", "v"};
  index_t save_every = 0;
  index_t patience = 0;
  bool log_batches = false;  ///< write which pairs each step uses
  data::ContextOptions context;
};
/// Trains, keeps the best epoch, writes the model (or the adapter alone) to `out`.
void finetune(Common const& common, FinetuneOptions const& options);

struct IdentifyOptions {
  fs::path encoder, data, out;
  std::string mechanism = "all";
  index_t epochs = 10;
  index_t batch = 16;
  double learning_rate = 3e-4;
  double dropout = 0.1;
  index_t patience = 3;
  bool class_weights = false;
  index_t save_every = 0;
};
/// Trains the identifiers into out/er, out/ip, out/ex and writes out/metrics.json.
void identify(Common const& common, IdentifyOptions const& options);

struct LabelOptions {
  fs::path identifiers, input, output;
  std::string split = "train";
  data::ContextOptions context;
  bool probabilities = false;  ///< written too
};
void label(Common const& common, LabelOptions const& options);

struct AlignOptions {
  fs::path model, adapter, identifiers, data, out;
  index_t steps = 0;  ///< 0: three passes over the data
  double learning_rate = 1e-5;
  double kl_coefficient = 0.2;
  bool adaptive_kl = true;
  index_t batch = 32;
  index_t mini_batch = 8;
  index_t rows_per_pass = 32;
  bool share_old_pass = true;
  index_t epochs = 4;
  std::vector<std::string> mechanisms{"er", "ip", "ex"};
  std::string reward = "product";  ///< how the mechanisms make one number
  std::string logprobs = "raw";
  std::string mode = "corrected";
  std::string reward_command;  ///< a program that scores instead of the identifiers
  bool permute_levels =
      false;  ///< the negative control: every dialogue gets another's target levels
  index_t save_every = 50;
  index_t keep = 2;       ///< checkpoints that stay, the newest
  bool keep_best = true;  ///< and the best; left in out/best if the end is not the best
  gen::SamplingConfig sampling = gen::SamplingConfig::emprl();
  data::ContextOptions context;
};
void align(Common const& common, AlignOptions const& options);
/// The options of PPO that change no number but by rounding: how many dialogues go through the
/// model at once, and whether evaluation and update share a pass. `run` has them too, and goes on
/// with others.
void add_pass_options(CLI::App& command, AlignOptions& options);

/// A model that `evaluate` compares.
struct System {
  std::string name;
  fs::path model, adapter;
  std::string kind = "system";  ///< system or control, as the report tells them apart
};

struct EvaluateOptions {
  std::vector<System> systems;  ///< the first is what the others are compared with
  fs::path responses;           ///< or: finished responses, instead of a model
  fs::path identifiers, data, report, html;
  fs::path train_data;  ///< where floors choose their constants; empty: half of the data
  index_t limit = 0;    ///< dialogues at most; 0: all
  index_t bootstrap = 1000;
  index_t best_of = 4;
  gen::SamplingConfig sampling = gen::SamplingConfig::emprl();
  data::ContextOptions context;
  io::Json extra;  ///< what `run` adds to the report: curves, identifiers, configuration
};
/// Prints the table, writes the report, returns it.
io::Json evaluate(Common const& common, EvaluateOptions const& options);

}  // namespace emprl::program
