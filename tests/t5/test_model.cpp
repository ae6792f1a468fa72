// SPDX-License-Identifier: Apache-2.0
#include "emprl/t5/model.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "emprl/optim/adamw.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/gradient_check.hpp"
#include "support/t5_golden.hpp"

using emprl::Cpu;
using emprl::DropoutSites;
using emprl::index_t;
using emprl::Ragged;
using emprl::Tensor;
using emprl::t5::Config;
using emprl::t5::Model;
using emprl::t5::Parameters;
using emprl::t5::Prefixes;
using support::GoldenT5;
using support::random_parameters;
using support::random_rows;
using support::run_pass;
using support::values;

namespace {

Cpu poisoned_device(int threads) {
  Cpu dev(threads);
  dev.scratch.poison(true);
  dev.saved.poison(true);
  return dev;
}

template <class T>
std::vector<T> copy_of(std::span<T> x) {
  return {x.begin(), x.end()};
}

}  // namespace

TEMPLATE_TEST_CASE(
    "t5: hidden states, logits, log-probabilities and loss are those of transformers",
    "[t5][model][golden]", float, double) {
  using T = TestType;
  for (auto const* folder : support::t5_goldens) {
    INFO(folder);
    GoldenT5<T> const g(folder);
    Cpu dev = poisoned_device(2);
    auto encoded = support::poisoned<T, 2>({g.contexts.tokens(), g.config.d_model});
    g.model.encoder().inference(dev, g.params(), emprl::t5::tokens_of(g.contexts.view()), {},
                                encoded.view());
    g.check("encoder_output", values(encoded));
    auto hidden = support::poisoned<T, 2>({g.responses.tokens(), g.config.d_model});
    g.model.inference(dev, g.params(), {}, g.contexts.view(), g.responses.view(), hidden.view());
    g.check("decoder_output", values(hidden));
    auto const pass =
        run_pass<T>(dev, g.model, g.params(), {}, g.contexts.view(), g.responses.view());
    CHECK(support::max_difference(pass.hidden, values(hidden)) == 0.0);
    g.check("logits", pass.logits);
    g.check("logprobs", pass.logprobs);
    g.check("loss", std::vector<T>{static_cast<T>(pass.loss)});
  }
}

TEMPLATE_TEST_CASE("t5: every parameter's gradient is that of transformers", "[t5][model][golden]",
                   float, double) {
  using T = TestType;
  for (auto const* folder : support::t5_goldens) {
    for (int const threads : {1, 2}) {
      INFO(folder << ", " << threads << " threads");
      GoldenT5<T> const g(folder);
      Parameters<T, Cpu> const grads(g.config);
      Cpu dev = poisoned_device(threads);
      run_pass<T>(dev, g.model, g.params(), {}, g.contexts.view(), g.responses.view(), {},
                  &grads.views());
      for (auto const& info : grads.infos()) g.check("grad/" + info.name, grads.span(info));
    }
  }
}

TEST_CASE("t5: backward adds to the gradients that are there", "[t5][model][contract]") {
  GoldenT5<double> const g("t5_v1_0");
  Parameters<double, Cpu> const grads(g.config);
  Cpu dev = poisoned_device(2);
  run_pass<double>(dev, g.model, g.params(), {}, g.contexts.view(), g.responses.view(), {},
                   &grads.views());
  auto twice = copy_of(grads.span());
  for (double& x : twice) x *= 2;
  run_pass<double>(dev, g.model, g.params(), {}, g.contexts.view(), g.responses.view(), {},
                   &grads.views());
  support::check_error("all gradients", copy_of(grads.span()), twice, 0.0, 256);
}

TEMPLATE_TEST_CASE("t5: five steps of AdamW lose what PyTorch's lose and leave the same weights",
                   "[t5][model][adamw][golden]", float, double) {
  using T = TestType;
  for (auto const* folder : support::t5_goldens) {
    for (std::string const run : {"plain", "decay"}) {
      INFO(folder << ", " << run);
      std::string const key = "adamw/" + run + "/";
      GoldenT5<T> const g(folder);
      Parameters<T, Cpu> const grads(g.config);
      Cpu dev = poisoned_device(2);
      emprl::optim::AdamWConfig settings;
      settings.weight_decay = g.expected[key + "weight_decay"].values.at(0);
      settings.max_gradient_norm = 1;
      emprl::optim::AdamW<T> optimiser(settings, g.parameters.span(), grads.span());
      std::vector<T> losses, norms;
      for (int step = 0; step < 5; ++step) {
        optimiser.zero_gradients();
        auto const pass = run_pass<T>(dev, g.model, g.params(), {}, g.contexts.view(),
                                      g.responses.view(), {}, &grads.views());
        losses.push_back(static_cast<T>(pass.loss));
        norms.push_back(static_cast<T>(optimiser.step(dev, 1e-2)));
      }
      g.check(key + "losses", losses);
      g.check(key + "gradient_norms", norms);
      for (auto const& info : g.parameters.infos())
        g.check(key + info.name, g.parameters.span(info));
    }
  }
}

