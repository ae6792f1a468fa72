// SPDX-License-Identifier: Apache-2.0
#pragma once

// Parameters of a layer under test, one after the other in memory, with their gradients beside
// them.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "emprl/core/tensor.hpp"
#include "support/compare.hpp"
#include "support/layer_contract.hpp"

namespace support {

/// Hands out neighbouring pieces of one allocation.
template <class T>
class FlatParameters {
 public:
  explicit FlatParameters(index_t capacity)
      : values_(static_cast<std::size_t>(capacity)), gradients_(values_.size(), T(0)) {}

  /// The next (rows, columns), random with deviation `scale`; a matching gradient of zeros.
  void matrix(std::string name, index_t rows, index_t columns, TensorView<T, 2, Cpu>& value,
              TensorView<T, 2, Cpu>& gradient, double scale = 0.0) {
    std::size_t const at = take(std::move(name), rows * columns,
                                scale > 0 ? scale : 1.0 / std::sqrt(static_cast<double>(columns)));
    value = {values_.data() + at, {rows, columns}};
    gradient = {gradients_.data() + at, {rows, columns}};
  }

  /// The next `size` numbers.
  void vector(std::string name, index_t size, TensorView<T, 1, Cpu>& value,
              TensorView<T, 1, Cpu>& gradient) {
    std::size_t const at = take(std::move(name), size, 1.0);
    value = {values_.data() + at, {size}};
    gradient = {gradients_.data() + at, {size}};
  }

  std::vector<LayerParameter<T>> const& list() const { return list_; }

 private:
  std::size_t take(std::string name, index_t size, double scale) {
    std::size_t const at = used_;
    used_ += static_cast<std::size_t>(size);
    REQUIRE(used_ <= values_.size());
    auto const numbers = random_values<T>(size, 500 + at, scale);
    std::copy(numbers.begin(), numbers.end(), values_.begin() + static_cast<std::ptrdiff_t>(at));
    list_.push_back({std::move(name),
                     {values_.data() + at, static_cast<std::size_t>(size)},
                     {gradients_.data() + at, static_cast<std::size_t>(size)}});
    return at;
  }

  std::vector<T> values_, gradients_;
  std::vector<LayerParameter<T>> list_;
  std::size_t used_ = 0;
};

}  // namespace support
