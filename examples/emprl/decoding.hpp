// SPDX-License-Identifier: Apache-2.0
#pragma once

// How responses are decoded: the flags that generate and chat share, and what they lead to.

#include <CLI/CLI.hpp>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "emprl/gen/beam_search.hpp"
#include "emprl/gen/generate.hpp"
#include "emprl/train/engine.hpp"

namespace emprl::program {

struct DecodingOptions {
  gen::SamplingConfig sampling = gen::SamplingConfig::emprl();
  index_t beams = 0;     ///< 0: no beam search
  gen::BeamConfig beam;  ///< of a beam search; its width is `beams`

  /// The search that the flags ask for, with so many responses.
  gen::BeamConfig search(index_t n_best) const {
    gen::BeamConfig config = beam;
    config.beams = beams;
    config.n_best = n_best;
    return config;
  }
};

/// Adds --greedy | --beams | --temperature --top-k --top-p, --length-penalty, --early-stopping,
/// --min-tokens, --max-tokens, --repetition-penalty, --no-repeat-ngram. Flags that contradict each
/// other are parse errors that name both.
void add_decoding_options(CLI::App& command, DecodingOptions& options);

/// Makes an option of the command wrong usage without --beams, and with another kind of decoding.
void only_with_beams(CLI::App& command, CLI::Option& option);

/// The options after some flags more, which are written as on the command line. A flag of another
/// kind of decoding (sampling, greedy, beams) changes the kind.
/// @throws ConfigError saying what is wrong with a flag
DecodingOptions changed(DecodingOptions const& options, std::vector<std::string> flags);

/// The options as flags.
std::string flags_of(DecodingOptions const& options);

/// A response and what is known of it.
struct Response {
  std::vector<std::int32_t> tokens;
  gen::TokenDetails details;  ///< empty unless asked for; of a beam search always there
  std::optional<double> score;
};

/// Decodes contexts, on the device of the model. For each as many responses as there are sites for
/// a context, or with beams the `many` best.
/// @param sampling  options.sampling with what the tokenizer bars
/// @param sites     contexts.rows() * many of them; not used with beams
std::vector<std::vector<Response>> decode(train::EngineT5& model, RaggedView contexts,
                                          DecodingOptions const& options,
                                          gen::SamplingConfig const& sampling, index_t many,
                                          std::span<gen::DrawSite const> sites, bool details);

/// What --details adds of tokens: "ids", "tokens" (their pieces), "logprobs" (natural logarithms,
/// the model's full softmax), "entropies" (nats, of the same).
io::Json token_details(text::SentencePieceTokenizer const& tokenizer,
                       std::span<std::int32_t const> ids, std::span<double const> logprobs,
                       std::span<double const> entropies);

/// The same of a response, with "logprob" (the sum) and, where it was drawn, "drawn_logprobs" of
/// the distribution after penalties, bars and filters, where it was searched, "token_scores" and
/// the "score" that it was ranked by.
io::Json response_details(text::SentencePieceTokenizer const& tokenizer, Response const& response,
                          bool greedy);

}  // namespace emprl::program
