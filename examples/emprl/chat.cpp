// SPDX-License-Identifier: Apache-2.0

// `emprl chat`: talk to a model in the terminal, or through a pipe: a line in, a line out.

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <iterator>
#include <memory>
#include <span>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "decoding.hpp"
#include "emprl/io/lines.hpp"
#include "emprl/io/utf8.hpp"
#include "emprl/text/batching.hpp"
#include "emprl/train/model_folder.hpp"
#include "engine.hpp"
#include "lines.hpp"

namespace emprl::program {

namespace {

struct ChatOptions {
  fs::path model, adapter;
  DecodingOptions decoding;
  data::ContextOptions context;
  index_t max_context = text::TokenLimits{}.context;
};

/// The latest turns, as many as are asked for and fit: unlike in training, where the beginning of a
/// long context is kept, what was said last must not be lost.
std::vector<std::int32_t> encode_conversation(text::SentencePieceTokenizer const& tokenizer,
                                              std::vector<std::string> const& turns,
                                              ChatOptions const& options) {
  std::size_t begin = 0;
  if (options.context.turns > 0) {
    begin = turns.size() - std::min(turns.size(), static_cast<std::size_t>(options.context.turns));
  }
  for (;; ++begin) {
    std::string context;
    for (std::size_t i = begin; i < turns.size(); ++i) {
      context += (i > begin ? options.context.separator : std::string()) + turns[i];
    }
    bool const fits = static_cast<index_t>(tokenizer.encode(context).size()) < options.max_context;
    if (fits || begin + 1 >= turns.size()) {
      return text::encode_with_end(tokenizer, context, options.max_context);
    }
  }
}

char const* const chat_help =
    "/help               this text\n"
    "/reset              forget the conversation\n"
    "/settings           the decoding flags as they are now\n"
    "/set FLAGS          change them, as on the command line:\n"
    "                    /set --temperature 0.7 --top-k 40\n"
    "/FLAG [VALUE]       the same for one flag: /top-p 0.9, /greedy, /beams 4\n"
    "/sample             draw again, after /greedy or /beams\n"
    "/seed N             start the random numbers at N\n"
    "/quit               leave; so does Ctrl-D\n"
    "A line that starts with a blank is said as it is, whatever follows.\n";

std::vector<std::string> words_of(std::string const& line) {
  std::istringstream text(line);
  return {std::istream_iterator<std::string>(text), {}};
}

/// What the commands of a chat change.
struct ChatState {
  DecodingOptions decoding;
  std::uint64_t seed = 0;
  std::uint32_t said = 0;  // replies drawn since the seed was set
  std::vector<std::string> turns;
};

/// Does what a line that starts with "/" says. @return what it has to show
/// @throws ConfigError if there is no such command, or a flag is wrong
std::string obey(std::string const& line, ChatState& state) {
  std::vector<std::string> words = words_of(line.substr(1));
  std::string const name = words.empty() ? "" : words.front();
  if (!words.empty()) words.erase(words.begin());
  if (name == "help") return chat_help;
  if (name == "settings") {
    return flags_of(state.decoding) + " --seed " + std::to_string(state.seed) + "\n";
  }
  if (name == "reset") {
    state.turns.clear();
    return {};
  }
  if (name == "sample") {
    state.decoding.sampling.greedy = false;
    state.decoding.beams = 0;
    return {};
  }
  if (name == "seed") {
    std::uint64_t seed = 0;
    if (words.size() != 1 || !CLI::detail::lexical_cast(words[0], seed)) {
      throw ConfigError("/seed takes one whole number from 0 on.");
    }
    state.seed = seed;
    state.said = 0;
    return {};
  }
  if (name == "set") {
    if (words.empty()) throw ConfigError("/set takes flags, such as --temperature 0.7.");
    state.decoding = changed(state.decoding, std::move(words));
    return {};
  }
  CLI::App flags;
  DecodingOptions ignored;
  add_decoding_options(flags, ignored);
  if (name.empty() || flags.get_option_no_throw("--" + name) == nullptr) {
    throw ConfigError("there is no command /" + name + "; /help lists them.");
  }
  words.insert(words.begin(), "--" + name);
  state.decoding = changed(state.decoding, std::move(words));
  return {};
}

void chat(Common const& common, ChatOptions const& options) {
  expect_there(options.model, "--model");
  if (!options.adapter.empty()) expect_there(options.adapter, "--adapter");
  auto const engine = open_engine(common);
  auto const generator = train::load_generator<float>(options.model, options.adapter);
  for (std::string const& sentence : generator.warnings) warn(sentence);
  auto const model = engine->load(generator);

  bool const terminal = ::isatty(STDIN_FILENO) != 0;
  if (terminal) write_standard_output("/help lists commands, /quit or Ctrl-D leaves.\n");
  ChatState state{options.decoding, common.seed, 0, {}};
  index_t number = 0;
  for (std::string line;;) {
    if (terminal) write_standard_output("you> ");
    if (!std::getline(std::cin, line)) break;
    ++number;
    if (!line.empty() && line.back() == '\r') line.pop_back();
    if (io::find_invalid_utf8(line) != std::string_view::npos) {
      std::string const where =
          io::place("standard input", number) + ": this line is not valid UTF-8.";
      if (!terminal) throw IoError(where);
      warn(where);
      continue;
    }
    if (io::is_blank(line)) continue;
    if (line == "/quit") return;
    if (line.front() == '/') {
      try {
        write_standard_output(obey(line, state));
      } catch (ConfigError const& error) {
        std::string const where = io::place("standard input", number) + ": " + error.what();
        if (!terminal) throw IoError(where);
        warn(where);
      }
      continue;
    }
    state.turns.push_back(line);
    Ragged context;
    context.push_back(encode_conversation(generator.tokenizer, state.turns, options));
    auto const sampling = train::barred_beyond_tokenizer(state.decoding.sampling, generator);
    std::vector<gen::DrawSite> const site{{state.seed, state.said++, 0}};
    auto const response = decode(*model, context.view(), state.decoding, sampling, 1,
                                 std::span<gen::DrawSite const>(site), false);
    std::string reply = generator.tokenizer.decode(response.at(0).at(0).tokens);
    write_standard_output((terminal ? "emprl> " : "") + reply + "\n");
    // An empty turn would leave two separators beside each other.
    if (!io::is_blank(reply)) state.turns.push_back(std::move(reply));
  }
  if (terminal) write_standard_output("\n");
}

}  // namespace

void add_chat(CLI::App& app, Common& common) {
  auto* const command = app.add_subcommand("chat", "Talk to a model in the terminal.");
  auto const options = std::make_shared<ChatOptions>();
  command->add_option("--model", options->model, "a T5 folder")->required()->type_name("DIR");
  command->add_option("--adapter", options->adapter, "a folder of an adapter: prefixes or a LoRA")
      ->type_name("DIR");
  add_decoding_options(*command, options->decoding);
  add_context_options(*command, options->context);
  command
      ->add_option("--max-context", options->max_context,
                   "tokens of the conversation that are read; the oldest turns go first")
      ->check(CLI::Range(index_t{1}, index_t{65'536}));
  add_common(*command, common);
  command->footer(
      "Each line is a turn; the conversation so far is the context. Lines that start\n"
      "with / are commands: /help lists them, /reset starts over, /temperature 0.7,\n"
      "/beams 4 or /set with any decoding flags change how it answers, /quit or the end\n"
      "of the input leaves.\n\n"
      "Examples:\n"
      "  emprl chat --model runs/ed/aligned\n"
      "  printf 'I lost my job today.\\n' | emprl chat --model runs/ed/aligned --greedy");
  command->callback([options, &common] { chat(common, *options); });
}

}  // namespace emprl::program
