// SPDX-License-Identifier: Apache-2.0
#pragma once

// Derivatives by central differences, to hold hand-written ones against.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "support/catch.hpp"

namespace support {

/// One input of the function under test: where its numbers live, and what backward says about them.
struct GradientInput {
  std::string name;
  std::span<double> values;
  std::vector<double> gradient;
};

struct GradientCheckOptions {
  /// Half-width of the inner pair of the five-point formula, whose own error is of order step^4.
  double step = 1e-3;
  /// Allowed error as a part of the largest gradient of the tensor, or of the function's value
  /// times 1e-3 if that is more.
  double tolerance = 1e-8;
  /// Elements checked of each tensor, spread evenly; all if there are fewer.
  std::size_t most = 200;
};

/// df/dx by (8 (f(x+h) - f(x-h)) - (f(x+2h) - f(x-2h))) / 12h; x is restored.
inline double central_difference(std::function<double()> const& f, double& x, double h) {
  double const at = x;
  auto const value = [&](double offset) {
    x = at + offset;
    return f();
  };
  double const result = (8 * (value(h) - value(-h)) - (value(2 * h) - value(-2 * h))) / (12 * h);
  x = at;
  return result;
}

/// Checks the gradients of a scalar function of many tensors. The function reads its inputs from
/// the spans of `inputs`. A failure names the tensor, the index, the analytic and the numeric
/// derivative of the worst element.
inline void check_gradients(std::function<double()> const& f,
                            std::vector<GradientInput> const& inputs,
                            GradientCheckOptions const& options = {}) {
  double const value = std::abs(f());
  for (GradientInput const& input : inputs) {
    INFO("gradient of " << input.name);
    REQUIRE(input.values.size() == input.gradient.size());
    double largest = 1e-3 * value;
    for (double const g : input.gradient) largest = std::max(largest, std::abs(g));
    std::size_t const n = input.values.size();
    std::size_t const count = std::min(n, options.most);
    double worst = 0;
    std::size_t worst_index = 0;
    double worst_numeric = 0;
    for (std::size_t k = 0; k < count; ++k) {
      std::size_t const i = count == n ? k : k * n / count;
      double const numeric = central_difference(f, input.values[i], options.step);
      double const error = std::abs(numeric - input.gradient[i]);
      if (!(error <= worst)) {
        worst = error;
        worst_index = i;
        worst_numeric = numeric;
        if (std::isnan(error)) break;
      }
    }
    INFO("worst at index " << worst_index << " of " << n << ": analytic "
                           << (n > 0 ? input.gradient[worst_index] : 0.0) << ", numeric "
                           << worst_numeric << ", largest " << largest);
    CHECK(worst <= options.tolerance * largest);
  }
}

}  // namespace support
