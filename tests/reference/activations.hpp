// SPDX-License-Identifier: Apache-2.0
#pragma once

// ReLU and the tanh form of GELU ("gelu_new"; Hendrycks & Gimpel 2016), with derivatives.

#include <cmath>
#include <numbers>

namespace reference {

template <class T>
T relu(T x) {
  return x > 0 ? x : T(0);
}

template <class T>
T relu_derivative(T x) {
  return x > 0 ? T(1) : T(0);
}

/// x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))
template <class T>
T gelu_new(T x) {
  T const k = static_cast<T>(std::sqrt(2.0 / std::numbers::pi));
  return x / 2 * (1 + std::tanh(k * (x + static_cast<T>(0.044715) * x * x * x)));
}

template <class T>
T gelu_new_derivative(T x) {
  T const k = static_cast<T>(std::sqrt(2.0 / std::numbers::pi));
  T const t = std::tanh(k * (x + static_cast<T>(0.044715) * x * x * x));
  return (1 + t) / 2 + x / 2 * (1 - t * t) * k * (1 + 3 * static_cast<T>(0.044715) * x * x);
}

}  // namespace reference
