// SPDX-License-Identifier: Apache-2.0

// emprl pretrain: a T5 learns a language from running text, by span corruption.

#include "emprl/ops/gemm_cpu.hpp"
//
#include "commands.hpp"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "emprl/data/running_text.hpp"
#include "emprl/text/span_corruption.hpp"
#include "emprl/text/windows.hpp"
#include "emprl/train/engine_tasks.hpp"
#include "emprl/train/fingerprint.hpp"
#include "emprl/train/interrupt.hpp"
#include "engine.hpp"
#include "fitting.hpp"
#include "lines.hpp"

namespace emprl::program {

namespace {

/// What can be said of the options before anything is read or written.
void expect_sense(PretrainOptions const& o) {
  expects<ConfigError>(!o.text.empty() || !o.dialogues.empty(),
                       "there is nothing to learn from: --text or --dialogues names it.");
  auto const standard = std::count(o.text.begin(), o.text.end(), "-") +
                        std::count(o.dialogues.begin(), o.dialogues.end(), "-");
  expects<ConfigError>(standard <= 1, "standard input can be read once: one - is enough.");
  for (fs::path const& file : o.text) {
    if (file != "-") expect_there(file, "--text");
  }
  for (fs::path const& file : o.dialogues) {
    if (file != "-") expect_there(file, "--dialogues");
  }
  if (o.batch_tokens < o.length) {
    throw ConfigError("--batch-tokens " + std::to_string(o.batch_tokens) +
                      " is less than one window of --length " + std::to_string(o.length) + ".");
  }
}

/// The windows of all files, each file's by themselves.
Ragged read_windows(PretrainOptions const& o, text::SentencePieceTokenizer const& tokenizer,
                    std::span<std::int32_t const> sentinels) {
  Ragged windows;
  auto const append = [&](std::vector<std::string> const& texts, std::string const& name,
                          char const* what) {
    index_t const before = windows.tokens();
    text::append_windows(tokenizer, std::span<std::string const>(texts), o.length, sentinels,
                         windows);
    fmt::print("{}: {} {}, {} tokens\n", name, texts.size(), what, windows.tokens() - before);
  };
  for (fs::path const& file : o.text) {
    InputText const input = read_input(file, "--text");
    append(data::paragraphs_of(input.bytes, input.name), input.name, "paragraphs");
  }
  for (fs::path const& file : o.dialogues) {
    InputText input = read_input(file, "--dialogues");
    append(data::turns_of(std::move(input.bytes), input.name), input.name, "turns");
  }
  return windows;
}

}  // namespace

void pretrain(Common const& common, PretrainOptions const& o) {
  expect_there(o.model, "--model");
  expect_sense(o);
  train::FitOptions fit;
  fit.phase = "pretrain";
  fit.steps = o.steps;
  fit.validate_every = o.validate_every;
  fit.batch_size = o.batch_tokens / o.length;
  fit.learning_rate = o.learning_rate;
  fit.decay = optim::parse_decay(o.schedule);
  fit.warmup_steps = o.warmup;
  fit.seed = common.seed;
  fit.save_every = o.save_every;
  fit.checkpoint = o.out / "checkpoint";

  auto const engine = open_engine(common);
  train::Generator<float> generator = train::load_generator<float>(o.model);
  for (std::string const& warning : generator.warnings) fmt::print(stderr, "{}\n", warning);
  std::vector<std::int32_t> const sentinels = generator.tokenizer.sentinel_ids();
  text::SpanCorruption const corruption{o.density, o.mean_span};
  text::check_corruption(corruption, o.length, sentinels.size());

  Ragged const all = read_windows(o, generator.tokenizer, sentinels);
  if (all.rows() < 2) {
    throw IoError("the texts make " + std::to_string(all.rows()) + " window" +
                  (all.rows() == 1 ? "" : "s") + " of at most " + std::to_string(o.length) +
                  " tokens; two are needed, one to train on and one to validate on.");
  }
  index_t const held_out = std::min(o.valid_windows, std::max(index_t{1}, all.rows() / 10));
  text::HeldOutWindows const windows = text::hold_out_windows(all.view(), held_out, common.seed);
  prepare_output(o.out);
  write_configuration(o.out, common);

  index_t const rows = windows.kept.rows();
  index_t const steps_an_epoch = (rows + fit.batch_size - 1) / fit.batch_size;
  fmt::print("{} windows to train on, {} held out; {} windows a step, {} steps an epoch\n", rows,
             held_out, fit.batch_size, steps_an_epoch);
  // Other spans in every epoch; the held-out windows keep theirs, and their draws are their own.
  train::SequenceExamples const examples(
      rows,
      [&](std::span<index_t const> some, std::uint32_t step) {
        return text::corrupt_windows(windows.kept.view(), some, corruption, sentinels, common.seed,
                                     step / steps_an_epoch);
      },
      [&]() -> io::Json {
        train::Fingerprint words;
        words.numbers(std::span<std::int32_t const>(windows.kept.ids));
        words.numbers(std::span<index_t const>(windows.kept.offsets));
        return {{"text_fingerprint", words.name()},
                {"density", corruption.density},
                {"mean_span", corruption.mean_length}};
      }());
  std::vector<index_t> order(static_cast<std::size_t>(held_out));
  std::iota(order.begin(), order.end(), index_t{0});
  text::EncodedPairs const valid = text::corrupt_windows(windows.held_out.view(), order, corruption,
                                                         sentinels, common.seed, 0, rows);

  train::InterruptGuard const guard;  // from here on Ctrl-C finishes the step and saves
  train::MetricsLog log(o.out);
  train::FitResult const result = train::fit_sequences(
      *engine, generator, examples, valid, {.dropout = o.dropout, .seed = common.seed}, fit, &log);
  train::save_generator(o.out, generator);
  write_training(o.out, result);
  train::discard_checkpoint(fit.checkpoint);
  print_speed(result);
  fmt::print(
      "The best validation loss of hidden tokens is {:.4f} (perplexity {:.2f}); written to {}\n",
      result.best_loss, std::exp(result.best_loss), o.out.string());
}

void add_pretrain(CLI::App& app, Common& common) {
  auto o = std::make_shared<PretrainOptions>();
  CLI::App* const c =
      app.add_subcommand("pretrain", "Train a T5 on running text by span corruption");
  c->add_option("--model", o->model, "Model folder to start from, as of emprl init")->required();
  c->add_option("--text", o->text,
                "Plain text, a paragraph a line; several files, or - for standard input")
      ->type_name("FILE");
  c->add_option("--dialogues", o->dialogues,
                "JSON lines with \"turns\", a list of texts; several files, or -")
      ->type_name("FILE");
  c->add_option("--out", o->out, "Folder to write")->required();
  c->add_option("--length", o->length, "Tokens of a window of text")
      ->check(CLI::Range(index_t{2}, index_t{65'536}))
      ->capture_default_str();
  c->add_option("--density", o->density, "Share of tokens that are hidden")->capture_default_str();
  c->add_option("--mean-span", o->mean_span, "Mean length of hidden spans, in tokens")
      ->capture_default_str();
  c->add_option("--steps", o->steps, "Steps in all, through the text as often as they need")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  c->add_option("--batch-tokens", o->batch_tokens, "Tokens of text in a step, in whole windows")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_learning_options(*c, o->learning_rate, o->schedule, o->warmup, o->dropout);
  c->add_option("--valid-windows", o->valid_windows,
                "Windows held out for validation, at most a tenth of all")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  c->add_option("--validate-every", o->validate_every,
                "Steps between validations, of which the best is kept; 0: after each pass "
                "through the text")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_option("--save-every", o->save_every, "Steps between checkpoints; 0: at each validation")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  add_common(*c, common);
  c->footer(
      "Texts are cut into windows of --length tokens. Of each, spans are hidden behind\n"
      "<extra_id_0>, <extra_id_1>, ... anew in every pass, and the model writes them\n"
      "(Raffel et al. 2020). The perplexity is that of the hidden tokens and their\n"
      "sentinels: no other task's.\n\n"
      "A run that was stopped goes on by the same command and the same text. Standard\n"
      "input is read once, at the start: whoever starts it again pipes it in again.\n\n"
      "Examples:\n"
      "  emprl init --preset small --tokenizer t5 --out runs/new\n"
      "  emprl pretrain --model runs/new --text books.txt \\\n"
      "    --dialogues talk.jsonl more.jsonl --out runs/t5 --steps 20000\n"
      "  xz -dc books.txt.xz | emprl pretrain --model runs/new --text - \\\n"
      "    --out runs/t5 --schedule inverse_sqrt --warmup 1000\n"
      "  emprl finetune --model runs/t5 --train dialogues/ --out runs/generator");
  c->callback([o, &common] { pretrain(common, *o); });
}

}  // namespace emprl::program
