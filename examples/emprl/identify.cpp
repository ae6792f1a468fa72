// SPDX-License-Identifier: Apache-2.0

// emprl identify: training of the empathy identifiers.

#include "emprl/ops/gemm_cpu.hpp"
//
#include "commands.hpp"

#include <fmt/core.h>

#include "emprl/data/mental_health.hpp"
#include "emprl/empathy/bag_of_words.hpp"
#include "emprl/train/engine_tasks.hpp"
#include "emprl/train/identifier_report.hpp"
#include "emprl/train/interrupt.hpp"
#include "engine.hpp"
#include "table.hpp"

namespace emprl::program {

namespace {

std::vector<int> likeliest(std::vector<empathy::MechanismProbabilities> const& p) {
  std::vector<int> levels;
  for (auto const& one : p) levels.push_back(empathy::most_probable(one));
  return levels;
}

/// The baseline of another family: words and pairs of words of the response.
std::vector<int> bag_of_words(std::vector<data::Post> const& train,
                              std::vector<data::Post> const& held_out, fs::path const& save_to) {
  std::vector<std::string> texts;
  std::vector<int> levels;
  for (data::Post const& post : train) {
    texts.push_back(post.response);
    levels.push_back(post.level);
  }
  empathy::BagOfWords const model = empathy::train_bag_of_words(texts, levels);
  empathy::save_bag_of_words(save_to, model);
  std::vector<int> out;
  for (data::Post const& post : held_out)
    out.push_back(empathy::most_probable(model.probabilities(post.response)));
  return out;
}

}  // namespace

void identify(Common const& common, IdentifyOptions const& o) {
  expect_there(o.encoder, "--encoder");
  expect_there(o.data, "--data");
  auto const engine = open_engine(common);
  train::Generator<float> const encoder = train::load_generator<float>(o.encoder);
  prepare_output(o.out);
  write_configuration(o.out, common);

  train::InterruptGuard const guard;  // from here on Ctrl-C finishes the step and saves
  io::Json report = io::Json::array();
  for (data::Mechanism const mechanism : data::all_mechanisms) {
    std::string const name(data::mechanism_name(mechanism));
    if (o.mechanism != "all" && o.mechanism != name) continue;
    std::vector<data::Post> const posts = data::load_mental_health(o.data, mechanism);
    data::PostSplits const parts = data::split_by_seeker(posts, common.seed, {0.1, 0.2});
    if (parts.train.empty() || parts.test.empty()) {
      throw ConfigError("--data " + o.data.string() +
                        " has too few seekers to train on some and judge on others.");
    }
    auto const encoded = [&](std::vector<data::Post> const& part) {
      return train::encode_posts(encoder.tokenizer, part);
    };
    train::EncodedPosts const train_set = encoded(parts.train);
    train::EncodedPosts const valid_set = encoded(parts.valid);
    train::EncodedPosts const test_set = encoded(parts.test);

    train::IdentifierModel<float> identifier(
        encoder.config(),
        text::SentencePieceTokenizer(encoder.tokenizer.serialized(), "spiece.model"));
    empathy::initialise(identifier.weights, encoder.config(), encoder.weights, common.seed);
    fs::path const folder = o.out / name;
    prepare_output(folder);
    train::FitOptions fit;
    fit.phase = "identify " + name;
    fit.epochs = o.epochs;
    fit.batch_size = o.batch;
    fit.learning_rate = o.learning_rate;
    fit.warmup_steps = (train_set.rows() + o.batch - 1) / o.batch / 2;
    fit.seed = common.seed;
    fit.patience = o.patience;
    fit.save_every = o.save_every;
    fit.checkpoint = folder / "checkpoint";
    train::MetricsLog log(folder);
    train::fit_identifier(*engine, identifier, train_set, valid_set,
                          {.dropout = o.dropout,
                           .seed = common.seed,
                           .class_weights = o.class_weights ? train::ClassWeights::balanced
                                                            : train::ClassWeights::none},
                          fit, &log);
    train::save_identifier(folder, identifier);
    train::discard_checkpoint(fit.checkpoint);

    auto const trained = engine->load(identifier.model, identifier.weights);
    std::vector<train::IdentifierPredictions> const systems{
        {"identifier", likeliest(train::level_probabilities(*trained, test_set.pairs))},
        train::majority_class(parts.train, parts.test.size()),
        {"bag of words", bag_of_words(parts.train, parts.test, folder / "bag_of_words.json")}};
    train::IdentifierReport const scores = train::report_identifiers(
        mechanism, parts.test, systems, data::level_counts(parts.train), {.seed = common.seed});
    fmt::print("\n");
    print_table(train::identifier_table(scores));
    report.push_back(train::identifier_report_to_json(scores));
  }
  io::write_json_file(o.out / "metrics.json", {{"identifiers", report}});
}

void add_identify(CLI::App& app, Common& common) {
  auto o = std::make_shared<IdentifyOptions>();
  CLI::App* const c = app.add_subcommand("identify", "Train the empathy identifiers");
  c->add_option("--encoder", o->encoder, "T5 folder whose encoder both encoders start from")
      ->required();
  c->add_option("--data", o->data, "Folder of the Mental Health Subreddits CSVs")->required();
  c->add_option("--out", o->out, "Folder to write: er/, ip/, ex/ and metrics.json")->required();
  c->add_option("--mechanism", o->mechanism, "er, ip, ex or all")
      ->check(CLI::IsMember({"er", "ip", "ex", "all"}))
      ->capture_default_str();
  c->add_option("--epochs", o->epochs, "Passes over the posts at most")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  c->add_option("--batch", o->batch, "Posts in a step")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  c->add_option("--lr", o->learning_rate, "Peak learning rate")->capture_default_str();
  c->add_option("--dropout", o->dropout, "Dropout")
      ->check(CLI::Range(0.0, 0.9))
      ->capture_default_str();
  c->add_option("--patience", o->patience, "Stop after so many epochs without gain; 0: never")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_flag("--class-weights", o->class_weights, "Weigh the levels by their rarity");
  c->add_option("--save-every", o->save_every, "Steps between checkpoints; 0: each epoch")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  add_common(*c, common);
  c->footer(
      "Example:\n"
      "  emprl identify --encoder runs/generator --data data/empathy_mental_health \\\n"
      "    --mechanism all --out runs/identifiers");
  c->callback([o, &common] { identify(common, *o); });
}

}  // namespace emprl::program
