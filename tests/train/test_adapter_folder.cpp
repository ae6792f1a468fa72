// SPDX-License-Identifier: Apache-2.0

// Adapters in folders: what PEFT wrote gives PEFT's numbers, what is written is read again, and
// what means something else is refused.

#include "emprl/train/adapter_folder.hpp"

#include <algorithm>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "emprl/optim/adamw.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/t5_golden.hpp"

using emprl::Cpu;
using emprl::index_t;
using emprl::IoError;
using emprl::io::Json;
namespace train = emprl::train;
namespace t5 = emprl::t5;

namespace {
namespace adapters {

std::filesystem::path golden(std::string const& name) {
  return std::filesystem::path(EMPRL_GOLDEN_DIR) / name;
}

/// A base model of the goldens, and PEFT's adapter on it, attached by the library.
template <class T>
struct Golden {
  explicit Golden(std::string const& name)
      : base(emprl::io::read_json_file(golden(name) / "adapter_config.json")
                 .at("base_model_name_or_path")
                 .get<std::string>()),
        expected(name + "/expected.safetensors"),
        adapted(base.config) {
    std::copy(base.parameters.span().begin(), base.parameters.span().end(),
              adapted.weights.span().begin());
    train::load_adapter(golden(name), adapted);
  }

  /// The rule of GoldenT5::check, for this case's results.
  void check(std::string const& name, std::vector<T> const& actual) const {
    bool const is_double = std::is_same_v<T, double>;
    double const plain = is_double ? 0.0 : expected["float32_error/" + name].values.at(0);
    support::check_error(name, actual, expected[name].values, plain,
                         is_double ? 1e-10 / support::rounding<double> : 8);
  }

  support::Pass<T> pass(Cpu& dev, t5::Params<T, Cpu> const* grads = nullptr) const {
    return support::run_pass<T>(dev, adapted.model, adapted.weights.views(), {},
                                base.contexts.view(), base.responses.view(), {}, grads);
  }

  support::GoldenT5<T> base;
  support::GoldenFile expected;
  train::T5Weights<T> adapted;
};

char const* const cases[] = {"lora_q_v", "lora_all_linear", "lora_patterns"};

/// A small model with weights of some kind.
train::T5Weights<float> small(bool gated = false) {
  t5::Config const c = support::small_config(gated);
  train::T5Weights<float> g(c);
  auto const numbers = support::random_parameters<float>(c, 3);
  std::copy(numbers.span().begin(), numbers.span().end(), g.weights.span().begin());
  return g;
}

/// Gives it a LoRA with random numbers.
void add_lora(train::T5Weights<float>& g, t5::LoraShape const& shape) {
  t5::LoraParameters<float, Cpu> matrices(shape);
  auto const numbers = support::random_values<float>(matrices.size(), 9, 0.3);
  std::copy(numbers.begin(), numbers.end(), matrices.span().begin());
  g.attach_lora(shape, std::move(matrices));
}

t5::LoraConfig lora(std::vector<std::string> targets) {
  t5::LoraConfig c;
  c.rank = 2;
  c.alpha = 3.5;
  c.dropout = 0.25;
  c.targets = std::move(targets);
  return c;
}

std::vector<float> copied(std::span<float> x) {
  return {x.begin(), x.end()};
}

}  // namespace adapters
}  // namespace

