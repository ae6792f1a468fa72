// SPDX-License-Identifier: Apache-2.0

// emprl align: PPO with the empathy reward.

#include "emprl/ops/gemm_cpu.hpp"
//
#include "commands.hpp"

#include <fmt/format.h>

#include <optional>

#include "emprl/data/pairs.hpp"
#include "emprl/train/empathy_reward.hpp"
#include "emprl/train/empathy_scorer.hpp"
#include "emprl/train/engine_tasks.hpp"
#include "emprl/train/interrupt.hpp"
#include "emprl/train/pipe_reward.hpp"
#include "engine.hpp"

namespace emprl::program {

namespace {

/// Gives every pair without levels those that the identifiers see in its own response.
void label_missing(train::EmpathyScorer<float> const& scorer, std::vector<data::Pair>& pairs) {
  std::vector<std::size_t> missing;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    if (!pairs[i].levels) missing.push_back(i);
  }
  if (missing.empty()) return;
  train::Progress progress("label", static_cast<index_t>(missing.size()), "responses");
  constexpr std::size_t rows_at_once = 256;
  for (std::size_t begin = 0; begin < missing.size(); begin += rows_at_once) {
    std::vector<std::string> contexts, responses;
    std::size_t const end = std::min(missing.size(), begin + rows_at_once);
    for (std::size_t i = begin; i < end; ++i) {
      contexts.push_back(pairs[missing[i]].context);
      responses.push_back(pairs[missing[i]].response);
    }
    auto const p = scorer(contexts, responses);
    for (std::size_t i = begin; i < end; ++i)
      pairs[missing[i]].levels = empathy::most_probable(p[i - begin]);
    progress.advance(static_cast<index_t>(end));
  }
  progress.finish();
}

empathy::MechanismMask mask_of(std::vector<std::string> const& names) {
  empathy::MechanismMask mask{false, false, false};
  for (std::string const& name : names)
    mask[static_cast<std::size_t>(data::mechanism_of(name))] = true;
  return mask;
}

}  // namespace

void align(Common const& common, AlignOptions const& o) {
  expect_there(o.model, "--model");
  if (!o.adapter.empty()) expect_there(o.adapter, "--adapter");
  bool const by_program = !o.reward_command.empty();
  if (!by_program) expect_there(o.identifiers, "--identifiers");
  expect_there(o.data, "--data");
  auto const engine = open_engine(common);
  train::Generator<float> generator = train::load_generator<float>(o.model, o.adapter);
  for (std::string const& warning : generator.warnings) fmt::print(stderr, "{}\n", warning);
  std::optional<train::EmpathyScorer<float>> scorer;
  if (!by_program) {
    scorer.emplace(*engine, o.identifiers);
    for (std::string const& warning : scorer->warnings()) fmt::print(stderr, "{}\n", warning);
  }
  data::PairSet set = data::load_pairs(o.data, data::Split::train, o.context);
  for (data::DataWarning const& warning : set.warnings)
    fmt::print(stderr, "{}\n", data::to_string(warning));
  if (scorer) label_missing(*scorer, set.pairs);
  if (o.permute_levels) {
    // The same targets, each at another dialogue: what can be gained without matching shows itself.
    std::vector<data::Levels> levels;
    for (data::Pair const& pair : set.pairs) levels.push_back(*pair.levels);
    RandomSequence(common.seed, Stream::permute, 0, 1).shuffle(std::span<data::Levels>(levels));
    for (std::size_t i = 0; i < levels.size(); ++i) set.pairs[i].levels = levels[i];
  }
  prepare_output(o.out);
  write_configuration(o.out, common);

  train::AlignSettings settings;
  settings.ppo.mode = o.mode == "corrected" ? rl::PpoMode::corrected : rl::PpoMode::trl_0_9_6;
  settings.ppo.learning_rate = o.learning_rate;
  settings.ppo.kl_coefficient = o.kl_coefficient;
  settings.ppo.batch_size = o.batch;
  settings.ppo.mini_batch_size = std::min(o.mini_batch, o.batch);
  settings.ppo.gradient_accumulation =
      (o.batch + settings.ppo.mini_batch_size - 1) / settings.ppo.mini_batch_size;
  settings.ppo.rows_per_pass = o.rows_per_pass;
  settings.ppo.share_old_pass = o.share_old_pass;
  settings.ppo.epochs = o.epochs;
  settings.sampling = o.sampling;
  settings.logprobs = train::logprobs_of(o.logprobs);
  settings.adaptive_kl = o.adaptive_kl && o.kl_coefficient > 0;
  settings.steps = o.steps;
  settings.save_every = o.save_every;
  settings.seed = common.seed;
  settings.keep_last = o.keep;
  settings.keep_best = o.keep_best;
  settings.reward_name =
      by_program ? o.reward_command
                 : fmt::format("empathy ({}): {}", o.reward, fmt::join(o.mechanisms, ", "));
  settings.checkpoint = o.out / "checkpoint";
  settings.best = o.out / "best";
  fmt::print("PPO on {} dialogues; log-probabilities are {}, the KL coefficient is {} and {}\n",
             set.pairs.size(), o.logprobs, o.kl_coefficient,
             settings.adaptive_kl ? "adaptive" : "fixed");
  fmt::print(
      "up to {} dialogues in a pass; the update's first pass is {}\n", settings.ppo.rows_at_once(),
      settings.ppo.share_old_pass ? "the evaluation's, from the second step on" : "computed anew");
  train::InterruptGuard const guard;  // from here on Ctrl-C finishes the step and saves
  train::MetricsLog log(o.out);
  auto const with = [&](auto reward) {
    return train::align(*engine, generator, reward, set.pairs, settings, &log);
  };
  index_t const steps = by_program
                            ? with(train::PipeReward{{.command = o.reward_command}})
                            : with(train::EmpathyReward(*scorer, mask_of(o.mechanisms),
                                                        empathy::reward_variant_of(o.reward)));

  train::save_generator(o.out, generator);
  if (train::has_adapter(generator)) {
    train::save_adapter(o.out / "adapter", generator, o.model.string());
  }
  train::CheckpointSeries(settings.checkpoint).discard();
  fmt::print("{} steps of PPO; written to {}\n", steps, o.out.string());
}

