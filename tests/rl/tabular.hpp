// SPDX-License-Identifier: Apache-2.0
#pragma once

// A policy small enough to check by hand: a table of logits and values by (first context token,
// position).

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "emprl/core/ragged.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/rl/concepts.hpp"

namespace emprl::tests {

inline constexpr std::int32_t end_token = 1;

/// logits[context][position][token], values[context][position], and gradients of the same shapes.
template <class T>
struct Tabular {
  using Scalar = T;

  struct Context {
    std::vector<std::size_t> cell;  // (tokens) which row of the table predicts the token
    std::vector<std::int32_t> token;
  };

  std::size_t contexts, positions, vocabulary;
  std::vector<T> logits, values, dlogits, dvalues;

  Tabular(std::size_t c, std::size_t p, std::size_t v)
      : contexts(c),
        positions(p),
        vocabulary(v),
        logits(c * p * v, T(0)),
        values(c * p, T(0)),
        dlogits(c * p * v, T(0)),
        dvalues(c * p, T(0)) {}

  std::vector<double> probabilities(std::size_t cell) const {
    std::span<T const> const row =
        std::span<T const>(logits).subspan(cell * vocabulary, vocabulary);
    double const top = static_cast<double>(*std::max_element(row.begin(), row.end()));
    std::vector<double> p;
    double sum = 0;
    for (T const x : row) {
      p.push_back(std::exp(static_cast<double>(x) - top));
      sum += p.back();
    }
    for (double& x : p) x /= sum;
    return p;
  }

  double log_probability(std::size_t cell, std::int32_t token) const {
    std::span<T const> const row =
        std::span<T const>(logits).subspan(cell * vocabulary, vocabulary);
    double const top = static_cast<double>(*std::max_element(row.begin(), row.end()));
    double sum = 0;
    for (T const x : row) sum += std::exp(static_cast<double>(x) - top);
    return static_cast<double>(row[static_cast<std::size_t>(token)]) - top - std::log(sum);
  }

  void forward(rl::TokenBatch const& batch, std::span<T> logp, std::span<T> v, Context& c) const {
    c = {};
    for (index_t i = 0; i < batch.rows(); ++i) {
      auto const base = static_cast<std::size_t>(batch.contexts.row(i)[0]) * positions;
      std::size_t at = 0;
      for (std::int32_t const y : batch.responses.row(i)) {
        c.cell.push_back(base + at++);
        c.token.push_back(y);
      }
    }
    for (std::size_t t = 0; t < c.cell.size(); ++t) {
      logp[t] = static_cast<T>(log_probability(c.cell[t], c.token[t]));
      v[t] = values[c.cell[t]];
    }
  }

  void backward(std::span<T const> dlogp, std::span<T const> dv, Context const& c) {
    for (std::size_t t = 0; t < c.cell.size(); ++t) {
      std::vector<double> const p = probabilities(c.cell[t]);
      for (std::size_t k = 0; k < vocabulary; ++k) {
        double const hot = static_cast<std::int32_t>(k) == c.token[t] ? 1.0 : 0.0;
        dlogits[c.cell[t] * vocabulary + k] +=
            static_cast<T>(static_cast<double>(dlogp[t]) * (hot - p[k]));
      }
      dvalues[c.cell[t]] += dv[t];
    }
  }

  /// The same with the gradient of the entropy: dH/dlogit_k = -p_k (log p_k + H).
  void backward(std::span<T const> dlogp, std::span<T const> dv, std::span<T const> dentropy,
                Context const& c) {
    backward(dlogp, dv, c);
    std::vector<T> h(c.cell.size());
    entropy(h, c);
    for (std::size_t t = 0; t < c.cell.size(); ++t) {
      for (std::size_t k = 0; k < vocabulary; ++k) {
        double const lp = log_probability(c.cell[t], static_cast<std::int32_t>(k));
        dlogits[c.cell[t] * vocabulary + k] -= static_cast<T>(
            static_cast<double>(dentropy[t]) * std::exp(lp) * (lp + static_cast<double>(h[t])));
      }
    }
  }

  void entropy(std::span<T> out, Context const& c) const {
    for (std::size_t t = 0; t < c.cell.size(); ++t) {
      double h = 0;
      for (double const p : probabilities(c.cell[t])) h -= p > 0 ? p * std::log(p) : 0.0;
      out[t] = static_cast<T>(h);
    }
  }

