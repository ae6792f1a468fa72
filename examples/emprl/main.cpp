// SPDX-License-Identifier: Apache-2.0

// The program `emprl`: reads the command line, hands over to a command, and turns whatever goes
// wrong into one line and an exit status: 0 done, 1 failed, 2 wrong usage.

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "configuration.hpp"
#include "emprl/core/error.hpp"
#include "emprl/io/json_lines.hpp"
#include "emprl/train/interrupt.hpp"
#include "table.hpp"

namespace emprl::program {
namespace {

constexpr int failed = 1;
constexpr int wrong_usage = 2;
constexpr std::size_t help_width = 80;

int report(int status, std::string message) {
  // One line, whatever a file's name or another library's message holds.
  std::replace_if(
      message.begin(), message.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  static_cast<void>(std::fprintf(stderr, "emprl: error: %s\n", message.c_str()));
  return status;
}

void print(std::string const& text) {
  if (std::fwrite(text.data(), 1, text.size(), stdout) != text.size()) {
    io::detail::fail("write", "standard output", errno);
  }
}

// ---- help

std::string option_label(CLI::Option const& option) {
  std::string label = "  ";
  for (std::string const& name : option.get_snames()) label += "-" + name + ", ";
  bool first = true;
  for (std::string const& name : option.get_lnames()) {
    label += (first ? "--" : ", --") + name;
    first = false;
  }
  if (!is_flag(option)) {
    std::string const type = option.get_type_name();
    label += " " + type.substr(0, type.find_first_of(": ("));
  }
  return label;
}

std::string wrapped(std::string const& text, std::size_t indent, std::size_t first_column) {
  std::string out;
  std::size_t column = first_column;
  for (std::string const& line : detail::table::wrap(text, help_width - indent)) {
    out += std::string(column < indent ? indent - column : 0, ' ') + line + "\n";
    column = 0;
  }
  return out;
}

std::string help_of(CLI::App const& command) {
  constexpr std::size_t indent = 28;
  std::string text = "emprl " + command.get_name() + " [options]\n\n";
  text += wrapped(command.get_description(), 0, 0) + "\nOptions:\n";
  for (CLI::Option const* option : command.get_options()) {
    if (option->get_group().empty() || option->get_lnames().empty()) continue;
    std::string const label = option_label(*option);
    text += label;
    std::size_t column = label.size();
    if (column + 2 > indent) {
      text += "\n";
      column = 0;
    }
    std::string about = option->get_description();
    if (option->get_required()) about += " (required)";
    if (std::string const value = option->get_default_str();
        !is_flag(*option) && value.find_first_not_of(' ') != std::string::npos && value != "[]") {
      about += " [" + (value.front() == '[' ? value.substr(1, value.size() - 2) : value) + "]";
    }
    text += wrapped(about, indent, column);
  }
  if (std::string const footer = command.get_footer(); !footer.empty()) {
    text += "\n" + footer + (footer.back() == '\n' ? "" : "\n");
  }
  return text;
}

std::vector<CLI::App*> commands_of(CLI::App& app) {
  return app.get_subcommands([](CLI::App*) { return true; });
}

std::string overview(CLI::App& app) {
  std::string text =
      "emprl COMMAND [options]\n\n" + wrapped(app.get_description(), 0, 0) + "\nCommands:\n";
  for (CLI::App const* command : commands_of(app)) {
    std::string const label = "  " + command->get_name();
    text += label + wrapped(command->get_description(), 14, label.size());
  }
  return text +
         "\n`emprl COMMAND --help` shows a command's options, with examples.\n"
         "`emprl --version` shows the version.\n\n"
         "Exit status: 0 done, 1 failed, 2 wrong usage.\n";
}

// ---- options from a file

/// Takes --config FILE out of the words and puts the file's options before them.
Words expand_configuration(CLI::App& command, Words words) {
  if (command.get_name() == "init" || command.get_option_no_throw("--config") == nullptr)
    return words;
  std::optional<fs::path> file;
  for (std::size_t i = 0; i < words.size();) {
    auto const at = words.begin() + static_cast<std::ptrdiff_t>(i);
    std::string value;
    std::ptrdiff_t used = 1;
    if (words[i].starts_with("--config=")) {
      value = words[i].substr(9);
    } else if (words[i] == "--config") {
      expects<ConfigError>(i + 1 < words.size(), "--config needs the name of a file.");
      value = words[i + 1];
      used = 2;
    } else {
      ++i;
      continue;
    }
    expects<ConfigError>(!file, "--config can be given once.");
    file = value;
    words.erase(at, at + used);
  }
  if (!file) return words;
  expect_there(*file, "--config");
  io::Json const json = io::read_json_file(*file);
  Words all = options_from(command, json, file->string(), words);
  all.insert(all.end(), words.begin(), words.end());
  return all;
}

// ---- wrong usage

std::string see_help(CLI::App const& command) {
  return "; `emprl " + command.get_name() + " --help` shows the options.";
}

std::optional<std::string> unknown_option(CLI::App& command, Words const& words) {
  for (std::string const& word : words) {
    if (!word.starts_with("--") || word.size() == 2) continue;
    std::string const name = word.substr(0, word.find('='));
    if (command.get_option_no_throw(name) == nullptr) return name;
  }
  return std::nullopt;
}

std::string explain(CLI::App& command, Words const& words, CLI::ParseError const& error) {
  // A mistyped name is the likeliest reason for whatever else is missing.
  if (auto const name = unknown_option(command, words)) {
    Words known;
    for (std::string const& key : known_keys(command)) known.push_back("--" + key);
    return "unknown option " + *name + " of emprl " + command.get_name() +
           suggestion(*name, known) + see_help(command);
  }
  std::string text = error.what();
  if (dynamic_cast<CLI::ExtrasError const*>(&error) != nullptr) {
    text = "not understood: " + text.substr(std::min(text.size(), text.find(": ") + 2));
  }
  while (!text.empty() && (text.back() == '.' || text.back() == '\n')) text.pop_back();
  return text + see_help(command);
}

/// The command line as a shell would take it back.
std::string quoted(Words const& words) {
  std::string line = "emprl";
  for (std::string const& word : words) {
    bool const plain =
        !word.empty() &&
        word.find_first_not_of(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_=./,:+@%") ==
            std::string::npos;
    line += ' ';
    if (plain) {
      line += word;
      continue;
    }
    line += '\'';
    for (char const c : word) line += c == '\'' ? std::string("'\\''") : std::string(1, c);
    line += '\'';
  }
  return line;
}

int run_command(CLI::App& app, CLI::App& command, Common& common, Words const& given) {
  if (std::find(given.begin(), given.end(), "--help") != given.end() ||
      std::find(given.begin(), given.end(), "-h") != given.end()) {
    print(help_of(command));
    return 0;
  }
  Words const words = expand_configuration(command, given);
  // Runs after parsing and before the command's own work.
  app.parse_complete_callback([&] { common.resolved = resolve(command); });
  Words reversed{words.rbegin(), words.rend()};
  reversed.push_back(command.get_name());
  try {
    app.parse(std::move(reversed));
  } catch (CLI::ParseError const& error) {
    return report(wrong_usage, explain(command, words, error));
  }
  return 0;
}

int run(Words const& words) {
  CLI::App app(
      "EmpRL: empathetic dialogue generation with reinforcement learning. A T5 generator is "
      "trained "
      "on dialogues and aligned with the empathy of their responses.");
  app.set_help_flag("-h,--help", "this text");
  app.option_defaults()->always_capture_default();
  app.require_subcommand(1);
  Common common;
  common.command_line = quoted(words);
  for (auto const add :
       {add_run, add_tokenizer, add_init, add_pretrain, add_finetune, add_identify, add_label,
        add_align, add_generate, add_score, add_evaluate, add_chat, add_merge}) {
    add(app, common);
  }

  if (words.empty()) {
    return report(wrong_usage, "a command is missing; `emprl --help` lists them.");
  }
  std::string const& first = words.front();
  if (first == "--help" || first == "-h") {
    print(overview(app));
    return 0;
  }
  if (first == "--version") {
    print("emprl " EMPRL_VERSION_STRING "\n");
    return 0;
  }
  Words names;
  for (CLI::App* command : commands_of(app)) {
    if (command->get_name() == first) {
      return run_command(app, *command, common, Words(words.begin() + 1, words.end()));
    }
    names.push_back(command->get_name());
  }
  std::string const kind = first.starts_with("-") ? "option " : "command ";
  return report(wrong_usage, "unknown " + kind + first + suggestion(first, names) +
                                 "; `emprl --help` lists the commands.");
}

/// Starts the program again with OpenMP's threads told to wait for work asleep after a thousand
/// looks, unless the user has said how they wait. libgomp reads that when it is loaded, so an
/// environment set later is not seen. By default its threads look for milliseconds and hold their
/// processors, which other work then lacks: two `emprl align` on two cores of an AMD EPYC took 106
/// s for what one does in 6, and 13 s with this; alone, both ways take the same time (2026-11-25).
void restart_with_short_spinning(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  if (::setenv("GOMP_SPINCOUNT", "1000", 1) != 0) return;
  ::execv("/proc/self/exe", argv);  // returns only where that is impossible: then on as it was
}

}  // namespace
}  // namespace emprl::program

int main(int argc, char** argv) {
  using namespace emprl;
  program::restart_with_short_spinning(argv);
  train::ignore_write_signals();
  int status = program::failed;
  try {
    status = program::run({argv + std::min(argc, 1), argv + argc});
  } catch (ConfigError const& error) {
    status = program::report(program::wrong_usage, error.what());
  } catch (std::bad_alloc const&) {
    status = program::report(program::failed, "there is not enough memory; try a smaller --batch.");
  } catch (std::exception const& error) {
    status = program::report(program::failed, error.what());
  }
  // What was printed may still wait in a buffer, and a full disk shows only now.
  if (std::fflush(stdout) != 0 && status == 0) {
    status =
        program::report(program::failed,
                        "cannot write standard output: " + io::detail::system_message(errno) + ".");
  }
  return status;
}
