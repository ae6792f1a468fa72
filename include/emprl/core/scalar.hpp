// SPDX-License-Identifier: Apache-2.0
#pragma once

// The number formats that tensors hold.

#include <concepts>
#include <type_traits>

namespace emprl {

struct Bf16;

/// A floating-point format that ops compute in.
template <class T>
concept Scalar = std::same_as<T, float> || std::same_as<T, double>;

/// The format of sums and statistics of numbers in format T: its own for float and double, float
/// for the 16-bit formats of the GPU.
template <class T>
using Accumulator = std::conditional_t<std::same_as<T, double>, double, float>;

/// What ops on the GPU read and write. Arithmetic is in float; a result is rounded once, when it is
/// stored.
template <class T>
concept CudaElement = std::same_as<T, float> || std::same_as<T, Bf16>;

/// What tensors of layers hold: a Scalar, or a 16-bit format of the GPU, whose sums, statistics and
/// parameter gradients are then in float.
template <class T>
concept Element = Scalar<T> || CudaElement<T>;

}  // namespace emprl
