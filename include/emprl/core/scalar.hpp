// SPDX-License-Identifier: Apache-2.0
#pragma once

// The number formats that tensors hold.

#include <concepts>

namespace emprl {

/// A floating-point format that ops compute in.
template <class T>
concept Scalar = std::same_as<T, float> || std::same_as<T, double>;

}  // namespace emprl
