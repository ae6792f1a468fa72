// SPDX-License-Identifier: Apache-2.0
#include "emprl/t5/lora.hpp"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "emprl/t5/model.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/gradient_check.hpp"
#include "support/t5_golden.hpp"

using emprl::Cpu;
using emprl::DropoutSites;
using emprl::index_t;
using emprl::Ragged;
using emprl::t5::Config;
using emprl::t5::LoraConfig;
using emprl::t5::LoraShape;
using emprl::t5::Model;
using emprl::t5::Parameters;

namespace {
namespace t5_lora {

/// A random model with a LoRA, whose B is random too, attached; and the same model without.
template <class T>
struct Adapted {
  Adapted(Config const& c, LoraConfig const& lora, double b_scale = 0.3)
      : config(c),
        shape(emprl::t5::lora_shape(c, lora)),
        base(support::random_parameters<T>(c, 4)),
        matrices(shape),
        params(base.views()) {
    emprl::t5::initialise_lora(matrices, 5);
    for (auto const& info : matrices.infos()) {
      if (!info.name.ends_with("lora_B.weight")) continue;
      auto const numbers =
          support::random_values<T>(info.size, static_cast<std::uint64_t>(info.offset), b_scale);
      std::copy(numbers.begin(), numbers.end(), matrices.span(info).begin());
    }
    matrices.views().attach(shape, params);
  }

  Config config;
  LoraShape shape;
  Parameters<T, Cpu> base;
  emprl::t5::LoraParameters<T, Cpu> matrices;
  emprl::t5::Params<T, Cpu> params;  // base with the LoRA
};

template <class T>
std::vector<T> copied(std::span<T> x) {
  return {x.begin(), x.end()};
}

LoraConfig everywhere(double alpha = 6) {
  LoraConfig c;
  c.rank = 3;
  c.alpha = alpha;
  c.targets = {"all-linear"};
  return c;
}

Cpu poisoned(int threads) {
  Cpu dev(threads);
  dev.scratch.poison(true);
  dev.saved.poison(true);
  return dev;
}

/// One pass over the same few rows.
template <class T>
support::Pass<T> pass(Cpu& dev, Config const& c, emprl::t5::Params<T, Cpu> const& p,
                      DropoutSites sites = {}, emprl::t5::Params<T, Cpu> const* grads = nullptr) {
  auto const contexts = support::random_rows({5, 1, 9}, c.vocab_size, 6);
  auto const responses = support::random_rows({2, 6, 1}, c.vocab_size, 7);
  return support::run_pass<T>(dev, Model<T, Cpu>(c), p, {}, contexts.view(), responses.view(),
                              sites, grads);
}

}  // namespace t5_lora
}  // namespace

TEST_CASE("t5 lora: projections are the matrices of the layers, under their weights' names",
          "[t5][lora][unit]") {
  for (bool const gated : {false, true}) {
    Config const c = support::small_config(gated);
    Parameters<float, Cpu> const weights(c);
    std::vector<std::string> expected, actual;
    for (auto const& info : weights.infos()) {
      bool const projection = info.shape.size() == 2 &&
                              info.name.find(".layer.") != info.name.npos &&
                              info.name.find("relative") == info.name.npos;
      if (!projection) continue;
      expected.push_back(info.name + " " + std::to_string(info.shape[0]) + " " +
                         std::to_string(info.shape[1]));
    }
    for (auto const& m : emprl::t5::projections(c)) {
      actual.push_back(m.name + ".weight " + std::to_string(m.outputs) + " " +
                       std::to_string(m.inputs));
    }
    CHECK(actual == expected);
    // 2 encoder layers of 4 + 2 (+ 1 if gated), 2 decoder layers of 8 + 2 (+ 1).
    CHECK(actual.size() == (gated ? 36 : 32));
  }
}

