// SPDX-License-Identifier: Apache-2.0
#include "emprl/t5/decoder.hpp"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/t5_golden.hpp"

using emprl::Cpu;
using emprl::index_t;
using emprl::Ragged;
using emprl::Tensor;
using emprl::t5::Config;
using emprl::t5::Model;
using emprl::t5::Prefixes;
using support::GoldenT5;
using support::random_parameters;
using support::random_rows;
using support::values;

namespace {

/// Feeds the responses token by token through the cache, rows leaving when they end, and gathers
/// the hidden states in the packed order of the full pass.
template <class T>
std::vector<T> decode(Cpu& dev, Model<T, Cpu> const& model, emprl::t5::Params<T, Cpu> const& p,
                      Prefixes<T, Cpu> const& prefixes, Ragged const& contexts,
                      Ragged const& responses) {
  index_t const width = model.config().d_model;
  auto const inputs = emprl::t5::shift_right(responses.view());
  std::vector<T> hidden(inputs.size() * static_cast<std::size_t>(width), T(0));
  auto cache = model.start(dev, p, prefixes, contexts.view());
  index_t longest = 0;
  for (index_t b = 0; b < responses.rows(); ++b)
    longest = std::max(longest, responses.view().length(b));
  for (index_t t = 0; t < longest; ++t) {
    std::vector<index_t> rows;
    std::vector<std::int32_t> ids;
    for (index_t b = 0; b < responses.rows(); ++b) {
      if (t >= responses.view().length(b)) continue;
      rows.push_back(b);
      ids.push_back(
          inputs[static_cast<std::size_t>(responses.offsets[static_cast<std::size_t>(b)] + t)]);
    }
    auto const active = static_cast<index_t>(rows.size());
    auto y = support::poisoned<T, 2>({active, width});
    model.decoder().step(dev, p, prefixes, cache, rows, {ids.data(), {active}}, y.view());
    CHECK(cache.position == t + 1);
    for (index_t a = 0; a < active; ++a) {
      index_t const at =
          responses.offsets[static_cast<std::size_t>(rows[static_cast<std::size_t>(a)])] + t;
      std::copy(y.view().row(a), y.view().row(a) + width, hidden.begin() + at * width);
    }
  }
  return hidden;
}

}  // namespace

TEMPLATE_TEST_CASE("cached decoding equals the full pass, with and without prefixes",
                   "[t5][decoder][contract]", float, double) {
  using T = TestType;
  for (bool const gated : {false, true}) {
    for (index_t const length : {0, 1, 5}) {
      for (int const threads : {1, 2}) {
        INFO((gated ? "gated" : "relu") << ", prefix " << length);
        Config const c = support::small_config(gated);
        auto const p = random_parameters<T>(c, 1);
        auto const prefixes = support::random_prefixes<T>(c, length, 2);
        Model<T, Cpu> const model(c);
        auto const contexts = random_rows({31, 1, 2, 0, 9}, c.vocab_size, 3);
        // Beyond the 32 positions that a cache starts with, and again beyond 64.
        auto const responses = random_rows({33, 2, 1, 7, 70}, c.vocab_size, 4);
        Cpu dev(threads);
        dev.scratch.poison(true);
        auto full = support::poisoned<T, 2>({responses.tokens(), c.d_model});
        model.inference(dev, p.views(), prefixes.views(), contexts.view(), responses.view(),
                        full.view());
        auto const cached = decode<T>(dev, model, p.views(), prefixes.views(), contexts, responses);
        support::check_error("hidden states", cached, reference::convert<double>(values(full)), 0.0,
                             128);
      }
    }
  }
}

TEMPLATE_TEST_CASE("cached decoding gives transformers' hidden states", "[t5][decoder][golden]",
                   float, double) {
  using T = TestType;
  for (auto const* folder : support::t5_goldens) {
    GoldenT5<T> const g(folder);
    Cpu dev(2);
    g.check("decoder_output", decode<T>(dev, g.model, g.params(), {}, g.contexts, g.responses));
  }
}

TEMPLATE_TEST_CASE("greedy continuations are transformers'", "[t5][decoder][golden]", float,
                   double) {
  using T = TestType;
  for (auto const* folder : support::t5_goldens) {
    GoldenT5<T> const g(folder);
    Cpu dev(2);
    auto const expected = g.expected.template integers<std::int32_t>("greedy");
    index_t const rows = g.contexts.rows();
    std::vector<index_t> all(static_cast<std::size_t>(rows));
    std::iota(all.begin(), all.end(), index_t{0});
    auto cache = g.model.start(dev, g.params(), {}, g.contexts.view());
    std::vector<std::int32_t> ids(all.size(), emprl::t5::decoder_start_id);
    Tensor<T, 2, Cpu> hidden({rows, g.config.d_model});
    Tensor<T, 2, Cpu> logits({rows, g.config.vocab_size});
    for (index_t t = 0; t < 8; ++t) {
      g.model.decoder().step(dev, g.params(), {}, cache, all, {ids.data(), {rows}}, hidden.view());
      g.model.logits(dev, g.params(), hidden, logits.view());
      for (index_t b = 0; b < rows; ++b) {
        T const* const x = logits.view().row(b);
        auto const u = static_cast<std::size_t>(b);
        ids[u] = static_cast<std::int32_t>(std::max_element(x, x + g.config.vocab_size) - x);
        CHECK(ids[u] == expected[static_cast<std::size_t>(b * 8 + t)]);
      }
    }
  }
}