TEST_CASE("t5: gradients match central differences, with dropout and with prefixes",
          "[t5][model][grad]") {
  for (bool const gated : {false, true}) {
    for (double const probability : {0.0, 0.2}) {
      for (index_t const length : {0, 3}) {
        INFO((gated ? "gated" : "relu") << ", dropout " << probability << ", prefix " << length);
        Config const c = support::small_config(gated);
        auto const p = random_parameters<double>(c, 4);
        auto const prefixes = support::random_prefixes<double>(c, length, 5);
        Parameters<double, Cpu> const grads(c);
        emprl::nn::ParameterStore<Prefixes<double, Cpu>, double, Cpu> const dprefixes(
            Prefixes<double, Cpu>::Shape{c, length});
        Model<double, Cpu> const model(c);
        auto const contexts = random_rows({5, 1, 9}, c.vocab_size, 6);
        auto const responses = random_rows({2, 6, 1}, c.vocab_size, 7);
        Cpu dev = poisoned_device(1);
        DropoutSites const sites(probability, 8, 9);
        run_pass<double>(dev, model, p.views(), prefixes.views(), contexts.view(), responses.view(),
                         sites, &grads.views(), &dprefixes.views());
        std::vector<support::GradientInput> inputs;
        for (auto const& info : p.infos()) {
          inputs.push_back({info.name, p.span(info), copy_of(grads.span(info))});
        }
        for (auto const& info : prefixes.infos()) {
          inputs.push_back({info.name, prefixes.span(info), copy_of(dprefixes.span(info))});
        }
        support::GradientCheckOptions options;
        options.most = 9;
        options.tolerance = 3e-7;
        // Short steps, so that no ReLU changes sides.
        options.step = gated ? 2e-4 : 1e-6;
        if (!gated) options.tolerance = 2e-6;
        support::check_gradients(
            [&] {
              return run_pass<double>(dev, model, p.views(), prefixes.views(), contexts.view(),
                                      responses.view(), sites)
                  .loss;
            },
            inputs, options);
      }
    }
  }
}

TEST_CASE("t5: a prefix of length 0 is exactly the base model", "[t5][prefix][contract]") {
  for (bool const gated : {false, true}) {
    Config const c = support::small_config(gated);
    auto const p = random_parameters<float>(c, 1);
    auto const none = support::random_prefixes<float>(c, 0, 1);
    Model<float, Cpu> const model(c);
    auto const contexts = random_rows({31, 1, 2}, c.vocab_size, 2);
    auto const responses = random_rows({33, 2, 1}, c.vocab_size, 3);
    Cpu dev = poisoned_device(2);
    Parameters<float, Cpu> const base_grads(c);
    Parameters<float, Cpu> const grads(c);
    auto const base = run_pass<float>(dev, model, p.views(), {}, contexts.view(), responses.view(),
                                      {}, &base_grads.views());
    auto const with = run_pass<float>(dev, model, p.views(), none.views(), contexts.view(),
                                      responses.view(), {}, &grads.views(), &none.views());
    CHECK(base.logits == with.logits);
    CHECK(copy_of(base_grads.span()) == copy_of(grads.span()));
  }
}

TEST_CASE("t5: each of the three prefixes changes the result", "[t5][prefix][unit]") {
  Config const c = support::small_config(false);
  auto const p = random_parameters<float>(c, 1);
  auto const prefixes = support::random_prefixes<float>(c, 4, 1);
  Model<float, Cpu> const model(c);
  auto const contexts = random_rows({5, 1}, c.vocab_size, 2);
  auto const responses = random_rows({3, 7}, c.vocab_size, 3);
  Cpu dev(1);
  auto const logits = [&](Prefixes<float, Cpu> const& some) {
    return run_pass<float>(dev, model, p.views(), some, contexts.view(), responses.view()).logits;
  };
  auto const base = logits({});
  auto const all = prefixes.views();
  CHECK(support::max_difference(base, logits({all.encoder, {}, {}})) > 1e-3);
  CHECK(support::max_difference(base, logits({{}, all.decoder, {}})) > 1e-3);
  CHECK(support::max_difference(base, logits({{}, {}, all.cross})) > 1e-3);
}

