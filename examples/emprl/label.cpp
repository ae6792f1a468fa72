// SPDX-License-Identifier: Apache-2.0

// emprl label: the identifiers' levels of target responses.

#include "commands.hpp"

#include <fmt/core.h>

#include "emprl/data/pairs.hpp"
#include "emprl/io/json_lines.hpp"
#include "emprl/train/empathy_scorer.hpp"
#include "emprl/train/progress.hpp"
#include "engine.hpp"
#include "lines.hpp"

namespace emprl::program {

namespace {

constexpr std::size_t rows_at_once = 256;

/// The probabilities of a response's levels, under the mechanisms' names.
io::Json probabilities_to_json(empathy::LevelProbabilities const& p) {
  io::Json json = io::Json::object();
  for (data::Mechanism const mechanism : data::all_mechanisms) {
    json[std::string(data::mechanism_name(mechanism))] = p[static_cast<std::size_t>(mechanism)];
  }
  return json;
}

/// Calls write(i, probabilities) for every row, in order.
template <class Write>
void label_rows(train::EmpathyScorer<float> const& scorer, std::vector<std::string> const& contexts,
                std::vector<std::string> const& responses, Write write) {
  train::Progress progress("label", static_cast<index_t>(contexts.size()), "responses");
  for (std::size_t begin = 0; begin < contexts.size(); begin += rows_at_once) {
    std::size_t const n = std::min(rows_at_once, contexts.size() - begin);
    auto const p =
        scorer(std::span(contexts).subspan(begin, n), std::span(responses).subspan(begin, n));
    for (std::size_t i = 0; i < n; ++i) write(begin + i, p[i]);
    progress.advance(static_cast<index_t>(begin + n));
  }
  progress.finish();
}

}  // namespace

void label(Common const& common, LabelOptions const& o) {
  expect_there(o.identifiers, "--identifiers");
  expect_there(o.input, "--input");
  auto const engine = open_engine(common);
  train::EmpathyScorer<float> const scorer(*engine, o.identifiers);
  for (std::string const& sentence : scorer.warnings()) warn(sentence);
  std::vector<std::string> contexts, responses;
  std::vector<io::Json> lines;
  bool const json_lines = !fs::is_directory(o.input) && o.input.extension() != ".csv";
  if (json_lines) {
    for (io::JsonLine& line : io::read_json_lines(o.input)) {
      data::Pair const pair =
          data::pair_from_json(line.value, io::place(o.input.string(), line.line));
      contexts.push_back(pair.context);
      responses.push_back(pair.response);
      lines.push_back(std::move(line.value));
    }
  } else {
    data::Split const split = o.split == "train"   ? data::Split::train
                              : o.split == "valid" ? data::Split::valid
                                                   : data::Split::test;
    data::PairSet const set = data::load_pairs(o.input, split, o.context);
    for (data::DataWarning const& warning : set.warnings)
      fmt::print(stderr, "{}\n", data::to_string(warning));
    for (data::Pair const& pair : set.pairs) {
      contexts.push_back(pair.context);
      responses.push_back(pair.response);
      lines.push_back(data::pair_to_json(pair));
    }
  }
  prepare_output(o.output.has_parent_path() ? o.output.parent_path() : fs::path("."));
  io::JsonLinesWriter writer(o.output);
  std::array<std::array<index_t, 3>, 3> counts{};
  auto const write = [&](std::size_t i, empathy::LevelProbabilities const& p) {
    data::Levels const levels = empathy::most_probable(p);
    for (std::size_t k = 0; k < 3; ++k) ++counts[k][static_cast<std::size_t>(levels[k])];
    lines[i]["levels"] = data::levels_to_json(levels);
    if (o.probabilities) lines[i]["probabilities"] = probabilities_to_json(p);
    writer.write(lines[i]);
  };
  label_rows(scorer, contexts, responses, write);
  writer.commit();
  for (data::Mechanism const mechanism : data::all_mechanisms) {
    auto const& c = counts[static_cast<std::size_t>(mechanism)];
    fmt::print("{:<20} level 0: {:>6}   level 1: {:>6}   level 2: {:>6}\n",
               data::mechanism_title(mechanism), c[0], c[1], c[2]);
  }
}

void add_label(CLI::App& app, Common& common) {
  auto o = std::make_shared<LabelOptions>();
  CLI::App* const c =
      app.add_subcommand("label", "Add the levels of the target responses to dialogues");
  c->add_option("--identifiers", o->identifiers, "Folder with er/, ip/ and ex/")->required();
  c->add_option("--input", o->input, "JSON lines, or dialogue CSVs")->required();
  c->add_option("--output", o->output, "JSON lines to write: the input with \"levels\"")
      ->required();
  c->add_option("--split", o->split, "Which part of a folder: train, valid or test")
      ->check(CLI::IsMember({"train", "valid", "test"}))
      ->capture_default_str();
  c->add_flag("--probabilities", o->probabilities,
              "Add \"probabilities\", those of the levels 0, 1 and 2, too");
  add_context_options(*c, o->context);
  add_common(*c, common);
  c->footer(
      "Example:\n  emprl label --identifiers runs/identifiers --input pairs.jsonl \\\n    --output "
      "labelled.jsonl");
  c->callback([o, &common] { label(common, *o); });
}

}  // namespace emprl::program
