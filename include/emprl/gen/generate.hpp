// SPDX-License-Identifier: Apache-2.0
#pragma once

// The generation loop: contexts in, responses out, for any Decoder. Who asks gets the probabilities
// of the tokens besides, or several responses a context from one reading of it.

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/device.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/ragged.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/core/tensor.hpp"
#include "emprl/gen/decoder.hpp"
#include "emprl/gen/full_softmax.hpp"
#include "emprl/gen/sampling.hpp"

namespace emprl::gen {

/// Where a response's draws are taken: token t at {seed, Stream::sample, step, row, t}. Responses
/// with the same site, context and configuration are the same, whatever else is in the batch.
struct DrawSite {
  std::uint64_t seed = 0;
  std::uint32_t step = 0;
  std::uint32_t row = 0;
};

/// A token of a response at the moment it was chosen.
template <Scalar T>
struct ChosenToken {
  index_t row = 0;       ///< of the responses
  index_t position = 0;  ///< how many tokens the response had before it
  std::int32_t token = 0;
  std::span<T const> logits;  ///< as the model gave them; valid during the call alone
  /// Natural logarithm of the probability with which it was drawn: after penalties, bars,
  /// temperature and filters. 0 when greedy.
  double drawn_logp = 0;
};

/// Looks on while responses are generated. Called for every token, rows interleaved, a row's tokens
/// in their order.
template <class O, class T>
concept TokenObserver = std::invocable < O&,
        ChosenToken<T>
const& > ;

/// The observer of who wants the responses alone; nothing is computed for it.
struct NoObserver {
  template <class T>
  void operator()(ChosenToken<T> const&) const {}
};

namespace detail {

/// One response for each site, continuing the rows of `state`, which is before its first step.
template <Decoder M, class Observer>
Ragged generate_rows(M& model, typename M::State& state, SamplingConfig const& config,
                     std::span<DrawSite const> sites, Observer& observer) {
  using T = typename M::value_type;
  std::size_t const batch = sites.size();
  index_t const vocabulary = model.vocabulary();
  Tensor<T, 2, Cpu> const logits({static_cast<index_t>(batch), vocabulary});
  SamplerWorkspace<T> workspace;
  // What the decoder has read of each row, the start token first.
  std::vector<std::vector<std::int32_t>> rows(batch, {config.start});
  std::vector<index_t> active(batch);
  for (std::size_t i = 0; i < batch; ++i) active[i] = static_cast<index_t>(i);
  std::vector<std::int32_t> tokens(batch, config.start);

  for (index_t t = 0; t < config.max_new_tokens && !active.empty(); ++t) {
    auto const count = static_cast<index_t>(active.size());
    model.step(state, std::span<index_t const>(active), std::span<std::int32_t const>(tokens),
               logits.view().rows(0, count));
    std::size_t kept = 0;
    for (std::size_t i = 0; i < active.size(); ++i) {
      auto const row = static_cast<std::size_t>(active[i]);
      std::span<T const> const scores(logits.view().row(static_cast<index_t>(i)),
                                      static_cast<std::size_t>(vocabulary));
      DrawSite const& site = sites[row];
      RngAddress const at{site.seed, Stream::sample, site.step, site.row,
                          static_cast<std::uint32_t>(t)};
      std::int32_t token = 0;
      try {
        token =
            sample_token(scores, config, std::span<std::int32_t const>(rows[row]), at, workspace);
      } catch (Error const& error) {
        throw Error("response " + std::to_string(site.row) + ", token " + std::to_string(t) + ": " +
                    error.what());
      }
      if constexpr (!std::same_as<Observer, NoObserver>) {
        observer(ChosenToken<T>{active[i], t, token, scores,
                                std::log(workspace.drawn_weight / workspace.total_weight)});
      }
      rows[row].push_back(token);
      if (token == config.eos) continue;
      active[kept] = active[i];
      tokens[kept] = token;
      ++kept;
    }
    active.resize(kept);
    tokens.resize(kept);
  }
  Ragged responses;
  for (auto const& row : rows) responses.push_back(std::span<std::int32_t const>(row).subspan(1));
  return responses;
}

}  // namespace detail

/// Generates one response for each context. A response ends with `</s>`, which is part of it, or is
/// cut at `config.max_new_tokens`. Rows that have ended leave the batch.
/// @param sites     one a context
/// @param observer  sees every token as it is chosen
/// @throws ConfigError if the configuration is out of range, ShapeError if the number of sites is
/// not the number of contexts,
///         Error if a logit is NaN or +inf, naming the site's row
template <Decoder M, TokenObserver<typename M::value_type> Observer = NoObserver>
Ragged generate(M& model, RaggedView contexts, SamplingConfig const& config,
                std::span<DrawSite const> sites, Observer&& observer = {}) {
  config.validate();
  expects(static_cast<index_t>(sites.size()) == contexts.rows(),
          "generation needs one draw site for each context");
  if (sites.empty()) return {};
  typename M::State state = model.start(contexts);
  return detail::generate_rows(model, state, config, sites, observer);
}

/// Generates `samples` responses for each context, which is read once: response i samples + j is
/// the j-th of context i.
/// @param sites  one a response, in that order
/// @throws ConfigError if the configuration or `samples` is out of range, ShapeError if the number
/// of sites is not the number of responses, Error as generate
template <BeamDecoder M, TokenObserver<typename M::value_type> Observer = NoObserver>
Ragged generate_samples(M& model, RaggedView contexts, index_t samples,
                        SamplingConfig const& config, std::span<DrawSite const> sites,
                        Observer&& observer = {}) {
  config.validate();
  expects<ConfigError>(samples >= 1, "samples must be at least 1");
  expects(static_cast<index_t>(sites.size()) == samples * contexts.rows(),
          "generation of samples needs one draw site for each sample of each context");
  if (sites.empty()) return {};
  typename M::State state = model.start(contexts);
  if (samples > 1) {
    std::vector<index_t> sources(sites.size());
    for (std::size_t i = 0; i < sources.size(); ++i) {
      sources[i] = static_cast<index_t>(i) / samples;
    }
    model.reorder(state, std::span<index_t const>(sources));
  }
  return detail::generate_rows(model, state, config, sites, observer);
}

/// As generate at {seed, step, row_ids[i]}: the draws belong to the row's id, whatever the order or
/// the composition of the batch.
/// @param row_ids  one id a context; two rows with the same id and context get the same response
/// @throws as generate
template <Decoder M>
Ragged generate(M& model, RaggedView contexts, SamplingConfig const& config, std::uint64_t seed,
                std::uint32_t step, std::span<std::uint32_t const> row_ids) {
  expects(static_cast<index_t>(row_ids.size()) == contexts.rows(),
          "generation needs one row id for each context");
  std::vector<DrawSite> sites;
  for (std::uint32_t const id : row_ids) sites.push_back({seed, step, id});
  return generate(model, contexts, config, std::span<DrawSite const>(sites));
}

/// As above; the ids of the rows are first_row, first_row + 1, ...
template <Decoder M>
Ragged generate(M& model, RaggedView contexts, SamplingConfig const& config, std::uint64_t seed,
                std::uint32_t step, std::uint32_t first_row = 0) {
  std::vector<std::uint32_t> ids(static_cast<std::size_t>(contexts.rows()));
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = first_row + static_cast<std::uint32_t>(i);
  return generate(model, contexts, config, seed, step, std::span<std::uint32_t const>(ids));
}

/// What is known of the tokens of one response, a number a token, natural logarithms and nats.
struct TokenDetails {
  std::vector<double> logp;        ///< under the model's full softmax, as PPO takes it
  std::vector<double> drawn_logp;  ///< of the distribution that was drawn from; 0 when greedy
  std::vector<double> entropy;     ///< of the model's full softmax
};

/// An observer that keeps the details of every response.
struct DetailsObserver {
  std::vector<TokenDetails> details;  ///< one a response