TEST_CASE("cached decoding: rows may be asked for in any order", "[t5][decoder][unit]") {
  Config const c = support::small_config(true);
  auto const p = random_parameters<float>(c, 1);
  Model<float, Cpu> const model(c);
  Cpu dev(1);
  auto const contexts = random_rows({5, 1, 9}, c.vocab_size, 3);
  auto const run = [&](std::vector<index_t> const& order) {
    auto cache = model.start(dev, p.views(), {}, contexts.view());
    std::vector<float> result(static_cast<std::size_t>(3 * c.d_model));
    for (std::int32_t t = 0; t < 4; ++t) {
      std::vector<std::int32_t> ids;
      for (index_t const row : order)
        ids.push_back(t == 0 ? 0 : static_cast<std::int32_t>(row) + t);
      Tensor<float, 2, Cpu> y({3, c.d_model});
      model.decoder().step(dev, p.views(), {}, cache, order, {ids.data(), {3}}, y.view());
      for (index_t a = 0; a < 3; ++a) {
        std::copy(y.view().row(a), y.view().row(a) + c.d_model,
                  result.begin() + order[static_cast<std::size_t>(a)] * c.d_model);
      }
    }
    return result;
  };
  support::check_error("hidden", run({2, 0, 1}), reference::convert<double>(run({0, 1, 2})), 0.0,
                       64);
}

TEST_CASE("cached decoding: rows outside the batch and wrong ids throw", "[t5][decoder][unit]") {
  Config const c = support::small_config(true);
  auto const p = random_parameters<float>(c, 1);
  Model<float, Cpu> const model(c);
  Cpu dev(1);
  auto const contexts = random_rows({5, 1}, c.vocab_size, 3);
  auto cache = model.start(dev, p.views(), {}, contexts.view());
  Tensor<float, 2, Cpu> y({1, c.d_model});
  auto const step = [&](index_t row, std::int32_t id) {
    std::vector<index_t> const rows{row};
    std::vector<std::int32_t> const ids{id};
    model.decoder().step(dev, p.views(), {}, cache, rows, {ids.data(), {1}}, y.view());
  };
  CHECK_THROWS_AS(step(2, 0), emprl::ShapeError);
  CHECK_THROWS_AS(step(-1, 0), emprl::ShapeError);
  CHECK_THROWS_AS(step(0, -1), emprl::ShapeError);
  CHECK_THROWS_AS(step(0, static_cast<std::int32_t>(c.vocab_size)), emprl::ShapeError);
  // A refused step leaves the cache where it was.
  CHECK(cache.position == 0);
  CHECK_NOTHROW(step(1, 0));
  CHECK(cache.position == 1);
}

