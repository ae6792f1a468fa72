// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "emprl/ops/token_logprob.cuh"
#include "reference/cross_entropy.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/device_array.hpp"
#include "support/formats.hpp"

using emprl::Bf16;
using emprl::Cuda;
using emprl::index_t;
using emprl::TensorView;
using support::DeviceArray;
using support::in_float;
using support::in_format;
using support::random_matrix;

namespace {

std::vector<std::int32_t> some_targets(index_t n, index_t v) {
  std::vector<std::int32_t> targets;
  for (index_t i = 0; i < n; ++i) {
    targets.push_back(static_cast<std::int32_t>((i * 31 + v - 1) % v));
  }
  return targets;
}

template <class T>
std::vector<T> chosen(reference::Matrix<T> const& logits,
                      std::vector<std::int32_t> const& targets) {
  auto const lp = reference::log_softmax(logits);
  std::vector<T> x;
  for (index_t i = 0; i < lp.rows; ++i) x.push_back(lp(i, targets[static_cast<std::size_t>(i)]));
  return x;
}

template <class T>
std::vector<T> log_sum_exp(reference::Matrix<T> const& logits) {
  auto const lp = reference::log_softmax(logits);
  std::vector<T> x;
  for (index_t i = 0; i < lp.rows; ++i) x.push_back(logits(i, 0) - lp(i, 0));
  return x;
}

struct Statistics {
  std::vector<float> logp, lse, entropy;
};

template <class T>
Statistics forward(Cuda& dev, std::vector<T> const& logits, index_t n, index_t v,
                   std::vector<std::int32_t> const& targets) {
  DeviceArray<T> x(logits);
  DeviceArray<std::int32_t> ids(targets);
  auto logp = DeviceArray<float>::poisoned(n);
  auto lse = DeviceArray<float>::poisoned(n);
  auto entropy = DeviceArray<float>::poisoned(n);
  emprl::token_logprob_forward<T>(dev, {logp.data(), {n}}, {lse.data(), {n}}, {entropy.data(), {n}},
                                  TensorView<T, 2, Cuda>(x.data(), {n, v}), {ids.data(), {n}});
  dev.synchronize();
  return {logp.values(), lse.values(), entropy.values()};
}

template <class T>
std::vector<T> backward(Cuda& dev, std::vector<T> const& logits, index_t n, index_t v,
                        std::vector<std::int32_t> const& targets, Statistics const& statistics,
                        std::vector<float> const& dlogp, std::vector<float> const& dentropy) {
  DeviceArray<T> x(logits);
  DeviceArray<std::int32_t> ids(targets);
  DeviceArray<float> lse(statistics.lse), entropy(statistics.entropy), g(dlogp), h(dentropy);
  index_t const m = dentropy.empty() ? 0 : n;
  emprl::token_logprob_backward(dev, TensorView<T, 2, Cuda>(x.data(), {n, v}), {g.data(), {n}},
                                {lse.data(), {n}}, {ids.data(), {n}}, {h.data(), {m}},
                                {entropy.data(), {m}});
  dev.synchronize();
  return x.values();
}

}  // namespace

TEMPLATE_TEST_CASE("token_logprob on the GPU: forward matches the loops",
                   "[cuda][token_logprob][unit]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  dev.scratch.poison(true);
  support::for_each_schedule(2, [&] {
    for (index_t const n : {1, 2, 31}) {
      for (index_t const v : {1, 2, 31, 33, 97, 257, 5003}) {
        if (n * v > 20000) continue;
        for (double const size : {0.1, 3.0, 30.0}) {
          INFO(n << " rows, " << v << " tokens, size " << size);
          auto const logits = support::random_in_format<T>(n, v, 1, size);
          auto const in_double = reference::convert<double>(logits);
          auto const targets = some_targets(n, v);
          auto const actual = forward<T>(dev, in_format<T>(logits.values), n, v, targets);
          // A row's numbers come from differences of logits: rounding is relative to their size.
          double const floor = 8 * support::rounding<float> * support::max_abs(logits.values);
          auto const check = [&](std::string const& what, std::vector<float> const& found,
                                 std::vector<float> const& plain,
                                 std::vector<double> const& truth) {
            support::check_error(what, found, truth,
                                 std::max(support::max_difference(plain, truth), floor));
          };
          check("logp", actual.logp, chosen(logits, targets), chosen(in_double, targets));
          check("entropy", actual.entropy, reference::entropy(logits),
                reference::entropy(in_double));
          check("lse", actual.lse, log_sum_exp(logits), log_sum_exp(in_double));
        }
      }
    }
  });
}

