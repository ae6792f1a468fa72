// SPDX-License-Identifier: Apache-2.0
#pragma once

// The number tables of the naive references. References are templates over the format: in double
// they are the truth, in float they are the plain implementation whose error an op may at most
// double.

#include <cstddef>
#include <vector>

#include "emprl/core/config.hpp"

namespace reference {

using emprl::index_t;

template <class T>
using Vector = std::vector<T>;

/// A dense matrix that owns its elements and starts at zero.
template <class T>
struct Matrix {
  index_t rows = 0;
  index_t cols = 0;
  std::vector<T> values;

  Matrix() = default;
  Matrix(index_t r, index_t c) : rows(r), cols(c), values(static_cast<std::size_t>(r * c), T(0)) {}

  T& operator()(index_t i, index_t j) { return values[static_cast<std::size_t>(i * cols + j)]; }
  T const& operator()(index_t i, index_t j) const {
    return values[static_cast<std::size_t>(i * cols + j)];
  }
};

/// The same numbers in another format.
template <class To, class From>
std::vector<To> convert(std::vector<From> const& x) {
  std::vector<To> y;
  y.reserve(x.size());
  for (From const v : x) y.push_back(static_cast<To>(v));
  return y;
}

template <class To, class From>
Matrix<To> convert(Matrix<From> const& x) {
  Matrix<To> y(x.rows, x.cols);
  y.values = convert<To>(x.values);
  return y;
}

}  // namespace reference
