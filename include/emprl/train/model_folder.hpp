// SPDX-License-Identifier: Apache-2.0
#pragma once

// A T5 as it lies in a folder in Hugging Face's layout: config.json, the weights in one file or in
// several, spiece.model; beside them a value head where there is one. Adapters lie in a folder of
// their own (adapter_folder.hpp).
//
// What transformers wrote is read (versions 4 and 5, T5 v1.0, v1.1 and Flan), and what is written
// transformers loads: config.json, generation_config.json, model.safetensors, spiece.model,
// tokenizer_config.json, special_tokens_map.json. Fields of config.json that mean nothing here, and
// the small files that say how to generate and to cut text, go from the folder that was read into
// the folder that is written. A field that would change results and is not supported is an error.
//
// A value head lies in value_head.safetensors under TRL's names, v_head.summary.weight (1, C) and
// v_head.summary.bias (1). TRL's own folders have those two tensors among the model's, and they are
// read from there as well. TRL takes ours with
//   model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(FOLDER)
//   model.post_init(safetensors.torch.load_file(FOLDER + "/value_head.safetensors"))

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "emprl/gen/sampling.hpp"
#include "emprl/io/hugging_face.hpp"
#include "emprl/io/safetensors.hpp"
#include "emprl/t5/config.hpp"
#include "emprl/text/tokenizer.hpp"
#include "emprl/train/adapter_folder.hpp"
#include "emprl/train/parameter_file.hpp"
#include "emprl/train/t5_weights.hpp"

