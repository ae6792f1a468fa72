// SPDX-License-Identifier: Apache-2.0
#pragma once

// Which of cuBLASLt's algorithms multiplies matrices of a shape fastest is found out by trying.
// Batches are ragged: hardly one has as many tokens as another. So what is found for the first
// shape of a bucket serves all of them, if it can. And it can be written down and read again, so
// that a run that goes on elsewhere, or once more, takes the same algorithms for the shapes that it
// has met. What it meets later is tried then, and by another clock: a run that was stopped may
// take another algorithm there than one that was not, and round differently. Who wants the same
// bits has nothing tried (AlgorithmChoice::first).
//
// What trying costs: at most eight candidates of four products each, once a bucket. Of a T5 that is
// some twenty products a bucket of token counts, of which a training run meets about ten: with 50
// us a product 0.3 s in all. A layer's product is taken in each of a dozen layers, so that an
// algorithm that is 5 % faster has paid for its trial after some fifty passes.

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <compare>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <unordered_map>
#include <vector>

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
  index_t alignment = 0;                             // bytes, the least of all matrices
  index_t bias_alignment = 0;                        // bytes; 0 for no bias

  friend auto operator<=>(ProductKey const&, ProductKey const&) = default;
  // nvcc 13 declares the one that follows from it and does not define it.
  friend bool operator==(ProductKey const& a, ProductKey const& b) { return (a <=> b) == 0; }
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
                                                  &ProductKey::alignment,
                                                  &ProductKey::bias_alignment};

/// How the algorithm for a new bucket of shapes is found: `timed` tries candidates and waits for
/// the GPU; `first` takes the library's favourite for each shape by itself: a function of the
/// shape, the library and the kind of GPU, of nothing that is measured and of nothing that came
/// before.
enum class AlgorithmChoice { timed, first };

/// An extent, rounded up to one of a few: whole numbers up to 8, then four steps between a power of
/// two and the next, so that a bucket's smallest is at least four fifths of its largest.
inline index_t product_bucket(index_t n) {
  if (n <= 8) return n;
  auto const step = static_cast<index_t>(std::bit_floor(static_cast<std::uint64_t>(n - 1)) / 4);
  return (n + step - 1) / step * step;
}

/// The bucket of a shape: all extents and strides rounded up, for any of them may count tokens. Two
/// weights that share one share an algorithm.
inline ProductKey bucket_of(ProductKey key) {
  for (auto const field : {&ProductKey::m, &ProductKey::n, &ProductKey::k, &ProductKey::a_stride,
                           &ProductKey::b_stride, &ProductKey::c_stride}) {
    key.*field = product_bucket(key.*field);
  }
  return key;
}

/// cublasLtMatmulAlgo_t: bytes that mean something to the version of cuBLASLt that made them.
using ProductAlgorithm = std::array<std::uint64_t, 8>;

/// What can take one product, asked how.
///   l.candidates(most)  at least one algorithm and at most so many, the library's favourite first
///   l.accepts(a)        whether it can be taken by an algorithm that was found for another shape
///   l.milliseconds(a)   how long it takes; none if the algorithm fails
template <class L>
concept ProductLibrary = requires(L& l, ProductAlgorithm const& algorithm) {
  { l.candidates(1) } -> std::same_as<std::vector<ProductAlgorithm>>;
  { l.accepts(algorithm) } -> std::same_as<bool>;
  { l.milliseconds(algorithm) } -> std::same_as<std::optional<float>>;
};

/// Algorithms by buckets of shapes.
class ProductPlans {
 public:
  ProductPlans() = default;
  ProductPlans(ProductPlans&&) = default;
  ProductPlans& operator=(ProductPlans&&) = delete;  // revision() would not tell

  /// The algorithm for a product: the bucket's, where there is one and it can serve this shape;
  /// else the library's favourite, or, of a new bucket, the fastest candidate, which the bucket
  /// then has. A shape that was met keeps its algorithm.
  /// @throws CudaError if every candidate fails, and whatever the library throws
  template <ProductLibrary L>
  ProductAlgorithm choose(ProductKey const& shape, AlgorithmChoice how, L& library) {
    if (auto const met = met_.find(shape); met != met_.end()) return met->second;
    ProductAlgorithm const algorithm = choose_anew(shape, how, library);
    // Of ragged batches there is no end of shapes.
    if (met_.size() >= most_met) met_.clear();
    met_.emplace(shape, algorithm);
    return algorithm;
  }