TEMPLATE_TEST_CASE("adapter folder: a LoRA that PEFT wrote has PEFT's logits, loss and gradients",
                   "[train][adapter][golden]", float, double) {
  using T = TestType;
  for (auto const* name : adapters::cases) {
    INFO(name);
    adapters::Golden<T> const g(name);
    Cpu dev(2);
    t5::LoraParameters<T, Cpu> const grads(g.adapted.lora_shape());
    t5::Params<T, Cpu> views;
    grads.views().attach(g.adapted.lora_shape(), views);
    auto const pass = g.pass(dev, &views);
    g.check("logits", pass.logits);
    g.check("logprobs", pass.logprobs);
    g.check("loss", {static_cast<T>(pass.loss)});
    std::size_t recorded = 0;
    for (auto const& [tensor, value] : g.expected.tensors())
      recorded += tensor.starts_with("grad/");
    CHECK(grads.infos().size() == recorded);
    for (auto const& info : grads.infos()) {
      auto const x = grads.span(info);
      g.check("grad/base_model.model." + info.name, std::vector<T>(x.begin(), x.end()));
    }
    // Merged into the weights it is the same function.
    train::T5Weights<T> merged(dev, g.adapted);
    train::merge_lora(dev, merged);
    CHECK(merged.lora().size() == 0);
    auto const alone = support::run_pass<T>(dev, merged.model, merged.weights.views(), {},
                                            g.base.contexts.view(), g.base.responses.view());
    support::check_error("logits of the merged model", alone.logits,
                         reference::convert<double>(pass.logits), 0.0, 256);
  }
}

TEST_CASE("adapter folder: steps of AdamW on a LoRA lose what PyTorch's lose",
          "[train][adapter][golden]") {
  for (auto const* name : adapters::cases) {
    INFO(name);
    adapters::Golden<double> const g(name);
    Cpu dev(2);
    t5::LoraParameters<double, Cpu> const grads(g.adapted.lora_shape());
    t5::Params<double, Cpu> views;
    grads.views().attach(g.adapted.lora_shape(), views);
    emprl::optim::AdamWConfig settings;
    settings.max_gradient_norm = 0;
    emprl::optim::AdamW<double> optimiser(settings, g.adapted.lora().span(), grads.span());
    for (double const expected : g.expected["adamw_losses"].values) {
      optimiser.zero_gradients();
      // The first step is lr * sign(g): where a gradient is nearly zero, its rounding decides.
      CHECK(g.pass(dev, &views).loss == Approx(expected).epsilon(1e-6));
      optimiser.step(dev, 1e-2);
    }
  }
}

TEST_CASE("adapter folder: rank and alpha of a module are what PEFT's patterns say",
          "[train][adapter][golden]") {
  adapters::Golden<float> const g("lora_patterns");
  index_t wide = 0, narrow = 0;
  for (t5::LoraModule const& m : g.adapted.lora_shape().modules) {
    INFO(m.name);
    bool const cross_keys = m.name.ends_with("EncDecAttention.k");
    bool const later_wi = m.name.ends_with("wi") && m.name.find("block.0") == std::string::npos;
    CHECK(m.rank == (cross_keys ? 1 : later_wi ? 5 : 3));
    CHECK(m.alpha == (cross_keys ? 2 : later_wi ? 10 : 6));
    narrow += cross_keys;
    wide += later_wi;
  }
  CHECK(narrow == 3);
  CHECK(wide == 3);
}

TEST_CASE("adapter folder: a LoRA that is written is read again to the last bit",
          "[train][adapter][folder]") {
  emprl::test::TemporaryFolder const folder;
  for (bool const gated : {false, true}) {
    train::T5Weights<float> g = adapters::small(gated);
    auto shape = t5::lora_shape(g.config(), adapters::lora({"q", "EncDecAttention.v", "wo"}));
    shape.modules[1].rank = 4;
    shape.modules[2].alpha = 7;
    shape.rank_stabilised = gated;
    adapters::add_lora(g, shape);
    train::save_adapter(folder / "lora", g, "models/t5");
    train::T5Weights<float> back = adapters::small(gated);
    train::load_adapter(folder / "lora", back);
    CHECK(back.lora_shape().modules == shape.modules);
    CHECK(back.lora_shape().dropout == 0.25);
    CHECK(back.lora_shape().rank_stabilised == gated);
    CHECK(adapters::copied(back.lora().span()) == adapters::copied(g.lora().span()));

    Json const json = emprl::io::read_json_file(folder / "lora/adapter_config.json");
    CHECK(json["peft_type"] == "LORA");
    CHECK(json["base_model_name_or_path"] == "models/t5");
    CHECK(json["r"] == 2);
    CHECK(json["lora_alpha"] == 3.5);
    CHECK(json["rank_pattern"] == Json({{shape.modules[1].name, 4}}));
    CHECK(json["alpha_pattern"] == Json({{shape.modules[2].name, 7}}));
    // "v" would name more than was chosen: every module by its name.
    CHECK(json["target_modules"].size() == shape.modules.size());

    adapters::add_lora(g, t5::lora_shape(g.config(), adapters::lora({"q", "wo"})));
    train::save_adapter(folder / "short", g);
    Json const brief = emprl::io::read_json_file(folder / "short/adapter_config.json");
    CHECK(brief["target_modules"] == Json({"q", "wo"}));
    CHECK(brief["rank_pattern"].empty());
    CHECK(brief["base_model_name_or_path"].is_null());
  }
}