  /// Exact divergence from another table at every token.
  void full_kl(Tabular const& reference, rl::TokenBatch const& batch, std::span<T> kl) const {
    Context c;
    std::vector<T> unused(kl.size());
    forward(batch, kl, unused, c);
    for (std::size_t t = 0; t < c.cell.size(); ++t) {
      double sum = 0;
      for (std::size_t k = 0; k < vocabulary; ++k) {
        auto const id = static_cast<std::int32_t>(k);
        double const lp = log_probability(c.cell[t], id);
        sum += std::exp(lp) * (lp - reference.log_probability(c.cell[t], id));
      }
      kl[t] = static_cast<T>(sum);
    }
  }

  /// As a reference policy.
  void logprobs(rl::TokenBatch const& batch, std::span<T> logp) const {
    Context c;
    std::vector<T> v(logp.size());
    forward(batch, logp, v, c);
  }

  /// Draws until the end token or the last position.
  Ragged sample(RaggedView from, std::uint32_t step, std::uint64_t seed) const {
    Ragged out;
    for (index_t i = 0; i < from.rows(); ++i) {
      std::vector<std::int32_t> y;
      auto const base = static_cast<std::size_t>(from.row(i)[0]) * positions;
      for (std::size_t t = 0; t < positions; ++t) {
        double u = uniform({seed, Stream::sample, step, static_cast<std::uint32_t>(i),
                            static_cast<std::uint32_t>(t)});
        std::vector<double> const p = probabilities(base + t);
        std::int32_t pick = 0;
        while (pick + 1 < static_cast<std::int32_t>(vocabulary) &&
               u >= p[static_cast<std::size_t>(pick)]) {
          u -= p[static_cast<std::size_t>(pick++)];
        }
        y.push_back(pick);
        if (pick == end_token) break;
      }
      out.push_back(y);
    }
    return out;
  }
};

static_assert(rl::ActorCritic<Tabular<float>> && rl::TrainsEntropy<Tabular<double>>);
static_assert(rl::ReferencePolicy<Tabular<float>, float>);

/// Gradient descent (or Adam, for probes that should be quick) on a tabular policy.
template <class T>
struct TabularOptimizer {
  Tabular<T>& policy;
  bool adam = false;
  std::vector<double> m{}, v{};
  int steps = 0;

  void zero_gradients() {
    std::fill(policy.dlogits.begin(), policy.dlogits.end(), T(0));
    std::fill(policy.dvalues.begin(), policy.dvalues.end(), T(0));
  }

  double step(double rate, double max_norm) {
    double squares = 0;
    for (T const g : policy.dlogits) squares += static_cast<double>(g) * static_cast<double>(g);
    for (T const g : policy.dvalues) squares += static_cast<double>(g) * static_cast<double>(g);
    double const norm = std::sqrt(squares);
    if (!std::isfinite(norm)) return norm;
    double const scale = std::min(1.0, max_norm / (norm + 1e-6));
    std::size_t const n = policy.logits.size();
    m.resize(n + policy.values.size());
    v.resize(n + policy.values.size());
    ++steps;
    for (std::size_t i = 0; i < m.size(); ++i) {
      T& x = i < n ? policy.logits[i] : policy.values[i - n];
      double g = scale * static_cast<double>(i < n ? policy.dlogits[i] : policy.dvalues[i - n]);
      if (adam) {
        m[i] = 0.9 * m[i] + 0.1 * g;
        v[i] = 0.999 * v[i] + 0.001 * g * g;
        g = m[i] / (1 - std::pow(0.9, steps)) /
            (std::sqrt(v[i] / (1 - std::pow(0.999, steps))) + 1e-8);
      }
      x = static_cast<T>(static_cast<double>(x) - rate * g);
    }
    return norm;
  }
};

/// Token ids as words, the end token skipped.
inline std::string spell(std::span<std::int32_t const> ids) {
  std::string text;
  for (std::int32_t const id : ids) {
    if (id != end_token) text += (text.empty() ? "" : " ") + std::to_string(id);
  }
  return text;
}

/// One prompt a row, whose context is one token.
inline rl::PromptBatch prompts_of(std::vector<std::int32_t> const& contexts) {
  rl::PromptBatch prompts;
  for (std::int32_t const c : contexts) {
    prompts.contexts.push_back(std::array{c});
    prompts.ids.push_back("prompt:" + std::to_string(prompts.ids.size()));
    prompts.texts.push_back(std::to_string(c));
  }
  return prompts;
}

}  // namespace emprl::tests
