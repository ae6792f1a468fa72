// SPDX-License-Identifier: Apache-2.0
#pragma once

// Numbers in the formats that kernels store. An op is compared with a reference that starts from
// the same numbers, so they are rounded to the format first.

#include <cstdint>
#include <type_traits>
#include <vector>

#include "emprl/core/half.hpp"
#include "emprl/core/tensor.hpp"
#include "reference/matrix.hpp"
#include "support/compare.hpp"

namespace support {

/// The nearest number of a format.
template <class T>
float rounded(float x) {
  return static_cast<float>(static_cast<T>(x));
}

template <class T>
reference::Matrix<float> rounded(reference::Matrix<float> m) {
  for (float& v : m.values) v = rounded<T>(v);
  return m;
}

/// A list's numbers in format T, and back in float.
template <class T>
std::vector<T> in_format(std::vector<float> const& x) {
  std::vector<T> y;
  for (float const v : x) y.push_back(T(v));
  return y;
}

template <class T>
std::vector<float> in_float(std::vector<T> const& x) {
  std::vector<float> y;
  for (T const v : x) y.push_back(static_cast<float>(v));
  return y;
}

/// What storing a number may cost, relative to it.
template <class T>
inline constexpr double storage_rounding = std::is_same_v<T, emprl::Bf16> ? 0x1p-8 : 0x1p-24;

/// Random numbers that the format holds exactly, so that float and double start from the same.
template <class T>
reference::Matrix<float> random_in_format(index_t rows, index_t columns, std::uint64_t seed,
                                          double scale = 1.0) {
  return rounded<T>(random_matrix<float>(rows, columns, seed, scale));
}

}  // namespace support
