// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/gemm.cuh"

#include <cmath>
#include <cstdint>
#include <span>
#include <type_traits>
#include <vector>

#include "reference/linear.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/formats.hpp"
#if !defined(__CUDACC__)
#include "emprl/ops/gemm_cpu.hpp"
#endif

using emprl::Bf16;
using emprl::Cuda;
using emprl::index_t;
using emprl::TensorView;
using emprl::Trans;
using reference::Matrix;
using support::random_in_format;

namespace {

/// A matrix on the device whose rows lie `gap` elements apart, and NaN between them.
template <class T>
class Strided {
 public:
  Strided(Cuda& dev, index_t rows, index_t columns, index_t gap)
      : dev_(dev), memory_({rows, columns + gap}) {
    std::vector<T> const nan(static_cast<std::size_t>(memory_.size()), T(std::nanf("")));
    copy(dev, memory_.view(), nan);
    view_ = memory_.view().columns(0, columns);
  }
  Strided(Cuda& dev, Matrix<float> const& x, index_t gap) : Strided(dev, x.rows, x.cols, gap) {
    std::vector<T> all(static_cast<std::size_t>(memory_.size()), T(std::nanf("")));
    for (index_t i = 0; i < x.rows; ++i) {
      for (index_t j = 0; j < x.cols; ++j) {
        all[static_cast<std::size_t>(i * view_.stride(0) + j)] = T(x(i, j));
      }
    }
    copy(dev, memory_.view(), all);
  }

  TensorView<T, 2, Cuda> view() const { return view_; }

  Matrix<double> values() const {
    std::vector<T> all(static_cast<std::size_t>(memory_.size()));
    copy(dev_, std::span<T>(all), memory_.view());
    Matrix<double> x(view_.extent(0), view_.extent(1));
    for (index_t i = 0; i < x.rows; ++i) {
      for (index_t j = 0; j < x.cols; ++j) {
        x(i, j) = static_cast<float>(all[static_cast<std::size_t>(i * view_.stride(0) + j)]);
      }
    }
    return x;
  }

 private:
  Cuda& dev_;
  emprl::Tensor<T, 2, Cuda> memory_;
  TensorView<T, 2, Cuda> view_;
};

/// Every element within the error of a float sum of its terms, whose sizes are `size`, and of one
/// rounding to R.
template <class R>
void check_product(Matrix<double> const& c, Matrix<double> const& truth, Matrix<double> const& size,
                   index_t terms) {
  double const rounding = std::is_same_v<R, Bf16> ? 0x1p-8 : 0x1p-24;
  int wrong = 0;
  for (std::size_t i = 0; i < truth.values.size(); ++i) {
    double const sum_error = static_cast<double>(terms + 2) * 0x1p-23 * size.values[i];
    double const allowed = sum_error + rounding * (std::abs(truth.values[i]) + sum_error);
    if (!(std::abs(c.values[i] - truth.values[i]) <= allowed)) ++wrong;
  }
  CHECK(c.values.size() == truth.values.size());
  CHECK(wrong == 0);
}

Matrix<double> absolute(Matrix<double> x) {
  for (double& v : x.values) v = std::abs(v);
  return x;
}

template <class T, class R>
void check_gemm(Cuda& dev, index_t m, index_t n, index_t k, Trans ta, Trans tb, float beta) {
  INFO("m = " << m << ", n = " << n << ", k = " << k << ", transposed " << (ta == Trans::yes) << ' '
              << (tb == Trans::yes) << ", beta = " << beta);
  auto const a = random_in_format<T>(m, k, 1);
  auto const b = random_in_format<T>(k, n, 2);
  auto const before = random_in_format<R>(m, n, 3);
  Strided<T> const a_there(dev, ta == Trans::no ? a : transpose(a), 8);
  Strided<T> const b_there(dev, tb == Trans::no ? b : transpose(b), 0);
  // What is not to be read is NaN.
  Strided<R> const c = beta == 0 ? Strided<R>(dev, m, n, 16) : Strided<R>(dev, before, 16);
  gemm(dev, ta, tb, 0.5f, a_there.view(), b_there.view(), beta, c.view());
  auto const a64 = reference::convert<double>(a);
  auto const b64 = reference::convert<double>(b);
  auto truth = multiply(a64, b64);
  auto size = multiply(absolute(a64), absolute(b64));
  for (std::size_t i = 0; i < truth.values.size(); ++i) {
    double const added = static_cast<double>(beta) * static_cast<double>(before.values[i]);
    truth.values[i] = 0.5 * truth.values[i] + added;
    size.values[i] = 0.5 * size.values[i] + std::abs(added);
  }
  check_product<R>(c.values(), truth, size, k);
}

constexpr Trans both[] = {Trans::no, Trans::yes};

}  // namespace

