// SPDX-License-Identifier: Apache-2.0
#pragma once

// Folders in Hugging Face's layout: config.json, model.safetensors, spiece.model.

#include <filesystem>
#include <string>
#include <utility>

#include "emprl/core/error.hpp"
#include "emprl/io/file.hpp"
#include "emprl/io/json.hpp"

namespace emprl::io {

/// The names of the files in a model folder.
struct HuggingFaceFolder {
  std::filesystem::path path;

  std::filesystem::path config() const { return path / "config.json"; }
  std::filesystem::path weights() const { return path / "model.safetensors"; }
  std::filesystem::path tokenizer() const { return path / "spiece.model"; }
};

namespace detail {

inline void expect_folder(HuggingFaceFolder const& folder) {
  std::error_code error;
  if (std::filesystem::is_directory(folder.path, error)) return;
  bool const there = std::filesystem::exists(folder.path, error);
  throw IoError("the model folder " + folder.path.string() +
                (there ? " is a file; a folder was expected." : " does not exist."));
}

inline bool is_file(std::filesystem::path const& path) {
  std::error_code error;
  return std::filesystem::is_regular_file(path, error);
}

}  // namespace detail

/// config.json as it stands.
/// @throws IoError if the folder or the file is missing, or the file holds anything but a JSON
/// object
inline Json read_config(HuggingFaceFolder const& folder) {
  detail::expect_folder(folder);
  if (!detail::is_file(folder.config())) {
    throw IoError("the model folder " + folder.path.string() + " has no config.json.");
  }
  return read_json_file(folder.config());
}

/// Writes config.json, all or nothing, and the folder if it is not there.
/// @throws IoError naming the path
inline void write_config(HuggingFaceFolder const& folder, Json const& config) {
  ensure_directory(folder.path);
  write_json_file(folder.config(), config);
}

/// The path of model.safetensors, which is there.
/// @throws IoError that says what is there instead: pickles are refused, because opening one runs
/// code from the file
inline std::filesystem::path find_weights(HuggingFaceFolder const& folder) {
  detail::expect_folder(folder);
  if (detail::is_file(folder.weights())) return folder.weights();
  std::string const start =
      "the model folder " + folder.path.string() + " has no model.safetensors";
  if (detail::is_file(folder.path / "model.safetensors.index.json")) {
    throw IoError(start + " but a model.safetensors.index.json: weights split over several files " +
                  "are not read; join them into one file.");
  }
  if (detail::is_file(folder.path / "pytorch_model.bin")) {
    throw IoError(start + " but a pytorch_model.bin, which is a pickle: pickles are refused, " +
                  "because opening one can run code; save the model as safetensors.");
  }
  throw IoError(start + ".");
}

/// The path of spiece.model, which is there.
/// @throws IoError that says so if it is not
inline std::filesystem::path find_spiece_model(HuggingFaceFolder const& folder) {
  detail::expect_folder(folder);
  if (detail::is_file(folder.tokenizer())) return folder.tokenizer();
  std::string const start = "the model folder " + folder.path.string() + " has no spiece.model";
  if (detail::is_file(folder.path / "tokenizer.json")) {
    throw IoError(start +
                  " but a tokenizer.json, which is not read: a sentencepiece model is needed.");
  }
  throw IoError(start + ".");
}

}  // namespace emprl::io
