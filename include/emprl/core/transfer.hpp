// SPDX-License-Identifier: Apache-2.0
#pragma once

// Data on its way between the host and a device. Layers and models say what goes where; on the CPU
// the two memories are one. cuda/buffer.cuh has the GPU's half.

#include <algorithm>
#include <span>
#include <type_traits>

#include "emprl/core/device.hpp"
#include "emprl/core/tensor.hpp"

namespace emprl {

namespace detail {

/// @throws ShapeError unless a view and a span may be copied one to the other
template <class T, int Rank, class D>
void check_transfer(TensorView<T, Rank, D> view, std::size_t elements) {
  expects(view.is_contiguous() && static_cast<std::size_t>(view.size()) == elements,
          "a transfer needs a tensor without gaps, and a span of as many elements");
}

}  // namespace detail

/// to = from: host memory to the device's.
/// @throws ShapeError if the view has gaps or another number of elements than the span
template <class T, int Rank>
void copy(Cpu&, TensorView<T, Rank, Cpu> to, std::type_identity_t<std::span<T const>> from) {
  detail::check_transfer(to, from.size());
  std::copy(from.begin(), from.end(), to.data());
}

/// to = from: the device's memory to the host's.
/// @throws ShapeError if the view has gaps or another number of elements than the span
template <class T, int Rank>
void copy(Cpu&, std::span<std::remove_const_t<T>> to, TensorView<T, Rank, Cpu> from) {
  detail::check_transfer(from, to.size());
  std::copy(from.data(), from.data() + from.size(), to.begin());
}

/// All bits zero: the number 0 in every format.
/// @throws ShapeError if the view has gaps
template <class T, int Rank>
void clear(Cpu&, TensorView<T, Rank, Cpu> x) {
  std::fill_n(x.span().begin(), x.size(), T());
}

/// Host values where ops of the device read them: on the CPU where they are, so that they must
/// outlive the view; on a GPU a copy in `arena`.
template <class T>
TensorView<T const, 1, Cpu> on_device(Cpu&, Arena&, std::span<T const> values) {
  return {values.data(), {static_cast<index_t>(values.size())}};
}

}  // namespace emprl
