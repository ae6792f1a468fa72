// SPDX-License-Identifier: Apache-2.0
#include "emprl/optim/adamw.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "emprl/core/rng.hpp"
#include "support/catch.hpp"

using namespace emprl;
using optim::AdamW;
using optim::AdamWConfig;

namespace {

nlohmann::json const& fixture() {
  static nlohmann::json const json = [] {
    std::ifstream file(std::string(EMPRL_GOLDEN_DIR) + "/ppo_trl_0_9_6.json");
    REQUIRE(file.good());
    return nlohmann::json::parse(file);
  }();
  return json;
}

template <class T>
std::vector<T> random_vector(std::size_t n, std::uint32_t row) {
  RandomSequence random(8, Stream::initialise, 0, row);
  std::vector<T> x(n);
  for (T& v : x) v = static_cast<T>(random.normal());
  return x;
}

template <class T>
void replay(std::string const& key, double weight_decay, double tolerance) {
  auto const& golden = fixture().at(key);
  auto parameters = golden.at("p0").get<std::vector<T>>();
  std::vector<T> gradients(parameters.size());
  AdamWConfig config;
  config.weight_decay = weight_decay;
  config.max_gradient_norm = 0.0;
  AdamW<T> optimiser(config, parameters, gradients);
  Cpu dev;
  for (std::size_t t = 0; t < golden.at("grads").size(); ++t) {
    std::ranges::copy(golden.at("grads")[t].template get<std::vector<T>>(), gradients.begin());
    optimiser.step(dev, golden.at("lr").get<double>());
    auto const expected = golden.at("params")[t].template get<std::vector<double>>();
    for (std::size_t i = 0; i < expected.size(); ++i) {
      CAPTURE(t, i);
      CHECK(std::abs(static_cast<double>(parameters[i]) - expected[i]) <=
            tolerance * std::max(1.0, std::abs(expected[i])));
    }
  }
}

}  // namespace

TEST_CASE("adamw: three steps are PyTorch's", "[optim][adamw][golden]") {
  replay<double>("optim_Adam", 0.0, 1e-12);
  replay<double>("optim_AdamW_wd0.01", 0.01, 1e-12);
  replay<float>("optim_Adam", 0.0, 1e-6);
  replay<float>("optim_AdamW_wd0.01", 0.01, 1e-6);
}

TEST_CASE("adamw: clipping is PyTorch's", "[optim][adamw][golden]") {
  auto const& golden = fixture().at("clip_grad_norm");
  auto gradients = golden.at("grad").get<std::vector<double>>();
  auto const clipped = golden.at("clipped").get<std::vector<double>>();
  double const max_norm = golden.at("max_norm").get<double>();
  std::vector<double> parameters{0.0, 0.0};
  AdamWConfig config;
  config.max_gradient_norm = max_norm;
  AdamW<double> optimiser(config, parameters, gradients);
  Cpu dev;
  CHECK(optimiser.step(dev, 0.1) == Approx(golden.at("total").get<double>()).epsilon(1e-14));
  for (std::size_t i = 0; i < 2; ++i) {
    CHECK(optimiser.first_moment()[i] == Approx(0.1 * clipped[i]).epsilon(1e-12));
    CHECK(gradients[i] * optim::clip_factor(5.0, max_norm) == Approx(clipped[i]).epsilon(1e-12));
  }
  optimiser.step(dev, 0.1, 0.0);
  CHECK(optimiser.first_moment()[0] == Approx(0.9 * 0.1 * clipped[0] + 0.1 * 3.0).epsilon(1e-12));
}

