// SPDX-License-Identifier: Apache-2.0

// Targets of a model folder's other files: the index of split weights, tokenizer.json, and an
// adapter's adapter_config.json.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/io/hugging_face.hpp"
#include "emprl/io/safetensors.hpp"
#include "emprl/t5/lora.hpp"
#include "emprl/train/adapter_folder.hpp"
#include "emprl/train/t5_weights.hpp"
#include "fuzz/harness.hpp"

namespace emprl::fuzz {

namespace {

/// A folder with two shards, to which each input is the index.
ScratchFolder const& split_folder() {
  static ScratchFolder const folder;
  static bool const written = [] {
    std::vector<float> const a{1.0F, 2.0F};
    std::vector<float> const b{3.0F};
    std::vector<io::TensorToWrite> const first{
        io::tensor_to_write("a", {2}, std::span<float const>(a))};
    std::vector<io::TensorToWrite> const second{
        io::tensor_to_write("b", {1}, std::span<float const>(b))};
    io::write_safetensors(folder.path() / "model-00001-of-00002.safetensors", first);
    io::write_safetensors(folder.path() / "model-00002-of-00002.safetensors", second);
    return true;
  }();
  require(written, "the shards are there");
  return folder;
}

void weight_index(std::string_view bytes) {
  ScratchFolder const& folder = split_folder();
  folder.put("model.safetensors.index.json", bytes);
  accepted([&] {
    auto const index =
        io::detail::read_weight_index(folder.path() / "model.safetensors.index.json");
    for (auto const& [tensor, file] : index.file_of) {
      require(file.find('/') == std::string::npos, "an index reaches for no other folder");
    }
  });
  accepted([&] {
    io::FolderWeights const weights(io::HuggingFaceFolder{folder.path()});
    for (auto const& name : weights.names()) {
      auto const& info = weights.info(name);
      std::vector<float> values(static_cast<std::size_t>(info.size()));
      weights.copy_to(name, std::span<float>(values), std::span<index_t const>(info.shape));
      require(values.front() == (name == "a" ? 1.0F : 3.0F), "a tensor is read from its shard");
    }
    require(!weights.names().empty(), "an index without a tensor is refused");
  });
}

void fast_tokenizer(std::string_view bytes) {
  MemoryFile const memory(bytes);
  accepted([&] {
    auto const tokenizer = io::read_fast_tokenizer(memory.path());
    require(tokenizer.pieces.size() <= bytes.size(), "pieces come from the file");
  });
}

t5::Config adapted_config() {
  t5::Config config;
  config.vocab_size = 8;
  config.d_model = 4;
  config.d_kv = 2;
  config.d_ff = 4;
  config.num_layers = 1;
  config.num_decoder_layers = 1;
  config.num_heads = 2;
  return config;
}

/// A folder with the tensors of a LoRA of rank 2 on q and v, and of prefixes of 3 positions, to
/// which each input is the configuration.
ScratchFolder const& adapter_folder() {
  static ScratchFolder const folder;
  static bool const written = [] {
    train::T5Weights<float, Cpu> model(adapted_config());
    t5::LoraConfig config;
    config.rank = 2;
    t5::LoraShape shape = t5::lora_shape(model.config(), config);
    t5::LoraParameters<float, Cpu> matrices(shape);
    t5::initialise_lora(matrices, 1);
    model.attach_lora(std::move(shape), std::move(matrices));
    train::save_adapter(folder.path(), model);
    train::PrefixParameters<float> const prefix(
        t5::Prefixes<float, Cpu>::Shape{adapted_config(), 3});
    train::write_parameters(folder.path() / train::detail::prefix_file, prefix);
    return true;
  }();
  require(written, "the adapters' tensors are there");
  return folder;
}

void adapter_config(std::string_view bytes) {
  ScratchFolder const& folder = adapter_folder();
  folder.put(train::detail::adapter_config, bytes);
  train::T5Weights<float, Cpu> model(adapted_config());
  if (!accepted([&] { train::load_adapter(folder.path(), model); })) {
    require(!train::has_adapter(model), "an adapter that is refused leaves nothing behind");
    return;
  }
  if (!train::has_adapter(model)) return;
  static ScratchFolder const second;
  train::save_adapter(second.path(), model);
  train::T5Weights<float, Cpu> again(adapted_config());
  train::load_adapter(second.path(), again);
  require(again.prefix.size() == model.prefix.size() &&
              again.lora_shape().modules == model.lora_shape().modules,
          "an adapter comes back");
}

}  // namespace

Targets folder_targets() {
  return {{"weight_index", weight_index},
          {"fast_tokenizer", fast_tokenizer},
          {"adapter_config", adapter_config}};
}

}  // namespace emprl::fuzz
