// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "emprl/core/rng.hpp"
#include "emprl/optim/adamw.cuh"
#include "emprl/optim/gradient_norm.cuh"
#include "support/catch.hpp"
#include "support/device_matrix.hpp"

using namespace emprl;
using optim::AdamW;
using optim::AdamWConfig;
using optim::CudaAdamW;
using optim::CudaParameterSpan;
using support::as_vector;
using support::DeviceArray;

namespace {

std::vector<float> random_vector(index_t n, std::uint64_t seed) {
  return support::random_values<float>(n, seed);
}

double norm_squared(std::vector<float> const& x) {
  long double sum = 0;
  for (float const v : x) sum += static_cast<long double>(v) * static_cast<long double>(v);
  return static_cast<double>(sum);
}

double on_device(std::vector<float> const& x, index_t skipped = 0) {
  Cuda dev;
  dev.scratch.poison(true);
  DeviceArray<float> array(x);
  DeviceArray<double> sum(std::vector<double>(1, 0.5));
  auto const n = static_cast<index_t>(x.size());
  optim::add_squared_norm(dev, as_vector(sum, 1),
                          TensorView<float, 1, Cuda>(array.data() + skipped, {n - skipped}));
  return sum.values()[0];
}

/// Parameters, gradients and copies on the device in two spans, the second at an odd address.
struct OnDevice {
  OnDevice(std::vector<float> const& p, std::vector<float> const& g, index_t cut,
           AdamWConfig const& config)
      : size(static_cast<index_t>(p.size())),
        parameters(p),
        gradients(g),
        copy(DeviceArray<Bf16>::poisoned(size)),
        optimiser(dev, config, spans(cut)) {
    dev.scratch.poison(true);
  }

  std::vector<CudaParameterSpan> spans(index_t cut) {
    auto const all = CudaParameterSpan{as_vector(parameters, size), as_vector(gradients, size),
                                       as_vector(copy, size)};
    if (cut == 0) return {all};
    auto const part = [&](index_t begin, index_t end) {
      return CudaParameterSpan{all.parameters.rows(begin, end), all.gradients.rows(begin, end),
                               all.copy.rows(begin, end)};
    };
    return {part(0, cut), part(cut, size)};
  }

  void set_gradients(std::vector<float> const& g) {
    DeviceArray<float> from(g);
    cuda::copy_bytes(dev.stream, gradients.data(), from.data(), g.size() * sizeof(float));
    dev.synchronize();
  }

  index_t size;
  Cuda dev;
  DeviceArray<float> parameters;
  DeviceArray<float> gradients;
  DeviceArray<Bf16> copy;
  CudaAdamW optimiser;
};

}  // namespace

TEST_CASE("gradient_norm: on the GPU, the plain sum in long double, at awkward sizes",
          "[cuda][gradient_norm]") {
  support::for_each_schedule(2, [] {
    for (index_t const n : {0, 1, 2, 3, 31, 33, 97, 257, 4095, 4097, 9001}) {
      auto const x = random_vector(n, 3);
      CHECK(on_device(x) - 0.5 == Approx(norm_squared(x)).epsilon(1e-13).margin(1e-15));
      // From an odd address on, element by element.
      if (n > 1) {
        CHECK(on_device(x, 1) - 0.5 ==
              Approx(norm_squared({x.begin() + 1, x.end()})).epsilon(1e-13).margin(1e-15));
      }
    }
  });
}

TEST_CASE("gradient_norm: on the GPU, the same bits in every schedule", "[cuda][gradient_norm]") {
  auto const x = random_vector(20000, 4);
  double const first = on_device(x);
  support::for_each_schedule(10, [&] { CHECK(on_device(x) == first); });
}

TEST_CASE("gradient_norm: on the GPU, gradients beyond the root of float's range have a norm",
          "[cuda][gradient_norm]") {
  CHECK(on_device({3e30f, 4e30f}) == Approx(25e60));
}

