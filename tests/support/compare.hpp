// SPDX-License-Identifier: Apache-2.0
#pragma once

// How close is close enough. The rule: an op in float may have at most twice the error that a plain
// implementation in float has against double. Since a plain implementation can be exact by luck, a
// few units in the last place are granted besides.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "emprl/core/rng.hpp"
#include "emprl/core/tensor.hpp"
#include "reference/matrix.hpp"
#include "support/catch.hpp"

namespace support {

using emprl::Cpu;
using emprl::index_t;
using emprl::Tensor;
using emprl::TensorView;

/// Half the distance from 1 to the next number: the rounding error of one operation.
template <class T>
inline constexpr double rounding = static_cast<double>(std::numeric_limits<T>::epsilon()) / 2;

template <class T>
double max_abs(std::vector<T> const& x) {
  double most = 0;
  for (T const v : x) most = std::max(most, std::abs(static_cast<double>(v)));
  return most;
}

/// The largest difference; infinite if the sizes differ or a difference is not a number.
template <class A, class B>
double max_difference(std::vector<A> const& a, std::vector<B> const& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    double const d = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (!(d <= std::numeric_limits<double>::max())) return std::numeric_limits<double>::infinity();
    most = std::max(most, d);
  }
  return most;
}

/// Elements of a view, row after row.
template <class T, int Rank>
std::vector<std::remove_const_t<T>> values(TensorView<T, Rank, Cpu> x) {
  std::vector<std::remove_const_t<T>> result;
  if constexpr (Rank == 1) {
    for (index_t i = 0; i < x.extent(0); ++i) result.push_back(x(i));
  } else {
    static_assert(Rank == 2);
    for (index_t i = 0; i < x.extent(0); ++i) {
      for (index_t j = 0; j < x.extent(1); ++j) result.push_back(x(i, j));
    }
  }
  return result;
}

template <class T, int Rank>
std::vector<T> values(Tensor<T, Rank, Cpu> const& x) {
  return values(x.view());
}

/// Checks |actual - truth| <= max(2 * plain_error, ulps * rounding * max|truth|).
template <class T>
void check_error(std::string const& what, std::vector<T> const& actual,
                 std::vector<double> const& truth, double plain_error, double ulps = 8) {
  double const error = max_difference(actual, truth);
  double const allowed = std::max(2 * plain_error, ulps * rounding<T> * max_abs(truth));
  INFO(what << ": error " << error << ", allowed " << allowed << ", plain implementation "
            << plain_error << ", largest value " << max_abs(truth));
  CHECK(actual.size() == truth.size());
  CHECK(error <= allowed);
}

/// The two-times rule: `plain` is the naive implementation in the format of `actual`, `truth` the
/// same in double. For ops in double there is no finer truth; 256 units are what reordered sums of
/// the sizes tested here differ by at most.
template <class T>
void check_two_times(std::string const& what, std::vector<T> const& actual,
                     std::vector<T> const& plain, std::vector<double> const& truth) {
  check_error(what, actual, truth, max_difference(plain, truth),
              std::is_same_v<T, double> ? 256 : 8);
}

/// Numbers of order `scale` that a seed fixes.
template <class T>
std::vector<T> random_values(index_t n, std::uint64_t seed, double scale = 1.0) {
  emprl::RandomSequence random(seed, emprl::Stream::initialise);
  std::vector<T> x(static_cast<std::size_t>(n));
  for (T& v : x) v = static_cast<T>(static_cast<float>(scale * random.normal()));
  return x;
}

/// The same with no element closer to zero than `gap`: off the kinks of ReLU.
template <class T>
std::vector<T> random_values_off_zero(index_t n, std::uint64_t seed, double gap) {
  auto x = random_values<T>(n, seed);
  for (T& v : x) v += v < 0 ? -static_cast<T>(gap) : static_cast<T>(gap);
  return x;
}

/// The same numbers in float and in double: values are rounded to float first.
template <class T>
reference::Matrix<T> random_matrix(index_t rows, index_t cols, std::uint64_t seed,
                                   double scale = 1.0) {
  reference::Matrix<T> m(rows, cols);
  m.values = random_values<T>(rows * cols, seed, scale);
  return m;
}

template <class T>
Tensor<T, 2, Cpu> to_tensor(reference::Matrix<T> const& m) {
  Tensor<T, 2, Cpu> t({m.rows, m.cols});
  std::copy(m.values.begin(), m.values.end(), t.data());
  return t;
}

template <class T>
Tensor<T, 1, Cpu> to_tensor(std::vector<T> const& v) {
  Tensor<T, 1, Cpu> t({static_cast<index_t>(v.size())});
  std::copy(v.begin(), v.end(), t.data());
  return t;
}

/// A tensor of NaN: what an op must overwrite and must not read.
template <class T, int Rank>
Tensor<T, Rank, Cpu> poisoned(std::array<index_t, static_cast<std::size_t>(Rank)> extents) {
  return Tensor<T, Rank, Cpu>(extents, std::numeric_limits<T>::quiet_NaN());
}

/// Offsets of rows with the given lengths.
inline std::vector<index_t> offsets_of(std::vector<index_t> const& lengths) {
  std::vector<index_t> offsets{0};
  for (index_t const n : lengths) offsets.push_back(offsets.back() + n);
  return offsets;
}

}  // namespace support
