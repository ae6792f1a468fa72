// SPDX-License-Identifier: Apache-2.0
#include "emprl/optim/gradient_norm.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "emprl/core/rng.hpp"
#include "support/catch.hpp"

using namespace emprl;

TEMPLATE_TEST_CASE("gradient_norm: the plain sum in long double, at awkward sizes",
                   "[optim][gradient_norm][unit]", float, double) {
  Cpu dev(2);
  RandomSequence random(3, Stream::initialise);
  for (int const n : {0, 1, 2, 7, 8, 9, 257, 8191, 8192, 8193, 200001}) {
    std::vector<TestType> x(static_cast<std::size_t>(n));
    long double sum = 0.0L;
    for (auto& v : x) {
      v = static_cast<TestType>(random.normal());
      sum += static_cast<long double>(v) * static_cast<long double>(v);
    }
    double const norm = optim::gradient_norm(dev, std::span<TestType const>(x));
    CHECK(norm == Approx(static_cast<double>(std::sqrt(sum))).epsilon(1e-13));
  }
}

TEST_CASE("gradient_norm: the number of threads does not change a bit",
          "[optim][gradient_norm][unit]") {
  std::vector<float> x(300007);
  RandomSequence random(4, Stream::initialise);
  for (float& v : x) v = static_cast<float>(random.normal());
  Cpu one(1);
  double const expected = optim::gradient_norm(one, std::span<float const>(x));
  for (int threads = 2; threads <= 5; ++threads) {
    Cpu dev(threads);
    CHECK(optim::gradient_norm(dev, std::span<float const>(x)) == expected);
  }
}

TEST_CASE("gradient_norm: float gradients beyond the root of float's range have a norm",
          "[optim][gradient_norm][unit]") {
  Cpu dev;
  std::vector<float> const x{3e30F, 4e30F};
  CHECK(optim::gradient_norm(dev, std::span<float const>(x)) == Approx(5e30));
}

TEST_CASE("clip_factor: small norms are left alone", "[optim][gradient_norm][unit]") {
  CHECK(optim::clip_factor(0.5, 1.0) == 1.0);
  CHECK(optim::clip_factor(5.0, 1.0) == 1.0 / (5.0 + 1e-6));
  CHECK(optim::clip_factor(5.0, 0.0) == 1.0);
}
