// SPDX-License-Identifier: Apache-2.0
#pragma once

// Scalar activation functions and their derivatives, for host and device.

#include "emprl/core/config.hpp"
#include "emprl/math/exp.hpp"

namespace emprl {

template <class T>
EMPRL_HD T relu(T x) {
  return x > T(0) ? x : T(0);
}

/// The tanh form of GELU ("gelu_new", Hendrycks & Gimpel 2016):
///   0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
template <class T>
EMPRL_HD T gelu_new(T x) {
  T const u = T(0.7978845608028654) * (x + T(0.044715) * x * x * x);
  return T(0.5) * x * (T(1) + tanh_branchless(u));
}

/// d gelu_new / dx.
template <class T>
EMPRL_HD T gelu_new_derivative(T x) {
  T const c = T(0.7978845608028654);
  T const t = tanh_branchless(c * (x + T(0.044715) * x * x * x));
  T const du = c * (T(1) + T(3) * T(0.044715) * x * x);
  return T(0.5) * (T(1) + t) + T(0.5) * x * (T(1) - t * t) * du;
}

}  // namespace emprl
