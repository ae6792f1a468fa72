// SPDX-License-Identifier: Apache-2.0
#pragma once

// Reads the recorded results under tests/golden. A second, small safetensors reader, so that a
// mistake in the library's own cannot hide one in the model.

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

namespace support {

/// One recorded tensor; the numbers as double whatever they were stored as.
struct GoldenTensor {
  std::vector<std::int64_t> shape;
  std::vector<double> values;
};

/// All tensors of a safetensors file, by name.
class GoldenFile {
 public:
  /// @param path  relative to tests/golden
  /// @throws std::runtime_error that names the file, or the tensor that is missing
  explicit GoldenFile(std::string const& path) : path_(std::string(EMPRL_GOLDEN_DIR) + "/" + path) {
    std::ifstream file(path_, std::ios::binary);
    if (!file) throw std::runtime_error("cannot open " + path_);
    std::vector<char> const bytes{std::istreambuf_iterator<char>(file), {}};
    std::uint64_t header_size = 0;
    if (bytes.size() < 8) throw std::runtime_error(path_ + " is too short");
    std::memcpy(&header_size, bytes.data(), 8);
    if (header_size > bytes.size() - 8) throw std::runtime_error(path_ + " is cut off");
    auto const* const begin = bytes.data() + 8;
    auto const header = nlohmann::json::parse(begin, begin + header_size);
    char const* const data = begin + header_size;
    for (auto const& [name, entry] : header.items()) {
      if (name == "__metadata__") continue;
      GoldenTensor tensor;
      tensor.shape = entry.at("shape").get<std::vector<std::int64_t>>();
      auto const range = entry.at("data_offsets").get<std::vector<std::size_t>>();
      auto const type = entry.at("dtype").get<std::string>();
      char const* const from = data + range.at(0);
      std::size_t const size = range.at(1) - range.at(0);
      if (type == "F32") read<float>(from, size, tensor.values);
      if (type == "F64") read<double>(from, size, tensor.values);
      if (type == "I64") read<std::int64_t>(from, size, tensor.values);
      if (type == "BF16") read_bf16(from, size, tensor.values);
      std::size_t elements = 1;
      for (std::int64_t const n : tensor.shape) elements *= static_cast<std::size_t>(n);
      if (tensor.values.size() != elements)
        throw std::runtime_error(path_ + ": " + name + " is not of the size of its shape");
      tensors_.emplace(name, std::move(tensor));
    }
  }

  GoldenTensor const& operator[](std::string const& name) const {
    auto const found = tensors_.find(name);
    if (found == tensors_.end()) throw std::runtime_error(path_ + " has no " + name);
    return found->second;
  }

  bool has(std::string const& name) const { return tensors_.count(name) != 0; }
  std::map<std::string, GoldenTensor> const& tensors() const { return tensors_; }

  template <class I>
  std::vector<I> integers(std::string const& name) const {
    std::vector<I> result;
    for (double const x : (*this)[name].values) result.push_back(static_cast<I>(x));
    return result;
  }

 private:
  template <class T>
  static void read(char const* from, std::size_t bytes, std::vector<double>& to) {
    for (std::size_t i = 0; i + sizeof(T) <= bytes; i += sizeof(T)) {
      T x;
      std::memcpy(&x, from + i, sizeof(T));
      to.push_back(static_cast<double>(x));
    }
  }

  /// bf16 is the upper half of a float.
  static void read_bf16(char const* from, std::size_t bytes, std::vector<double>& to) {
    for (std::size_t i = 0; i + 2 <= bytes; i += 2) {
      std::uint16_t half = 0;
      std::memcpy(&half, from + i, 2);
      std::uint32_t const whole = std::uint32_t{half} << 16;
      float x = 0;
      std::memcpy(&x, &whole, 4);
      to.push_back(static_cast<double>(x));
    }
  }

  std::string path_;
  std::map<std::string, GoldenTensor> tensors_;
};

}  // namespace support