TEMPLATE_TEST_CASE("cached decoding: copied and exchanged rows go on from what they were",
                   "[t5][decoder][contract]", float, double) {
  using T = TestType;
  Config const c = support::small_config(true);
  auto const p = random_parameters<T>(c, 1);
  auto const prefixes = support::random_prefixes<T>(c, 2, 2);
  Model<T, Cpu> const model(c);
  Cpu dev(2);
  dev.scratch.poison(true);
  auto const contexts = random_rows({5, 1, 9, 0}, c.vocab_size, 3);
  auto cache = model.start(dev, p.views(), prefixes.views(), contexts.view());
  auto const* const memory = cache.memory[0].data();
  index_t const encoded = cache.memory[0].extent(0);

  // What each row has read, and of which context.
  struct History {
    index_t context;
    std::vector<std::int32_t> fed;
  };
  std::vector<History> rows{{0, {}}, {1, {}}, {2, {}}, {3, {}}};
  emprl::RandomSequence random(7, emprl::Stream::corpus);
  // Before the first step, beyond the cache's first growth at 32, with more rows and with fewer.
  for (index_t t = 0; t < 40; ++t) {
    if (t % 3 == 0 || t > 30) {
      index_t const count = 1 + random.below(9);
      std::vector<index_t> sources;
      std::vector<History> next;
      for (index_t i = 0; i < count; ++i) {
        sources.push_back(random.below(static_cast<index_t>(rows.size())));
        next.push_back(rows[static_cast<std::size_t>(sources.back())]);
      }
      cache.reorder(dev, sources, c.inner());
      rows = std::move(next);
    }
    std::vector<std::int32_t> ids;
    std::vector<index_t> all;
    for (History& row : rows) {
      ids.push_back(t == 0 ? 0 : static_cast<std::int32_t>(random.below(c.vocab_size)));
      row.fed.push_back(ids.back());
      all.push_back(static_cast<index_t>(all.size()));
    }
    auto const active = static_cast<index_t>(rows.size());
    auto y = support::poisoned<T, 2>({active, c.d_model});
    model.decoder().step(dev, p.views(), prefixes.views(), cache, all, {ids.data(), {active}},
                         y.view());
    if (t % 8 != 7 && t < 32) continue;
    for (index_t a = 0; a < active; ++a) {
      History const& row = rows[static_cast<std::size_t>(a)];
      // The decoder reads what it was fed: a response whose tokens come one later.
      std::vector<std::int32_t> response(row.fed.begin() + 1, row.fed.end());
      response.push_back(0);
      Ragged one;
      one.push_back(response);
      std::vector<index_t> const context{row.context};
      auto full = support::poisoned<T, 2>({one.tokens(), c.d_model});
      model.inference(dev, p.views(), prefixes.views(),
                      emprl::gather_rows(contexts.view(), context).view(), one.view(), full.view());
      std::vector<T> const cached(y.view().row(a), y.view().row(a) + c.d_model);
      std::vector<double> truth(full.view().row(t), full.view().row(t) + c.d_model);
      support::check_error("hidden state", cached, truth, 0.0, 128);
    }
  }
  // The contexts were neither copied nor moved.
  CHECK(cache.memory[0].data() == memory);
  CHECK(cache.memory[0].extent(0) == encoded);
  std::vector<index_t> const outside{0, static_cast<index_t>(rows.size())};
  CHECK_THROWS_AS(cache.reorder(dev, outside, c.inner()), emprl::ShapeError);
}

TEMPLATE_TEST_CASE("decoding in place equals the full pass, whatever becomes of ended rows",
                   "[t5][decoder][contract]", float, double) {
  using T = TestType;
  for (index_t const length : {0, 3}) {
    CAPTURE(length);
    Config const c = support::small_config(true);
    auto const p = random_parameters<T>(c, 1);
    auto const prefixes = support::random_prefixes<T>(c, length, 2);
    Model<T, Cpu> const model(c);
    auto const contexts = random_rows({31, 1, 2, 0, 9}, c.vocab_size, 3);
    auto const responses = random_rows({33, 2, 1, 7, 70}, c.vocab_size, 4);
    auto const inputs = emprl::t5::shift_right(responses.view());
    Cpu dev(2);
    dev.scratch.poison(true);
    auto full = support::poisoned<T, 2>({responses.tokens(), c.d_model});
    model.inference(dev, p.views(), prefixes.views(), contexts.view(), responses.view(),
                    full.view());
    std::vector<T> hidden(static_cast<std::size_t>(full.size()), T(0));
    index_t const rows = responses.rows();
    // The longest response fits exactly. Of rows and of context tokens there is room for more.
    index_t const unused = 2;
    auto fixed = model.decoder().in_place(rows + unused, contexts.tokens() + 5, 70);
    model.start_in_place(dev, p.views(), prefixes.views(), contexts.view(), fixed);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(rows + unused));
    std::vector<index_t> lengths(ids.size());
    for (index_t t = 0; t < 70; ++t) {
      for (index_t b = 0; b < rows; ++b) {
        auto const u = static_cast<std::size_t>(b);
        bool const runs = t < responses.view().length(b);
        lengths[u] = runs ? t + 1 : 0;
        if (runs) ids[u] = inputs[static_cast<std::size_t>(responses.offsets[u] + t)];
      }
      auto y = support::poisoned<T, 2>({rows + unused, c.d_model});
      model.decoder().step_in_place(dev, p.views(), prefixes.views(), fixed,
                                    {lengths.data(), {rows + unused}},
                                    {ids.data(), {rows + unused}}, y.view());
      for (index_t b = 0; b < rows; ++b) {
        auto const u = static_cast<std::size_t>(b);
        if (lengths[u] == 0) continue;
        auto const at = (responses.offsets[u] + t) * c.d_model;
        std::copy(y.view().row(b), y.view().row(b) + c.d_model, hidden.begin() + at);
      }
    }
    support::check_error("hidden states", hidden, reference::convert<double>(values(full)), 0.0,
                         128);
    auto few_rows = model.decoder().in_place(rows - 1, contexts.tokens(), 70);
    auto few_tokens = model.decoder().in_place(rows, contexts.tokens() - 1, 70);
    for (auto* const small : {&few_rows, &few_tokens}) {
      CHECK_THROWS_AS(
          model.start_in_place(dev, p.views(), prefixes.views(), contexts.view(), *small),
          emprl::ShapeError);
    }
  }
}
