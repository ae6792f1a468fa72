// SPDX-License-Identifier: Apache-2.0
#include "emprl/t5/config.hpp"

#include <string>

#include "emprl/t5/parameters.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::ConfigError;
using emprl::index_t;
using emprl::t5::Config;

TEST_CASE("t5::Config: presets have the published shapes", "[t5][config][unit]") {
  Config const tiny = Config::preset("tiny");
  CHECK(tiny.d_model == 128);
  CHECK(tiny.d_ff == 512);
  CHECK(tiny.num_heads == 4);
  CHECK(tiny.d_kv == 32);
  CHECK(tiny.num_layers == 2);
  CHECK(tiny.num_decoder_layers == 2);
  CHECK(tiny.vocab_size == 8000);
  // Parameter counts of T5-small and T5-base as published: 60 and 220 million, exactly these.
  auto const count = [](Config const& c) {
    index_t total = 0;
    emprl::t5::Params<float, emprl::Cpu> views;
    views.visit(c, [&](std::string const&, auto&, auto extents) {
      index_t n = 1;
      for (index_t const e : extents) n *= e;
      total += n;
    });
    return total;
  };
  CHECK(count(Config::preset("small")) == 60506624);
  CHECK(count(Config::preset("base")) == 222903552);
  for (auto const* name : {"tiny", "small", "base"}) CHECK_NOTHROW(Config::preset(name).validate());
  CHECK_THROWS_WITH(Config::preset("huge"), ContainsSubstring("huge"));
}

TEST_CASE("t5::Config: a field that cannot be is named", "[t5][config][unit]") {
  auto const refused = [](auto change, char const* name) {
    Config c;
    change(c);
    CHECK_THROWS_AS(c.validate(), ConfigError);
    CHECK_THROWS_WITH(c.validate(), ContainsSubstring(name));
  };
  refused([](Config& c) { c.vocab_size = 0; }, "vocab_size");
  refused([](Config& c) { c.d_model = -1; }, "d_model");
  refused([](Config& c) { c.d_kv = 0; }, "d_kv");
  refused([](Config& c) { c.d_ff = 0; }, "d_ff");
  refused([](Config& c) { c.num_layers = 0; }, "num_layers");
  refused([](Config& c) { c.num_decoder_layers = 0; }, "num_decoder_layers");
  refused([](Config& c) { c.num_heads = 0; }, "num_heads");
  refused([](Config& c) { c.relative_attention_num_buckets = 7; },
          "relative_attention_num_buckets");
  refused([](Config& c) { c.relative_attention_max_distance = 16; },
          "relative_attention_max_distance");
  refused([](Config& c) { c.dropout_rate = 1.0; }, "dropout_rate");
  refused([](Config& c) { c.dropout_rate = -0.1; }, "dropout_rate");
  refused([](Config& c) { c.layer_norm_epsilon = 0; }, "layer_norm_epsilon");
}