TEST_CASE("token_logprob on the GPU: the entropy may be left out", "[cuda][token_logprob][unit]") {
  Cuda dev;
  auto const logits = random_matrix<float>(2, 97, 1);
  auto const targets = some_targets(2, 97);
  auto const all = forward<float>(dev, logits.values, 2, 97, targets);
  DeviceArray<float> x(logits.values);
  DeviceArray<std::int32_t> ids(targets);
  auto logp = DeviceArray<float>::poisoned(2);
  auto lse = DeviceArray<float>::poisoned(2);
  emprl::token_logprob_forward(dev, {logp.data(), {2}}, {lse.data(), {2}}, {},
                               TensorView<float, 2, Cuda>(x.data(), {2, 97}), {ids.data(), {2}});
  dev.synchronize();
  CHECK(logp.values() == all.logp);
  CHECK(lse.values() == all.lse);

  // An empty view may point into memory, as one of an arena does; nothing is written there.
  auto elsewhere = DeviceArray<float>::poisoned(2);
  emprl::token_logprob_forward(dev, {logp.data(), {2}}, {lse.data(), {2}}, {elsewhere.data(), {0}},
                               TensorView<float, 2, Cuda>(x.data(), {2, 97}), {ids.data(), {2}});
  dev.synchronize();
  for (float const untouched : elsewhere.values()) CHECK(std::isnan(untouched));
}

TEST_CASE("token_logprob on the GPU: huge logits, and tokens of probability 0",
          "[cuda][token_logprob][unit]") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  Cuda dev;
  std::vector<float> logits(3 * 66, 10000.0f);
  for (std::size_t j = 0; j < 66; ++j) {
    logits[66 + j] = -10000.0f;
    logits[132 + j] = j % 2 == 0 ? 2.0f : -infinity;
  }
  auto const actual = forward<float>(dev, logits, 3, 66, {0, 65, 65});
  CHECK(actual.logp[0] == Approx(-std::log(66.0)).epsilon(1e-6));
  CHECK(actual.logp[1] == Approx(-std::log(66.0)).epsilon(1e-6));
  CHECK(actual.logp[2] == -infinity);
  CHECK(actual.entropy[1] == Approx(std::log(66.0)).epsilon(1e-6));
  CHECK(actual.entropy[2] == Approx(std::log(33.0)).epsilon(1e-6));
  auto const d = backward<float>(dev, logits, 3, 66, {0, 65, 0}, actual, {1, 1, 1}, {1, 1, 1});
  for (std::size_t j = 0; j < 66; ++j) CHECK((d[132 + j] == 0.0f) == (j % 2 == 1));
}