TEST_CASE("adamw: on the GPU, four steps are the CPU's within the roundings of float",
          "[cuda][adamw]") {
  for (index_t const n : {1, 2, 31, 33, 97, 257, 1500}) {
    for (index_t const cut : {index_t{0}, n / 2}) {
      CAPTURE(n, cut);
      AdamWConfig config;
      config.weight_decay = 0.01;
      auto parameters = random_vector(n, 1);
      std::vector<float> gradients(static_cast<std::size_t>(n));
      AdamW<float> plain(config, parameters, gradients);
      Cpu cpu;
      OnDevice device(parameters, gradients, cut, config);
      for (std::uint64_t t = 0; t < 4; ++t) {
        std::ranges::copy(random_vector(n, 10 + t), gradients.begin());
        double const norm = plain.step(cpu, 0.01);
        device.set_gradients(gradients);
        device.optimiser.step(0.01);
        auto const progress = device.optimiser.checked_progress();
        CHECK(progress.steps == static_cast<index_t>(t) + 1);
        CHECK(progress.gradient_norm == Approx(norm).epsilon(1e-14));
      }
      auto const moved = device.parameters.values();
      auto const copies = device.copy.values();
      bool close = true;
      bool copied = true;
      for (std::size_t i = 0; i < moved.size(); ++i) {
        // A step moves by at most 0.01 and change, and is made of a dozen roundings.
        close = close && std::abs(moved[i] - parameters[i]) <=
                             4 * (0x1p-24f * std::abs(parameters[i]) + 16 * 0x1p-24f * 0.01f);
        copied = copied && copies[i].bits == Bf16(moved[i]).bits;
      }
      CHECK(close);
      CHECK(copied);
      std::vector<float> const m(plain.first_moment().begin(), plain.first_moment().end());
      std::vector<float> const v(plain.second_moment().begin(), plain.second_moment().end());
      CHECK(support::max_difference(device.optimiser.first_moment(), m) <=
            16 * 0x1p-24 * support::max_abs(m));
      CHECK(support::max_difference(device.optimiser.second_moment(), v) <=
            16 * 0x1p-24 * support::max_abs(v));
    }
  }
}

TEST_CASE("adamw: on the GPU, spans and schedules do not change a bit", "[cuda][adamw]") {
  index_t const n = 1003;
  auto const p = random_vector(n, 1);
  auto const g = random_vector(n, 2);
  AdamWConfig config;
  // The norm is summed span by span: its last bit is the spans', so clipping is off.
  config.max_gradient_norm = 0;
  std::vector<float> first;
  int round = 0;
  support::for_each_schedule(10, [&] {
    OnDevice device(p, g, round++ % 2 == 0 ? 0 : 333, config);
    device.optimiser.step(0.01);
    device.optimiser.step(0.02);
    if (first.empty()) first = device.parameters.values();
    CHECK(first != p);
    CHECK(device.parameters.values() == first);
  });
}

TEST_CASE("adamw: on the GPU, a gradient that is not finite moves nothing and is told",
          "[cuda][adamw]") {
  using Catch::Matchers::ContainsSubstring;
  auto const p = random_vector(300, 1);
  auto g = random_vector(300, 2);
  OnDevice device(p, g, 100, AdamWConfig{});
  device.optimiser.step(0.01);
  auto const moved = device.parameters.values();
  auto const m = device.optimiser.first_moment();
  for (float const bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    auto broken = g;
    broken[299] = bad;
    device.set_gradients(broken);
    device.optimiser.step(0.01);
    CHECK(device.parameters.values() == moved);
    CHECK(device.optimiser.first_moment() == m);
  }
  auto const progress = device.optimiser.progress();
  CHECK(progress.steps == 1);
  CHECK(progress.refused == 2);
  CHECK(progress.first_refused == 2);
  CHECK_THROWS_WITH(device.optimiser.checked_progress(), ContainsSubstring("optimiser step 2"));
  // A later step with good gradients counts again.
  device.set_gradients(g);
  device.optimiser.step(0.01);
  CHECK(device.optimiser.progress().steps == 2);
  CHECK(device.parameters.values() != moved);
  device.optimiser.zero_gradients();
  CHECK(device.gradients.values() == std::vector<float>(300, 0.0f));
}

TEST_CASE("adamw: on the GPU, a restored run continues bit for bit", "[cuda][adamw]") {
  index_t const n = 257;
  auto const g = random_vector(n, 2);
  OnDevice one(random_vector(n, 1), g, 33, AdamWConfig{});
  for (int t = 0; t < 3; ++t) one.optimiser.step(0.01);
  OnDevice two(one.parameters.values(), g, 33, AdamWConfig{});
  two.optimiser.restore(one.optimiser.progress().steps, one.optimiser.first_moment(),
                        one.optimiser.second_moment());
  for (int t = 0; t < 2; ++t) {
    one.optimiser.step(0.01);
    two.optimiser.step(0.01);
  }
  CHECK(two.parameters.values() == one.parameters.values());
  CHECK(two.optimiser.progress().steps == 5);
  std::vector<float> const wrong(static_cast<std::size_t>(n) + 1);
  CHECK_THROWS_AS(two.optimiser.restore(1, wrong, wrong), ShapeError);
}

TEST_CASE("adamw: on the GPU, mistakes are named", "[cuda][adamw]") {
  using Catch::Matchers::ContainsSubstring;
  Cuda dev;
  DeviceArray<float> two(std::vector<float>(2));
  DeviceArray<float> three(std::vector<float>(3));
  CHECK_THROWS_AS(CudaAdamW(dev, {}, {{as_vector(two, 2), as_vector(three, 3), {}}}), ShapeError);
  CHECK_THROWS_WITH(CudaAdamW(dev, {.beta1 = 1.0}, {{as_vector(two, 2), as_vector(two, 2), {}}}),
                    ContainsSubstring("beta1"));
}
