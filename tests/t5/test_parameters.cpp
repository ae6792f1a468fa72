// SPDX-License-Identifier: Apache-2.0
#include "emprl/t5/parameters.hpp"

#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/t5_golden.hpp"

using emprl::Cpu;
using emprl::index_t;
using emprl::t5::Config;
using emprl::t5::Parameters;

TEST_CASE("t5 parameters: names are unique and are transformers'", "[t5][parameters][golden]") {
  for (auto const* folder : support::t5_goldens) {
    support::GoldenFile const file(std::string(folder) + "/model.safetensors");
    Parameters<float, Cpu> const p(support::golden_config(folder));
    std::set<std::string> names;
    for (auto const& info : p.infos()) names.insert(info.name);
    CHECK(names.size() == p.infos().size());
    std::set<std::string> stored;
    for (auto const& [name, tensor] : file.tensors()) stored.insert(name);
    CHECK(names == stored);
  }
}

TEST_CASE("t5 parameters: from scratch they have the deviations of Mesh TensorFlow",
          "[t5][parameters][unit]") {
  Config c = Config::preset("tiny");
  c.vocab_size = 500;
  c.feed_forward = emprl::nn::Activation::gated_gelu;
  c.tie_word_embeddings = false;
  Parameters<float, Cpu> p(c);
  emprl::t5::initialise(p, c, 42);
  double const d = 128;
  for (auto const& info : p.infos()) {
    INFO(info.name);
    auto const x = p.span(info);
    if (info.name.find("norm") != std::string::npos) {
      for (float const v : x) REQUIRE(v == 1.0f);
      continue;
    }
    auto const ends = [&](char const* end) { return info.name.ends_with(end); };
    double sigma = 0;
    if (ends("shared.weight")) sigma = 1;
    if (ends(".q.weight")) sigma = std::pow(d * 32, -0.5);
    if (ends(".k.weight") || ends(".v.weight")) sigma = std::pow(d, -0.5);
    if (ends(".o.weight")) sigma = std::pow(4 * 32, -0.5);
    if (ends(".wi_0.weight") || ends(".wi_1.weight")) sigma = std::pow(d, -0.5);
    if (ends(".wo.weight")) sigma = std::pow(512, -0.5);
    if (ends("relative_attention_bias.weight")) sigma = std::pow(d, -0.5);
    if (ends("lm_head.weight")) sigma = std::pow(d, -0.5);
    REQUIRE(sigma > 0);
    double mean = 0;
    double square = 0;
    double const n = static_cast<double>(x.size());
    for (float const v : x) {
      mean += static_cast<double>(v) / n;
      square += static_cast<double>(v) * static_cast<double>(v) / n;
    }
    CHECK(std::abs(mean) < 5 * sigma / std::sqrt(n));
    CHECK(std::abs(square / (sigma * sigma) - 1) < 5 * std::sqrt(2 / n));
  }
}

TEST_CASE("t5 parameters: a seed decides them, and no weight repeats another",
          "[t5][parameters][unit]") {
  Config const c = support::small_config(true);
  auto const draw = [&](std::uint64_t seed) {
    Parameters<float, Cpu> p(c);
    emprl::t5::initialise(p, c, seed);
    return std::vector<float>(p.span().begin(), p.span().end());
  };
  CHECK(draw(1) == draw(1));
  CHECK(draw(1) != draw(2));
  Parameters<float, Cpu> p(c);
  emprl::t5::initialise(p, c, 3);
  std::set<float> firsts;
  std::size_t matrices = 0;
  for (auto const& info : p.infos()) {
    if (info.shape.size() != 2) continue;
    ++matrices;
    // Deviations differ between weights: compare the standard normal numbers behind them.
    firsts.insert(static_cast<float>(std::round(1e4 * static_cast<double>(p.span(info)[0]) /
                                                emprl::t5::initial_deviation(info.name, c))));
  }
  CHECK(firsts.size() == matrices);
}

TEST_CASE("t5 parameters: an encoder alone has the shared embedding and the encoder's weights",
          "[t5][parameters][unit]") {
  Config const c = support::small_config(false);
  emprl::t5::Params<float, Cpu> views;
  std::set<std::string> names;
  views.visit_encoder(c, "x.", [&](std::string const& name, auto&, auto) { names.insert(name); });
  std::set<std::string> expected;
  Parameters<float, Cpu> const whole(c);
  for (auto const& info : whole.infos()) {
    if (info.name == "shared.weight" || info.name.starts_with("encoder."))
      expected.insert("x." + info.name);
  }
  CHECK(names == expected);
}