TEMPLATE_TEST_CASE("gemm: a product on the device is that of its matrices, however they lie",
                   "[cuda][gemm]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  for (Trans const ta : both) {
    for (Trans const tb : both) {
      for (float const beta : {0.0f, 1.0f, -2.0f}) {
        for (index_t const m : {1, 33}) {
          for (index_t const n : {1, 2, 97}) {
            for (index_t const k : {1, 31, 257}) check_gemm<T, T>(dev, m, n, k, ta, tb, beta);
          }
        }
      }
    }
  }
}

TEST_CASE("gemm: 16-bit operands may have their product in float", "[cuda][gemm]") {
  Cuda dev;
  check_gemm<Bf16, float>(dev, 33, 97, 257, Trans::no, Trans::yes, 0.0f);
  check_gemm<Bf16, float>(dev, 97, 2, 31, Trans::yes, Trans::no, 1.0f);
}

TEST_CASE("gemm: no rows, no columns and no terms are products too", "[cuda][gemm]") {
  Cuda dev;
  Strided<float> const none(dev, 0, 3, 0), weight(dev, 2, 3, 0), c(dev, 0, 2, 0);
  gemm(dev, Trans::no, Trans::yes, 1.0f, none.view(), weight.view(), 0.0f, c.view());
  // The gradient of a weight over no tokens: nothing is added, or zero is written.
  Matrix<float> const before = random_in_format<float>(3, 2, 4);
  Strided<float> const sum(dev, before, 5), empty(dev, 0, 2, 0);
  gemm(dev, Trans::yes, Trans::no, 1.0f, none.view(), empty.view(), 1.0f, sum.view());
  CHECK(sum.values().values == reference::convert<double>(before).values);
  gemm(dev, Trans::yes, Trans::no, 1.0f, none.view(), empty.view(), 0.0f, sum.view());
  CHECK(sum.values().values == std::vector<double>(6, 0.0));
}

TEST_CASE("gemm: shapes that do not fit are named on the GPU too", "[cuda][gemm]") {
  Cuda dev;
  Strided<float> const a(dev, 2, 3, 0), b(dev, 4, 5, 0), c(dev, 2, 5, 0);
  CHECK_THROWS_WITH(gemm(dev, Trans::no, Trans::no, 1.0f, a.view(), b.view(), 0.0f, c.view()),
                    Catch::Contains("a (2, 3), b (4, 5), c (2, 5)"));
  emprl::Tensor<float, 1, Cuda> const bias({4});
  Strided<float> const square(dev, 3, 5, 0);
  CHECK_THROWS_AS(gemm_add<float>(dev, Trans::no, Trans::no, 1.0f, a.view(), square.view(),
                                  c.view(), bias.view(), {}),
                  emprl::ShapeError);
  CHECK_THROWS_WITH(gemm_add<float>(dev, Trans::no, Trans::no, 1.0f, a.view(), square.view(),
                                    c.view(), {}, b.view()),
                    Catch::Contains("what is added must be as large as the product"));
}

