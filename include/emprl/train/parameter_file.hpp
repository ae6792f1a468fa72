// SPDX-License-Identifier: Apache-2.0
#pragma once

// Named parameters as a safetensors file, and fields of the JSON beside it.

#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "emprl/io/json.hpp"
#include "emprl/io/safetensors.hpp"
#include "emprl/nn/parameters.hpp"

namespace emprl::train {

namespace detail {

template <class V>
V json_field(io::Json const& json, char const* name, V fallback, bool required,
             std::string const& where) {
  auto const it = json.find(name);
  if (it == json.end() || it->is_null()) {
    if (required) throw IoError(where + ": the field \"" + name + "\" is missing.");
    return fallback;
  }
  bool const fits = std::is_same_v<V, bool>       ? it->is_boolean()
                    : std::is_integral_v<V>       ? it->is_number_integer()
                    : std::is_floating_point_v<V> ? it->is_number()
                                                  : it->is_string();
  if (!fits) throw IoError(where + ": the field \"" + std::string(name) + "\" has the wrong type.");
  return it->get<V>();
}

}  // namespace detail

/// Reads named parameters from a safetensors file, F16 and BF16 widened. Tensors of the file that
/// the model has no use for are returned by name, for a warning.
/// @param before  what stands before each name in the file
/// @throws IoError naming the file and the tensor that is missing or has another shape
template <class P, Scalar T>
std::vector<std::string> read_parameters(io::SafeTensorsFile const& file,
                                         nn::ParameterStore<P, T, Cpu> const& store,
                                         std::string const& before = {}) {
  std::map<std::string, bool> used;
  for (nn::ParameterInfo const& info : store.infos()) {
    file.copy_to(before + info.name, store.span(info), std::span<index_t const>(info.shape));
    used[before + info.name] = true;
  }
  std::vector<std::string> extra;
  for (std::string const& name : file.names()) {
    // Old T5 files repeat the shared embedding under the names of its users.
    bool const repeated = used.count("shared.weight") != 0 &&
                          (name == "encoder.embed_tokens.weight" ||
                           name == "decoder.embed_tokens.weight" || name == "lm_head.weight");
    if (used.count(name) == 0 && !repeated) extra.push_back(name);
  }
  return extra;
}

/// Writes named parameters as one safetensors file, atomically.
/// @param before  what stands before each name in the file
/// @throws IoError if the file cannot be written; what was there before stays
template <class P, Scalar T>
void write_parameters(std::filesystem::path const& path, nn::ParameterStore<P, T, Cpu> const& store,
                      std::string const& before = {}) {
  std::vector<io::TensorToWrite> tensors;
  for (nn::ParameterInfo const& info : store.infos()) {
    tensors.push_back(io::tensor_to_write<T>(before + info.name, info.shape, store.span(info)));
  }
  io::write_safetensors(path, tensors, {{"format", "pt"}});
}

}  // namespace emprl::train