TEST_CASE("adamw: the number of threads and of spans does not change a bit",
          "[optim][adamw][unit]") {
  constexpr std::size_t n = 100003;
  auto const start = random_vector<float>(n, 0);
  auto run = [&](int threads, std::size_t cut) {
    auto parameters = start;
    auto gradients = random_vector<float>(n, 1);
    std::span<float> const p(parameters);
    std::span<float> const g(gradients);
    AdamWConfig config;
    config.weight_decay = 0.1;
    config.max_gradient_norm = 0.0;
    AdamW<float> optimiser(config,
                           {{p.first(cut), g.first(cut)}, {p.subspan(cut), g.subspan(cut)}});
    Cpu dev(threads);
    for (std::uint32_t t = 0; t < 3; ++t) optimiser.step(dev, 0.01);
    return parameters;
  };
  auto const expected = run(1, 0);
  CHECK(expected != start);
  CHECK(run(4, 0) == expected);
  CHECK(run(3, 33) == expected);
}

TEST_CASE("adamw: a restored run continues bit for bit", "[optim][adamw][unit]") {
  constexpr std::size_t n = 257;
  auto parameters = random_vector<float>(n, 0);
  std::vector<float> gradients(n);
  AdamW<float> optimiser(AdamWConfig{}, parameters, gradients);
  Cpu dev;
  auto const advance = [&](AdamW<float>& o, std::vector<float>& g, std::uint32_t t) {
    std::ranges::copy(random_vector<float>(n, t), g.begin());
    o.step(dev, 0.01);
  };
  for (std::uint32_t t = 1; t < 4; ++t) advance(optimiser, gradients, t);

  auto copy = parameters;
  std::vector<float> copy_gradients(n);
  AdamW<float> resumed(AdamWConfig{}, copy, copy_gradients);
  resumed.restore(optimiser.steps(), optimiser.first_moment(), optimiser.second_moment());
  for (std::uint32_t t = 4; t < 7; ++t) {
    advance(optimiser, gradients, t);
    advance(resumed, copy_gradients, t);
  }
  CHECK(copy == parameters);
  CHECK(resumed.steps() == 6);
  std::vector<float> const wrong(n + 1);
  CHECK_THROWS_AS(resumed.restore(1, wrong, wrong), ShapeError);
}

TEST_CASE("adamw: a gradient that is not finite moves nothing", "[optim][adamw][unit]") {
  std::vector<float> parameters{1.0F, 2.0F};
  std::vector<float> gradients{0.5F, std::numeric_limits<float>::quiet_NaN()};
  AdamW<float> optimiser(AdamWConfig{}, parameters, gradients);
  Cpu dev;
  CHECK_THROWS_AS(optimiser.step(dev, 0.1), Error);
  gradients[1] = std::numeric_limits<float>::infinity();
  CHECK_THROWS_AS(optimiser.step(dev, 0.1), Error);
  CHECK(parameters == std::vector<float>{1.0F, 2.0F});
  CHECK(optimiser.steps() == 0);
  CHECK(optimiser.first_moment()[0] == 0.0F);
  optimiser.zero_gradients();
  CHECK(gradients == std::vector<float>{0.0F, 0.0F});
  CHECK(optimiser.step(dev, 0.1) == 0.0);
  CHECK(parameters == std::vector<float>{1.0F, 2.0F});
}

TEST_CASE("adamw: mistakes are named", "[optim][adamw][unit]") {
  using Catch::Matchers::ContainsSubstring;
  std::vector<double> two(2);
  std::vector<double> three(3);
  CHECK_THROWS_AS(AdamW<double>(AdamWConfig{}, two, three), ShapeError);
  CHECK_THROWS_WITH(AdamW<double>(AdamWConfig{.beta1 = 1.0}, two, two), ContainsSubstring("beta1"));
  CHECK_THROWS_WITH(AdamW<double>(AdamWConfig{.beta2 = -0.1}, two, two),
                    ContainsSubstring("beta2"));
  CHECK_THROWS_WITH(AdamW<double>(AdamWConfig{.epsilon = 0.0}, two, two),
                    ContainsSubstring("epsilon"));
  CHECK_THROWS_WITH(AdamW<double>(AdamWConfig{.weight_decay = -1.0}, two, two),
                    ContainsSubstring("weight_decay"));
  CHECK_THROWS_WITH(AdamW<double>(AdamWConfig{.max_gradient_norm = -1.0}, two, two),
                    ContainsSubstring("max_gradient_norm"));
}