TEST_CASE("adapter folder: prefixes and a LoRA take each other's place in a folder",
          "[train][adapter][folder]") {
  emprl::test::TemporaryFolder const folder;
  train::T5Weights<float> g = adapters::small();
  CHECK_THROWS_AS(train::save_adapter(folder / "a", g), emprl::ConfigError);
  g.prefix = support::random_prefixes<float>(g.config(), 3, 1);
  train::save_adapter(folder / "a", g);
  train::T5Weights<float> with_lora = adapters::small();
  adapters::add_lora(with_lora, t5::lora_shape(g.config(), adapters::lora({"q"})));
  {
    train::T5Weights<float> back = adapters::small();
    train::load_adapter(folder / "a", back);
    CHECK(adapters::copied(back.prefix.span()) == adapters::copied(g.prefix.span()));
    CHECK(back.lora().size() == 0);
  }
  train::save_adapter(folder / "a", with_lora);
  CHECK_FALSE(std::filesystem::exists(folder / "a/adapter.safetensors"));
  {
    train::T5Weights<float> back = adapters::small();
    train::load_adapter(folder / "a", back);
    CHECK(back.prefix.size() == 0);
    CHECK(adapters::copied(back.lora().span()) == adapters::copied(with_lora.lora().span()));
  }
  train::save_adapter(folder / "a", g);
  CHECK_FALSE(std::filesystem::exists(folder / "a/adapter_model.safetensors"));
  g.attach_lora(with_lora.lora_shape(), t5::LoraParameters<float, Cpu>(with_lora.lora_shape()));
  CHECK_THROWS_AS(train::save_adapter(folder / "a", g), emprl::ConfigError);
}

TEST_CASE("T5 weights: a LoRA that does not fit is refused, and the one that was there stays",
          "[train][adapter][unit]") {
  train::T5Weights<float> g = adapters::small();
  adapters::add_lora(g, t5::lora_shape(g.config(), adapters::lora({"q", "wo"})));
  Cpu dev(1);
  auto const contexts = support::random_rows({5, 3}, g.config().vocab_size, 1);
  auto const logits = [&] {
    return support::run_pass<float>(dev, g.model, g.weights.views(), {}, contexts.view(),
                                    contexts.view())
        .logits;
  };
  auto const before = logits();
  t5::Config other = g.config();
  other.num_layers = 3;
  auto const deeper = t5::lora_shape(other, adapters::lora({"q"}));
  CHECK_THROWS_AS(g.attach_lora(deeper, t5::LoraParameters<float, Cpu>(deeper)),
                  emprl::ConfigError);
  CHECK(logits() == before);
  CHECK(g.weights.views().encoder.blocks.size() == 2);
  adapters::add_lora(g, t5::lora_shape(g.config(), adapters::lora({"v"})));
  CHECK(logits() != before);
  CHECK(g.weights.views().encoder.blocks[0].self_attention.lora_q.empty());
}