namespace emprl::train {

namespace detail {

/// Refuses fields of a config.json under which transformers computes something else than is
/// computed here.
inline void expect_supported(io::Json const& json, std::string const& where) {
  auto const field = [&](char const* name) -> io::Json const* {
    auto const it = json.find(name);
    return it == json.end() || it->is_null() ? nullptr : &*it;
  };
  auto const only = [&](char const* name, io::Json const& supported) {
    io::Json const* const value = field(name);
    if (value == nullptr || *value == supported) return;
    throw IoError(where + ": the field \"" + name + "\" is " + value->dump() + "; only " +
                  supported.dump() + " is supported.");
  };
  only("is_encoder_decoder", true);
  only("tie_encoder_decoder", false);
  only("pad_token_id", t5::pad_id);
  only("decoder_start_token_id", t5::decoder_start_id);
  if (io::Json const* const end = field("eos_token_id");
      end != nullptr && *end != io::Json::array({t5::end_id})) {
    only("eos_token_id", t5::end_id);
  }
  // transformers takes these two from feed_forward_proj, but what config.json says overrides it.
  bool const gated = json.value("feed_forward_proj", io::Json("relu")) == "gated-gelu";
  only("is_gated_act", gated);
  only("dense_act_fn", gated ? "gelu_new" : "relu");
  // Other names that transformers knows for some dimensions.
  constexpr std::array<std::array<char const*, 2>, 4> aliases{{{"hidden_size", "d_model"},
                                                               {"num_attention_heads", "num_heads"},
                                                               {"num_hidden_layers", "num_layers"},
                                                               {"head_dim", "d_kv"}}};
  for (auto const& [alias, name] : aliases) {
    if (field(alias) != nullptr && field(name) != nullptr) only(alias, *field(name));
  }
  if (io::Json const* const heads = field("pruned_heads"); heads != nullptr && !heads->empty()) {
    throw IoError(where + ": the field \"pruned_heads\" is " + heads->dump() +
                  "; models with pruned heads are not supported.");
  }
  if (field("quantization_config") != nullptr) {
    throw IoError(where +
                  ": the field \"quantization_config\" says that the weights are quantized; save "
                  "the model in F32, F16 or BF16.");
  }
}

}  // namespace detail

/// The configuration in a config.json of Hugging Face's T5.
///
/// Tied embeddings and logits scaled by d_model^-0.5 go together in T5 (v1.0), as do the opposites
/// (v1.1, Flan). transformers 4 says so by tie_word_embeddings; transformers 5 always writes true
/// there and says what it does by scale_decoder_outputs, which therefore counts where it is.
/// @throws IoError naming the file and the field that is missing, of the wrong type, or not
/// supported
inline t5::Config config_from_json(io::Json const& json, std::string const& where) {
  if (!json.is_object()) throw IoError(where + ": an object was expected.");
  auto const integer = [&](char const* name, index_t fallback, bool required) {
    return detail::json_field<index_t>(json, name, fallback, required, where);
  };
  std::string const type = detail::json_field<std::string>(json, "model_type", "t5", false, where);
  if (type != "t5")
    throw IoError(where + ": model_type is \"" + type + "\"; only \"t5\" is understood.");
  t5::Config c;
  c.vocab_size = integer("vocab_size", 0, true);
  c.d_model = integer("d_model", 0, true);
  c.d_kv = integer("d_kv", 0, true);
  c.d_ff = integer("d_ff", 0, true);
  c.num_layers = integer("num_layers", 0, true);
  c.num_decoder_layers = integer("num_decoder_layers", c.num_layers, false);
  c.num_heads = integer("num_heads", 0, true);
  auto const small = [&](char const* name, index_t fallback) {
    return static_cast<int>(std::clamp<index_t>(integer(name, fallback, false), -1, 1 << 30));
  };
  c.relative_attention_num_buckets = small("relative_attention_num_buckets", 32);
  c.relative_attention_max_distance = small("relative_attention_max_distance", 128);
  c.dropout_rate = detail::json_field<double>(json, "dropout_rate", 0.1, false, where);
  c.layer_norm_epsilon = detail::json_field<double>(json, "layer_norm_epsilon", 1e-6, false, where);
  std::string const projection =
      detail::json_field<std::string>(json, "feed_forward_proj", "relu", false, where);
  if (projection == "gated-gelu") {
    c.feed_forward = nn::Activation::gated_gelu;
  } else if (projection != "relu") {
    throw IoError(where + ": feed_forward_proj is \"" + projection +
                  "\"; \"relu\" and \"gated-gelu\" are understood.");
  }
  bool const tied = detail::json_field<bool>(json, "tie_word_embeddings", true, false, where);
  c.tie_word_embeddings =
      detail::json_field<bool>(json, "scale_decoder_outputs", tied, false, where);
  if (c.tie_word_embeddings && !tied) {
    throw IoError(where +
                  ": \"scale_decoder_outputs\" is true and \"tie_word_embeddings\" is false; "
                  "logits are scaled only where the embeddings are tied.");
  }
  detail::expect_supported(json, where);
  constexpr index_t most = index_t{1} << 24;
  for (index_t const extent : {c.vocab_size, c.d_model, c.d_kv, c.d_ff, c.num_heads}) {
    if (extent > most)
      throw IoError(where + ": a dimension of " + std::to_string(extent) + " is not plausible.");
  }
  if (c.num_layers > 1024 || c.num_decoder_layers > 1024) {
    throw IoError(where + ": more than 1024 layers are not plausible.");
  }
  try {
    c.validate();
  } catch (ConfigError const& error) {
    throw IoError(where + ": " + error.what() + ".");
  }
  return c;
}

/// The same, for writing: what transformers' T5ForConditionalGeneration reads.
inline io::Json config_to_json(t5::Config const& c) {
  bool const gated = c.feed_forward == nn::Activation::gated_gelu;
  return {{"architectures", {"T5ForConditionalGeneration"}},
          {"model_type", "t5"},
          {"is_encoder_decoder", true},
          {"vocab_size", c.vocab_size},
          {"d_model", c.d_model},
          {"d_kv", c.d_kv},
          {"d_ff", c.d_ff},
          {"num_layers", c.num_layers},
          {"num_decoder_layers", c.num_decoder_layers},
          {"num_heads", c.num_heads},
          {"relative_attention_num_buckets", c.relative_attention_num_buckets},
          {"relative_attention_max_distance", c.relative_attention_max_distance},
          {"dropout_rate", c.dropout_rate},
          {"layer_norm_epsilon", c.layer_norm_epsilon},
          {"feed_forward_proj", gated ? "gated-gelu" : "relu"},
          {"tie_word_embeddings", c.tie_word_embeddings},
          {"pad_token_id", t5::pad_id},
          {"eos_token_id", t5::end_id},
          {"decoder_start_token_id", t5::decoder_start_id},
          {"torch_dtype", "float32"}};
}

/// The same for a model that was read from a folder: the fields of its config.json stay, in their
/// order, but for those that say what the model is.
/// @param dtype the type that the weights are written in, as torch calls it
inline io::Json config_to_json(t5::Config const& c, io::Json const& origin,
                               std::string const& dtype = "float32") {
  io::Json json = origin.is_object() ? origin : io::Json::object();
  io::Json const fields = config_to_json(c);
  for (auto const& [name, value] : fields.items()) json[name] = value;
  // transformers 5 has another name for the type, and says here whether logits are scaled.
  bool const renamed = origin.is_object() && origin.contains("dtype");
  json[renamed ? "dtype" : "torch_dtype"] = dtype;
  if (renamed && !origin.contains("torch_dtype")) json.erase("torch_dtype");
  if (json.contains("torch_dtype")) json["torch_dtype"] = dtype;
  if (json.contains("scale_decoder_outputs")) {
    json["scale_decoder_outputs"] = c.tie_word_embeddings;
  }
  return json;
}

/// What a folder says beyond the model itself, to be written as it was read.
struct FolderOrigin {
  io::Json config = io::Json::object();      ///< all of config.json
  std::map<std::string, std::string> files;  ///< `kept_files` that were there, by name
};

/// The files that go through unread: how transformers generates, and how it sets up its tokenizer.
inline constexpr std::array<char const*, 5> kept_files{
    "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "tokenizer.json"};

/// What a folder says beyond the model itself.
/// @param config what its config.json holds
/// @throws IoError naming the file that cannot be read
inline FolderOrigin read_origin(std::filesystem::path const& path, io::Json config) {
  FolderOrigin origin{std::move(config), {}};
  for (char const* const name : kept_files) {
    if (io::detail::is_file(path / name)) origin.files[name] = io::read_file(path / name);
  }
  return origin;
}

namespace detail {

/// generation_config.json, tokenizer_config.json and special_tokens_map.json for a model that did
/// not bring them.
inline std::map<std::string, std::string> default_files(
    text::SentencePieceTokenizer const& tokenizer) {
  auto const lines = [](io::Json const& json) { return json.dump(2) + "\n"; };
  io::Json sentinels = io::Json::array();
  for (index_t k = 0; k < text::sentinel_count; ++k) {
    sentinels.push_back("<extra_id_" + std::to_string(k) + ">");
  }
  io::Json special{{"additional_special_tokens", sentinels},
                   {"eos_token", "</s>"},
                   {"pad_token", "<pad>"},
                   {"unk_token", "<unk>"}};
  io::Json settings = special;
  settings["clean_up_tokenization_spaces"] = false;
  settings["extra_ids"] = tokenizer.has_sentinel_pieces() ? 0 : text::sentinel_count;
  // Without it, "▁" would not be put before the text behind a sentinel, as is done here.
  settings["legacy"] = true;
  settings["model_max_length"] = 512;
  settings["tokenizer_class"] = "T5Tokenizer";
  return {{"generation_config.json", lines({{"decoder_start_token_id", t5::decoder_start_id},
                                            {"eos_token_id", t5::end_id},
                                            {"pad_token_id", t5::pad_id}})},
          {"tokenizer_config.json", lines(settings)},
          {"special_tokens_map.json", lines(special)}};
}

/// Writes the tokenizer and the files beside it, and removes those that an earlier model left.
inline void write_tokenizer(io::HuggingFaceFolder const& folder,
                            text::SentencePieceTokenizer const& tokenizer,
                            FolderOrigin const& origin) {
  std::map<std::string, std::string> const defaults = default_files(tokenizer);
  io::write_file_atomically(folder.tokenizer(), tokenizer.serialized());
  for (char const* const name : kept_files) {
    auto const kept = origin.files.find(name);
    auto const made = defaults.find(name);
    if (kept != origin.files.end()) {
      io::write_file_atomically(folder.path / name, kept->second);
    } else if (made != defaults.end()) {
      io::write_file_atomically(folder.path / name, made->second);
    } else {
      std::error_code ignored;
      std::filesystem::remove(folder.path / name, ignored);
    }
  }
}

/// Holds a tokenizer against the folder's tokenizer.json, from which transformers cuts its text.
/// @throws IoError naming the first piece whose id or spelling is another
inline void expect_same_tokenizer(io::HuggingFaceFolder const& folder,
                                  text::SentencePieceTokenizer const& tokenizer,
                                  std::vector<std::string>& warnings) {
  if (!io::detail::is_file(folder.fast_tokenizer())) return;
  io::FastTokenizer const fast = io::read_fast_tokenizer(folder.fast_tokenizer());
  std::string const start = folder.fast_tokenizer().string() + " and spiece.model differ: ";
  std::string const advice = "; one of the two belongs to another model";
  auto const pieces = static_cast<std::size_t>(tokenizer.pieces());
  auto const spelling = [&](std::size_t id) {
    if (id < pieces) return tokenizer.piece(static_cast<std::int32_t>(id));
    return "<extra_id_" + std::to_string(pieces + text::sentinel_count - 1 - id) + ">";
  };
  auto const ids = static_cast<std::size_t>(tokenizer.size());
  if (fast.pieces.size() < pieces) {
    throw IoError(start + "the former has " + std::to_string(fast.pieces.size()) +
                  " pieces, the latter " + std::to_string(pieces) +
                  " (the first that is missing: " + spelling(fast.pieces.size()) + ")" + advice +
                  ".");
  }
  bool same_scores = true;
  for (std::size_t id = 0; id < fast.pieces.size(); ++id) {
    io::FastTokenizer::Piece const& piece = fast.pieces[id];
    if (id >= ids || piece.text != spelling(id)) {
      throw IoError(
          start + "id " + std::to_string(id) + " is \"" + piece.text + "\" in the former and " +
          (id >= ids ? "not there" : "\"" + spelling(id) + "\"") + " in the latter" + advice + ".");
    }
    // Scores are of type float in the model, and text in the other file.
    if (!same_scores || id >= pieces) continue;
    double const score = static_cast<double>(tokenizer.score(static_cast<std::int32_t>(id)));
    if (std::abs(score - piece.score) > 1e-6 * std::abs(score)) {
      same_scores = false;
      warnings.push_back(start + "the score of \"" + piece.text + "\" is " +
                         std::to_string(piece.score) + " in the former and " +
                         std::to_string(score) +
                         " in the latter; texts may be cut otherwise than "
                         "in transformers.");
    }
  }
  std::vector<std::string> unknown;
  for (auto const& [id, content] : fast.added) {
    if (id < 0 || static_cast<std::size_t>(id) >= ids) {
      unknown.push_back(content);
    } else if (content != spelling(static_cast<std::size_t>(id))) {
      throw IoError(start + "id " + std::to_string(id) + " is \"" + content +
                    "\" in the former and \"" + spelling(static_cast<std::size_t>(id)) +
                    "\" in the latter" + advice + ".");
    }
  }
  if (!unknown.empty()) {
    warnings.push_back(folder.fast_tokenizer().string() +
                       " adds tokens that spiece.model does not have, which are cut as text: " +
                       some_of(unknown) + ".");
  }
}

}  // namespace detail

/// The tokenizer of a folder: spiece.model, held against tokenizer.json where that is there too.
/// @param warnings receives what is odd but does not change ids
/// @throws IoError if there is no spiece.model, or naming the first piece by which the two differ
inline text::SentencePieceTokenizer read_tokenizer(io::HuggingFaceFolder const& folder,
                                                   std::vector<std::string>& warnings) {
  text::SentencePieceTokenizer tokenizer(io::find_spiece_model(folder));
  detail::expect_same_tokenizer(folder, tokenizer, warnings);
  return tokenizer;
}

/// A T5 on the CPU with all that it needs to work on text. Move-only.
template <Scalar T>
struct Generator : T5Weights<T, Cpu> {
  using T5Weights<T, Cpu>::config;
  using T5Weights<T, Cpu>::weights;
  using T5Weights<T, Cpu>::prefix;
  using T5Weights<T, Cpu>::value_head;

  text::SentencePieceTokenizer tokenizer;
  FolderOrigin origin;                ///< of the folder that it was read from
  std::vector<std::string> warnings;  ///< of loading: tensors that were not used

  /// All weights zero.
  Generator(t5::Config const& model_config, text::SentencePieceTokenizer spiece)
      : T5Weights<T, Cpu>(model_config), tokenizer(std::move(spiece)) {
    expect_room();
  }

  /// With weights that the caller writes before anything reads them.
  Generator(nn::Unset unset, t5::Config const& model_config, text::SentencePieceTokenizer spiece)
      : T5Weights<T, Cpu>(unset, model_config), tokenizer(std::move(spiece)) {
    expect_room();
  }

  /// A second model with the same weights, adapter and value head.
  Generator clone() const {
    Generator copy(nn::Unset{}, config(),
                   text::SentencePieceTokenizer(tokenizer.serialized(), "spiece.model"));
    copy.origin = origin;
    std::copy_n(weights.span().begin(), weights.size(), copy.weights.span().begin());
    if (prefix.size() > 0) {
      copy.prefix = PrefixParameters<T>(prefix_shape());
      std::copy_n(prefix.span().begin(), prefix.size(), copy.prefix.span().begin());
    }
    if (this->lora().size() > 0) {
      t5::LoraParameters<T, Cpu> matrices(this->lora_shape());
      std::copy_n(this->lora().span().begin(), matrices.size(), matrices.span().begin());
      copy.attach_lora(this->lora_shape(), std::move(matrices));
    }
    if (value_head.size() > 0) {
      copy.value_head = ValueHeadParameters<T>(config().d_model);
      std::copy_n(value_head.span().begin(), value_head.size(), copy.value_head.span().begin());
    }
    return copy;
  }

  typename t5::Prefixes<T, Cpu>::Shape prefix_shape() const {
    return {config(), this->prefix_length()};
  }

 private:
  void expect_room() const {
    expects<ConfigError>(tokenizer.size() <= config().vocab_size,
                         "the tokenizer has " + std::to_string(tokenizer.size()) +
                             " ids (sentinels included), more than the model's vocabulary of " +
                             std::to_string(config().vocab_size) + ".");
  }
};

/// A sampling configuration that never draws an id that the tokenizer cannot decode.
template <Scalar T>
gen::SamplingConfig barred_beyond_tokenizer(gen::SamplingConfig config,
                                            Generator<T> const& generator) {
  for (index_t id = generator.tokenizer.size(); id < generator.config().vocab_size; ++id) {
    config.barred.push_back(static_cast<std::int32_t>(id));
  }
  return config;
}

namespace detail {

/// The weights of a folder under the names that a T5 here has. transformers knows the shared
/// embedding by four names, and its files have it under any of them, or several.
class T5Tensors {
 public:
  T5Tensors(io::FolderWeights const& file, t5::Config const& config)
      : file_(file), tied_(config.tie_word_embeddings) {
    if (!file.contains(shared)) {
      for (char const* const name : {encoder_table, decoder_table, head}) {
        if (name == head && !tied_) continue;
        if (!file.contains(name)) continue;
        shared_is_ = name;
        break;
      }
    }
    if (!file.contains(shared_is_)) return;
    for (char const* const name : {encoder_table, decoder_table}) {
      if (file.contains(name) && !file.same_contents(name, shared_is_)) {
        throw IoError(file.file_of(name).path().string() + ": tensor \"" + name +
                      "\" is another than \"" + shared_is_ +
                      "\"; encoder and decoder with embeddings of their own are not supported.");
      }
    }
  }

  std::filesystem::path const& path() const { return file_.path(); }
  bool contains(std::string const& name) const { return file_.contains(place_of(name)); }
  io::TensorInfo const& info(std::string const& name) const { return file_.info(place_of(name)); }
  template <class T>
  void copy_to(std::string const& name, std::span<T> out, std::span<index_t const> shape) const {
    file_.copy_to(place_of(name), out, shape);
  }
  /// Without the other names of the shared embedding, and without a tensor that the first T5 files
  /// have, that no version of transformers uses.
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (std::string const& name : file_.names()) {
      bool const unused = name ==
                          "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias"
                          ".weight";
      bool const alias = name == encoder_table || name == decoder_table || (name == head && tied_);
      if (!alias && !unused) names.push_back(name);
    }
    return names;
  }

  /// What is said of the output embedding, if it is not as the configuration has it.
  std::vector<std::string> warnings() const {
    if (tied_ && file_.contains(head) && !file_.same_contents(head, shared_is_)) {
      return {file_.file_of(head).path().string() + ": the tensor " + head +
              " is not used, for config.json ties it to " + shared_is_ +
              ", and it is another; set \"tie_word_embeddings\" to false if it is meant."};
    }
    if (!tied_ && !file_.contains(head)) {
      return {file_.path().string() + " has no " + head + ", and config.json (of transformers 5) " +
              "ties it to " + shared_is_ + ": a copy of that is used, and trained by itself."};
    }
    return {};
  }

  /// Takes an output embedding that is not in the file for a copy of the shared one.
  void tie_head() { head_is_ = shared_is_; }
  bool has_head() const { return file_.contains(head); }

 private:
  static constexpr char const* shared = "shared.weight";
  static constexpr char const* encoder_table = "encoder.embed_tokens.weight";
  static constexpr char const* decoder_table = "decoder.embed_tokens.weight";
  static constexpr char const* head = "lm_head.weight";

  std::string place_of(std::string const& name) const {
    return name == shared ? shared_is_ : name == head ? head_is_ : name;
  }

  io::FolderWeights const& file_;
  bool tied_;
  std::string shared_is_ = shared;
  std::string head_is_ = head;
};

}  // namespace detail

/// Reads a model folder, and an adapter folder of either kind if one is named.
/// @throws IoError naming the file, and the field or tensor in it, that is missing or wrong
template <Scalar T>
Generator<T> load_generator(std::filesystem::path const& path,
                            std::filesystem::path const& adapter = {}) {
  io::HuggingFaceFolder const folder{path};
  io::Json json = io::read_config(folder);
  t5::Config const config = config_from_json(json, folder.config().string());
  io::FolderWeights const file(folder);
  std::vector<std::string> warnings = file.warnings();

  detail::T5Tensors tensors(file, config);
  // transformers 5 says "tied" of every model; one that is not scaled and has no output embedding
  // of its own is tied in truth.
  bool const said_to_be_tied = json.value("tie_word_embeddings", io::Json(true)) != false;
  if (!config.tie_word_embeddings && said_to_be_tied && !tensors.has_head()) tensors.tie_head();
  // The file is checked against the configuration before memory for the weights is asked for.
  detail::expect_tensors(tensors, t5::Parameters<T, Cpu>::layout(config));
  Generator<T> generator(nn::Unset{}, config, read_tokenizer(folder, warnings));
  for (std::string& sentence : tensors.warnings()) warnings.push_back(std::move(sentence));

  std::vector<std::string> extra = read_parameters(tensors, generator.weights);
  auto const head = path / "value_head.safetensors";
  auto const is_value_head = [](std::string const& name) {
    return name == "v_head.summary.weight" || name == "v_head.summary.bias";
  };
  if (io::detail::is_file(head)) {
    generator.value_head = ValueHeadParameters<T>(config.d_model);
    read_parameters(io::SafeTensorsFile(head), generator.value_head);
  } else if (file.contains("v_head.summary.weight")) {
    generator.value_head = ValueHeadParameters<T>(config.d_model);
    read_parameters(file, generator.value_head);
    extra.erase(std::remove_if(extra.begin(), extra.end(), is_value_head), extra.end());
  }
  if (!extra.empty()) {
    warnings.push_back(file.path().string() + ": the model has no use for " +
                       (extra.size() == 1 ? "the tensor " : "the tensors ") +
                       detail::some_of(extra) + ".");
  }
  generator.origin = read_origin(path, std::move(json));
  generator.warnings = std::move(warnings);
  if (!adapter.empty()) load_adapter(adapter, generator);
  return generator;
}

/// Writes a model folder: configuration, tokenizer, weights, and the value head if there is one.
/// Adapters are not part of it (adapter_folder.hpp). What another model left in the folder under
/// those names goes.
/// @param max_shard_bytes weights of more bytes are split over several files
/// @throws IoError if a file cannot be written
template <Scalar T>
void save_generator(std::filesystem::path const& path, Generator<T> const& generator,
                    std::uint64_t max_shard_bytes = io::one_file) {
  io::ensure_directory(path);
  io::HuggingFaceFolder const folder{path};
  std::string const dtype = io::dtype_of<T>() == io::DType::f64 ? "float64" : "float32";
  io::write_config(folder, config_to_json(generator.config(), generator.origin.config, dtype));
  detail::write_tokenizer(folder, generator.tokenizer, generator.origin);
  auto const head = path / "value_head.safetensors";
  if (generator.value_head.size() > 0) {
    write_parameters(head, generator.value_head);
  } else {
    std::error_code ignored;
    std::filesystem::remove(head, ignored);
  }
  io::write_weights(folder, detail::tensors_of(generator.weights), max_shard_bytes);
}

}  // namespace emprl::train
