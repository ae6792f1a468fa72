// SPDX-License-Identifier: Apache-2.0
#pragma once

// The shape of a T5 model (Raffel et al. 2020), field by field as Hugging Face's config.json names
// it.

#include <string>
#include <string_view>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"
#include "emprl/nn/feed_forward.hpp"

namespace emprl::t5 {

struct Config {
  index_t vocab_size = 32128;
  index_t d_model = 512;
  index_t d_kv = 64;
  index_t d_ff = 2048;
  index_t num_layers = 6;
  index_t num_decoder_layers = 6;
  index_t num_heads = 8;
  int relative_attention_num_buckets = 32;
  int relative_attention_max_distance = 128;
  double dropout_rate = 0.1;
  double layer_norm_epsilon = 1e-6;
  nn::Activation feed_forward = nn::Activation::relu;  // v1.0; v1.1 and Flan use gated_gelu
  bool tie_word_embeddings = true;  // v1.0: tied, and the logits scaled by d_model^-0.5

  bool operator==(Config const&) const = default;

  /// The width of queries, keys and values of all heads.
  index_t inner() const { return num_heads * d_kv; }

  /// @throws ConfigError naming the first field that cannot be
  void validate() const {
    auto const positive = [](index_t value, char const* name) {
      if (value <= 0)
        throw ConfigError(std::string("config: ") + name + " must be positive, not " +
                          std::to_string(value));
    };
    positive(vocab_size, "vocab_size");
    positive(d_model, "d_model");
    positive(d_kv, "d_kv");
    positive(d_ff, "d_ff");
    positive(num_layers, "num_layers");
    positive(num_decoder_layers, "num_decoder_layers");
    positive(num_heads, "num_heads");
    positive(relative_attention_num_buckets, "relative_attention_num_buckets");
    expects<ConfigError>(
        relative_attention_num_buckets >= 4 && relative_attention_num_buckets % 2 == 0,
        "config: relative_attention_num_buckets must be even and at least 4");
    expects<ConfigError>(
        relative_attention_max_distance > relative_attention_num_buckets / 2,
        "config: relative_attention_max_distance must be larger than half the buckets");
    expects<ConfigError>(dropout_rate >= 0 && dropout_rate < 1,
                         "config: dropout_rate must be in [0, 1)");
    expects<ConfigError>(layer_norm_epsilon > 0, "config: layer_norm_epsilon must be positive");
  }

  /// `tiny` (METHOD-sized for two cores), or the shapes of T5-small and T5-base (v1.0).
  /// @throws ConfigError for another name
  static Config preset(std::string_view name) {
    Config c;
    if (name == "tiny") {
      c.vocab_size = 8000;
      c.d_model = 128;
      c.d_kv = 32;
      c.d_ff = 512;
      c.num_heads = 4;
      c.num_layers = c.num_decoder_layers = 2;
    } else if (name == "base") {
      c.d_model = 768;
      c.d_ff = 3072;
      c.num_heads = 12;
      c.num_layers = c.num_decoder_layers = 12;
    } else if (name != "small") {
      throw ConfigError("preset: '" + std::string(name) +
                        "' is unknown; the presets are tiny, small and base");
    }
    return c;
  }
};

/// Ids that every T5 vocabulary shares.
inline constexpr std::int32_t pad_id = 0;
inline constexpr std::int32_t end_id = 1;
inline constexpr std::int32_t unknown_id = 2;
inline constexpr std::int32_t decoder_start_id = pad_id;

}  // namespace emprl::t5
