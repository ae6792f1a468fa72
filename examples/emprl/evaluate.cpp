// SPDX-License-Identifier: Apache-2.0

// emprl evaluate: models or finished responses against the target levels, beside floors and
// controls.

#include "commands.hpp"

#include <fmt/core.h>

#include <memory>

#include "emprl/data/pairs.hpp"
#include "emprl/io/json_lines.hpp"
#include "emprl/train/empathy_scorer.hpp"
#include "emprl/train/evaluation.hpp"
#include "emprl/train/floors.hpp"
#include "emprl/train/interrupt.hpp"
#include "emprl/train/progress.hpp"
#include "emprl/train/sequence_task.hpp"
#include "engine.hpp"
#include "report.hpp"
#include "table.hpp"

namespace emprl::program {

namespace {

using Scorer = train::EmpathyScorer<float>;

constexpr std::size_t rows_at_once = 128;
/// Dialogues on which the constant and template floors are chosen.
constexpr std::size_t template_rows = 300;

/// Scores in pieces, so that memory stays small and an interruption is heard.
struct PiecewiseScorer {
  Scorer const& scorer;
  std::vector<empathy::LevelProbabilities> operator()(
      std::span<std::string const> contexts, std::span<std::string const> responses) const {
    std::vector<empathy::LevelProbabilities> all;
    for (std::size_t begin = 0; begin < contexts.size(); begin += rows_at_once) {
      if (train::interrupted())
        throw train::Interrupted("nothing was written; run the same command again.");
      std::size_t const n = std::min(rows_at_once, contexts.size() - begin);
      auto const part = scorer(contexts.subspan(begin, n), responses.subspan(begin, n));
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }
};

struct Answers {
  Ragged ids;
  std::vector<std::string> texts;
};

/// A generator, and the same on the device.
struct Loaded {
  std::unique_ptr<train::Generator<float>> generator;
  std::unique_ptr<train::EngineT5> model;