TEMPLATE_TEST_CASE("token_logprob on the GPU: backward writes both gradients over the logits",
                   "[cuda][token_logprob][grad]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  support::for_each_schedule(2, [&] {
    for (index_t const n : {1, 2, 31}) {
      for (index_t const v : {1, 2, 31, 33, 97, 257}) {
        for (bool const with_entropy : {false, true}) {
          INFO(n << " rows, " << v << " tokens, entropy " << with_entropy);
          auto const logits = support::random_in_format<T>(n, v, 1, 2.0);
          auto const targets = some_targets(n, v);
          auto g = support::random_values<float>(n, 2);
          auto h = support::random_values<float>(n, 3);
          g[0] = 0.0f;
          h[0] = 0.0f;
          auto const statistics = forward<T>(dev, in_format<T>(logits.values), n, v, targets);
          auto const actual =
              in_float(backward<T>(dev, in_format<T>(logits.values), n, v, targets, statistics, g,
                                   with_entropy ? h : std::vector<float>{}));
          auto const expected = [&]<class S>(S) {
            auto const x = reference::convert<S>(logits);
            auto d = reference::token_logprob_backward(x, targets, reference::convert<S>(g)).values;
            if (with_entropy) {
              auto const e = reference::entropy_backward(x, reference::convert<S>(h)).values;
              for (std::size_t i = 0; i < d.size(); ++i) d[i] += e[i];
            }
            return d;
          };
          auto const truth = expected(0.0);
          // The plain implementation in the format rounds its result to it.
          auto const plain = in_float(in_format<T>(expected(0.0f)));
          support::check_two_times("dlogits", actual, plain, truth);
          // A row without gradients is 0, to the last element.
          for (index_t j = 0; j < v; ++j) CHECK(actual[static_cast<std::size_t>(j)] == 0.0f);
        }
      }
    }
  });
}

TEST_CASE("token_logprob on the GPU: rows without gradients become 0 even where logits are NaN",
          "[cuda][token_logprob][unit]") {
  Cuda dev;
  std::vector<float> const logits(2 * 33, std::numeric_limits<float>::quiet_NaN());
  auto const d = backward<float>(dev, logits, 2, 33, {0, 0}, {{}, {0, 0}, {0, 0}}, {0, 0}, {0, 0});
  CHECK(d == std::vector<float>(2 * 33, 0.0f));
}

TEST_CASE("token_logprob on the GPU: the same bits in every schedule",
          "[cuda][token_logprob][unit]") {
  Cuda dev;
  auto const logits = random_matrix<float>(3, 1031, 1, 3.0);
  auto const targets = some_targets(3, 1031);
  std::vector<float> first;
  support::for_each_schedule(10, [&] {
    auto const now = forward<float>(dev, logits.values, 3, 1031, targets);
    std::vector<float> all = now.logp;
    all.insert(all.end(), now.lse.begin(), now.lse.end());
    all.insert(all.end(), now.entropy.begin(), now.entropy.end());
    if (first.empty()) first = all;
    CHECK(all == first);
  });
}

TEST_CASE("token_logprob on the GPU: no rows are no work, wrong shapes throw, a bad target is NaN",
          "[cuda][token_logprob][unit]") {
  Cuda dev;
  auto const none = forward<float>(dev, {}, 0, 5, {});
  CHECK(none.logp.empty());
  for (std::int32_t const bad : {-1, 5}) {
    auto const actual = forward<float>(dev, std::vector<float>(10, 1.0f), 2, 5, {0, bad});
    CHECK(actual.logp[0] == Approx(-std::log(5.0)));
    CHECK(std::isnan(actual.logp[1]));
    CHECK(actual.lse[1] == Approx(1.0 + std::log(5.0)));
  }
  DeviceArray<float> x(std::vector<float>(10, 0.0f));
  DeviceArray<std::int32_t> ids(std::vector<std::int32_t>(3, 0));
  TensorView<float, 2, Cuda> const logits(x.data(), {2, 5});
  TensorView<float, 1, Cuda> const two(x.data(), {2}), three(x.data(), {3});
  CHECK_THROWS_AS(emprl::token_logprob_forward(dev, three, two, {}, logits, {ids.data(), {2}}),
                  emprl::ShapeError);
  CHECK_THROWS_AS(emprl::token_logprob_forward(dev, two, two, three, logits, {ids.data(), {2}}),
                  emprl::ShapeError);
  CHECK_THROWS_AS(emprl::token_logprob_backward(dev, logits, two, two, {ids.data(), {3}}),
                  emprl::ShapeError);
  CHECK_THROWS_AS(emprl::token_logprob_backward(dev, logits, two, two, {ids.data(), {2}}, two),
                  emprl::ShapeError);
}
