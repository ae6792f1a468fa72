// SPDX-License-Identifier: Apache-2.0
#pragma once

// Matrices in the memory that kernels see, for tests of ops: filled from numbers, read back as
// numbers, with a gap between rows if asked, whose content no kernel may read or change.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "emprl/core/half.hpp"
#include "emprl/core/tensor.hpp"
#include "emprl/cuda/context.cuh"
#include "reference/matrix.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/device_array.hpp"
#include "support/formats.hpp"

namespace support {

using emprl::Bf16;
using emprl::Cuda;

/// A matrix on the device, each row `gap` elements away from the end of the last.
template <class T>
class DeviceMatrix {
 public:
  explicit DeviceMatrix(reference::Matrix<float> const& m, index_t gap = 0)
      : DeviceMatrix(m.rows, m.cols, gap, [&] {
          std::vector<T> all(static_cast<std::size_t>(m.rows * (m.cols + gap)), poison());
          for (index_t i = 0; i < m.rows; ++i) {
            for (index_t j = 0; j < m.cols; ++j) {
              all[static_cast<std::size_t>(i * (m.cols + gap) + j)] = static_cast<T>(m(i, j));
            }
          }
          return all;
        }()) {}

  /// Elements with all bits set: what an op must overwrite.
  static DeviceMatrix poisoned(index_t rows, index_t columns, index_t gap = 0) {
    return DeviceMatrix(rows, columns, gap,
                        std::vector<T>(static_cast<std::size_t>(rows * (columns + gap)), poison()));
  }

  emprl::TensorView<T, 2, Cuda> view() {
    return {array_.data(), {rows_, columns_}, {columns_ + gap_, 1}};
  }
  operator emprl::TensorView<T, 2, Cuda>() { return view(); }
  operator emprl::TensorView<T const, 2, Cuda>() { return view(); }

  /// The elements row by row. Fails if something was written between rows.
  std::vector<T> stored() const {
    auto const all = array_.values();
    std::vector<T> result;
    bool clean = true;
    for (index_t i = 0; i < rows_; ++i) {
      for (index_t j = 0; j < columns_ + gap_; ++j) {
        T const v = all[static_cast<std::size_t>(i * (columns_ + gap_) + j)];
        if (j < columns_) {
          result.push_back(v);
        } else {
          T const before = poison();
          clean = clean && std::memcmp(&v, &before, sizeof v) == 0;
        }
      }
    }
    CHECK(clean);
    return result;
  }

  std::vector<float> values() const { return in_float(stored()); }

 private:
  DeviceMatrix(index_t rows, index_t columns, index_t gap, std::vector<T> const& all)
      : rows_(rows), columns_(columns), gap_(gap), array_(all) {}

  static T poison() {
    T x;
    std::memset(static_cast<void*>(&x), 0xff, sizeof x);
    return x;
  }

  index_t rows_;
  index_t columns_;
  index_t gap_;
  DeviceArray<T> array_;
};

/// Checks numbers stored as T against the truth: at most twice the error of the plain
/// implementation in float, and what storing costs.
template <class T>
void check_stored(std::string const& what, std::vector<float> const& actual,
                  std::vector<float> const& plain, std::vector<double> const& truth) {
  double const storing = std::is_same_v<T, float> ? 0.0 : storage_rounding<T> * max_abs(truth);
  double const allowed =
      std::max(2 * max_difference(plain, truth), 8 * rounding<float> * max_abs(truth)) + storing;
  double const error = max_difference(actual, truth);
  INFO(what << ": error " << error << ", allowed " << allowed << ", largest value "
            << max_abs(truth));
  CHECK(actual.size() == truth.size());
  CHECK(error <= allowed);
}

/// A vector on the device as a view.
template <class T>
emprl::TensorView<T, 1, Cuda> as_vector(DeviceArray<T>& array, index_t size) {
  return {array.data(), {size}};
}

/// The one row of a matrix as a vector.
template <class T>
emprl::TensorView<T, 1, Cuda> as_row(DeviceMatrix<T>& m) {
  return {m.view().data(), {m.view().extent(1)}};
}

/// The bits of numbers, so that NaN equals itself.
template <class T>
std::vector<std::uint8_t> bits(std::vector<T> const& x) {
  std::vector<std::uint8_t> all(x.size() * sizeof(T));
  if (!all.empty()) std::memcpy(all.data(), x.data(), all.size());
  return all;
}

}  // namespace support