TEST_CASE("adapter folder: what is no plain LoRA of this model is refused by field or tensor",
          "[train][adapter][io]") {
  emprl::test::TemporaryFolder const folder;
  train::T5Weights<float> g = adapters::small();
  adapters::add_lora(g, t5::lora_shape(g.config(), adapters::lora({"q", "wi"})));
  auto const here = folder / "lora";
  auto const fresh = [&] { train::save_lora(here, g); };
  fresh();
  Json const good = emprl::io::read_json_file(here / "adapter_config.json");
  auto const message = [&](train::T5Weights<float> into) {
    return emprl::test::message_of<IoError>([&] { train::load_adapter(here, into); });
  };
  auto const says = [&](char const* field, Json value, std::string const& part) {
    Json bad = good;
    bad[field] = std::move(value);
    emprl::io::write_json_file(here / "adapter_config.json", bad);
    std::string const text = message(adapters::small());
    CAPTURE(field, text);
    CHECK(text.find(part) != std::string::npos);
    CHECK(text.find("adapter_config.json") != std::string::npos);
  };
  says("peft_type", "IA3", "IA3");
  says("peft_type", "PREFIX_TUNING", "decoder's self-attention alone");
  says("use_dora", true, "use_dora");
  says("fan_in_fan_out", true, "fan_in_fan_out");
  says("modules_to_save", Json({"lm_head"}), "modules_to_save");
  says("layer_replication", Json({{0, 1}}), "layer_replication");
  says("lora_bias", true, "lora_bias");
  says("trainable_token_indices", Json({1}), "trainable_token_indices");
  says("bias", "some", "bias is \"some\"");
  says("task_type", "CAUSAL_LM", "CAUSAL_LM");
  says("init_lora_weights", "pissa", "pissa");
  says("lora_dropout", 1.0, "lora_dropout");
  says("lora_alpha", "much", "lora_alpha");
  says("r", nullptr, "\"r\" is missing");
  says("r", 3, "has rank 2 where");
  says("rank_pattern", Json({{"q", 5}}), "has rank 2 where");
  says("rank_pattern", Json({{"q", 1e300}}), "has rank 2 where");
  says("rank_pattern", Json({{std::string(1000, '.'), 5}}), "rank_pattern");
  says("alpha_pattern", Json({{"(q|v)", 5}}), "(q|v)");
  says("alpha_pattern", Json::array({1}), "alpha_pattern");
  says("target_modules", Json({"q"}), "does not name");
  says("target_modules", Json({"q", "wi", "v"}), "has no LoRA of");
  says("target_modules", "all-linear", "has no LoRA of");
  says("target_modules", Json({1}), "list of names");

  // What means the same is taken.
  auto const fine = [&](char const* field, Json value) {
    Json other = good;
    other[field] = std::move(value);
    emprl::io::write_json_file(here / "adapter_config.json", other);
    train::T5Weights<float> back = adapters::small();
    INFO(field);
    CHECK_NOTHROW(train::load_adapter(here, back));
    CHECK(adapters::copied(back.lora().span()) == adapters::copied(g.lora().span()));
  };
  fine("target_modules", R"(.*\.(q|wi))");
  fine("bias", "all");
  fine("task_type", nullptr);
  fine("init_lora_weights", "gaussian");
  fine("modules_to_save", Json::array());
  fine("a_field_of_a_later_peft", Json({{"x", 1}}));

  fresh();
  // Another model's: wider, or with other layers.
  CHECK(message(adapters::small(true)).find("DenseReluDense.wi") != std::string::npos);
  {
    t5::Config wider = support::small_config(false);
    wider.d_model = 12;
    CHECK(message(train::T5Weights<float>(wider)).find("another model") != std::string::npos);
  }
  auto const with_tensor = [&](std::string const& name, std::vector<index_t> const& shape,
                               bool alone = false) {
    fresh();
    std::vector<float> const values(
        static_cast<std::size_t>(shape[0] * (shape.size() > 1 ? shape[1] : 1)), 1.0f);
    std::vector<emprl::io::TensorToWrite> tensors;
    for (auto const& info : g.lora().infos()) {
      if (alone || "base_model.model." + info.name == name) continue;
      tensors.push_back(emprl::io::tensor_to_write<float>("base_model.model." + info.name,
                                                          info.shape, g.lora().span(info)));
    }
    tensors.push_back(
        emprl::io::tensor_to_write<float>(name, shape, std::span<float const>(values)));
    emprl::io::write_safetensors(here / "adapter_model.safetensors", tensors);
    return message(adapters::small());
  };
  std::string const q = "base_model.model.encoder.block.0.layer.0.SelfAttention.q.";
  CHECK(with_tensor("base_model.model.lm_head.weight", {23, 10}).find("lm_head.weight") !=
        std::string::npos);
  CHECK(with_tensor("base_model.model.shared.lora_embedding_A", {2, 23}).find("no matrix") !=
        std::string::npos);
  CHECK(with_tensor("base_model.model.shared.lora_A.weight", {2, 10}).find("no projection") !=
        std::string::npos);
  CHECK(with_tensor(q + "lora_B.weight", {8, 3}).find("another shape") != std::string::npos);
  CHECK(with_tensor(q + "lora_A.weight", {2}).find("no matrix") != std::string::npos);
  CHECK(with_tensor(q + "lora_A.weight", {2, 10}, true).find("only one matrix") !=
        std::string::npos);

  fresh();
  std::filesystem::rename(here / "adapter_model.safetensors", here / "adapter_model.bin");
  CHECK(message(adapters::small()).find("pickle") != std::string::npos);
  std::filesystem::remove(here / "adapter_model.bin");
  CHECK(message(adapters::small()).find("has no adapter_model.safetensors") != std::string::npos);
  emprl::io::write_json_file(here / "adapter_config.json", {{"adapter_type", "bitfit"}});
  CHECK(message(adapters::small()).find("bitfit") != std::string::npos);
}

