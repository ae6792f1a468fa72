// SPDX-License-Identifier: Apache-2.0
#pragma once

// How ops name their arguments.

#include <type_traits>

#include "emprl/core/tensor.hpp"

namespace emprl {

/// An input. Not deduced, so that a mutable view converts; the output decides the scalar type.
template <class T, int Rank, class D>
using In = std::type_identity_t<TensorView<std::remove_const_t<T> const, Rank, D>>;

/// An output; T and D are deduced from it.
template <class T, int Rank, class D>
using Out = TensorView<T, Rank, D>;

/// An output beside the one that is deduced from; an empty view means "not needed".
template <class T, int Rank, class D>
using OptionalOut = std::type_identity_t<TensorView<T, Rank, D>>;

/// What a backward pass does to a gradient of activations that several consumers share.
enum class Write { overwrite, accumulate };

}  // namespace emprl
