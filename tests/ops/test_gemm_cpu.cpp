// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/gemm_cpu.hpp"

#include <array>
#include <vector>

#include "reference/linear.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"

using emprl::Cpu;
using emprl::index_t;
using emprl::Tensor;
using emprl::Trans;
using support::random_matrix;
using support::to_tensor;
using support::values;

namespace {

template <class T>
reference::Matrix<T> expected(Trans ta, Trans tb, reference::Matrix<T> const& a,
                              reference::Matrix<T> const& b) {
  return reference::multiply(ta == Trans::no ? a : reference::transpose(a),
                             tb == Trans::no ? b : reference::transpose(b));
}

}  // namespace

TEMPLATE_TEST_CASE("gemm: every combination of transposes matches the loops", "[ops][gemm][unit]",
                   float, double) {
  using T = TestType;
  Cpu dev(2);
  struct Shape {
    index_t m, n, k;
  };
  for (auto const& [m, n, k] : {Shape{1, 1, 1}, Shape{1, 33, 97}, Shape{31, 2, 33},
                                Shape{97, 31, 2}, Shape{2, 257, 97}, Shape{257, 97, 33}}) {
    for (Trans const ta : {Trans::no, Trans::yes}) {
      for (Trans const tb : {Trans::no, Trans::yes}) {
        auto const a = ta == Trans::no ? random_matrix<T>(m, k, 1) : random_matrix<T>(k, m, 1);
        auto const b = tb == Trans::no ? random_matrix<T>(k, n, 2) : random_matrix<T>(n, k, 2);
        auto const c0 = random_matrix<T>(m, n, 3);
        auto plain = expected(ta, tb, a, b);
        auto truth = expected(ta, tb, reference::convert<double>(a), reference::convert<double>(b));

        auto c = support::poisoned<T, 2>({m, n});
        emprl::gemm<T>(dev, ta, tb, 1, to_tensor(a), to_tensor(b), 0, c.view());
        INFO("shape " << m << " " << n << " " << k);
        support::check_two_times("beta 0 writes without reading", values(c), plain.values,
                                 truth.values);

        auto d = to_tensor(c0);
        emprl::gemm<T>(dev, ta, tb, T(0.5), to_tensor(a), to_tensor(b), T(2), d.view());
        for (std::size_t i = 0; i < plain.values.size(); ++i) {
          plain.values[i] = T(0.5) * plain.values[i] + T(2) * c0.values[i];
          truth.values[i] = 0.5 * truth.values[i] + 2 * static_cast<double>(c0.values[i]);
        }
        support::check_two_times("alpha and beta", values(d), plain.values, truth.values);
      }
    }
  }
}

TEMPLATE_TEST_CASE("gemm: works on columns of wider matrices and leaves the rest alone",
                   "[ops][gemm][unit]", float, double) {
  using T = TestType;
  Cpu dev;
  auto const a = random_matrix<T>(33, 40, 4);
  auto const b = random_matrix<T>(31, 50, 5);
  auto const ta = to_tensor(a);
  auto const tb = to_tensor(b);
  Tensor<T, 2, Cpu> c({33, 60}, T(-7));
  emprl::gemm<T>(dev, Trans::no, Trans::yes, 1, ta.view().columns(3, 20), tb.view().columns(30, 47),
                 0, c.view().columns(10, 41));
  for (index_t i = 0; i < 33; ++i) {
    for (index_t j = 0; j < 60; ++j) {
      if (j < 10 || j >= 41) {
        REQUIRE(c(i, j) == T(-7));
        continue;
      }
      double sum = 0;
      for (index_t k = 0; k < 17; ++k) {
        sum += static_cast<double>(a(i, 3 + k)) * static_cast<double>(b(j - 10, 30 + k));
      }
      REQUIRE(std::abs(static_cast<double>(c(i, j)) - sum) < 64 * support::rounding<T> * 17);
    }
  }
}

TEST_CASE("gemm: empty sums are zero, empty results are nothing", "[ops][gemm][unit]") {
  Cpu dev;
  Tensor<float, 2, Cpu> const a({3, 0});
  Tensor<float, 2, Cpu> const b({0, 2});
  auto c = support::poisoned<float, 2>({3, 2});
  emprl::gemm<float>(dev, Trans::no, Trans::no, 1, a, b, 0, c.view());
  for (float const x : c.span()) CHECK(x == 0.0f);
  c.view()(0, 0) = 3;
  emprl::gemm<float>(dev, Trans::no, Trans::no, 1, a, b, 2, c.view());
  CHECK(c(0, 0) == 6.0f);
  Tensor<float, 2, Cpu> none({0, 2});
  Tensor<float, 2, Cpu> const rows({0, 5});
  Tensor<float, 2, Cpu> const square({5, 2}, 1.0f);
  CHECK_NOTHROW(emprl::gemm<float>(dev, Trans::no, Trans::no, 1, rows, square, 0, none.view()));
}

TEST_CASE("gemm: shapes that do not fit are named", "[ops][gemm][unit]") {
  Cpu dev;
  Tensor<float, 2, Cpu> const a({3, 4}, 0.0f);
  Tensor<float, 2, Cpu> const b({5, 2}, 0.0f);
  Tensor<float, 2, Cpu> c({3, 2}, 0.0f);
  CHECK_THROWS_AS(emprl::gemm<float>(dev, Trans::no, Trans::no, 1, a, b, 0, c.view()),
                  emprl::ShapeError);
  CHECK_THROWS_WITH(
      emprl::gemm<float>(dev, Trans::no, Trans::no, 1, a, b, 0, c.view()),
      Catch::Matchers::ContainsSubstring("(3, 4)") && Catch::Matchers::ContainsSubstring("(5, 2)"));
  Tensor<float, 2, Cpu> const fits({4, 2}, 0.0f);
  Tensor<float, 2, Cpu> wrong({2, 2}, 0.0f);
  CHECK_THROWS_AS(emprl::gemm<float>(dev, Trans::no, Trans::no, 1, a, fits, 0, wrong.view()),
                  emprl::ShapeError);
}

TEST_CASE("gemm: threads change a result by rounding at most", "[ops][gemm][unit]") {
  auto const a = to_tensor(random_matrix<float>(257, 97, 6));
  auto const b = to_tensor(random_matrix<float>(97, 129, 7));
  std::array<std::vector<float>, 2> results;
  for (int threads = 1; threads <= 2; ++threads) {
    Cpu dev(threads);
    Tensor<float, 2, Cpu> c({257, 129});
    emprl::gemm<float>(dev, Trans::no, Trans::no, 1, a, b, 0, c.view());
    results[static_cast<std::size_t>(threads - 1)] = values(c);
    Tensor<float, 2, Cpu> again({257, 129});
    emprl::gemm<float>(dev, Trans::no, Trans::no, 1, a, b, 0, again.view());
    CHECK(values(again) == values(c));
  }
  CHECK(support::max_difference(results[0], results[1]) <=
        97 * support::rounding<float> * support::max_abs(results[0]));
}
