// SPDX-License-Identifier: Apache-2.0

// emprl finetune: supervised training of a generator.

#include "emprl/ops/gemm_cpu.hpp"
//
#include "commands.hpp"

#include <fmt/core.h>

#include "emprl/data/pairs.hpp"
#include "emprl/train/engine_tasks.hpp"
#include "emprl/train/interrupt.hpp"
#include "engine.hpp"
#include "fitting.hpp"

namespace emprl::program {

namespace {

/// Training and validation pairs. A set without splits of its own gives a tenth of its dialogues
/// for validation.
std::pair<std::vector<data::Pair>, std::vector<data::Pair>> load_train_and_valid(
    Common const& common, FinetuneOptions const& o) {
  data::PairSet train = data::load_pairs(o.train, data::Split::train, o.context);
  for (data::DataWarning const& warning : train.warnings)
    fmt::print(stderr, "{}\n", data::to_string(warning));
  if (!o.valid.empty()) {
    return {std::move(train.pairs), data::load_pairs(o.valid, data::Split::valid, o.context).pairs};
  }
  if (train.has_splits) {
    return {std::move(train.pairs), data::load_pairs(o.train, data::Split::valid, o.context).pairs};
  }
  data::HeldOut parts = data::hold_out(train.pairs, 0.1, common.seed);
  return {std::move(parts.kept), std::move(parts.held_out)};
}

/// Writes batches.jsonl: for each step of a run that goes through all its epochs, the names of the
/// pairs that it uses. Steps are counted as in metrics.jsonl.
void write_batches(fs::path const& folder, std::vector<data::Pair> const& pairs,
                   train::FitOptions const& fit) {
  io::JsonLinesWriter file(folder / "batches.jsonl");
  index_t step = 0;
  for (index_t epoch = 0; epoch < fit.epochs; ++epoch) {
    for (auto const& rows : train::epoch_batches(static_cast<index_t>(pairs.size()), fit, epoch)) {
      io::Json names = io::Json::array();
      for (index_t const row : rows) names.push_back(pairs[static_cast<std::size_t>(row)].id);
      file.write({{"epoch", epoch + 1}, {"step", ++step}, {"pairs", names}});
    }
  }
  file.commit();
}

}  // namespace

void finetune(Common const& common, FinetuneOptions const& o) {
  expect_there(o.model, "--model");
  expect_there(o.train, "--train");
  if (!o.valid.empty()) expect_there(o.valid, "--valid");
  train::Tuning const tuning = train::tuning_of(o.tuning);
  t5::LoraConfig lora;
  lora.rank = o.lora_rank;
  lora.alpha = o.lora_alpha;
  lora.dropout = o.lora_dropout;
  lora.targets = o.lora_targets;
  auto const engine = open_engine(common);
  train::Generator<float> generator = train::load_generator<float>(o.model);
  for (std::string const& warning : generator.warnings) fmt::print(stderr, "{}\n", warning);
  // A target that is none is wrong usage, before anything is written.
  if (tuning == train::Tuning::lora) t5::lora_shape(generator.config(), lora);
  auto const [train_pairs, valid_pairs] = load_train_and_valid(common, o);
  prepare_output(o.out);
  write_configuration(o.out, common);

  auto const train_set =
      text::encode_pairs(generator.tokenizer, std::span<data::Pair const>(train_pairs));
  auto const valid_set =
      text::encode_pairs(generator.tokenizer, std::span<data::Pair const>(valid_pairs));
  fmt::print("{} training pairs ({} context and {} response tokens), {} validation pairs\n",
             train_set.rows(), train_set.contexts.tokens(), train_set.responses.tokens(),
             valid_set.rows());
  train::FitOptions fit;
  fit.phase = "finetune";
  fit.epochs = o.epochs;
  fit.batch_size = o.batch;
  fit.learning_rate = o.learning_rate;
  fit.decay = optim::parse_decay(o.schedule);
  fit.warmup_steps = o.warmup;
  fit.seed = common.seed;
  fit.save_every = o.save_every;
  fit.patience = o.patience;
  fit.checkpoint = o.out / "checkpoint";
  if (o.log_batches) write_batches(o.out, train_pairs, fit);
  train::InterruptGuard const guard;  // from here on Ctrl-C finishes the step and saves
  train::MetricsLog log(o.out);
  train::FitResult const result = train::fit_sequences(*engine, generator, train_set, valid_set,
                                                       {.tuning = tuning,
                                                        .dropout = o.dropout,
                                                        .seed = common.seed,
                                                        .prefix_length = o.prefix_length,
                                                        .prefix_hidden = o.prefix_hidden,
                                                        .lora = lora},
                                                       fit, &log);

  if (tuning == train::Tuning::full) {
    train::save_generator(o.out, generator);
  } else {
    train::save_adapter(o.out, generator, o.model.string());
  }
  write_training(o.out, result);
  train::discard_checkpoint(fit.checkpoint);
  print_speed(result);
  fmt::print(
      "The best epoch is {} with a validation loss of {:.4f} (perplexity {:.2f}); written to {}\n",
      result.best_epoch + 1, result.best_loss, std::exp(result.best_loss), o.out.string());
}

void add_finetune(CLI::App& app, Common& common) {
  auto o = std::make_shared<FinetuneOptions>();
  CLI::App* const c = app.add_subcommand("finetune", "Train a generator on dialogues (supervised)");
  c->add_option("--model", o->model, "Model folder to start from")->required();
  c->add_option("--train", o->train, "Training dialogues: JSON lines, or a folder of CSVs")
      ->required();
  c->add_option("--valid", o->valid,
                "Validation dialogues [the folder's own, or a tenth held out]");
  c->add_option("--out", o->out, "Folder to write")->required();
  c->add_option("--tuning", o->tuning, "What is trained: full, or an adapter alone: prefix or lora")
      ->check(CLI::IsMember({"full", "prefix", "lora"}))
      ->capture_default_str();
  c->add_option("--epochs", o->epochs, "Passes over the data")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  c->add_option("--batch", o->batch, "Pairs in a step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_learning_options(*c, o->learning_rate, o->schedule, o->warmup, o->dropout);
  c->add_option("--prefix-length", o->prefix_length, "Positions of a prefix")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  c->add_option("--prefix-hidden", o->prefix_hidden,
                "Width of the network that makes the prefix while it is trained")
      ->check(CLI::Range(index_t{1}, index_t{65'536}))
      ->capture_default_str();
  c->add_option("--lora-rank", o->lora_rank, "Rank of LoRA's products")
      ->check(CLI::Range(index_t{1}, index_t{65'536}))
      ->capture_default_str();
  c->add_option("--lora-alpha", o->lora_alpha, "They are scaled by alpha / rank")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  c->add_option("--lora-dropout", o->lora_dropout, "Dropout of their inputs")
      ->check(CLI::Range(0.0, 0.9))
      ->capture_default_str();
  c->add_option("--lora-targets", o->lora_targets,
                "Projections that have one, by the ends of their names: q, k, v, o, wi (or wi_0, "
                "wi_1), wo; EncDecAttention.v and so on; all-linear")
      ->delimiter(',')
      ->capture_default_str();
  c->add_option("--patience", o->patience, "Stop after so many epochs without gain; 0: never")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_option("--save-every", o->save_every, "Steps between checkpoints; 0: each epoch")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_flag("--log-batches", o->log_batches, "Write to batches.jsonl which pairs each step uses");
  add_context_options(*c, o->context);
  add_common(*c, common);
  c->footer(
      "Examples:\n"
      "  emprl finetune --model t5-base --train data/empathetic_dialogues \\\n"
      "    --out runs/generator --tuning full --epochs 3 --batch 8 --lr 1e-4\n"
      "  emprl finetune --model t5-base --train pairs.jsonl --out runs/prefix \\\n"
      "    --tuning prefix --prefix-length 20 --lr 1e-3\n"
      "  emprl finetune --model t5-base --train pairs.jsonl --out runs/lora \\\n"
      "    --tuning lora --lora-rank 8 --lora-targets q,v,wo --lr 1e-3");
  c->callback([o, &common] { finetune(common, *o); });
}

}  // namespace emprl::program
