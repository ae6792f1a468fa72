// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which of cuBLASLt's algorithms multiplies matrices of a shape fastest is found out by trying.
// This is what was found: it can be written down and read again, so that a run that goes on
// elsewhere, or once more, takes the same algorithms and gets the same bits.

#include <algorithm>
#include <array>
#include <charconv>
#include <compare>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <system_error>

#include "emprl/core/config.hpp"
#include "emprl/core/error.hpp"

namespace emprl::cuda {

/// All that the choice of an algorithm may depend on. c (m, n) = op(a) op(b), k the sum's length.
struct ProductKey {
  index_t m = 0, n = 0, k = 0;
  index_t a_stride = 0, b_stride = 0, c_stride = 0;  // elements from row to row
  index_t a_transposed = 0, b_transposed = 0;        // 0 or 1
  index_t operand = 0, result = 0;                   // cudaDataType_t
  index_t arithmetic = 0;                            // cublasComputeType_t
  index_t accumulate = 0;                            // 1 if c is read
  index_t epilogue = 0;                              // cublasLtEpilogue_t
  index_t alignment = 0;                             // bytes, the least of all operands

  friend auto operator<=>(ProductKey const&, ProductKey const&) = default;
};

/// The numbers of a key, in the order in which they are written.
inline constexpr std::array product_key_fields = {&ProductKey::m,
                                                  &ProductKey::n,
                                                  &ProductKey::k,
                                                  &ProductKey::a_stride,
                                                  &ProductKey::b_stride,
                                                  &ProductKey::c_stride,
                                                  &ProductKey::a_transposed,
                                                  &ProductKey::b_transposed,
                                                  &ProductKey::operand,
                                                  &ProductKey::result,
                                                  &ProductKey::arithmetic,
                                                  &ProductKey::accumulate,
                                                  &ProductKey::epilogue,
                                                  &ProductKey::alignment};

/// cublasLtMatmulAlgo_t: bytes that mean something to the version of cuBLASLt that made them.
using ProductAlgorithm = std::array<std::uint64_t, 8>;

/// Algorithms by shape.
class ProductPlans {
 public:
  /// Null if the shape was never tried.
  ProductAlgorithm const* find(ProductKey const& key) const {
    auto const at = plans_.find(key);
    return at == plans_.end() ? nullptr : &at->second;
  }
  void insert(ProductKey const& key, ProductAlgorithm const& algorithm) { plans_[key] = algorithm; }
  std::size_t size() const { return plans_.size(); }

  /// One line that says where they hold, then one line a shape: the key's numbers and the
  /// algorithm's in hexadecimal.
  /// @param where  the library's version and the GPU, one line
  std::string text(std::string_view where) const {
    std::string result = "products for ";
    result += where;
    for (auto const& [key, algorithm] : plans_) {
      char separator = '\n';
      for (auto const field : product_key_fields) {
        (result += separator) += std::to_string(key.*field);
        separator = ' ';
      }
      for (std::uint64_t const word : algorithm) {
        char digits[16];
        auto const end = std::to_chars(digits, digits + 16, word, 16).ptr;
        (result += ' ').append(digits, end);
      }
    }
    return result += '\n';
  }

  /// Adds what text() wrote; a shape that is here already takes the written algorithm.
  /// @throws ConfigError if it was written for another `where`, or is not what text() writes; then
  /// nothing is added
  void restore(std::string_view text, std::string_view where) {
    // The last number of a text that was cut would be read as a shorter one.
    bool const complete = text.ends_with('\n');
    constexpr std::string_view begin = "products for ";
    auto const take_line = [&text] {
      auto const end = std::min(text.find('\n'), text.size());
      std::string_view const line = text.substr(0, end);
      text.remove_prefix(std::min(end + 1, text.size()));
      return line;
    };
    std::string_view const first = take_line();
    expects<ConfigError>(
        first.starts_with(begin),
        "matrix products: the list of algorithms does not begin with '" + std::string(begin) + "'");
    expects<ConfigError>(first.substr(begin.size()) == where,
                         "matrix products: the list of algorithms is for " +
                             std::string(first.substr(begin.size())) + ", and this is " +
                             std::string(where) + "; without the list they are chosen anew");
    expects<ConfigError>(complete, "matrix products: the list of algorithms is cut off at its end");
    std::map<ProductKey, ProductAlgorithm> added;
    for (int number = 2; !text.empty(); ++number) {
      std::string_view line = take_line();
      ProductKey key;
      ProductAlgorithm algorithm;
      bool good = true;
      for (auto const field : product_key_fields) good = good && take(line, key.*field, 10);
      for (std::uint64_t& word : algorithm) good = good && take(line, word, 16);
      expects<ConfigError>(good && line.empty(), "matrix products: line " + std::to_string(number) +
                                                     " of the list of algorithms is not one");
      added[key] = algorithm;
    }
    for (auto const& [key, algorithm] : added) plans_[key] = algorithm;
  }

 private:
  /// Takes a number from the front of a line, with the space behind it.
  template <class N>
  static bool take(std::string_view& line, N& number, int base) {
    auto const [end, error] = std::from_chars(line.data(), line.data() + line.size(), number, base);
    if (error != std::errc()) return false;
    line.remove_prefix(static_cast<std::size_t>(end - line.data()));
    if (line.starts_with(' ')) line.remove_prefix(1);
    return true;
  }

  std::map<ProductKey, ProductAlgorithm> plans_;
};

}  // namespace emprl::cuda