TEST_CASE("adapter folder: a pattern matches the end of a name, from a dot on",
          "[train][adapter][unit]") {
  auto const matches = [](char const* pattern, char const* name) {
    return train::detail::ModulePattern(pattern, "file").matches(name);
  };
  char const* const name = "decoder.block.11.layer.1.EncDecAttention.q";
  CHECK(matches("q", name));
  CHECK(matches("EncDecAttention.q", name));
  CHECK(matches("EncDecAttention\\.q", name));
  CHECK(matches(name, name));
  CHECK_FALSE(matches("ttention.q", name));
  CHECK_FALSE(matches("EncDecAttention", name));
  CHECK_FALSE(matches("k", name));
  CHECK(matches("k|q", name));
  CHECK(matches("decoder.*q", name));
  CHECK(matches("block.\\d+.*", name));
  CHECK_FALSE(matches("block.\\d.x", "decoder.block.11.x"));
  CHECK(matches("block.[01]+.layer.[^2].\\w+.q", name));
  CHECK_FALSE(matches("block.[01].layer.*", name));
  CHECK(matches("[a-z]", name));
  CHECK_FALSE(matches("[a-p]", name));
  CHECK(matches("xyz?q?", "a.xyq"));
  CHECK_FALSE(matches("", name));
  CHECK(matches(".*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*q", name));
  CHECK_FALSE(matches(".*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*.*k", name));
  for (char const* bad : {"(q)", "^q", "q$", "q{2}", "*q", "q+?", "\\bq", "[q", "[b-a]", "q\\",
                          "caf\xc3\xa9", "\\1"}) {
    INFO(bad);
    CHECK(emprl::test::message_of<IoError>([&] {
            train::detail::ModulePattern(bad, "file.json");
          }).find("file.json") != std::string::npos);
  }
}
