// SPDX-License-Identifier: Apache-2.0
#pragma once

// Rows that are wanted normalised, by whoever can do it best: an op that takes RMSNorm along reads
// the rows as they are, others ask for the normalised ones, which are computed once.

#include "emprl/core/device.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/ops/rms_norm.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

/// rms_norm(x).     x (N, C), weight (C). The views must outlive it.
template <Element T, Device D>
class NormedRows {
 public:
  /// @param room (N, C), for the normalised rows if they are asked for
  NormedRows(In<T, 2, D> x, In<T, 1, D> weight, double eps, TensorView<T, 2, D> room)
      : x_(x), weight_(weight), eps_(eps), room_(room) {}
  NormedRows(NormedRows const&) = delete;
  NormedRows& operator=(NormedRows const&) = delete;

  In<T, 2, D> x() const { return x_; }
  In<T, 1, D> weight() const { return weight_; }
  double eps() const { return eps_; }

  /// The normalised rows; x must still be what it was. @throws ShapeError if extents disagree
  In<T, 2, D> rows(D& dev) {
    if (!computed_) rms_norm_forward(dev, room_, {}, x_, weight_, eps_);
    computed_ = true;
    return room_;
  }

 private:
  TensorView<T const, 2, D> x_;
  TensorView<T const, 1, D> weight_;
  double eps_;
  TensorView<T, 2, D> room_;
  bool computed_ = false;
};

/// Rows as a view, of either kind.
template <Element T, Device D>
TensorView<T const, 2, D> rows_of(D&, TensorView<T const, 2, D> const& x) {
  return x;
}
template <Element T, Device D>
TensorView<T const, 2, D> rows_of(D& dev, NormedRows<T, D>& x) {
  return x.rows(dev);
}

}  // namespace emprl