TEMPLATE_TEST_CASE("gemm: bias, residual and ReLU in the same pass, ReLU's gradient by its mask",
                   "[cuda][gemm]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  for (index_t const m : {1, 33}) {
    for (index_t const n : {2, 31, 257}) {
      index_t const k = 33;
      auto const x = random_in_format<T>(m, k, 5), w = random_in_format<T>(n, k, 6),
                 bias = random_in_format<T>(1, n, 7);
      auto const x64 = reference::convert<double>(x), w64 = reference::convert<double>(w);
      Strided<T> const x_there(dev, x, 8), w_there(dev, w, 0), bias_there(dev, bias, 0);
      TensorView<T, 1, Cuda> const b(bias_there.view().data(), {n});
      auto const linear = reference::linear(x64, w64, reference::convert<double>(bias.values));
      auto const size = reference::linear(absolute(x64), absolute(w64),
                                          absolute(reference::convert<double>(bias)).values);
      Strided<T> const y(dev, m, n, 8);
      gemm_add(dev, Trans::no, Trans::yes, 1.0f, x_there.view(), w_there.view(), y.view(), b, {});
      check_product<T>(y.values(), linear, size, k);

      // A residual beside the result, and one that is overwritten: the sum is rounded once.
      auto const residual = random_in_format<T>(m, n, 10);
      Strided<T> const r_there(dev, residual, 16), in_place(dev, residual, 8);
      auto sum = linear, sizes = size;
      for (std::size_t i = 0; i < sum.values.size(); ++i) {
        auto const r = static_cast<double>(residual.values[i]);
        sum.values[i] += r;
        sizes.values[i] += std::abs(r);
      }
      gemm_add(dev, Trans::no, Trans::yes, 1.0f, x_there.view(), w_there.view(), y.view(), b,
               r_there.view());
      check_product<T>(y.values(), sum, sizes, k);
      CHECK(r_there.values().values == reference::convert<double>(residual).values);
      gemm_add(dev, Trans::no, Trans::yes, 1.0f, x_there.view(), w_there.view(), in_place.view(), b,
               in_place.view());
      check_product<T>(in_place.values(), sum, sizes, k);

      auto const relu = [](Matrix<double> z) {
        for (double& v : z.values) v = v > 0 ? v : 0;
        return z;
      };
      emprl::Tensor<std::uint8_t, 2, Cuda> const mask(emprl::relu_mask_extents(m, n));
      gemm_relu(dev, Trans::no, Trans::yes, 1.0f, x_there.view(), w_there.view(), y.view(), {}, {});
      check_product<T>(y.values(), relu(reference::linear(x64, w64)), size, k);
      // No bias is none wherever its view points.
      TensorView<T, 1, Cuda> const none(bias_there.view().data(), {0});
      gemm_relu(dev, Trans::no, Trans::yes, 1.0f, x_there.view(), w_there.view(), y.view(), none,
                {});
      check_product<T>(y.values(), relu(reference::linear(x64, w64)), size, k);
      gemm_add(dev, Trans::no, Trans::yes, 1.0f, x_there.view(), w_there.view(), y.view(), none,
               {});
      check_product<T>(y.values(), reference::linear(x64, w64), size, k);
      gemm_relu(dev, Trans::no, Trans::yes, 1.0f, x_there.view(), w_there.view(), y.view(), b,
                mask.view());
      check_product<T>(y.values(), relu(linear), size, k);

      // The mask passes the gradient where the output is positive.
      auto const positive = y.values();
      auto const dz = random_in_format<T>(m, 5, 8), v = random_in_format<T>(5, n, 9);
      Strided<T> const dz_there(dev, dz, 0), v_there(dev, v, 0), dy(dev, m, n, 0);
      gemm_relu_backward(dev, Trans::no, Trans::no, 1.0f, dz_there.view(), v_there.view(),
                         dy.view(), mask.view());
      auto const dz64 = reference::convert<double>(dz), v64 = reference::convert<double>(v);
      auto truth = multiply(dz64, v64);
      for (std::size_t i = 0; i < truth.values.size(); ++i) {
        if (!(positive.values[i] > 0)) truth.values[i] = 0;
      }
      check_product<T>(dy.values(), truth, multiply(absolute(dz64), absolute(v64)), 5);
    }
  }
}
