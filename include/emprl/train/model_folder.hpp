// SPDX-License-Identifier: Apache-2.0
#pragma once

// A T5 as it lies in a folder: config.json, model.safetensors and spiece.model, in Hugging Face's
// layout; beside them a value head where there is one. Adapters lie in a folder of their own.

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
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

/// The configuration in a config.json of Hugging Face's T5.
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
  c.tie_word_embeddings = detail::json_field<bool>(json, "tie_word_embeddings", true, false, where);
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

/// A T5 on the CPU with all that it needs to work on text. Move-only.
template <Scalar T>
struct Generator : T5Weights<T, Cpu> {
  using T5Weights<T, Cpu>::config;
  using T5Weights<T, Cpu>::weights;
  using T5Weights<T, Cpu>::prefix;
  using T5Weights<T, Cpu>::value_head;

  text::SentencePieceTokenizer tokenizer;
  std::vector<std::string> warnings;  ///< of loading: tensors that were not used

  Generator(t5::Config const& model_config, text::SentencePieceTokenizer spiece)
      : T5Weights<T, Cpu>(model_config), tokenizer(std::move(spiece)) {
    expects<ConfigError>(tokenizer.size() <= model_config.vocab_size,
                         "the tokenizer has " + std::to_string(tokenizer.size()) +
                             " ids (sentinels included), more than the model's vocabulary of " +
                             std::to_string(model_config.vocab_size) + ".");
  }

  /// A second model with the same weights, adapter and value head.
  Generator clone() const {
    Generator copy(config(), text::SentencePieceTokenizer(tokenizer.serialized(), "spiece.model"));
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

/// Reads a model folder, and an adapter folder of either kind if one is named.
/// @throws IoError naming the file, and the field or tensor in it, that is missing or wrong
template <Scalar T>
Generator<T> load_generator(std::filesystem::path const& path,
                            std::filesystem::path const& adapter = {}) {
  io::HuggingFaceFolder const folder{path};
  t5::Config const config = config_from_json(io::read_config(folder), folder.config().string());
  io::SafeTensorsFile const file(io::find_weights(folder));
  // The file is checked against the configuration before memory for the weights is asked for.
  std::vector<index_t> const shared{config.vocab_size, config.d_model};
  if (file.contains("shared.weight") && file.info("shared.weight").shape != shared) {
    throw IoError(file.path().string() + ": shared.weight does not have the shape that " +
                  folder.config().string() + " gives it.");
  }
  Generator<T> generator(config, text::SentencePieceTokenizer(io::find_spiece_model(folder)));
  for (std::string const& name : read_parameters(file, generator.weights)) {
    generator.warnings.push_back(file.path().string() + ": the tensor " + name + " is not used.");
  }
  if (auto const head = path / "value_head.safetensors"; std::filesystem::exists(head)) {
    generator.value_head = ValueHeadParameters<T>(config.d_model);
    read_parameters(io::SafeTensorsFile(head), generator.value_head);
  }
  if (!adapter.empty()) load_adapter(adapter, generator);
  return generator;
}

/// Writes a model folder: configuration, tokenizer, weights, and the value head if there is one.
/// Adapters are not part of it (adapter_folder.hpp).
/// @throws IoError if a file cannot be written
template <Scalar T>
void save_generator(std::filesystem::path const& path, Generator<T> const& generator) {
  io::ensure_directory(path);
  io::HuggingFaceFolder const folder{path};
  io::write_config(folder, config_to_json(generator.config()));
  io::write_file_atomically(folder.tokenizer(), generator.tokenizer.serialized());
  if (generator.value_head.size() > 0) {
    write_parameters(path / "value_head.safetensors", generator.value_head);
  }
  write_parameters(folder.weights(), generator.weights);
}

}  // namespace emprl::train
