// SPDX-License-Identifier: Apache-2.0

// `emprl tokenizer`: trains a sentencepiece model in T5's conventions, or shows what one makes of
// texts and ids.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "emprl/data/pairs.hpp"
#include "emprl/data/running_text.hpp"
#include "emprl/io/hugging_face.hpp"
#include "emprl/text/batching.hpp"
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

/// What `emprl tokenizer` does with a tokenizer that is there.
struct ApplyOptions {
  fs::path model, encode, decode, output = "-";
  index_t max_tokens = 0;
};

std::vector<std::int32_t> ids_of(InputLine const& line) {
  auto const field = line.value.find("ids");
  if (field == line.value.end() || !field->is_array()) {
    throw IoError(line.where + ": there is no list \"ids\".");
  }
  std::vector<std::int32_t> ids;
  ids.reserve(field->size());
  for (io::Json const& id : *field) {
    bool const fits =
        id.is_number_unsigned() &&
        id.get<std::uint64_t>() <= std::uint64_t{std::numeric_limits<std::int32_t>::max()};
    if (!fits) throw IoError(line.where + ": " + id.dump() + " in \"ids\" is not a token's id.");
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

void apply_tokenizer(ApplyOptions const& options) {
  expect_there(options.model, "--model");
  bool const encodes = !options.encode.empty();
  std::vector<InputLine> lines = encodes ? read_lines(options.encode, "--encode", "a \"text\"")
                                         : read_lines(options.decode, "--decode", "\"ids\"");
  text::SentencePieceTokenizer const tokenizer(
      fs::is_directory(options.model) ? io::find_spiece_model(io::HuggingFaceFolder{options.model})
                                      : options.model);
  LineOutput output(options.output);
  for (InputLine& line : lines) {
    if (encodes) {
      auto const field = line.value.find("text");
      if (field == line.value.end() || !field->is_string()) {
        throw IoError(line.where + ": there is no \"text\", or it is not text.");
      }
      auto const& text = field->get_ref<std::string const&>();
      line.value["ids"] = options.max_tokens == 0
                              ? tokenizer.encode(text)
                              : text::encode_with_end(tokenizer, text, options.max_tokens);
    } else {
      line.value["text"] = tokenizer.decode(ids_of(line));
    }
    output.write(line.value);
  }
  output.commit();
}

}  // namespace

void train_tokenizer(Common const& common, TokenizerOptions const& options) {
  expect_there(options.input, "--input");
  if (options.vocabulary < text::sentinel_count + 8) {
    throw ConfigError("--vocabulary: " + std::to_string(options.vocabulary) +
                      " is too few; the 100 sentinels are among them, and 8 pieces are the least.");
  }
  std::vector<std::string> const texts =
      holds_dialogues(options.input)
          ? data::load_texts(options.input, data::Split::train)
          : data::paragraphs_of(io::read_file(options.input), options.input.string());
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
  auto* const command = app.add_subcommand(
      "tokenizer", "Train a sentencepiece tokenizer in T5's conventions, or apply one.");
  auto const options = std::make_shared<TokenizerOptions>();
  auto const apply = std::make_shared<ApplyOptions>();
  auto* const input = command->add_option(
      "--input", options->input,
      "dialogues (a folder of EmpatheticDialogues, a CSV or JSON lines), or plain text "
      "with a sentence a line");
  input->type_name("FILE|DIR");
  auto* const out =
      command->add_option("--out", options->out, "the folder that receives spiece.model");
  out->type_name("DIR");
  auto* const vocabulary = command->add_option("--vocabulary", options->vocabulary,
                                               "ids in all, the 100 sentinels among them");
  auto* const model = command->add_option(
      "--model", apply->model, "apply this tokenizer: a folder with spiece.model, or such a file");
  model->type_name("FILE|DIR");
  auto* const encode = command->add_option(
      "--encode", apply->encode,
      "JSON lines with \"text\", to which \"ids\" are added; - for standard input");
  encode->type_name("FILE");
  auto* const decode = command->add_option(
      "--decode", apply->decode,
      "JSON lines with \"ids\", to which \"text\" is added; - for standard input");
  decode->type_name("FILE");
  auto* const output =
      command->add_option("--output", apply->output,
                          "receives the lines of --encode or --decode; - for standard output");
  output->type_name("FILE");
  auto* const max_tokens = command->add_option(
      "--max-tokens", apply->max_tokens,
      "end each text with </s> and cut it to so many ids in all, as models are given it; 0: "
      "neither");
  max_tokens->check(CLI::Range(index_t{0}, index_t{1'000'000}));
  encode->needs(model);
  decode->needs(model);
  encode->excludes(decode)->excludes(input)->excludes(out)->excludes(vocabulary);
  decode->excludes(input)->excludes(out)->excludes(vocabulary)->excludes(max_tokens);
  model->excludes(input)->excludes(out)->excludes(vocabulary);
  output->excludes(input)->excludes(out)->excludes(vocabulary);
  max_tokens->excludes(input)->excludes(out)->excludes(vocabulary);
  add_common(*command, common, true, Devices::cpu);
  command->footer(
      "Either --input and --out train a tokenizer, or --model with --encode or\n"
      "--decode applies one.\n\n"
      "Examples:\n"
      "  emprl tokenizer --input dialogues/ --out runs/tokenizer\n"
      "  emprl tokenizer --input sentences.txt --out runs/tokenizer --vocabulary 4000\n"
      "  echo '{\"text\": \"i am so happy\"}' |\n"
      "    emprl tokenizer --model runs/tokenizer --encode -\n"
      "  echo '{\"ids\": [37, 629, 1]}' | emprl tokenizer --model t5 --decode -");
  command->callback([options, apply, model, encode, decode, input, out, &common] {
    if (encode->count() + decode->count() > 0) return apply_tokenizer(*apply);
    if (model->count() > 0) throw CLI::RequiredError("--encode or --decode");
    if (input->count() == 0) throw CLI::RequiredError("--input");
    if (out->count() == 0) throw CLI::RequiredError("--out");
    train_tokenizer(common, *options);
  });
}

}  // namespace emprl::program
