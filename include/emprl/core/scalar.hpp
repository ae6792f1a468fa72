// SPDX-License-Identifier: Apache-2.0
#pragma once

// The number formats that tensors hold.

#include <concepts>
#include <type_traits>

namespace emprl {

/// A floating-point format that ops compute in.
template <class T>
concept Scalar = std::same_as<T, float> || std::same_as<T, double>;

/// The format of sums and statistics of numbers in format T: its own for float and double, float
/// for the 16-bit formats of the GPU.
template <class T>
using Accumulator = std::conditional_t<std::same_as<T, double>, double, float>;

}  // namespace emprl
