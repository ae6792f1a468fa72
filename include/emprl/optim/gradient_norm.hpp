// SPDX-License-Identifier: Apache-2.0
#pragma once

// The global norm of gradients, and the factor that clips by it.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <span>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"

namespace emprl::optim {

namespace detail {

/// Elements summed as one: fixed, so that the order of additions does not depend on the number of
/// threads.
inline constexpr index_t norm_chunk = 8192;

template <Scalar T>
double sum_of_squares(T const* x, index_t n) {
  // Eight running sums, because one would be a chain of dependent additions that cannot be
  // vectorised.
  constexpr index_t lanes = 8;
  std::array<double, lanes> sum{};
  index_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (index_t j = 0; j < lanes; ++j) {
      double const v = static_cast<double>(x[i + j]);
      sum[static_cast<std::size_t>(j)] += v * v;
    }
  }
  double total = 0.0;
  for (double const s : sum) total += s;
  for (; i < n; ++i) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  return total;
}

}  // namespace detail

/// sum_i x_i^2 in double. The result does not depend on the number of threads.
template <Scalar T>
double squared_norm(Cpu& dev, std::span<T const> x) {
  auto const n = static_cast<index_t>(x.size());
  index_t const chunks = (n + detail::norm_chunk - 1) / detail::norm_chunk;
  std::vector<double> partial(static_cast<std::size_t>(chunks));
  parallel_for(dev, chunks, 8, [&](index_t begin, index_t end) {
    for (index_t c = begin; c < end; ++c) {
      index_t const first = c * detail::norm_chunk;
      partial[static_cast<std::size_t>(c)] =
          detail::sum_of_squares(x.data() + first, std::min(detail::norm_chunk, n - first));
    }
  });
  double total = 0.0;
  for (double const p : partial) total += p;
  return total;
}

/// The Euclidean norm of all elements.
template <Scalar T>
double gradient_norm(Cpu& dev, std::span<T const> x) {
  return std::sqrt(squared_norm(dev, x));
}

/// What gradients are multiplied by so that their norm stays below max_norm: min(1, max_norm /
/// (norm + 1e-6)), PyTorch's formula. A max_norm of 0 clips nothing.
EMPRL_HD inline double clip_factor(double norm, double max_norm) {
  double const factor = max_norm / (norm + 1e-6);
  return max_norm > 0.0 && factor < 1.0 ? factor : 1.0;
}

}  // namespace emprl::optim