TEST_CASE("t5 lora: targets name modules whole or from a dot on", "[t5][lora][unit]") {
  Config const c = support::small_config(false);
  auto const chosen = [&](std::vector<std::string> targets) {
    LoraConfig config;
    config.targets = std::move(targets);
    return emprl::t5::lora_shape(c, config).modules;
  };
  CHECK(chosen({"q", "v"}).size() == 12);
  CHECK(chosen({"wi"}).size() == 4);
  auto const cross = chosen({"EncDecAttention.v"});
  REQUIRE(cross.size() == 2);
  CHECK(cross[1].name == "decoder.block.1.layer.1.EncDecAttention.v");
  CHECK(cross[1].outputs == c.inner());
  CHECK(cross[1].inputs == c.d_model);
  CHECK(cross[1].rank == 8);
  CHECK(chosen({"encoder.block.1.layer.0.SelfAttention.o"}).size() == 1);
  CHECK(chosen({"all-linear"}).size() == 32);
  CHECK(chosen({"q", "all-linear"}).size() == 32);
  auto const refused = [&](LoraConfig const& config) {
    try {
      emprl::t5::lora_shape(c, config);
    } catch (emprl::ConfigError const& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  LoraConfig bad;
  // Part of a name between dots is no name; "wi_0" is of the gated form.
  for (char const* target : {"Attention.q", "wi_0", "shared", "", "relative_attention_bias"}) {
    bad.targets = {"q", target};
    CHECK(refused(bad).find("\"" + std::string(target) + "\"") != std::string::npos);
  }
  bad.targets = {};
  CHECK(refused(bad).find("target") != std::string::npos);
  bad = {};
  bad.rank = 0;
  CHECK(refused(bad).find("rank") != std::string::npos);
  bad = {};
  bad.dropout = 1;
  CHECK(refused(bad).find("dropout") != std::string::npos);
  bad = {};
  bad.alpha = 0;
  CHECK(refused(bad).find("alpha") != std::string::npos);
}

TEST_CASE("t5 lora: starts with A of PEFT's deviation, B zero, and scales by alpha over rank",
          "[t5][lora][unit]") {
  Config c = support::small_config(false);
  c.d_model = 100;
  LoraConfig config = t5_lora::everywhere(12);
  LoraShape shape = emprl::t5::lora_shape(c, config);
  CHECK(shape.scale(shape.modules[0]) == 4.0);
  shape.rank_stabilised = true;
  CHECK(shape.scale(shape.modules[0]) == Approx(12 / std::sqrt(3.0)));
  emprl::t5::LoraParameters<double, Cpu> const matrices(shape);
  emprl::t5::initialise_lora(matrices, 1);
  for (auto const& info : matrices.infos()) {
    INFO(info.name);
    auto const values = t5_lora::copied(matrices.span(info));
    if (info.name.ends_with("lora_B.weight")) {
      CHECK(support::max_abs(values) == 0.0);
      continue;
    }
    // Kaiming's uniform with a = sqrt(5): sqrt(6 / ((1 + 5) inputs)).
    double const bound = 1 / std::sqrt(static_cast<double>(info.shape[1]));
    double squares = 0;
    for (double const x : values) squares += x * x / static_cast<double>(values.size());
    CHECK(support::max_abs(values) <= bound);
    CHECK(support::max_abs(values) > 0.8 * bound);
    if (info.shape[1] == 100)
      CHECK(std::sqrt(squares) == Approx(bound / std::sqrt(3)).epsilon(0.1));
  }
  auto const first = t5_lora::copied(matrices.span());
  emprl::t5::initialise_lora(matrices, 2);
  CHECK(t5_lora::copied(matrices.span()) != first);
}

TEST_CASE("t5 lora: gradients of A, B and the weights match central differences, with dropout",
          "[t5][lora][grad]") {
  for (bool const gated : {false, true}) {
    for (double const probability : {0.0, 0.2}) {
      INFO((gated ? "gated" : "relu") << ", dropout " << probability);
      t5_lora::Adapted<double> const m(support::small_config(gated), t5_lora::everywhere());
      Parameters<double, Cpu> const base_grads(m.config);
      emprl::t5::LoraParameters<double, Cpu> const grads(m.shape);
      auto views = base_grads.views();
      grads.views().attach(m.shape, views);
      Cpu dev = t5_lora::poisoned(1);
      DropoutSites const sites(probability, 8, 9, 1.5 * probability);
      t5_lora::pass<double>(dev, m.config, m.params, sites, &views);
      std::vector<support::GradientInput> inputs;
      for (auto const& info : m.matrices.infos()) {
        inputs.push_back({info.name, m.matrices.span(info), t5_lora::copied(grads.span(info))});
      }
      // And what flows through the products to whatever lies before them.
      for (auto const& info : m.base.infos()) {
        if (info.name.find("norm") == info.name.npos && info.name != "shared.weight") continue;
        inputs.push_back({info.name, m.base.span(info), t5_lora::copied(base_grads.span(info))});
      }
      support::GradientCheckOptions options;
      options.most = 9;
      options.tolerance = gated ? 3e-7 : 2e-6;
      // Short steps, so that no ReLU changes sides.
      options.step = gated ? 2e-4 : 1e-6;
      support::check_gradients(
          [&] { return t5_lora::pass<double>(dev, m.config, m.params, sites).loss; }, inputs,
          options);
    }
  }
}

TEMPLATE_TEST_CASE("t5 lora: with B = 0 it is the base model to the last bit, dropout and all",
                   "[t5][lora][contract]", float, double) {
  using T = TestType;
  for (bool const gated : {false, true}) {
    t5_lora::Adapted<T> const m(support::small_config(gated), t5_lora::everywhere(), 0.0);
    Cpu dev = t5_lora::poisoned(2);
    for (double const probability : {0.0, 0.2}) {
      DropoutSites const base_sites(probability, 8, 9);
      DropoutSites const sites(probability, 8, 9, 0.3);
      Parameters<T, Cpu> const base_grads(m.config);
      Parameters<T, Cpu> const grads(m.config);
      auto const base =
          t5_lora::pass<T>(dev, m.config, m.base.views(), base_sites, &base_grads.views());
      auto const with = t5_lora::pass<T>(dev, m.config, m.params, sites, &grads.views());
      CHECK(base.logits == with.logits);
      CHECK(t5_lora::copied(base_grads.span()) == t5_lora::copied(grads.span()));
    }
  }
}

TEST_CASE("t5 lora: with frozen weights it gets the same gradient, and nothing else any",
          "[t5][lora][contract]") {
  t5_lora::Adapted<double> const m(support::small_config(true), t5_lora::everywhere());
  Parameters<double, Cpu> const base_grads(m.config);
  emprl::t5::LoraParameters<double, Cpu> const trained(m.shape);
  emprl::t5::LoraParameters<double, Cpu> const frozen(m.shape);
  auto all = base_grads.views();
  trained.views().attach(m.shape, all);
  emprl::t5::Params<double, Cpu> alone;
  frozen.views().attach(m.shape, alone);
  auto const before = t5_lora::copied(m.base.span());
  Cpu dev = t5_lora::poisoned(2);
  DropoutSites const sites(0.1, 1, 2, 0.2);
  t5_lora::pass<double>(dev, m.config, m.params, sites, &all);
  t5_lora::pass<double>(dev, m.config, m.params, sites, &alone);
  CHECK(t5_lora::copied(trained.span()) == t5_lora::copied(frozen.span()));
  for (auto const& info : frozen.infos()) {
    INFO(info.name);
    CHECK(support::max_abs(t5_lora::copied(frozen.span(info))) > 0);
  }
  CHECK(t5_lora::copied(m.base.span()) == before);
}

TEST_CASE("t5 lora: each kind of projection changes the result", "[t5][lora][unit]") {
  for (bool const gated : {false, true}) {
    Config const c = support::small_config(gated);
    Cpu dev(1);
    std::set<std::string> kinds;
    for (auto const& p : emprl::t5::projections(c)) {
      // The second layers, for each its own.
      if (p.name.find("block.1.") != p.name.npos) kinds.insert(p.name);
    }
    CHECK(kinds.size() == (gated ? 18 : 16));
    for (std::string const& kind : kinds) {
      INFO(kind);
      LoraConfig config = t5_lora::everywhere();
      config.targets = {kind};
      t5_lora::Adapted<float> const m(c, config);
      auto const base = t5_lora::pass<float>(dev, c, m.base.views());
      auto const with = t5_lora::pass<float>(dev, c, m.params);
      CHECK(support::max_difference(base.logits, with.logits) > 1e-3);
    }
  }
}

TEMPLATE_TEST_CASE("t5 lora: merged equals beside, and unmerging gives the weights back",
                   "[t5][lora][contract]", float, double) {
  using T = TestType;
  for (bool const gated : {false, true}) {
    t5_lora::Adapted<T> const m(support::small_config(gated), t5_lora::everywhere());
    Cpu dev(2);
    auto const beside = t5_lora::pass<T>(dev, m.config, m.params);
    auto const before = t5_lora::copied(m.base.span());
    emprl::t5::merge_lora(dev, m.config, m.params);
    auto const merged = t5_lora::pass<T>(dev, m.config, m.base.views());
    support::check_error("logits", merged.logits, reference::convert<double>(beside.logits), 0.0,
                         256);
    // With the LoRA attached it would count twice.
    auto const twice = t5_lora::pass<T>(dev, m.config, m.params);
    CHECK(support::max_difference(twice.logits, beside.logits) > 1e-2);
    emprl::t5::unmerge_lora(dev, m.config, m.params);
    support::check_error("weights", t5_lora::copied(m.base.span()),
                         reference::convert<double>(before), 0.0, 4);
  }
}

TEMPLATE_TEST_CASE("t5 lora: cached decoding equals the full pass, beside the weights and merged",
                   "[t5][lora][contract]", float, double) {
  using T = TestType;
  for (bool const gated : {false, true}) {
    t5_lora::Adapted<T> const m(support::small_config(gated), t5_lora::everywhere());
    Config const& c = m.config;
    Model<T, Cpu> const model(c);
    Cpu dev(2);
    dev.scratch.poison(true);
    auto const contexts = support::random_rows({9, 1, 31}, c.vocab_size, 3);
    // Beyond the 32 positions that a cache starts with.
    auto const responses = support::random_rows({35, 35, 35}, c.vocab_size, 4);
    auto full = support::poisoned<T, 2>({responses.tokens(), c.d_model});
    model.inference(dev, m.params, {}, contexts.view(), responses.view(), full.view());
    auto const inputs = emprl::t5::shift_right(responses.view());
    auto const check = [&](emprl::t5::Params<T, Cpu> const& p) {
      auto cache = model.start(dev, p, {}, contexts.view());
      std::vector<T> cached(static_cast<std::size_t>(full.size()));
      for (index_t t = 0; t < 35; ++t) {
        std::vector<index_t> const rows{0, 1, 2};
        std::vector<std::int32_t> ids;
        for (index_t const b : rows) ids.push_back(inputs[static_cast<std::size_t>(35 * b + t)]);
        auto y = support::poisoned<T, 2>({3, c.d_model});
        model.decoder().step(dev, p, {}, cache, rows, {ids.data(), {3}}, y.view());
        for (index_t const b : rows) {
          std::copy_n(y.view().row(b), c.d_model, cached.begin() + (35 * b + t) * c.d_model);
        }
      }
      support::check_error("hidden states", cached,
                           reference::convert<double>(support::values(full)), 0.0, 256);
    };
    check(m.params);
    emprl::t5::merge_lora(dev, c, m.params);
    check(m.base.views());
  }
}

TEST_CASE("t5 lora: attaches to the model that it is of and to no other", "[t5][lora][unit]") {
  t5_lora::Adapted<float> const m(support::small_config(false), t5_lora::everywhere());
  auto p = m.base.views();
  auto shape = m.shape;
  std::swap(shape.modules[0], shape.modules[1]);
  CHECK_THROWS_AS(m.matrices.views().attach(shape, p), emprl::ConfigError);
  shape = m.shape;
  shape.model.d_model = 11;
  CHECK_THROWS_AS(m.matrices.views().attach(shape, p), emprl::ConfigError);
  shape = m.shape;
  shape.modules.back().name = "decoder.block.7.layer.2.DenseReluDense.wo";
  try {
    m.matrices.views().attach(shape, p);
    FAIL("it was attached");
  } catch (emprl::ConfigError const& error) {
    CHECK(std::string(error.what()).find("decoder.block.7") != std::string::npos);
  }
  // Detached, it is the base model.
  auto q = m.params;
  emprl::t5::Lora<float, Cpu>::detach(m.config, q);
  Cpu dev(1);
  CHECK(t5_lora::pass<float>(dev, m.config, q).logits ==
        t5_lora::pass<float>(dev, m.config, m.base.views()).logits);
}
