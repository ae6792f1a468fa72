// SPDX-License-Identifier: Apache-2.0

// The decoding flags of generate and chat.

#include "decoding.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <sstream>

#include "configuration.hpp"

namespace emprl::program {

namespace {

std::map<std::string, gen::EarlyStopping> const stoppings{{"false", gen::EarlyStopping::heuristic},
                                                          {"true", gen::EarlyStopping::at_once},
                                                          {"never", gen::EarlyStopping::never}};

std::string number(double x) {
  std::ostringstream text;
  text << x;
  return text.str();
}

}  // namespace

void only_with_beams(CLI::App& command, CLI::Option& option) {
  option.needs(command.get_option("--beams"));
  for (char const* other : {"--greedy", "--temperature", "--top-k", "--top-p"}) {
    option.excludes(command.get_option(other));
  }
}

void add_decoding_options(CLI::App& command, DecodingOptions& options) {
  add_sampling_options(command, options.sampling);
  auto* const beams = command.add_option("--beams", options.beams,
                                         "search for the likeliest response with so many beams");
  beams->check(CLI::Range(index_t{1}, index_t{1024}))->default_str("");
  for (char const* other : {"--greedy", "--temperature", "--top-k", "--top-p"}) {
    beams->excludes(command.get_option(other));
  }
  // These have no default to show: it would be read back from a configuration without --beams.
  auto* const length_penalty = command.add_option(
      "--length-penalty", options.beam.length_penalty,
      "beams rank a response by its log-probability over its length to this power; 1 unless given");
  length_penalty->default_str("")->check([](std::string const& text) -> std::string {
    double value = 0;
    bool const fine = CLI::detail::lexical_cast(text, value) && std::isfinite(value);
    return fine ? "" : text + " is not a finite number";
  });
  auto* const early_stopping = command.add_option_function<std::string>(
      "--early-stopping",
      [&options](std::string const& name) {
        auto const found = stoppings.find(name);
        if (found == stoppings.end()) {
          throw CLI::ValidationError("--early-stopping",
                                     "\"" + name + "\" is none of false, true and never");
        }
        options.beam.early_stopping = found->second;
      },
      "when beams stop, there being as many finished responses: true: at once; false: when it is "
      "unlikely that better ones come; never: when none can come; false unless given");
  for (CLI::Option* const option : {length_penalty, early_stopping})
    only_with_beams(command, *option);
  command
      .add_option(
          "--repetition-penalty", options.sampling.repetition_penalty,
          "divides positive and multiplies negative scores of tokens that were there; 1: off")
      ->check([](std::string const& text) -> std::string {
        double value = 0;
        bool const fine =
            CLI::detail::lexical_cast(text, value) && std::isfinite(value) && value > 0;
        return fine ? "" : text + " is not a number above 0";
      });
  command
      .add_option("--no-repeat-ngram", options.sampling.no_repeat_ngram,
                  "bar tokens that would make so many in a row come twice; 0: off")
      ->check(CLI::Range(index_t{0}, index_t{4096}));
}

DecodingOptions changed(DecodingOptions const& options, std::vector<std::string> flags) {
  DecodingOptions next = options;
  CLI::App app;
  app.set_help_flag();
  app.option_defaults()->always_capture_default();
  auto const given = [&](std::vector<std::string> const& names) {
    return std::any_of(names.begin(), names.end(), [&](std::string const& name) {
      return std::any_of(flags.begin(), flags.end(), [&](std::string const& flag) {
        return flag == name || flag.starts_with(name + "=");
      });
    });
  };
  if (given({"--temperature", "--top-k", "--top-p"})) {
    next.sampling.greedy = false;
    next.beams = 0;
  } else if (given({"--greedy"})) {
    next.beams = 0;
  } else if (given({"--beams"})) {
    next.sampling.greedy = false;
  } else if (options.beams > 0) {
    // The flags that only beams have look for it.
    flags.insert(flags.begin(), "--beams=" + std::to_string(options.beams));
  }
  add_decoding_options(app, next);
  try {
    app.parse(std::vector<std::string>(flags.rbegin(), flags.rend()));
  } catch (CLI::ExtrasError const&) {
    for (std::string const& flag : flags) {
      std::string const name = flag.substr(0, flag.find('='));
      if (flag.starts_with("--") && app.get_option_no_throw(name) != nullptr) continue;
      if (flag.starts_with("--")) {
        std::vector<std::string> known;
        for (std::string const& key : known_keys(app)) known.push_back("--" + key);
        throw ConfigError("unknown option " + name + suggestion(name, known) + ".");
      }
    }
    throw ConfigError("not understood; flags look like --temperature 0.7.");
  } catch (CLI::ParseError const& error) {
    throw ConfigError(error.what());
  }
  return next;
}

std::string flags_of(DecodingOptions const& options) {
  gen::SamplingConfig const& s = options.sampling;
  std::string text;
  if (options.beams > 0) {
    text = "--beams " + std::to_string(options.beams) + " --length-penalty " +
           number(options.beam.length_penalty) + " --early-stopping ";
    for (auto const& [name, value] : stoppings) {
      if (value == options.beam.early_stopping) text += name;
    }
  } else if (s.greedy) {
    text = "--greedy";
  } else {
    text = "--temperature " + number(s.temperature) + " --top-k " + std::to_string(s.top_k) +
           " --top-p " + number(s.top_p);
  }
  return text + " --min-tokens " + std::to_string(s.min_new_tokens) + " --max-tokens " +
         std::to_string(s.max_new_tokens) + " --repetition-penalty " +
         number(s.repetition_penalty) + " --no-repeat-ngram " + std::to_string(s.no_repeat_ngram);
}

std::vector<std::vector<Response>> decode(train::EngineT5& model, RaggedView contexts,
                                          DecodingOptions const& options,
                                          gen::SamplingConfig const& sampling, index_t many,
                                          std::span<gen::DrawSite const> sites, bool details) {
  std::vector<std::vector<Response>> all(static_cast<std::size_t>(contexts.rows()));
  train::EngineDecoder decoder(model);
  if (options.beams > 0) {
    auto found = gen::beam_search(decoder, contexts, sampling, options.search(many));
    for (std::size_t i = 0; i < found.size(); ++i) {
      for (gen::Hypothesis& h : found[i]) {
        all[i].push_back({std::move(h.tokens), std::move(h.details), h.score});
      }
    }
    return all;
  }
  gen::DetailsObserver observer(sites.size());
  Ragged responses;
  if (details) {
    responses = gen::generate_samples(decoder, contexts, many, sampling, sites, observer);
  } else if (many > 1) {
    responses = gen::generate_samples(decoder, contexts, many, sampling, sites);
  } else {
    // Where the device can draw itself, no logits travel.
    responses = model.generate(contexts, sampling, sites);
  }
  for (index_t i = 0; i < responses.rows(); ++i) {
    auto const row = responses.row(i);
    all[static_cast<std::size_t>(i / many)].push_back(
        {{row.begin(), row.end()}, std::move(observer.details[static_cast<std::size_t>(i)]), {}});
  }
  return all;
}

io::Json token_details(text::SentencePieceTokenizer const& tokenizer,
                       std::span<std::int32_t const> ids, std::span<double const> logprobs,
                       std::span<double const> entropies) {
  io::Json pieces = io::Json::array();
  for (std::size_t i = 0; i < ids.size(); ++i) {
    pieces.push_back(ids[i] < tokenizer.pieces() ? tokenizer.piece(ids[i])
                                                 : tokenizer.decode(ids.subspan(i, 1)));
  }
  io::Json out = io::Json::object();
  out["ids"] = std::vector<std::int32_t>(ids.begin(), ids.end());
  out["tokens"] = std::move(pieces);
  out["logprobs"] = std::vector<double>(logprobs.begin(), logprobs.end());
  out["entropies"] = std::vector<double>(entropies.begin(), entropies.end());
  return out;
}

io::Json response_details(text::SentencePieceTokenizer const& tokenizer, Response const& response,
                          bool greedy) {
  gen::TokenDetails const& d = response.details;
  io::Json out = token_details(tokenizer, response.tokens, d.logp, d.entropy);
  out["logprob"] = std::accumulate(d.logp.begin(), d.logp.end(), 0.0);
  if (response.score) {
    out["token_scores"] = d.drawn_logp;
    out["score"] = *response.score;
  } else if (!greedy) {
    out["drawn_logprobs"] = d.drawn_logp;
  }
  return out;
}

}  // namespace emprl::program