TEST_CASE("t5: with frozen weights the prefixes get the same gradient", "[t5][prefix][contract]") {
  Config const c = support::small_config(true);
  auto const p = random_parameters<double>(c, 1);
  auto const prefixes = support::random_prefixes<double>(c, 3, 1);
  using Store = emprl::nn::ParameterStore<Prefixes<double, Cpu>, double, Cpu>;
  Prefixes<double, Cpu>::Shape const shape{c, 3};
  Store const trained(shape);
  Store const frozen(shape);
  Parameters<double, Cpu> const grads(c);
  emprl::t5::Params<double, Cpu> const no_grads;
  Model<double, Cpu> const model(c);
  auto const contexts = random_rows({5, 1}, c.vocab_size, 2);
  auto const responses = random_rows({3, 7}, c.vocab_size, 3);
  Cpu dev = poisoned_device(2);
  DropoutSites const sites(0.1, 1, 2);
  run_pass<double>(dev, model, p.views(), prefixes.views(), contexts.view(), responses.view(),
                   sites, &grads.views(), &trained.views());
  run_pass<double>(dev, model, p.views(), prefixes.views(), contexts.view(), responses.view(),
                   sites, &no_grads, &frozen.views());
  CHECK(copy_of(trained.span()) == copy_of(frozen.span()));
  CHECK(support::max_abs(copy_of(frozen.span())) > 0);
}

TEMPLATE_TEST_CASE("t5: a row in a batch is the row alone, whatever stands beside it",
                   "[t5][model][contract]", float, double) {
  using T = TestType;
  Config const c = support::small_config(true);
  auto const p = random_parameters<T>(c, 1);
  Model<T, Cpu> const model(c);
  auto const contexts = random_rows({31, 1, 2, 33, 5}, c.vocab_size, 2);
  auto const responses = random_rows({2, 33, 1, 31, 7}, c.vocab_size, 3);
  Cpu dev = poisoned_device(2);
  auto const all = run_pass<T>(dev, model, p.views(), {}, contexts.view(), responses.view());
  auto const check = [&](std::vector<index_t> const& rows) {
    auto const some_contexts = emprl::gather_rows(contexts.view(), rows);
    auto const some_responses = emprl::gather_rows(responses.view(), rows);
    auto const part =
        run_pass<T>(dev, model, p.views(), {}, some_contexts.view(), some_responses.view());
    index_t at = 0;
    for (index_t const row : rows) {
      index_t const from = responses.offsets[static_cast<std::size_t>(row)] * c.vocab_size;
      index_t const n = responses.view().length(row) * c.vocab_size;
      std::vector<T> const here(part.logits.begin() + at, part.logits.begin() + at + n);
      std::vector<double> const there(all.logits.begin() + from, all.logits.begin() + from + n);
      support::check_error("logits of row " + std::to_string(row), here, there, 0.0, 128);
      at += n;
    }
  };
  for (index_t i = 0; i < 5; ++i) check({i});
  check({4, 3, 2, 1, 0});
  check({1, 3, 1});
}

TEMPLATE_TEST_CASE("t5: gradients of a batch are the sum over its rows", "[t5][model][contract]",
                   float, double) {
  using T = TestType;
  Config const c = support::small_config(false);
  auto const p = random_parameters<T>(c, 1);
  Model<T, Cpu> const model(c);
  auto const contexts = random_rows({9, 1, 5}, c.vocab_size, 2);
  auto const responses = random_rows({2, 13, 1}, c.vocab_size, 3);
  Cpu dev = poisoned_device(2);
  Parameters<T, Cpu> const together(c);
  run_pass<T>(dev, model, p.views(), {}, contexts.view(), responses.view(), {}, &together.views());
  std::vector<double> sum(together.span().size(), 0.0);
  for (index_t row = 0; row < 3; ++row) {
    Parameters<T, Cpu> const alone(c);
    std::vector<index_t> const rows{row};
    auto const one_context = emprl::gather_rows(contexts.view(), rows);
    auto const one_response = emprl::gather_rows(responses.view(), rows);
    run_pass<T>(dev, model, p.views(), {}, one_context.view(), one_response.view(), {},
                &alone.views());
    double const share =
        static_cast<double>(one_response.tokens()) / static_cast<double>(responses.tokens());
    for (std::size_t i = 0; i < sum.size(); ++i)
      sum[i] += share * static_cast<double>(alone.span()[i]);
  }
  support::check_error("gradients", copy_of(together.span()), sum, 0.0, 256);
}