  /// What a bucket has; null if it was never tried.
  ProductAlgorithm const* find(ProductKey const& key) const {
    auto const at = plans_.find(key);
    return at == plans_.end() ? nullptr : &at->second;
  }
  void insert(ProductKey const& key, ProductAlgorithm const& algorithm) {
    plans_[key] = algorithm;
    change();
  }
  std::size_t size() const { return plans_.size(); }
  /// A number that is another after insert and restore, which may change the algorithm of a product
  /// that was chosen before. Nothing else does.
  std::uint64_t revision() const { return revision_; }

  /// One line that says where they hold, then one line a bucket: the key's numbers and the
  /// algorithm's in hexadecimal.
  /// @param where  the library's version and the GPU, one line
  std::string text(std::string_view where) const {
    std::string result(text_begin);
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

  /// Where a text says that it holds. @throws ConfigError if text() did not write it
  static std::string_view place_of(std::string_view text) {
    std::string_view const first = text.substr(0, text.find('\n'));
    expects<ConfigError>(first.starts_with(text_begin),
                         "matrix products: the list of algorithms does not begin with '" +
                             std::string(text_begin) + "'");
    return first.substr(text_begin.size());
  }

  /// Adds what text() wrote; a bucket that is here already takes the written algorithm.
  /// @throws ConfigError if it was written for another `where`, or is not what text() writes; then
  /// nothing is added
  void restore(std::string_view text, std::string_view where) {
    // The last number of a text that was cut would be read as a shorter one.
    bool const complete = text.ends_with('\n');
    auto const take_line = [&text] {
      auto const end = std::min(text.find('\n'), text.size());
      std::string_view const line = text.substr(0, end);
      text.remove_prefix(std::min(end + 1, text.size()));
      return line;
    };
    std::string_view const place = place_of(text);
    expects<ConfigError>(place == where, "matrix products: the list of algorithms is for " +
                                             std::string(place) + ", and this is " +
                                             std::string(where) +
                                             "; without the list they are chosen anew");
    take_line();
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
    change();
  }

 private:
  static constexpr std::string_view text_begin = "products for ";
  static constexpr int most_candidates = 8;
  static constexpr std::size_t most_met = 8192;
  /// By how much a candidate must beat those that the library thinks better of: less is noise.
  static constexpr float clearly = 0.97f;

  struct Hash {
    std::size_t operator()(ProductKey const& key) const {
      std::uint64_t h = 0;
      for (auto const field : product_key_fields) {
        h = (std::rotl(h, 23) ^ static_cast<std::uint64_t>(key.*field)) * 0x9e3779b97f4a7c15u;
      }
      return static_cast<std::size_t>(h);
    }
  };

  void change() {
    met_.clear();
    ++revision_;
  }

  template <class L>
  ProductAlgorithm choose_anew(ProductKey const& shape, AlgorithmChoice how, L& library) {
    ProductKey const bucket = bucket_of(shape);
    if (ProductAlgorithm const* const plan = find(bucket)) {
      return library.accepts(*plan) ? *plan : library.candidates(1).front();
    }
    if (how == AlgorithmChoice::first) return library.candidates(1).front();
    ProductAlgorithm const best = fastest(library);
    plans_[bucket] = best;
    return best;
  }

  template <class L>
  static ProductAlgorithm fastest(L& library) {
    std::vector<ProductAlgorithm> const candidates = library.candidates(most_candidates);
    if (candidates.size() == 1) return candidates.front();
    ProductAlgorithm const* best = nullptr;
    float least = 0;
    for (ProductAlgorithm const& candidate : candidates) {
      std::optional<float> const time = library.milliseconds(candidate);
      if (!time || (best != nullptr && *time >= clearly * least)) continue;
      best = &candidate;
      least = *time;
    }
    if (best == nullptr) throw CudaError("gemm: every algorithm that cuBLASLt proposes fails");
    return *best;
  }

  /// Takes a number from the front of a line, with the space behind it.
  template <class N>
  static bool take(std::string_view& line, N& number, int base) {
    auto const [end, error] = std::from_chars(line.data(), line.data() + line.size(), number, base);
    if (error != std::errc()) return false;
    line.remove_prefix(static_cast<std::size_t>(end - line.data()));
    if (line.starts_with(' ')) line.remove_prefix(1);
    return true;
  }

  std::map<ProductKey, ProductAlgorithm> plans_;                // of buckets
  std::unordered_map<ProductKey, ProductAlgorithm, Hash> met_;  // of shapes; follows from plans_
  std::uint64_t revision_ = 0;
};

}  // namespace emprl::cuda
