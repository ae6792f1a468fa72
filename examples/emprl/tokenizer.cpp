// SPDX-License-Identifier: Apache-2.0

// `emprl tokenizer`: trains a sentencepiece model in T5's conventions.

#include <algorithm>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "emprl/data/pairs.hpp"
#include "emprl/io/lines.hpp"
#include "emprl/io/utf8.hpp"
#include "emprl/text/train_tokenizer.hpp"
#include "emprl/train/metrics_log.hpp"
#include "lines.hpp"

namespace emprl::program {

namespace {

/// A file is plain text unless its name or its first character says otherwise.
bool holds_dialogues(fs::path const& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) return true;
  std::string const extension = path.extension().string();
  if (extension == ".csv" || extension == ".jsonl" || extension == ".json") return true;
  if (extension == ".txt") return false;
  std::string const bytes = io::read_file(path);
  std::size_t const first = bytes.find_first_not_of(" \t\r\n");
  return first != std::string::npos && bytes[first] == '{';
}

std::vector<std::string> plain_lines(fs::path const& path) {
  std::string const bytes = io::read_file(path);
  io::LineReader reader(bytes, path.string());
  std::vector<std::string> texts;
  for (std::string_view line; reader.next(line);) {
    reader.check_utf8(line);
    if (!io::is_blank(line)) texts.emplace_back(line);
  }
  if (texts.empty()) throw IoError(path.string() + ": the file holds no text.");
  return texts;
}

}  // namespace

void train_tokenizer(Common const& common, TokenizerOptions const& options) {
  expect_there(options.input, "--input");
  if (options.vocabulary < text::sentinel_count + 8) {
    throw ConfigError("--vocabulary: " + std::to_string(options.vocabulary) +
                      " is too few; the 100 sentinels are among them, and 8 pieces are the least.");
  }
  std::vector<std::string> const texts = holds_dialogues(options.input)
                                             ? data::load_texts(options.input, data::Split::train)
                                             : plain_lines(options.input);
  prepare_output(options.out);
  text::TokenizerTraining training;
  training.vocabulary = options.vocabulary - text::sentinel_count;
  training.allow_smaller = true;
  text::SentencePieceTokenizer const tokenizer(text::train_tokenizer(texts, training),
                                               "the new tokenizer");

  std::size_t bytes = 0;
  std::size_t tokens = 0;
  for (std::string const& text : texts) {
    bytes += text.size();
    tokens += tokenizer.encode(text).size();
  }
  double const bytes_per_token =
      static_cast<double>(bytes) / static_cast<double>(std::max<std::size_t>(1, tokens));
  io::write_file_atomically(options.out / "spiece.model", tokenizer.serialized());
  write_configuration(options.out, common);
  train::MetricsLog log(options.out);
  log.resume("tokenizer", -1);
  log.write("tokenizer", 0,
            {{"texts", static_cast<double>(texts.size())},
             {"ids", static_cast<double>(tokenizer.size())},
             {"pieces", static_cast<double>(tokenizer.pieces())},
             {"bytes_per_token", bytes_per_token}});

  write_standard_output("tokenizer: " + std::to_string(tokenizer.size()) +
                        " ids, the 100 sentinels among them, from " + std::to_string(texts.size()) +
                        " texts; written to " + (options.out / "spiece.model").string() + "\n");
  if (tokenizer.size() < options.vocabulary) {
    write_standard_output("tokenizer: " + std::to_string(options.vocabulary) +
                          " ids were asked for; the texts have no more to give.\n");
  }
}

void add_tokenizer(CLI::App& app, Common& common) {
  auto* const command =
      app.add_subcommand("tokenizer", "Train a sentencepiece tokenizer in T5's conventions.");
  auto const options = std::make_shared<TokenizerOptions>();
  command
      ->add_option(
          "--input", options->input,
          "dialogues (a folder of EmpatheticDialogues, a CSV or JSON lines), or plain text "
          "with a sentence a line")
      ->required()
      ->type_name("FILE|DIR");
  command->add_option("--out", options->out, "the folder that receives spiece.model")
      ->required()
      ->type_name("DIR");
  command->add_option("--vocabulary", options->vocabulary,
                      "ids in all, the 100 sentinels among them");
  add_common(*command, common, true, Devices::cpu);
  command->footer(
      "Examples:\n"
      "  emprl tokenizer --input dialogues/ --out runs/tokenizer\n"
      "  emprl tokenizer --input sentences.txt --out runs/tokenizer --vocabulary 4000");
  command->callback([options, &common] { train_tokenizer(common, *options); });
}

}  // namespace emprl::program
