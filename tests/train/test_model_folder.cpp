// SPDX-License-Identifier: Apache-2.0

// Model folders as transformers, TRL and their users leave them, and as they are left for those.

#include "emprl/train/model_folder.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "data/real_data.hpp"
#include "emprl/ops/gemm_cpu.hpp"
#include "emprl/train/empathy_scorer.hpp"
#include "io/temporary_folder.hpp"
#include "support/catch.hpp"
#include "text/small_corpus.hpp"

namespace model_folder_test {

using namespace emprl;
using Catch::Matchers::ContainsSubstring;
using emprl::test::message_of;
using emprl::test::slurp;
using emprl::test::TemporaryFolder;

text::SentencePieceTokenizer tokenizer() {
  return {emprl::test::small_spiece_model(), "test tokenizer"};
}

t5::Config config(bool tied) {
  t5::Config c;
  c.vocab_size = 160;
  c.d_model = 12;
  c.d_kv = 4;
  c.num_heads = 2;
  c.d_ff = 20;
  c.num_layers = 2;
  c.num_decoder_layers = 1;
  c.tie_word_embeddings = tied;
  if (!tied) c.feed_forward = nn::Activation::gated_gelu;
  return c;
}

train::Generator<float> model(bool tied, std::uint64_t seed = 5) {
  train::Generator<float> g(config(tied), tokenizer());
  t5::initialise(g.weights, g.config(), seed);
  return g;
}

std::vector<float> numbers(std::span<float> values) {
  return {values.begin(), values.end()};
}

/// A tensor that owns its numbers.
struct Owned {
  std::string name;
  std::vector<index_t> shape;
  std::vector<float> values;
};

/// A folder with a model, whose files a test then changes.
struct ModelFolder {
  TemporaryFolder folder;
  train::Generator<float> written;
  io::Json config;
  std::vector<Owned> tensors;

  explicit ModelFolder(bool tied = true) : written(model(tied)) {
    train::save_generator(folder.path(), written);
    config = io::Json::parse(slurp(folder / "config.json"));
    for (nn::ParameterInfo const& info : written.weights.infos()) {
      tensors.push_back({info.name, info.shape, numbers(written.weights.span(info))});
    }
  }

