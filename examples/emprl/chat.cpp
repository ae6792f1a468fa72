// SPDX-License-Identifier: Apache-2.0

// `emprl chat`: talk to a model in the terminal, or through a pipe: a line in, a line out.

#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "commands.hpp"
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
  gen::SamplingConfig sampling = gen::SamplingConfig::emprl();
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

void chat(Common const& common, ChatOptions const& options) {
  expect_there(options.model, "--model");
  if (!options.adapter.empty()) expect_there(options.adapter, "--adapter");
  auto const engine = open_engine(common);
  auto const generator = train::load_generator<float>(options.model, options.adapter);
  for (std::string const& sentence : generator.warnings) warn(sentence);
  auto const sampling = train::barred_beyond_tokenizer(options.sampling, generator);
  auto const model = engine->load(generator);

  bool const terminal = ::isatty(STDIN_FILENO) != 0;
  if (terminal) write_standard_output("/reset starts over, /quit or Ctrl-D leaves.\n");
  std::vector<std::string> turns;
  std::uint32_t said = 0;
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
    if (line == "/reset") {
      turns.clear();
      continue;
    }
    turns.push_back(line);
    Ragged context;
    context.push_back(encode_conversation(generator.tokenizer, turns, options));
    Ragged const response = model->generate(context.view(), sampling, common.seed, said++);
    std::string reply = generator.tokenizer.decode(response.row(0));
    write_standard_output((terminal ? "emprl> " : "") + reply + "\n");
    // An empty turn would leave two separators beside each other.
    if (!io::is_blank(reply)) turns.push_back(std::move(reply));
  }
  if (terminal) write_standard_output("\n");
}

}  // namespace

void add_chat(CLI::App& app, Common& common) {
  auto* const command = app.add_subcommand("chat", "Talk to a model in the terminal.");
  auto const options = std::make_shared<ChatOptions>();
  command->add_option("--model", options->model, "a T5 folder")->required()->type_name("DIR");
  command->add_option("--adapter", options->adapter, "a folder of trained prefixes")
      ->type_name("DIR");
  add_sampling_options(*command, options->sampling);
  add_context_options(*command, options->context);
  command
      ->add_option("--max-context", options->max_context,
                   "tokens of the conversation that are read; the oldest turns go first")
      ->check(CLI::Range(index_t{1}, index_t{65'536}));
  add_common(*command, common);
  command->footer(
      "Each line is a turn; the conversation so far is the context. /reset starts over,\n"
      "/quit or the end of the input leaves.\n\n"
      "Examples:\n"
      "  emprl chat --model runs/ed/aligned\n"
      "  printf 'I lost my job today.\\n' | emprl chat --model runs/ed/aligned --greedy");
  command->callback([options, &common] { chat(common, *options); });
}

}  // namespace emprl::program
