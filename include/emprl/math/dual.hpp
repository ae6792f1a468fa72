// SPDX-License-Identifier: Apache-2.0
#pragma once

// Forward-mode dual numbers: a value and its derivatives with respect to N inputs, carried through
// ordinary arithmetic. An objective that is a scalar function of a few numbers per token is written
// once as a template and instantiated with Dual to obtain its gradient, on host or device; nobody
// derives anything by hand.
//
// Where a function has a kink the derivative is a choice, and the choices here are those of the
// framework in which PPO's published numbers were made:
//   max, min  a tie gives each argument half of the gradient;
//   clip      gradient 1 inside and at both bounds, 0 outside;
//   abs       gradient 0 at 0.

#include <cmath>

#include "emprl/core/config.hpp"
#include "emprl/core/scalar.hpp"

namespace emprl {

/// The same functions for plain numbers. A template that should take both writes
/// `using namespace emprl::scalar_math;` in its body: a plain number finds these, a Dual finds its
/// own by its type.
namespace scalar_math {

template <Scalar T>
EMPRL_HD inline T exp(T x) {
  return std::exp(x);
}

template <Scalar T>
EMPRL_HD inline T log(T x) {
  return std::log(x);
}

template <Scalar T>
EMPRL_HD inline T abs(T x) {
  return std::fabs(x);
}

/// The larger; of equal ones half of each, which is the number itself (but for the last bit of
/// numbers below twice the smallest normal one); NaN if either is. Written as a choice between
/// numbers that are there already, here and in Dual: compilers make moves of it, where jumps would
/// depend on the data and so be guessed wrong, and a NaN costs no question of its own.
template <Scalar T>
EMPRL_HD constexpr T max(T a, T b) {
  T const both = T(0.5) * a + T(0.5) * b;
  T const not_first = a < b ? b : both;
  return a > b ? a : not_first;
}

/// The smaller, likewise.
template <Scalar T>
EMPRL_HD constexpr T min(T a, T b) {
  T const both = T(0.5) * a + T(0.5) * b;
  T const not_first = a > b ? b : both;
  return a < b ? a : not_first;
}

/// x held within [low, high]; NaN stays NaN.
template <Scalar T>
EMPRL_HD constexpr T clip(T x, T low, T high) {
  T const held = x > high ? high : x;
  return x < low ? low : held;
}

}  // namespace scalar_math

/// value + sum_i derivative[i] * e_i, with e_i * e_j = 0.
template <Scalar T, int N>
struct Dual {
  static_assert(N > 0, "a dual number carries at least one derivative");

  T value{};
  T derivative[N]{};

  constexpr Dual() = default;

  /// A constant: all derivatives are 0.
  EMPRL_HD constexpr Dual(T constant) : value(constant) {}

  /// The input with number `index`: its own derivative is 1.
  EMPRL_HD static constexpr Dual variable(T at, int index) {
    Dual x(at);
    x.derivative[index] = T(1);
    return x;
  }

  EMPRL_HD friend constexpr Dual operator-(Dual const& a) { return chain(-a.value, T(-1), a); }

  EMPRL_HD friend constexpr Dual operator+(Dual const& a, Dual const& b) {
    return chain(a.value + b.value, T(1), a, T(1), b);
  }
  EMPRL_HD friend constexpr Dual operator-(Dual const& a, Dual const& b) {
    return chain(a.value - b.value, T(1), a, T(-1), b);
  }
  EMPRL_HD friend constexpr Dual operator*(Dual const& a, Dual const& b) {
    return chain(a.value * b.value, b.value, a, a.value, b);
  }
  EMPRL_HD friend constexpr Dual operator/(Dual const& a, Dual const& b) {
    T const quotient = a.value / b.value;
    return chain(quotient, T(1) / b.value, a, -quotient / b.value, b);
  }

  EMPRL_HD friend Dual exp(Dual const& a) {
    T const e = scalar_math::exp(a.value);
    return chain(e, e, a);
  }
  EMPRL_HD friend Dual log(Dual const& a) {
    return chain(scalar_math::log(a.value), T(1) / a.value, a);
  }
  EMPRL_HD friend Dual abs(Dual const& a) {
    T const sign = a.value > T(0) ? T(1) : (a.value < T(0) ? T(-1) : T(0));
    return chain(scalar_math::abs(a.value), sign, a);
  }
  EMPRL_HD friend constexpr Dual max(Dual const& a, Dual const& b) {
    bool const first = a.value > b.value;
    bool const second = a.value < b.value;
    return choose(scalar_math::max(a.value, b.value), first, a, second, b);
  }
  EMPRL_HD friend constexpr Dual min(Dual const& a, Dual const& b) {
    bool const first = a.value < b.value;
    bool const second = a.value > b.value;
    return choose(scalar_math::min(a.value, b.value), first, a, second, b);
  }
  EMPRL_HD friend constexpr Dual clip(Dual const& a, T low, T high) {
    bool const outside = a.value < low || a.value > high;
    Dual y(scalar_math::clip(a.value, low, high));
    for (int i = 0; i < N; ++i) y.derivative[i] = outside ? T(0) : a.derivative[i];
    return y;
  }

 private:
  /// Whether a compiler that optimises sees that x is 0. Products with such an x are left out: a
  /// term then costs nothing for the inputs it does not depend on. A compiler may not do so by
  /// itself, since the other factor might be infinite or NaN; a derivative that is 0 here may
  /// therefore be NaN in a build without optimisation, but only beside a value or another
  /// derivative that is not finite in any build.
  EMPRL_HD static constexpr bool known_zero([[maybe_unused]] T x) {
#if defined(__CUDA_ARCH__)
    return false;  // nvcc does not take the question in device code
#else
    return __builtin_constant_p(x) && x == T(0);
#endif
  }

  EMPRL_HD static constexpr Dual chain(T value, T da, Dual const& a) {
    Dual y(value);
    for (int i = 0; i < N; ++i) {
      y.derivative[i] = known_zero(a.derivative[i]) ? T(0) : da * a.derivative[i];
    }
    return y;
  }
  EMPRL_HD static constexpr Dual chain(T value, T da, Dual const& a, T db, Dual const& b) {
    Dual y(value);
    for (int i = 0; i < N; ++i) {
      if (known_zero(a.derivative[i])) {
        y.derivative[i] = known_zero(b.derivative[i]) ? T(0) : db * b.derivative[i];
      } else if (known_zero(b.derivative[i])) {
        y.derivative[i] = da * a.derivative[i];
      } else {
        y.derivative[i] = da * a.derivative[i] + db * b.derivative[i];
      }
    }
    return y;
  }
  /// The gradient of a or of b where one of them is chosen, else half of each.
  EMPRL_HD static constexpr Dual choose(T value, bool first, Dual const& a, bool second,
                                        Dual const& b) {
    Dual y(value);
    for (int i = 0; i < N; ++i) {
      T const both = T(0.5) * a.derivative[i] + T(0.5) * b.derivative[i];
      T const not_first = second ? b.derivative[i] : both;
      y.derivative[i] = first ? a.derivative[i] : not_first;
    }
    return y;
  }
};

}  // namespace emprl