TEST_CASE("t5: the same machine and threads give the same bits", "[t5][model][unit]") {
  GoldenT5<float> const g("t5_v1_1");
  for (int const threads : {1, 2}) {
    std::vector<float> first;
    for (int round = 0; round < 3; ++round) {
      Cpu dev(threads);
      Parameters<float, Cpu> const grads(g.config);
      run_pass<float>(dev, g.model, g.params(), {}, g.contexts.view(), g.responses.view(),
                      DropoutSites(0.1, 1, 2), &grads.views());
      if (round == 0) first = copy_of(grads.span());
      CHECK(copy_of(grads.span()) == first);
    }
  }
}

TEST_CASE("t5: dropout changes the result with its seed and step, not with the run",
          "[t5][model][unit]") {
  GoldenT5<float> const g("t5_v1_0");
  Cpu dev(1);
  auto const logits = [&](double probability, std::uint64_t seed, std::uint32_t step) {
    return run_pass<float>(dev, g.model, g.params(), {}, g.contexts.view(), g.responses.view(),
                           DropoutSites(probability, seed, step))
        .logits;
  };
  CHECK(logits(0.1, 1, 1) == logits(0.1, 1, 1));
  CHECK(logits(0.1, 1, 1) != logits(0.1, 2, 1));
  CHECK(logits(0.1, 1, 1) != logits(0.1, 1, 2));
  CHECK(logits(0.0, 1, 1) == logits(0.0, 2, 2));
}

TEST_CASE("t5: empty contexts and responses are rows like others", "[t5][model][unit]") {
  Config const c = support::small_config(true);
  auto const p = random_parameters<float>(c, 1);
  Model<float, Cpu> const model(c);
  auto const contexts = random_rows({5, 0, 3}, c.vocab_size, 2);
  auto const responses = random_rows({0, 2, 4}, c.vocab_size, 3);
  Cpu dev = poisoned_device(2);
  Parameters<float, Cpu> const grads(c);
  auto const pass = run_pass<float>(dev, model, p.views(), {}, contexts.view(), responses.view(),
                                    {}, &grads.views());
  for (float const x : pass.logits) CHECK(std::isfinite(x));
  for (float const x : grads.span()) CHECK(std::isfinite(x));
  std::vector<index_t> const last{2};
  auto const alone =
      run_pass<float>(dev, model, p.views(), {}, emprl::gather_rows(contexts.view(), last).view(),
                      emprl::gather_rows(responses.view(), last).view());
  std::vector<float> const tail(pass.logits.end() - 4 * c.vocab_size, pass.logits.end());
  support::check_error("last row", tail, reference::convert<double>(alone.logits), 0.0, 128);
}

TEST_CASE("shift_right: the start token, then all but the last", "[t5][model][unit]") {
  Ragged rows;
  rows.push_back(std::vector<std::int32_t>{5, 6, 1});
  rows.push_back(std::vector<std::int32_t>{});
  rows.push_back(std::vector<std::int32_t>{1});
  CHECK(emprl::t5::shift_right(rows.view()) == std::vector<std::int32_t>{0, 5, 6, 0});
}

TEST_CASE("t5: rows that do not fit and ids outside the vocabulary throw", "[t5][model][unit]") {
  Config const c = support::small_config(false);
  auto const p = random_parameters<float>(c, 1);
  Model<float, Cpu> const model(c);
  Cpu dev(1);
  auto const run = [&](Ragged const& contexts, Ragged const& responses) {
    Tensor<float, 2, Cpu> hidden({responses.tokens(), c.d_model});
    model.inference(dev, p.views(), {}, contexts.view(), responses.view(), hidden.view());
  };
  auto const two = random_rows({3, 4}, c.vocab_size, 1);
  auto const one = random_rows({3}, c.vocab_size, 1);
  CHECK_NOTHROW(run(two, two));
  CHECK_THROWS_AS(run(two, one), emprl::ShapeError);
  auto bad = two;
  bad.ids[0] = static_cast<std::int32_t>(c.vocab_size);
  CHECK_THROWS_AS(run(bad, two), emprl::ShapeError);
  CHECK_THROWS_AS(run(two, bad), emprl::ShapeError);
  auto broken = two;
  broken.offsets[1] = 100;
  CHECK_THROWS_AS(run(broken, two), emprl::ShapeError);
  CHECK_THROWS_AS(run(two, broken), emprl::ShapeError);
  Tensor<float, 2, Cpu> narrow({7, c.d_model - 1});
  CHECK_THROWS_AS(model.inference(dev, p.views(), {}, two.view(), two.view(), narrow.view()),
                  emprl::ShapeError);
}