  explicit DetailsObserver(std::size_t responses) : details(responses) {}

  template <Scalar T>
  void operator()(ChosenToken<T> const& chosen) {
    FullSoftmax const softmax(chosen.logits);
    TokenDetails& of = details[static_cast<std::size_t>(chosen.row)];
    auto const x = chosen.logits[static_cast<std::size_t>(chosen.token)];
    of.logp.push_back(softmax.logp(static_cast<double>(x)));
    of.drawn_logp.push_back(chosen.drawn_logp);
    of.entropy.push_back(softmax.entropy);
  }
};

/// Responses with all that was known when they were made.
template <class State>
struct Generation {
  Ragged responses;
  std::vector<TokenDetails> details;  ///< one a response
  /// The decoder's state. It has read of each row the start token and all tokens but the last,
  /// which nothing follows.
  State state;
};

/// As generate, with the details of every token and the decoder's state. Where there are several
/// samples a context, generate_samples takes a DetailsObserver.
/// @throws as generate
template <Decoder M>
Generation<typename M::State> generate_with_details(M& model, RaggedView contexts,
                                                    SamplingConfig const& config,
                                                    std::span<DrawSite const> sites) {
  config.validate();
  expects(static_cast<index_t>(sites.size()) == contexts.rows(),
          "generation needs one draw site for each context");
  DetailsObserver observer(sites.size());
  typename M::State state = model.start(contexts);
  Ragged responses;
  if (!sites.empty()) {
    responses = detail::generate_rows(model, state, config, sites, observer);
  }
  return {std::move(responses), std::move(observer.details), std::move(state)};
}

}  // namespace emprl::gen