  Loaded(train::Engine& engine, System const& system)
      : generator(std::make_unique<train::Generator<float>>(
            train::load_generator<float>(system.model, system.adapter))),
        model(engine.load(*generator)) {}
};

/// One sampled response for each context; `round` tells repeated samplings apart.
Answers answer(Common const& common, Loaded const& loaded, gen::SamplingConfig const& config,
               std::span<data::Pair const> pairs, std::uint32_t round, std::string const& label) {
  train::Generator<float> const& generator = *loaded.generator;
  gen::SamplingConfig const sampling = train::barred_beyond_tokenizer(config, generator);
  train::Progress progress(label, static_cast<index_t>(pairs.size()), "responses");
  Answers out;
  for (std::size_t begin = 0; begin < pairs.size(); begin += rows_at_once) {
    if (train::interrupted())
      throw train::Interrupted("nothing was written; run the same command again.");
    auto const part = pairs.subspan(begin, std::min(rows_at_once, pairs.size() - begin));
    Ragged contexts;
    for (data::Pair const& pair : part) {
      contexts.push_back(
          text::encode_with_end(generator.tokenizer, pair.context, text::TokenLimits{}.context));
    }
    Ragged const responses = loaded.model->generate(contexts.view(), sampling, common.seed, round,
                                                    static_cast<std::uint32_t>(begin));
    for (index_t i = 0; i < responses.rows(); ++i) {
      out.ids.push_back(responses.row(i));
      out.texts.push_back(generator.tokenizer.decode(responses.row(i)));
    }
    progress.advance(static_cast<index_t>(begin + part.size()));
  }
  progress.finish();
  return out;
}

index_t target_bytes(std::span<data::Pair const> pairs) {
  index_t bytes = 0;
  for (data::Pair const& pair : pairs) bytes += static_cast<index_t>(pair.response.size());
  return bytes;
}

/// KL to the reference of a system's own samples, a response: mean of sum_t log p - log q.
double kl_per_sequence(Loaded const& policy, Loaded const& reference,
                       std::span<data::Pair const> pairs, Ragged const& responses) {
  text::EncodedPairs encoded;
  for (data::Pair const& pair : pairs) {
    encoded.contexts.push_back(text::encode_with_end(policy.generator->tokenizer, pair.context,
                                                     text::TokenLimits{}.context));
  }
  encoded.responses = responses;
  std::vector<double> p, q;
  train::likelihood(*policy.model, encoded, 64, &p);
  train::likelihood(*reference.model, encoded, 64, &q);
  double sum = 0;
  for (std::size_t i = 0; i < p.size(); ++i) sum += p[i] - q[i];
  return sum / static_cast<double>(p.size());
}

/// What everything is judged on.
struct JudgeSet {
  std::vector<data::Pair> pairs;  ///< with target levels, `limit` of them
  std::vector<data::Pair> all;    ///< the whole split, for likelihoods
  std::vector<data::Pair>
      choosing;  ///< other pairs with levels, on which floors choose their constants
  std::string description;
};

void label_missing(PiecewiseScorer const& scorer, std::vector<data::Pair>& pairs) {
  std::vector<std::string> contexts, responses;
  std::vector<std::size_t> missing;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    if (pairs[i].levels) continue;
    missing.push_back(i);
    contexts.push_back(pairs[i].context);
    responses.push_back(pairs[i].response);
  }
  auto const p = scorer(contexts, responses);
  for (std::size_t i = 0; i < missing.size(); ++i)
    pairs[missing[i]].levels = empathy::most_probable(p[i]);
}

/// Every k-th pair, so that a limited set still covers the whole file.
std::vector<data::Pair> spread(std::vector<data::Pair> const& pairs, index_t limit) {
  if (limit <= 0 || static_cast<std::size_t>(limit) >= pairs.size()) return pairs;
  std::vector<data::Pair> some;
  for (index_t i = 0; i < limit; ++i) {
    some.push_back(
        pairs[static_cast<std::size_t>(i) * pairs.size() / static_cast<std::size_t>(limit)]);
  }
  return some;
}

JudgeSet load_judge_set(PiecewiseScorer const& scorer, EvaluateOptions const& o) {
  JudgeSet set;
  data::PairSet loaded = data::load_pairs(o.data, data::Split::test, o.context);
  set.all = std::move(loaded.pairs);
  set.pairs = spread(set.all, o.limit);
  label_missing(scorer, set.pairs);
  fs::path const choose_from = !o.train_data.empty() ? o.train_data : o.data;
  if (!o.train_data.empty() || fs::is_directory(o.data)) {
    set.choosing = spread(data::load_pairs(choose_from, data::Split::train, o.context).pairs,
                          static_cast<index_t>(template_rows));
    label_missing(scorer, set.choosing);
  } else {
    // One file: its first half chooses, and the floors are then a little too good on that half.
    set.choosing =
        spread({set.pairs.begin(),
                set.pairs.begin() + static_cast<std::ptrdiff_t>((set.pairs.size() + 1) / 2)},
               static_cast<index_t>(template_rows));
  }
  set.description = fmt::format(
      "{} of {} pairs of {}{}", set.pairs.size(), set.all.size(), loaded.file.filename().string(),
      loaded.has_splits && loaded.split != data::Split::test
          ? fmt::format(" (there is no test split; this is {})", data::split_name(loaded.split))
          : "");
  return set;
}

/// Responses that were made elsewhere: one line for each pair of the judge set, with "generated" or
/// "response".
std::vector<std::string> read_responses(fs::path const& path, std::size_t expected) {
  std::vector<std::string> texts;
  for (io::JsonLine const& line : io::read_json_lines(path)) {
    std::string const where = io::place(path.string(), line.line);
    char const* const key = line.value.contains("generated") ? "generated" : "response";
    if (!line.value.contains(key) || !line.value[key].is_string()) {
      throw IoError(where + ": a text \"generated\" or \"response\" was expected.");
    }
    texts.push_back(line.value[key].get<std::string>());
  }
  if (texts.size() != expected) {
    throw IoError(path.string() + ": " + std::to_string(texts.size()) + " responses, but " +
                  std::to_string(expected) +
                  " pairs to judge them on; use --limit 0 and the same data.");
  }
  return texts;
}

io::Json sample_dialogues(JudgeSet const& set, std::vector<train::SystemEvaluation> const& systems,
                          std::size_t n) {
  io::Json samples = io::Json::array();
  for (std::size_t k = 0; k < n && k < set.pairs.size(); ++k) {
    // Spread over the set, off its first row, so that no one chooses them.
    std::size_t const i = (2 * k + 1) * set.pairs.size() / (2 * n);
    io::Json answers = io::Json::array();
    answers.push_back(
        {{"name", "human"}, {"text", set.pairs[i].response}, {"levels", *set.pairs[i].levels}});
    for (train::SystemEvaluation const& s : systems) {
      answers.push_back({{"name", s.name}, {"text", s.responses[i]}, {"levels", s.levels[i]}});
    }
    samples.push_back({{"emotion", set.pairs[i].emotion},
                       {"context", set.pairs[i].context},
                       {"target_levels", *set.pairs[i].levels},
                       {"answers", answers}});
  }
  return samples;
}

void print_samples(io::Json const& samples) {
  fmt::print("\nSample dialogues (levels: emotional reaction, interpretation, exploration)\n");
  for (auto const& sample : samples) {
    fmt::print("\n  context    {}\n", sample["context"].get<std::string>());
    for (auto const& answer : sample["answers"]) {
      auto const levels = answer["levels"].get<std::vector<int>>();
      fmt::print("  {:<10} {}  ({} {} {})\n", answer["name"].get<std::string>(),
                 answer["text"].get<std::string>(), levels[0], levels[1], levels[2]);
    }
  }
}

}  // namespace

io::Json evaluate(Common const& common, EvaluateOptions const& o) {
  expect_there(o.identifiers, "--identifiers");
  expect_there(o.data, "--data");
  if (!o.responses.empty()) expect_there(o.responses, "--responses");
  for (System const& system : o.systems) expect_there(system.model, "--model");
  train::InterruptGuard const guard;
  auto const engine = open_engine(common);
  Scorer const three(*engine, o.identifiers);
  for (std::string const& sentence : three.warnings()) fmt::print(stderr, "{}\n", sentence);
  PiecewiseScorer const scorer{three};
  JudgeSet const set = load_judge_set(scorer, o);
  train::EvaluationOptions options;
  options.bootstrap_samples = o.bootstrap;
  options.seed = common.seed;

  std::vector<train::SystemEvaluation> systems;
  if (!o.responses.empty()) {
    systems.push_back(train::evaluate_responses(
        "responses", set.pairs, read_responses(o.responses, set.pairs.size()), scorer, options));
  }
  std::optional<Loaded> reference;
  train::AnswerSamples samples{std::vector<std::vector<std::string>>(set.pairs.size()),
                               std::vector<std::vector<index_t>>(set.pairs.size())};
  index_t answer_tokens = 0;
  for (System const& system : o.systems) {
    Loaded loaded(*engine, system);
    train::Generator<float> const& generator = *loaded.generator;
    Answers const answers = answer(common, loaded, o.sampling, set.pairs, 0, system.name);
    train::SystemEvaluation one =
        train::evaluate_responses(system.name, set.pairs, answers.texts, scorer, options);
    one.kind = system.kind == "control" ? train::SystemKind::control : train::SystemKind::system;
    auto const likelihood_of = [&](std::vector<data::Pair> const& pairs) {
      train::Likelihood l = train::likelihood(
          *loaded.model,
          text::encode_pairs(generator.tokenizer, std::span<data::Pair const>(pairs)));
      l.bytes = target_bytes(pairs);
      return l;
    };
    train::Likelihood const likelihood = likelihood_of(set.all);
    one.likelihood.perplexity = likelihood.perplexity();
    one.likelihood.bits_per_byte = likelihood.bits_per_byte();
    one.likelihood.shuffled_bits_per_byte =
        likelihood_of(train::shuffled_contexts(set.all, common.seed)).bits_per_byte();
    if (!reference) {
      one.likelihood.kl_per_sequence = 0.0;
      answer_tokens = answers.ids.tokens();
      for (index_t round = 0; round < o.best_of; ++round) {
        Answers const more = round == 0 ? Answers(answers)
                                        : answer(common, loaded, o.sampling, set.pairs,
                                                 static_cast<std::uint32_t>(round), "best of n");
        for (std::size_t i = 0; i < set.pairs.size(); ++i) {
          samples.texts[i].push_back(more.texts[i]);
          samples.tokens[i].push_back(more.ids.view().length(static_cast<index_t>(i)));
        }
      }
      reference.emplace(std::move(loaded));
    } else if (generator.tokenizer.serialized() == reference->generator->tokenizer.serialized()) {
      one.likelihood.kl_per_sequence = kl_per_sequence(loaded, *reference, set.pairs, answers.ids);
    }
    systems.push_back(std::move(one));
  }
  std::size_t const judged = systems.size();

  fmt::print(stderr, "floors\n");
  train::Templates const templates = train::choose_templates(set.choosing, scorer);
  for (train::SystemEvaluation& floor :
       train::evaluate_floors(set.pairs, templates, scorer, options)) {
    systems.push_back(std::move(floor));
  }
  if (reference && o.best_of > 1) {
    systems.push_back(
        train::evaluate_best_of_n(set.pairs, samples, scorer, options, o.best_of * answer_tokens));
  }
  auto const probes = train::probe_identifiers(set.pairs, scorer);

  std::vector<train::SystemEvaluation> const shown(
      systems.begin(), systems.begin() + static_cast<std::ptrdiff_t>(judged));
  io::Json report = o.extra.is_object() ? o.extra : io::Json::object();
  if (!report.contains("title")) report["title"] = "EmpRL: evaluation";
  report["judged_on"] = set.description;
  report["note"] = report.value("note", std::string()) + (report.contains("note") ? " " : "") +
                   "Levels and rewards come from the identifiers, not from people: read them as "
                   "identifier scores, not as "
                   "empathy. They are not comparable with numbers from other identifiers.";
  report["metrics"] = train::metric_descriptions();
  report["systems"] = io::Json::array();
  for (train::SystemEvaluation const& s : systems)
    report["systems"].push_back(train::evaluation_to_json(s));
  report["marginals"] = train::marginals_to_json(shown);
  report["probes"] = train::probes_to_json(probes);
  report["samples"] = sample_dialogues(set, shown, 4);

  fmt::print("\nJudged on {}\n", set.description);
  io::Json comparisons = io::Json::array();
  for (std::size_t i = 1; i < judged; ++i) {
    train::Comparison const gain = train::compare(systems[0], systems[i]);
    comparisons.push_back(train::comparison_to_json(gain));
    fmt::print("\n");
    print_table(train::before_after_table(systems[0], systems[i], gain));
    if (i == 1) {
      report["gains"] = {{{"name", "reward"},
                          {"value", gain.reward.value},
                          {"low", gain.reward.low},
                          {"high", gain.reward.high}},
                         {{"name", "Emp-F1"},
                          {"value", gain.emp_f1.value},
                          {"low", gain.emp_f1.low},
                          {"high", gain.emp_f1.high}}};
    }
  }
  report["comparisons"] = comparisons;
  fmt::print("\n");
  print_table(train::systems_table(systems));
  fmt::print("\n");
  print_table(train::marginals_table(shown));
  fmt::print("\n");
  print_table(train::probes_table(probes));
  print_samples(report["samples"]);

  if (!o.report.empty()) {
    prepare_output(o.report.has_parent_path() ? o.report.parent_path() : fs::path("."));
    io::write_json_file(o.report, report);
    fmt::print("\nReport: {}\n", o.report.string());
  }
  if (!o.html.empty()) {
    write_html_report(o.html, nlohmann::json::parse(report.dump()));
    fmt::print("Page:   {}\n", o.html.string());
  }
  return report;
}

void add_evaluate(CLI::App& app, Common& common) {
  struct Given {
    EvaluateOptions options;
    std::vector<std::string> models;
    fs::path adapter;
  };
  auto o = std::make_shared<Given>();
  CLI::App* const c =
      app.add_subcommand("evaluate", "Judge models or responses, beside floors and controls");
  auto* const models = c->add_option(
      "--model", o->models, "Model folder, or NAME=FOLDER; several are compared with the first");
  auto* const responses = c->add_option("--responses", o->options.responses,
                                        "JSON lines with \"generated\", one a pair of --data");
  models->excludes(responses);
  c->add_option("--adapter", o->adapter, "Folder of a prefix or a LoRA of the last model");
  c->add_option("--identifiers", o->options.identifiers, "Folder with er/, ip/ and ex/")
      ->required();
  c->add_option("--data", o->options.data,
                "Pairs to judge on: JSON lines or a folder (test, else valid)")
      ->required();
  c->add_option("--report", o->options.report, "JSON report to write")->required();
  c->add_option("--html", o->options.html, "Page to write");
  c->add_option("--limit", o->options.limit, "Pairs to answer at most; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  c->add_option("--bootstrap", o->options.bootstrap, "Resamples behind an interval")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  c->add_option("--best-of", o->options.best_of, "Samples of the oracle floor; 1: none")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_sampling_options(*c, o->options.sampling);
  add_context_options(*c, o->options.context);
  add_common(*c, common);
  c->footer(
      "Examples:\n"
      "  emprl evaluate --model before=runs/generator --model after=runs/aligned \\\n"
      "    --identifiers runs/identifiers --data data/empathetic_dialogues \\\n"
      "    --report report.json --html report.html --limit 1000\n"
      "  emprl evaluate --responses answers.jsonl --identifiers runs/identifiers \\\n"
      "    --data pairs.jsonl --report report.json");
  c->callback([o, &common] {
    if (o->models.empty() && o->options.responses.empty()) {
      throw ConfigError("evaluate needs --model or --responses.");
    }
    for (std::size_t i = 0; i < o->models.size(); ++i) {
      std::string const& given = o->models[i];
      std::size_t const equals = given.find('=');
      bool const named = equals != std::string::npos && !fs::exists(given);
      fs::path const folder = named ? given.substr(equals + 1) : given;
      fs::path const name_of =
          folder.has_filename() ? folder.filename() : folder.parent_path().filename();
      o->options.systems.push_back({named ? given.substr(0, equals) : name_of.string(), folder,
                                    i + 1 == o->models.size() ? o->adapter : fs::path{}, "system"});
    }
    evaluate(common, o->options);
  });
}

}  // namespace emprl::program