  Owned& tensor(std::string const& name) {
    return *std::find_if(tensors.begin(), tensors.end(),
                         [&](Owned const& t) { return t.name == name; });
  }
  void add(std::string const& name, Owned tensor) {
    tensor.name = name;
    tensors.push_back(std::move(tensor));
  }
  void remove(std::string const& name) {
    tensors.erase(std::remove_if(tensors.begin(), tensors.end(),
                                 [&](Owned const& t) { return t.name == name; }),
                  tensors.end());
  }
  /// Writes config and tensors as they are now.
  void put(std::uint64_t max_shard_bytes = io::one_file) const {
    folder.put("config.json", config.dump());
    std::vector<io::TensorToWrite> all;
    for (Owned const& t : tensors) {
      all.push_back(io::tensor_to_write<float>(t.name, t.shape, t.values));
    }
    io::write_weights({folder.path()}, all, max_shard_bytes);
  }
  train::Generator<float> load() const { return train::load_generator<float>(folder.path()); }
  std::string refusal() const {
    return message_of<IoError>([&] { load(); });
  }
  bool is_as_written() const {
    return numbers(load().weights.span()) == numbers(written.weights.span());
  }
};

TEST_CASE("model folder: one file or many, tied or not, the weights come back bit for bit",
          "[train][folder][unit]") {
  for (bool const tied : {true, false}) {
    for (std::uint64_t const bytes : {io::one_file, std::uint64_t{4096}, std::uint64_t{1}}) {
      CAPTURE(tied, bytes);
      TemporaryFolder const folder;
      train::Generator<float> const g = model(tied);
      train::save_generator(folder.path(), g, bytes);
      CHECK(std::filesystem::exists(folder / "model.safetensors.index.json") ==
            (bytes != io::one_file));
      train::Generator<float> const back = train::load_generator<float>(folder.path());
      CHECK(numbers(back.weights.span()) == numbers(g.weights.span()));
      CHECK(back.config().tie_word_embeddings == tied);
      CHECK(back.warnings.empty());
      CHECK((bytes != 1 || io::FolderWeights({folder.path()}).file_of("shared.weight").names() ==
                               std::vector<std::string>{"shared.weight"}));
    }
  }
}

TEMPLATE_TEST_CASE("model folder: weights in 16 bits are widened exactly", "[train][folder][unit]",
                   Bf16, Fp16) {
  ModelFolder const made(false);
  std::vector<std::vector<TestType>> rounded;
  std::vector<io::TensorToWrite> all;
  for (Owned const& t : made.tensors) {
    rounded.emplace_back(t.values.begin(), t.values.end());
    all.push_back(
        io::tensor_to_write<TestType>(t.name, t.shape, std::span<TestType const>(rounded.back())));
  }
  io::write_weights({made.folder.path()}, all, 3000);
  train::Generator<float> const back = made.load();
  auto at = back.weights.span().begin();
  int wrong = 0;
  for (auto const& tensor : rounded) {
    for (TestType const x : tensor) wrong += *at++ != static_cast<float>(x);
  }
  CHECK(wrong == 0);
  CHECK(back.warnings.empty());
  // They are written as they are held.
  train::save_generator(made.folder / "out", back);
  io::FolderWeights const out({made.folder / "out"});
  CHECK(out.info("shared.weight").dtype == io::DType::f32);
  CHECK(io::Json::parse(slurp(made.folder / "out/config.json"))["torch_dtype"] == "float32");
}

TEST_CASE("model folder: the shared embedding may have any of its names", "[train][folder][unit]") {
  ModelFolder made;
  for (char const* const name :
       {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}) {
    CAPTURE(name);
    ModelFolder other;
    other.tensor("shared.weight").name = name;
    other.put();
    CHECK(other.is_as_written());
    CHECK(other.load().warnings.empty());
    made.add(name, made.tensor("shared.weight"));
  }
  made.put(4096);
  CHECK(made.is_as_written());
  CHECK(made.load().warnings.empty());
}

TEST_CASE("model folder: stacks with embeddings of their own are refused",
          "[train][folder][bad_input]") {
  for (char const* const name : {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}) {
    ModelFolder made;
    made.add(name, made.tensor("shared.weight"));
    made.tensors.back().values.back() += 1;
    made.put();
    CHECK_THAT(made.refusal(), ContainsSubstring((made.folder / "model.safetensors").string()) &&
                                   ContainsSubstring(name));
  }
}

TEST_CASE("model folder: an output embedding that config.json ties away is named",
          "[train][folder][unit]") {
  ModelFolder made;
  made.add("lm_head.weight", made.tensor("shared.weight"));
  made.tensors.back().values[3] = 7;
  made.put();
  CHECK(made.is_as_written());
  auto const warnings = made.load().warnings;
  REQUIRE(warnings.size() == 1);
  CHECK_THAT(warnings[0], ContainsSubstring("lm_head.weight is not used"));
}

TEST_CASE("model folder: an untied model without an output embedding is refused",
          "[train][folder][bad_input]") {
  ModelFolder made(false);
  made.remove("lm_head.weight");
  made.put();
  CHECK_THAT(made.refusal(), ContainsSubstring("lm_head.weight"));
  // The shared embedding is not taken for it, nor it for the shared one.
  ModelFolder other(false);
  other.remove("shared.weight");
  other.put();
  CHECK_THAT(other.refusal(), ContainsSubstring("shared.weight"));
}

TEST_CASE("model folder: transformers 5 says \"tied\" of every T5, and how it is scaled elsewhere",
          "[train][folder][unit]") {
  ModelFolder tied(true);
  tied.config["tie_word_embeddings"] = true;
  tied.config["scale_decoder_outputs"] = true;
  tied.put();
  CHECK(tied.load().config().tie_word_embeddings);
  CHECK(tied.is_as_written());

  ModelFolder untied(false);
  untied.config["tie_word_embeddings"] = true;
  untied.config["scale_decoder_outputs"] = false;
  untied.config.erase("torch_dtype");
  untied.config["dtype"] = "bfloat16";
  untied.put();
  CHECK_FALSE(untied.load().config().tie_word_embeddings);
  CHECK(untied.is_as_written());
  CHECK(untied.load().warnings.empty());
  // What is written both versions understand.
  train::save_generator(untied.folder / "out", untied.load());
  io::Json const out = io::Json::parse(slurp(untied.folder / "out/config.json"));
  CHECK(out["tie_word_embeddings"] == false);
  CHECK(out["scale_decoder_outputs"] == false);
  CHECK(out["dtype"] == "float32");
  CHECK_FALSE(out.contains("torch_dtype"));

  // Not scaled, and no output embedding in the file: there it is the shared one.
  untied.remove("lm_head.weight");
  untied.put();
  train::Generator<float> const g = untied.load();
  CHECK_FALSE(g.config().tie_word_embeddings);
  CHECK(std::equal(g.weights.views().lm_head.span().begin(), g.weights.views().lm_head.span().end(),
                   untied.tensor("shared.weight").values.begin()));
  REQUIRE(g.warnings.size() == 1);
  CHECK_THAT(g.warnings[0], ContainsSubstring("no lm_head.weight"));

  untied.config["tie_word_embeddings"] = false;
  untied.config["scale_decoder_outputs"] = true;
  untied.put();
  CHECK_THAT(untied.refusal(), ContainsSubstring("scale_decoder_outputs"));
}

TEST_CASE("model folder: tensors without a use are named in one warning, up to seven of many",
          "[train][folder][unit]") {
  ModelFolder made;
  Owned const small{"", {1}, {1.0F}};
  made.add("one.weight", small);
  made.put();
  REQUIRE(made.load().warnings.size() == 1);
  CHECK_THAT(made.load().warnings[0], ContainsSubstring("the tensor one.weight."));
  made.add("another.weight", small);
  made.put();
  REQUIRE(made.load().warnings.size() == 1);
  CHECK_THAT(made.load().warnings[0],
             ContainsSubstring("the tensors another.weight and one.weight."));
  for (int i = 0; i < 20; ++i) made.add("z" + std::to_string(i), small);
  made.put();
  REQUIRE(made.load().warnings.size() == 1);
  CHECK_THAT(made.load().warnings[0], ContainsSubstring("and 15 more."));
  CHECK(made.is_as_written());
}

TEST_CASE("model folder: a bias table that the first T5 files carry for nothing is passed over",
          "[train][folder][unit]") {
  ModelFolder made;
  made.add("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
           made.tensor("shared.weight"));
  made.put();
  CHECK(made.load().warnings.empty());
  CHECK(made.is_as_written());
}

TEST_CASE("model folder: all tensors that are missing are named in one error",
          "[train][folder][bad_input]") {
  ModelFolder made;
  made.remove("encoder.final_layer_norm.weight");
  made.put();
  CHECK_THAT(made.refusal(), ContainsSubstring((made.folder / "model.safetensors").string()) &&
                                 ContainsSubstring("a tensor of the model: encoder.final_layer"));
  made.remove("decoder.final_layer_norm.weight");
  made.put(4096);
  CHECK_THAT(made.refusal(),
             ContainsSubstring("model.safetensors.index.json") &&
                 ContainsSubstring("tensors of the model: encoder.final_layer_norm.weight and "
                                   "decoder.final_layer_norm.weight."));
}

TEST_CASE("model folder: a tensor of another shape is refused before memory is asked for",
          "[train][folder][bad_input]") {
  ModelFolder made;
  made.config["d_ff"] = 1 << 24;
  made.config["d_model"] = 1 << 24;
  made.config["num_layers"] = 2;
  made.put();
  CHECK_THAT(made.refusal(),
             ContainsSubstring("shared.weight") && ContainsSubstring("[160, 16777216]"));
}

TEST_CASE("model folder: what config.json says beyond the model stays, in its order",
          "[train][folder][unit]") {
  ModelFolder made;
  made.config["task_specific_params"] = {{"summarization", {{"length_penalty", 2.0}}}};
  made.config["n_positions"] = 512;
  made.config["transformers_version"] = "4.44.2";
  made.config["num_decoder_layers"] = nullptr;
  made.config["num_layers"] = 1;
  made.remove("encoder.block.1.layer.0.SelfAttention.q.weight");
  for (auto& t : std::vector<Owned>(made.tensors)) {
    if (t.name.starts_with("encoder.block.1.")) made.remove(t.name);
  }
  made.put();
  std::string const generation = "{\n  \"num_beams\": 4,  \"eos_token_id\": 1\n}";
  made.folder.put("generation_config.json", generation);
  made.folder.put("tokenizer_config.json", R"({"tokenizer_class": "T5Tokenizer", "mine": 1})");
  train::Generator<float> const g = made.load();
  CHECK(g.config().num_decoder_layers == 1);
  train::save_generator(made.folder / "out", g.clone());

  io::Json expected = made.config;
  expected["num_decoder_layers"] = 1;
  CHECK(slurp(made.folder / "out/config.json") == expected.dump(2) + "\n");
  CHECK(slurp(made.folder / "out/generation_config.json") == generation);
  CHECK_THAT(slurp(made.folder / "out/tokenizer_config.json"), ContainsSubstring("\"mine\": 1"));
}

TEST_CASE(
    "model folder: a configuration under which transformers computes something else is "
    "refused by field",
    "[train][folder][bad_input]") {
  ModelFolder const made;
  auto const read = [&](char const* field, io::Json value, bool gated = false) {
    io::Json json = made.config;
    if (gated) json["feed_forward_proj"] = "gated-gelu";
    json[field] = std::move(value);
    return message_of<IoError>([&] { train::config_from_json(json, "folder/config.json"); });
  };
  auto const refuses = [&](char const* field, io::Json value, bool gated = false) {
    CAPTURE(field, value);
    CHECK_THAT(read(field, value, gated), ContainsSubstring("folder/config.json") &&
                                              ContainsSubstring(std::string("\"") + field + "\""));
  };
  auto const takes = [&](char const* field, io::Json value, bool gated = false) {
    CAPTURE(field, value);
    CHECK(read(field, value, gated).empty());
  };
  refuses("is_encoder_decoder", false);
  refuses("tie_encoder_decoder", true);
  refuses("pad_token_id", 1);
  refuses("decoder_start_token_id", 2);
  refuses("eos_token_id", 2);
  refuses("eos_token_id", {1, 2});
  refuses("is_gated_act", true);
  refuses("is_gated_act", false, true);
  refuses("dense_act_fn", "gelu_new");
  refuses("dense_act_fn", "gelu", true);
  refuses("hidden_size", 13);
  refuses("num_attention_heads", 3);
  refuses("num_hidden_layers", 3);
  refuses("head_dim", 5);
  refuses("pruned_heads", {{"0", {1}}});
  refuses("quantization_config", {{"bits", 8}});
  takes("eos_token_id", io::Json::array({1}));
  takes("decoder_start_token_id", nullptr);
  takes("dense_act_fn", "relu");
  takes("dense_act_fn", "gelu_new", true);
  takes("is_gated_act", true, true);
  takes("hidden_size", 12);
  takes("pruned_heads", io::Json::object());
  takes("quantization_config", nullptr);
  takes("tie_encoder_decoder", false);
  takes("use_cache", false);
  takes("num_decoder_layers", nullptr);
}

TEST_CASE("model folder: what is written has all that transformers looks for",
          "[train][folder][unit]") {
  ModelFolder const made(false);
  io::Json const generation = io::Json::parse(slurp(made.folder / "generation_config.json"));
  CHECK(generation ==
        io::Json{{"decoder_start_token_id", 0}, {"eos_token_id", 1}, {"pad_token_id", 0}});
  io::Json const settings = io::Json::parse(slurp(made.folder / "tokenizer_config.json"));
  CHECK(settings["tokenizer_class"] == "T5Tokenizer");
  CHECK(settings["extra_ids"] == 100);
  io::Json const special = io::Json::parse(slurp(made.folder / "special_tokens_map.json"));
  CHECK(special["additional_special_tokens"].size() == 100);
  CHECK(special["additional_special_tokens"][99] == "<extra_id_99>");
  CHECK(made.config["architectures"][0] == "T5ForConditionalGeneration");
  CHECK(io::SafeTensorsFile(made.folder / "model.safetensors").metadata().at("format") == "pt");
}

TEST_CASE("model folder: what another model left under the same names goes",
          "[train][folder][unit]") {
  ModelFolder const made;
  made.folder.put("tokenizer.json", "{}");
  made.folder.put("added_tokens.json", "{}");
  made.folder.put("notes.txt", "mine");
  train::Generator<float> g = model(true);
  g.value_head = train::ValueHeadParameters<float>(g.config().d_model);
  train::save_generator(made.folder.path(), g, 4096);
  CHECK(made.load().value_head.size() == 13);
  train::save_generator(made.folder.path(), model(true));
  CHECK(made.load().value_head.size() == 0);
  CHECK_FALSE(std::filesystem::exists(made.folder / "tokenizer.json"));
  CHECK_FALSE(std::filesystem::exists(made.folder / "added_tokens.json"));
  CHECK_FALSE(std::filesystem::exists(made.folder / "model.safetensors.index.json"));
  CHECK(slurp(made.folder / "notes.txt") == "mine");
}

TEST_CASE("model folder: a value head among the weights, as TRL writes it, is read",
          "[train][folder][unit]") {
  ModelFolder made;
  Owned weight{"", {1, 12}, std::vector<float>(12, 0.5F)};
  weight.values[11] = 2;
  made.add("v_head.summary.weight", weight);
  made.add("v_head.summary.bias", {"", {1}, {-3}});
  made.put(4096);
  train::Generator<float> const g = made.load();
  CHECK(g.warnings.empty());
  CHECK(made.is_as_written());
  REQUIRE(g.value_head.size() == 13);
  CHECK(g.value_head.views().weight(0, 11) == 2);
  CHECK(g.value_head.views().bias(0) == -3);
  train::save_generator(made.folder / "out", g);
  io::SafeTensorsFile const head(made.folder / "out/value_head.safetensors");
  CHECK(head.info("v_head.summary.weight").shape == std::vector<index_t>{1, 12});
  CHECK(head.info("v_head.summary.bias").shape == std::vector<index_t>{1});
  CHECK_FALSE(io::FolderWeights({made.folder / "out"}).contains("v_head.summary.weight"));

  made.remove("v_head.summary.bias");
  made.put();
  CHECK_THAT(made.refusal(), ContainsSubstring("v_head.summary.bias"));
}

TEST_CASE("model folder: a full disk leaves the old weights", "[train][folder][bad_input]") {
  ModelFolder const made;
  for (std::uint64_t const bytes : {io::one_file, std::uint64_t{30'000}}) {
    train::Generator<float> const g = model(true, 9);
    {
      // Enough for the small files.
      emprl::test::FullDisk const full(
          std::filesystem::file_size(made.folder / "model.safetensors") / 2);
      CHECK_THROWS_AS(train::save_generator(made.folder.path(), g, bytes), IoError);
    }
    CHECK(made.is_as_written());
  }
}

/// A tokenizer.json that agrees with the tokenizer.
io::Json fast_tokenizer(bool sentinels_in_vocabulary) {
  text::SentencePieceTokenizer const spiece = tokenizer();
  io::Json vocabulary = io::Json::array();
  io::Json added = io::Json::array();
  for (std::int32_t id = 0; id < spiece.pieces(); ++id) {
    vocabulary.push_back({spiece.piece(id), static_cast<double>(spiece.score(id))});
    if (id < 3) added.push_back({{"id", id}, {"content", spiece.piece(id)}});
  }
  for (int k = 99; k >= 0; --k) {
    std::string const name = "<extra_id_" + std::to_string(k) + ">";
    if (sentinels_in_vocabulary) vocabulary.push_back({name, 0.0});
    added.push_back({{"id", spiece.sentinel_id(k)}, {"content", name}});
  }
  return {{"model", {{"type", "Unigram"}, {"vocab", vocabulary}}}, {"added_tokens", added}};
}

TEST_CASE("model folder: tokenizer.json is held against spiece.model",
          "[train][folder][tokenizer]") {
  ModelFolder const made;
  auto const put = [&](io::Json const& json) { made.folder.put("tokenizer.json", json.dump()); };
  io::Json const good = fast_tokenizer(true);
  put(good);
  CHECK(made.load().warnings.empty());
  // It is the same tokenizer, so it goes with the model.
  train::save_generator(made.folder / "out", made.load());
  CHECK(slurp(made.folder / "out/tokenizer.json") == slurp(made.folder / "tokenizer.json"));
  put(fast_tokenizer(false));
  CHECK(made.load().warnings.empty());

  io::Json json = good;
  std::string const piece = json["model"]["vocab"][17][0];
  json["model"]["vocab"][17][0] = "another";
  json["model"]["vocab"][21][0] = "a later one";
  put(json);
  CHECK_THAT(made.refusal(), ContainsSubstring((made.folder / "tokenizer.json").string()) &&
                                 ContainsSubstring("id 17 is \"another\"") &&
                                 ContainsSubstring(piece));
  json = good;
  json["model"]["vocab"].erase(40);
  put(json);
  CHECK_THAT(made.refusal(), ContainsSubstring("id 40"));
  json = good;
  std::swap(json["model"]["vocab"][60], json["model"]["vocab"][61]);
  put(json);
  CHECK_THAT(made.refusal(), ContainsSubstring("id 60 is \"<extra_id_94>\""));
  json = good;
  json["model"]["vocab"].push_back({"more", 0.0});
  put(json);
  CHECK_THAT(made.refusal(), ContainsSubstring("id 156 is \"more\""));
  json = good;
  json["model"]["vocab"].erase(json["model"]["vocab"].begin() + 50, json["model"]["vocab"].end());
  put(json);
  CHECK_THAT(made.refusal(), ContainsSubstring("50 pieces"));
  json = good;
  json["added_tokens"][0]["content"] = "[PAD]";
  put(json);
  CHECK_THAT(made.refusal(), ContainsSubstring("id 0 is \"[PAD]\""));

  json = good;
  json["model"]["vocab"][17][1] = -1.25;
  put(json);
  REQUIRE(made.load().warnings.size() == 1);
  CHECK_THAT(made.load().warnings[0], ContainsSubstring("score of \"" + piece + "\""));
  json = good;
  json["added_tokens"].push_back({{"id", 156}, {"content", "<joy>"}});
  put(json);
  REQUIRE(made.load().warnings.size() == 1);
  CHECK_THAT(made.load().warnings[0], ContainsSubstring("<joy>"));
}

TEST_CASE("model folder: the two forms of T5's own tokenizer are found to agree",
          "[train][folder][tokenizer]") {
  auto const folder = emprl::test::real_data("t5_tokenizer");
  if (folder.empty()) return;
  std::vector<std::string> warnings;
  CHECK(train::read_tokenizer({folder}, warnings).pieces() == 32000);
  CHECK(warnings.empty());
  CHECK(io::read_fast_tokenizer(folder / "tokenizer.json").pieces.size() == 32100);
}

TEST_CASE("model folder: an identifier's folder goes both ways too", "[train][folder][unit]") {
  TemporaryFolder const folder;
  train::IdentifierModel<float> identifier(config(true), tokenizer());
  empathy::initialise(identifier.weights, config(true), model(true).weights, 3);
  identifier.origin.config = {{"labels", {"none", "weak", "strong"}}};
  train::save_identifier(folder.path(), identifier);
  auto const back = train::load_identifier<float>(folder.path());
  CHECK(numbers(back.weights.span()) == numbers(identifier.weights.span()));
  CHECK(back.warnings.empty());
  CHECK(back.origin.config["labels"].size() == 3);

  std::vector<io::TensorToWrite> tensors = train::detail::tensors_of(identifier.weights);
  std::vector<float> const one{1};
  tensors.push_back(io::tensor_to_write<float>("pooler.weight", {1}, one));
  io::write_weights({folder.path()}, tensors, 4096);
  auto const split = train::load_identifier<float>(folder.path());
  CHECK(numbers(split.weights.span()) == numbers(identifier.weights.span()));
  REQUIRE(split.warnings.size() == 1);
  CHECK_THAT(split.warnings[0], ContainsSubstring("pooler.weight"));
  tensors.erase(tensors.end() - 2);
  io::write_weights({folder.path()}, tensors);
  CHECK_THAT(message_of<IoError>([&] { train::load_identifier<float>(folder.path()); }),
             ContainsSubstring("classifier.3.bias"));
}

}  // namespace model_folder_test
