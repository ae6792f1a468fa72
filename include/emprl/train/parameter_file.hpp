// SPDX-License-Identifier: Apache-2.0
#pragma once

// Named parameters as safetensors files, and fields of the JSON beside them.

#include <cstddef>
#include <filesystem>
#include <set>
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

/// "a, b and 3 more"
inline std::string some_of(std::vector<std::string> const& names) {
  constexpr std::size_t most = 8;
  std::string text;
  std::size_t const shown = names.size() <= most ? names.size() : most - 1;
  for (std::size_t i = 0; i < shown; ++i) {
    bool const last = i + 1 == names.size();
    text += (i == 0 ? "" : last ? " and " : ", ") + names[i];
  }
  if (shown < names.size()) text += " and " + std::to_string(names.size() - shown) + " more";
  return text;
}

/// @throws IoError naming the file and all tensors that it lacks, or one of another shape
template <class File>
void expect_tensors(File const& file, std::vector<nn::ParameterInfo> const& infos,
                    std::string const& before = {}) {
  std::vector<std::string> missing;
  for (nn::ParameterInfo const& info : infos) {
    if (!file.contains(before + info.name)) missing.push_back(before + info.name);
  }
  if (!missing.empty()) {
    throw IoError(file.path().string() + " lacks " +
                  (missing.size() == 1 ? "a tensor" : "tensors") +
                  " of the model: " + some_of(missing) + ".");
  }
  for (nn::ParameterInfo const& info : infos) {
    auto const& shape = file.info(before + info.name).shape;
    if (shape != info.shape) {
      throw IoError(file.path().string() + " has tensor \"" + before + info.name + "\" of shape " +
                    io::shape_text(shape) + " where the configuration gives it shape " +
                    io::shape_text(info.shape) + ".");
    }
  }
}

}  // namespace detail

/// Reads named parameters from a safetensors file or the weights of a folder, F16 and BF16 widened.
/// @param before what stands before each name in the file
/// @return the names of tensors that the model has no use for
/// @throws IoError naming the file and the tensors that are missing, or one of another shape
template <class File, class P, Scalar T>
std::vector<std::string> read_parameters(File const& file,
                                         nn::ParameterStore<P, T, Cpu> const& store,
                                         std::string const& before = {}) {
  detail::expect_tensors(file, store.infos(), before);
  std::set<std::string> used;
  for (nn::ParameterInfo const& info : store.infos()) {
    file.copy_to(before + info.name, store.span(info), std::span<index_t const>(info.shape));
    used.insert(before + info.name);
  }
  std::vector<std::string> extra;
  for (std::string const& name : file.names()) {
    if (used.count(name) == 0) extra.push_back(name);
  }
  return extra;
}

namespace detail {

template <class P, Scalar T>
std::vector<io::TensorToWrite> tensors_of(nn::ParameterStore<P, T, Cpu> const& store,
                                          std::string const& before = {}) {
  std::vector<io::TensorToWrite> tensors;
  for (nn::ParameterInfo const& info : store.infos()) {
    tensors.push_back(io::tensor_to_write<T>(before + info.name, info.shape, store.span(info)));
  }
  return tensors;
}

}  // namespace detail

/// Writes named parameters as one safetensors file, atomically.
/// @param before what stands before each name in the file
/// @throws IoError if the file cannot be written; what was there before stays
template <class P, Scalar T>
void write_parameters(std::filesystem::path const& path, nn::ParameterStore<P, T, Cpu> const& store,
                      std::string const& before = {}) {
  io::write_safetensors(path, detail::tensors_of(store, before), {{"format", "pt"}});
}

}  // namespace emprl::train
