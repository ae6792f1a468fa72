// SPDX-License-Identifier: Apache-2.0
#pragma once

// Named parameters in one flat piece of memory. A model's parameters are a struct of views; its
// member
//   visit(Config const&, f)
// calls f(name, view, extents) for each of them, always in the same order, and is the only place
// that knows names and shapes. Values, gradients and optimiser moments then share one layout,
// optimisers and checkpoints work on spans, and weights that are visited one after the other
// (query, key, value) can be used as one matrix.

#include <array>
#include <string>
#include <vector>

#include "emprl/core/device.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/core/tensor.hpp"

namespace emprl::nn {

/// Where a named parameter lies in the flat memory.
struct ParameterInfo {
  std::string name;
  std::vector<index_t> shape;
  index_t offset = 0;
  index_t size = 0;
};

/// The flat memory and the views into it. P is the struct of views; Config is what its `visit`
/// needs to know the shapes.
template <class P, Scalar T, Device D>
class ParameterStore {
 public:
  ParameterStore() = default;

  /// Allocates all parameters, set to zero.
  template <class Config>
  explicit ParameterStore(Config const& config) {
    index_t total = 0;
    views_.visit(config, [&](std::string name, auto&, auto extents) {
      index_t const size = checked_size(extents, sizeof(T));
      infos_.push_back({std::move(name), {extents.begin(), extents.end()}, total, size});
      total += size;
    });
    data_ = Buffer<T, D>(total, T(0));
    std::size_t next = 0;
    views_.visit(config, [&](std::string const&, auto& view, auto extents) {
      view = {data_.data() + infos_[next++].offset, extents};
    });
  }

  P const& views() const { return views_; }
  std::span<T> span() const { return data_.span(); }
  std::vector<ParameterInfo> const& infos() const { return infos_; }
  index_t size() const { return data_.size(); }

  /// The elements of one parameter.
  std::span<T> span(ParameterInfo const& info) const {
    return data_.span().subspan(static_cast<std::size_t>(info.offset),
                                static_cast<std::size_t>(info.size));
  }

 private:
  P views_;
  Buffer<T, D> data_;
  std::vector<ParameterInfo> infos_;
};

/// Weight matrices that lie one after the other, as one matrix: (O1, I), (O2, I), ... become (O1 +
/// O2 + ..., I). Empty views (gradients that are not wanted) give an empty view.
/// @throws ShapeError if they are not neighbours in memory
template <class T, class D, class... Rest>
TensorView<T, 2, D> stacked(TensorView<T, 2, D> first, Rest... rest) {
  if (first.empty()) return {};
  index_t rows = first.extent(0);
  ((expects(
        rest.data() == first.data() + rows * first.extent(1) && rest.extent(1) == first.extent(1),
        "stacked weights must be neighbours in memory"),
    rows += rest.extent(0)),
   ...);
  return {first.data(), {rows, first.extent(1)}};
}

/// The same for vectors (biases).
template <class T, class D, class... Rest>
TensorView<T, 1, D> stacked(TensorView<T, 1, D> first, Rest... rest) {
  if (first.empty()) return {};
  index_t size = first.extent(0);
  ((expects(rest.data() == first.data() + size, "stacked biases must be neighbours in memory"),
    size += rest.extent(0)),
   ...);
  return {first.data(), {size}};
}

}  // namespace emprl::nn
