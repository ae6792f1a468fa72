// SPDX-License-Identifier: Apache-2.0

// Targets of a model folder's other files: the index of split weights, and tokenizer.json.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "emprl/io/hugging_face.hpp"
#include "emprl/io/safetensors.hpp"
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

}  // namespace

Targets folder_targets() {
  return {{"weight_index", weight_index}, {"fast_tokenizer", fast_tokenizer}};
}

}  // namespace emprl::fuzz
