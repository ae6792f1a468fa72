// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/token_logprob.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

#include "reference/cross_entropy.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/gradient_check.hpp"

using emprl::Cpu;
using emprl::index_t;
using emprl::ShapeError;
using emprl::Tensor;
using emprl::TensorView;
using support::random_matrix;
using support::to_tensor;
using support::values;

namespace {

TensorView<std::int32_t const, 1, Cpu> view(std::vector<std::int32_t> const& ids) {
  return {ids.data(), {static_cast<index_t>(ids.size())}};
}

std::vector<std::int32_t> some_targets(index_t n, index_t v) {
  std::vector<std::int32_t> targets;
  for (index_t i = 0; i < n; ++i)
    targets.push_back(static_cast<std::int32_t>((i * 31 + v - 1) % v));
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

}  // namespace

TEMPLATE_TEST_CASE("token_logprob: forward matches the loops", "[ops][token_logprob][unit]", float,
                   double) {
  using T = TestType;
  Cpu dev(2);
  for (index_t const n : {1, 2, 31}) {
    for (index_t const v : {1, 2, 15, 16, 17, 97, 1000}) {
      for (double const size : {0.1, 3.0, 30.0}) {
        INFO(n << " rows, " << v << " tokens, size " << size);
        auto const logits = random_matrix<T>(n, v, 1, size);
        auto const in_double = reference::convert<double>(logits);
        auto const targets = some_targets(n, v);
        auto logp = support::poisoned<T, 1>({n});
        auto lse = support::poisoned<T, 1>({n});
        auto entropy = support::poisoned<T, 1>({n});
        emprl::token_logprob_forward<T>(dev, logp.view(), lse, entropy, to_tensor(logits),
                                        view(targets));
        // A row's numbers come from differences of logits: rounding is relative to their size.
        double const floor = 8 * support::rounding<T> * support::max_abs(logits.values);
        auto const check = [&](std::string const& what, auto const& actual,
                               std::vector<T> const& plain, std::vector<double> const& truth) {
          double const plain_error = std::max(support::max_difference(plain, truth), floor);
          support::check_error(what, values(actual), truth, plain_error,
                               std::is_same_v<T, double> ? 256 : 8);
        };
        check("logp", logp, chosen(logits, targets), chosen(in_double, targets));
        check("entropy", entropy, reference::entropy(logits), reference::entropy(in_double));
        check("lse", lse, log_sum_exp(logits), log_sum_exp(in_double));
        auto again = support::poisoned<T, 1>({n});
        emprl::token_logprob_forward<T>(dev, again.view(), lse, {}, to_tensor(logits),
                                        view(targets));
        check("logp without entropy", again, chosen(logits, targets), chosen(in_double, targets));
      }
    }
  }
}

TEMPLATE_TEST_CASE("token_logprob: huge logits neither overflow nor lose the difference",
                   "[ops][token_logprob][unit]", float, double) {
  using T = TestType;
  Cpu dev;
  Tensor<T, 2, Cpu> logits({2, 33}, T(0));
  for (index_t j = 0; j < 33; ++j) {
    logits(0, j) = T(10000);
    logits(1, j) = T(-10000);
  }
  std::vector<std::int32_t> const targets{0, 32};
  Tensor<T, 1, Cpu> logp({2});
  Tensor<T, 1, Cpu> lse({2});
  Tensor<T, 1, Cpu> entropy({2});
  emprl::token_logprob_forward<T>(dev, logp.view(), lse, entropy, logits, view(targets));
  for (index_t i = 0; i < 2; ++i) {
    CHECK(logp(i) == Approx(-std::log(33.0)).epsilon(1e-6));
    CHECK(entropy(i) == Approx(std::log(33.0)).epsilon(1e-6));
  }
}

TEMPLATE_TEST_CASE("token_logprob: backward writes the gradient over the logits",
                   "[ops][token_logprob][grad]", float, double) {
  using T = TestType;
  Cpu dev(2);
  for (index_t const n : {1, 2, 31}) {
    for (index_t const v : {1, 2, 33, 97, 1000}) {
      auto const logits = random_matrix<T>(n, v, 1, 2.0);
      auto const targets = some_targets(n, v);
      auto weight = support::random_values<T>(n, 2);
      weight[0] = T(0);
      auto x = to_tensor(logits);
      Tensor<T, 1, Cpu> logp({n});
      Tensor<T, 1, Cpu> lse({n});
      emprl::token_logprob_forward<T>(dev, logp.view(), lse, {}, x, view(targets));
      emprl::token_logprob_backward<T>(dev, x.view(), to_tensor(weight), lse, view(targets));
      support::check_two_times(
          "dlogits", values(x), reference::token_logprob_backward(logits, targets, weight).values,
          reference::token_logprob_backward(reference::convert<double>(logits), targets,
                                            reference::convert<double>(weight))
              .values);
      for (index_t j = 0; j < v; ++j) CHECK(x(0, j) == T(0));
    }
  }
}

TEST_CASE("token_logprob: backward matches central differences", "[ops][token_logprob][grad]") {
  Cpu dev;
  auto logits = to_tensor(random_matrix<double>(5, 21, 1));
  auto const targets = some_targets(5, 21);
  auto const weight = to_tensor(support::random_values<double>(5, 2));
  Tensor<double, 1, Cpu> logp({5});
  Tensor<double, 1, Cpu> lse({5});
  auto const f = [&] {
    emprl::token_logprob_forward<double>(dev, logp.view(), lse, {}, logits, view(targets));
    double sum = 0;
    for (index_t i = 0; i < 5; ++i) sum += logp(i) * weight(i);
    return sum;
  };
  f();
  Tensor<double, 2, Cpu> dlogits({5, 21});
  std::copy(logits.data(), logits.data() + logits.size(), dlogits.data());
  emprl::token_logprob_backward<double>(dev, dlogits.view(), weight, lse, view(targets));
  support::check_gradients(f, {{"logits", logits.span(), values(dlogits)}});
}

TEST_CASE("token_logprob: backward of log-probability and entropy matches central differences",
          "[ops][token_logprob][grad]") {
  Cpu dev;
  for (double const at : {0.0, 1.0}) {
    auto logits = to_tensor(random_matrix<double>(5, 21, 1, 2.0));
    auto const targets = some_targets(5, 21);
    auto weight = to_tensor(support::random_values<double>(5, 2));
    for (index_t i = 0; i < 5; ++i) weight(i) *= at;  // 0: the entropy's gradient alone
    auto entropy_weight = to_tensor(support::random_values<double>(5, 3));
    entropy_weight(4) = 0;
    Tensor<double, 1, Cpu> logp({5});
    Tensor<double, 1, Cpu> lse({5});
    Tensor<double, 1, Cpu> entropy({5});
    auto const f = [&] {
      emprl::token_logprob_forward<double>(dev, logp.view(), lse, entropy, logits, view(targets));
      double sum = 0;
      for (index_t i = 0; i < 5; ++i) sum += logp(i) * weight(i) + entropy(i) * entropy_weight(i);
      return sum;
    };
    f();
    Tensor<double, 2, Cpu> dlogits({5, 21});
    std::copy(logits.data(), logits.data() + logits.size(), dlogits.data());
    emprl::token_logprob_backward<double>(dev, dlogits.view(), weight, lse, view(targets),
                                          entropy_weight, entropy);
    support::check_gradients(f, {{"logits", logits.span(), values(dlogits)}});
  }
}

TEMPLATE_TEST_CASE("token_logprob: barred tokens change neither entropy nor gradient",
                   "[ops][token_logprob][unit]", float, double) {
  using T = TestType;
  constexpr T infinity = std::numeric_limits<T>::infinity();
  Cpu dev;
  // Every second of 66 tokens is barred: before the last 64 in the lanes, after them alone.
  Tensor<T, 2, Cpu> logits({1, 66}), fewer({1, 33});
  for (index_t j = 0; j < 33; ++j) {
    fewer(0, j) = logits(0, 2 * j) = T(0.1) * static_cast<T>(j);
    logits(0, 2 * j + 1) = -infinity;
  }
  std::vector<std::int32_t> const target{64}, its_place{32};
  Tensor<T, 1, Cpu> logp({1}), lse({1}), entropy({1}), g({1}, T(0.7)), h({1}, T(0.3));
  Tensor<T, 1, Cpu> logp_of_fewer({1}), lse_of_fewer({1}), entropy_of_fewer({1});
  emprl::token_logprob_forward<T>(dev, logp.view(), lse, entropy, logits, view(target));
  emprl::token_logprob_forward<T>(dev, logp_of_fewer.view(), lse_of_fewer, entropy_of_fewer, fewer,
                                  view(its_place));
  CHECK(logp(0) == Approx(logp_of_fewer(0)).epsilon(1e-6));
  CHECK(entropy(0) == Approx(entropy_of_fewer(0)).epsilon(1e-6));
  emprl::token_logprob_backward<T>(dev, logits.view(), g, lse, view(target), h, entropy);
  emprl::token_logprob_backward<T>(dev, fewer.view(), g, lse_of_fewer, view(its_place), h,
                                   entropy_of_fewer);
  for (index_t j = 0; j < 33; ++j) {
    CHECK(logits(0, 2 * j) == Approx(fewer(0, j)).epsilon(1e-5).margin(1e-7));
    CHECK(logits(0, 2 * j + 1) == T(0));
  }
}

TEST_CASE("token_logprob: the entropy of a token that is certain has no gradient, and no NaN",
          "[ops][token_logprob][unit]") {
  Cpu dev;
  Tensor<float, 2, Cpu> logits({1, 9}, 0.0f);
  logits(0, 3) = 500.0f;  // every other probability underflows to 0
  std::vector<std::int32_t> const targets{3};
  Tensor<float, 1, Cpu> logp({1}), lse({1}), entropy({1}), one({1}, 1.0f);
  emprl::token_logprob_forward<float>(dev, logp.view(), lse, entropy, logits, view(targets));
  emprl::token_logprob_backward<float>(dev, logits.view(), one, lse, view(targets), one, entropy);
  for (index_t j = 0; j < 9; ++j) CHECK(logits(0, j) == 0.0f);
}

TEST_CASE("token_logprob: targets outside the vocabulary and wrong shapes throw",
          "[ops][token_logprob][unit]") {
  Cpu dev;
  Tensor<float, 2, Cpu> logits({2, 5}, 0.0f);
  Tensor<float, 1, Cpu> logp({2}, 0.0f);
  Tensor<float, 1, Cpu> lse({2}, 0.0f);
  Tensor<float, 1, Cpu> three({3}, 0.0f);
  for (std::int32_t const bad : {-1, 5}) {
    std::vector<std::int32_t> const targets{0, bad};
    CHECK_THROWS_AS(
        emprl::token_logprob_forward<float>(dev, logp.view(), lse, {}, logits, view(targets)),
        ShapeError);
    CHECK_THROWS_AS(
        emprl::token_logprob_backward<float>(dev, logits.view(), logp, lse, view(targets)),
        ShapeError);
  }
  std::vector<std::int32_t> const targets{0, 1};
  CHECK_THROWS_AS(
      emprl::token_logprob_forward<float>(dev, three.view(), lse, {}, logits, view(targets)),
      ShapeError);
  CHECK_THROWS_AS(
      emprl::token_logprob_forward<float>(dev, logp.view(), lse, three, logits, view(targets)),
      ShapeError);
  CHECK_THROWS_AS(
      emprl::token_logprob_backward<float>(dev, logits.view(), three, lse, view(targets)),
      ShapeError);
  // An entropy's gradient without the entropy, and one of the wrong length.
  CHECK_THROWS_AS(
      emprl::token_logprob_backward<float>(dev, logits.view(), logp, lse, view(targets), logp),
      ShapeError);
  CHECK_THROWS_AS(emprl::token_logprob_backward<float>(dev, logits.view(), logp, lse, view(targets),
                                                       three, three),
                  ShapeError);
}
