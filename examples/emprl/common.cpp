// SPDX-License-Identifier: Apache-2.0

// What commands share: common options, contexts, decoding flags, output folders, lines in and out.

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "commands.hpp"
#include "emprl/core/error.hpp"
#include "emprl/io/utf8.hpp"
#include "engine.hpp"
#include "lines.hpp"

namespace emprl::program {

int Common::thread_count() const {
  if (threads > 0) return threads;
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

void add_common(CLI::App& command, Common& common, bool with_config_file, Devices devices) {
  bool const cuda = has_cuda() && devices == Devices::all;
  command
      .add_option("--device", common.device,
                  cuda ? "where to compute: cpu or cuda" : "where to compute: cpu")
      ->check([cuda, devices](std::string const& name) -> std::string {
        if (name == "cpu" || (cuda && name == "cuda")) return {};
        if (name != "cuda") {
          return "\"" + name + "\" is no device; use cpu" + (cuda ? " or cuda" : "");
        }
        if (devices == Devices::cpu) return "this command computes on the CPU; use --device cpu";
        return "this build has no CUDA: build with -DEMPRL_CUDA_PROGRAMS=ON where the CUDA toolkit "
               "is, or use --device cpu";
      });
  if (devices == Devices::all) {
    command
        .add_option("--precision", common.precision,
                    "what passes are computed in: float32, or bf16 on cuda")
        ->check(CLI::IsMember({"float32", "bf16"}));
  }
  command.add_flag("--deterministic", common.deterministic,
                   std::string("the same bits every time, also from a run that goes on") +
                       (cuda ? ": no algorithm is chosen by timing" : "") +
                       ". On the CPU it is always so, with the same --threads");
  command.add_option("--threads", common.threads, "threads of the CPU; 0: one for each processor")
      ->check(CLI::Range(0, 1024));
  command.add_option("--seed", common.seed, "where random numbers start");
  if (with_config_file) {
    // main reads the file before anything is parsed; the option is here for the help.
    command.add_option("--config", "a JSON file of these options; the command line wins")
        ->type_name("FILE");
  }
}

void write_configuration(fs::path const& folder, Common const& common) {
  io::Json const empty = io::Json::object();
  io::write_json_file(folder / "configuration.json",
                      common.resolved.is_object() ? common.resolved : empty);
}

void prepare_output(fs::path const& folder) {
  if (folder.empty()) throw ConfigError("--out needs the name of a folder.");
  try {
    io::ensure_directory(folder);
  } catch (IoError const& error) {
    throw ConfigError("--out: " + std::string(error.what()));
  }
}

void expect_there(fs::path const& path, std::string const& option) {
  std::error_code error;
  auto const status = fs::status(path, error);
  if (fs::exists(status)) return;
  std::string const why = status.type() == fs::file_type::not_found || !error
                              ? "does not exist."
                              : "cannot be read: " + error.message() + ".";
  throw ConfigError(option + ": " + (path.empty() ? "\"\"" : path.string()) + " " + why);
}

void add_context_options(CLI::App& command, data::ContextOptions& options) {
  command
      .add_option("--context-turns", options.turns,
                  "turns before the response that make the context; 0: all")
      ->check(CLI::Range(index_t{0}, index_t{1'000'000}));
  command.add_option("--context-separator", options.separator,
                     "what stands between turns; a space unless given");
}

void add_sampling_options(CLI::App& command, gen::SamplingConfig& config) {
  auto* const greedy = command.add_flag("--greedy", config.greedy,
                                        "take the likeliest token instead of drawing one");
  auto* const temperature =
      command.add_option("--temperature", config.temperature, "logits are divided by it");
  temperature->check([](std::string const& text) -> std::string {
    double value = 0;
    bool const fine = CLI::detail::lexical_cast(text, value) && std::isfinite(value) && value > 0;
    return fine ? "" : text + " is not a number above 0";
  });
  auto* const top_k =
      command.add_option("--top-k", config.top_k, "draw among the k likeliest tokens; 0: all");
  top_k->check(CLI::Range(index_t{0}, index_t{1'000'000'000}));
  auto* const top_p =
      command.add_option("--top-p", config.top_p,
                         "draw among the likeliest tokens that have this probability together");
  top_p->check([](std::string const& text) -> std::string {
    double value = 0;
    bool const fine = CLI::detail::lexical_cast(text, value) && value > 0 && value <= 1;
    return fine ? "" : text + " is not above 0 and at most 1";
  });
  greedy->excludes(temperature)->excludes(top_k)->excludes(top_p);

  // A low maximum without a minimum lowers the minimum. CLI11 calls these in the order in which
  // they are defined.
  auto const limit = CLI::Range(index_t{1}, index_t{4096});
  command
      .add_option_function<index_t>(
          "--max-tokens",
          [&command, &config](index_t const& most) {
            config.max_new_tokens = most;
            config.min_new_tokens = std::min(config.min_new_tokens, most);
            command.get_option("--min-tokens")->default_str(std::to_string(config.min_new_tokens));
          },
          "generate at most so many tokens, </s> included")
      ->check(limit)
      ->default_str(std::to_string(config.max_new_tokens));
  command
      .add_option_function<index_t>(
          "--min-tokens",
          [&config](index_t const& least) {
            if (least > config.max_new_tokens) {
              throw CLI::ValidationError("--min-tokens", std::to_string(least) +
                                                             " is more than --max-tokens " +
                                                             std::to_string(config.max_new_tokens));
            }
            config.min_new_tokens = least;
          },
          "do not end before so many tokens, </s> included")
      ->check(CLI::Range(index_t{0}, index_t{4096}))
      ->default_str(std::to_string(config.min_new_tokens));
}

void warn(std::string const& sentence) {
  static_cast<void>(std::fprintf(stderr, "emprl: warning: %s\n", sentence.c_str()));
}

void write_standard_output(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size() || std::fflush(stdout) != 0) {
    io::detail::fail("write", "standard output", errno);
  }
}

namespace {

std::string read_standard_input() {
  std::string text;
  char block[1 << 16];
  for (;;) {
    std::size_t const n = std::fread(block, 1, sizeof block, stdin);
    text.append(block, n);
    if (n < sizeof block) break;
  }
  if (std::ferror(stdin) != 0) io::detail::fail("read", "standard input", errno);
  return text;
}

}  // namespace

InputText read_input(fs::path const& path, std::string const& option) {
  if (path == "-") return {read_standard_input(), "standard input"};
  expect_there(path, option);
  return {io::read_file(path), path.string()};
}

std::vector<InputLine> read_lines(fs::path const& path, std::string const& option,
                                  std::string const& holds) {
  auto [bytes, name] = read_input(path, option);
  io::JsonLinesReader reader(std::move(bytes), name);
  std::vector<InputLine> lines;
  for (io::JsonLine line; reader.next(line);) {
    lines.push_back({std::move(line.value), reader.where()});
  }
  if (lines.empty()) {
    throw IoError(name + ": the file is empty; JSON lines with " + holds + " each were expected.");
  }
  return lines;
}

std::string const& text_of(InputLine const& line, char const* field) {
  auto const it = line.value.find(field);
  if (it == line.value.end()) throw IoError(line.where + ": there is no \"" + field + "\".");
  if (!it->is_string()) throw IoError(line.where + ": \"" + field + "\" must be text.");
  auto const& text = it->get_ref<std::string const&>();
  if (io::is_blank(text)) throw IoError(line.where + ": \"" + field + "\" is empty.");
  return text;
}

LineOutput::LineOutput(fs::path const& path) {
  if (path != "-") file_.emplace(path);
}

void LineOutput::write(io::Json const& value) {
  if (file_) {
    file_->write(value);
  } else {
    write_standard_output(io::to_json_line(value) + "\n");
  }
}

void LineOutput::commit() {
  if (file_) file_->commit();
}

}  // namespace emprl::program
