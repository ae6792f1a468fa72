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
#include <concepts>
#include <string>
#include <utility>
#include <vector>

#include "emprl/core/device.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/core/tensor.hpp"
#include "emprl/core/transfer.hpp"

namespace emprl::nn {

/// Where a named parameter lies in the flat memory.
struct ParameterInfo {
  std::string name;
  std::vector<index_t> shape;
  index_t offset = 0;
  index_t size = 0;
};

/// Says that memory need not be set to zero, for all of it will be written before it is read.
struct Unset {};

/// The flat memory and the views into it. P is the struct of views; Config is what its `visit`
/// needs to know the shapes.
template <class P, Element T, Device D>
class ParameterStore {
 public:
  ParameterStore() = default;

  /// Allocates all parameters in host memory, set to zero.
  template <class Config>
  explicit ParameterStore(Config const& config) requires(std::same_as<D, Cpu>) {
    lay_out(config);
    data_.fill(T(0));
  }

  /// Allocates all parameters in host memory, with what happens to be there: for weights that a
  /// file gives, which would otherwise go through memory twice.
  template <class Config>
  ParameterStore(Unset, Config const& config) requires(std::same_as<D, Cpu>) {
    lay_out(config);
  }

  /// Allocates all parameters in the device's memory, set to zero in the order of its work.
  template <class Config>
  ParameterStore(D& dev, Config const& config) {
    lay_out(config);
    clear(dev, all());
  }

  /// The names, shapes and places of all parameters, without memory for them: what a file is held
  /// to before memory is asked for.
  /// @throws ShapeError if they are too large together
  template <class Config>
  static std::vector<ParameterInfo> layout(Config const& config) {
    P views;
    std::vector<ParameterInfo> infos;
    index_t total = 0;
    views.visit(config, [&](std::string name, auto&, auto extents) {
      index_t const size = checked_size(extents, sizeof(T));
      infos.push_back({std::move(name), {extents.begin(), extents.end()}, total, size});
      expects(!__builtin_add_overflow(total, size, &total), "the parameters are too large");
    });
    return infos;
  }

  P const& views() const { return views_; }
  /// Lets f(views) set those that `visit` does not name: views of what is stored elsewhere, an
  /// adapter's, so that whoever takes views() has them too.
  template <class F>
  void edit_views(F&& f) {
    f(views_);
  }
  /// All of them as one vector. Two stores of the same configuration have the same layout on every
  /// device: one copy sets one from the other.
  TensorView<T, 1, D> all() const { return {data_.data(), {data_.size()}}; }
  std::span<T> span() const requires(std::same_as<D, Cpu>) { return data_.span(); }
  std::vector<ParameterInfo> const& infos() const { return infos_; }
  index_t size() const { return data_.size(); }

  /// The elements of one parameter.
  std::span<T> span(ParameterInfo const& info) const requires(std::same_as<D, Cpu>) {
    return data_.span().subspan(static_cast<std::size_t>(info.offset),
                                static_cast<std::size_t>(info.size));
  }

 private:
  template <class Config>
  void lay_out(Config const& config) {
    infos_ = layout(config);
    data_ = Buffer<T, D>(infos_.empty() ? 0 : infos_.back().offset + infos_.back().size);
    std::size_t next = 0;
    views_.visit(config, [&](std::string const&, auto& view, auto extents) {
      view = {data_.data() + infos_[next++].offset, extents};
    });
  }

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