void add_pass_options(CLI::App& command, AlignOptions& o) {
  command
      .add_option(
          "--rows-per-pass", o.rows_per_pass,
          "Dialogues in one forward and backward, in whole mini-batches; 1: one mini-batch. "
          "Fewer need less memory")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_flag("!--no-shared-pass", o.share_old_pass,
                   "Compute the update's first pass anew instead of keeping the evaluation's, "
                   "which gives the same numbers");
}

void add_align(CLI::App& app, Common& common) {
  auto o = std::make_shared<AlignOptions>();
  CLI::App* const c =
      app.add_subcommand("align", "Align a generator by PPO with the empathy reward");
  c->add_option("--model", o->model, "Model folder: the policy and its frozen reference")
      ->required();
  c->add_option("--adapter", o->adapter,
                "Folder of a prefix or a LoRA, which alone is then trained");
  auto* const identifiers =
      c->add_option("--identifiers", o->identifiers, "Folder with er/, ip/ and ex/");
  auto* const command = c->add_option(
      "--reward-command", o->reward_command,
      "Or any program as the reward: JSON lines in and out, see examples/pipe_reward");
  command->excludes(identifiers);
  c->add_option("--data", o->data, "Dialogues, labelled or not: JSON lines, or a folder of CSVs")
      ->required();
  c->add_option("--out", o->out, "Folder to write")->required();
  c->add_option("--steps", o->steps, "PPO steps; 0: three passes over the dialogues")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_option("--lr", o->learning_rate, "Learning rate, falling linearly to 0")
      ->capture_default_str();
  c->add_option("--kl", o->kl_coefficient, "KL coefficient at the start")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_flag("!--fixed-kl", o->adaptive_kl, "Keep the KL coefficient as it is");
  c->add_option("--batch", o->batch, "Dialogues in a step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  c->add_option("--mini-batch", o->mini_batch,
                "Dialogues that are skipped or trained together, by their mean ratio")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_pass_options(*c, *o);
  c->add_option("--ppo-epochs", o->epochs, "Passes over a batch")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  auto* const mechanisms = c->add_option("--mechanisms", o->mechanisms, "Mechanisms in the reward")
                               ->check(CLI::IsMember({"er", "ip", "ex"}))
                               ->delimiter(',')
                               ->capture_default_str();
  auto* const reward =
      c->add_option(
           "--reward", o->reward,
           "product of the probabilities of the target's levels; sum: their mean; match: the "
           "share of levels that are the target's")
          ->check(CLI::IsMember({"product", "sum", "match"}))
          ->capture_default_str();
  c->add_option("--mode", o->mode, "corrected, or the arithmetic of TRL 0.9.6 for comparison")
      ->check(CLI::IsMember({"corrected", "trl_0_9_6"}))
      ->capture_default_str();
  c->add_option("--logprobs", o->logprobs, "raw, or tempered as sampling is")
      ->check(CLI::IsMember({"raw", "tempered"}))
      ->capture_default_str();
  auto* const permute = c->add_flag("--permute-levels", o->permute_levels,
                                    "Negative control: targets of other dialogues");
  command->excludes(mechanisms)->excludes(reward)->excludes(permute);
  c->add_option("--save-every", o->save_every,
                "Steps between checkpoints; 0: only when interrupted")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_option("--keep", o->keep, "Newest checkpoints that stay while it runs")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  c->add_flag("!--no-best", o->keep_best, "Do not keep the best checkpoint too, as OUT/best");
  add_sampling_options(*c, o->sampling);
  add_context_options(*c, o->context);
  add_common(*c, common);
  c->footer(
      "Examples:\n"
      "  emprl align --model runs/generator --identifiers runs/identifiers \\\n"
      "    --data data/empathetic_dialogues --out runs/aligned --steps 1000\n"
      "  emprl align --model runs/generator --reward-command \"python3 reward.py\" \\\n"
      "    --data dialogues.jsonl --out runs/rewarded --steps 200 --lr 1e-4");
  c->callback([o, &common] {
    if (o->identifiers.empty() && o->reward_command.empty()) {
      throw ConfigError("align needs --identifiers or --reward-command.");
    }
    align(common, *o);
  });
}

}  // namespace emprl::program
