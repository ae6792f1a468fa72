// SPDX-License-Identifier: Apache-2.0
#include "emprl/core/tensor.hpp"

#include <array>
#include <cstdint>
#include <limits>
#include <numeric>
#include <type_traits>
#include <utility>

#include "emprl/core/device.hpp"
#include "support/catch.hpp"

using Catch::Matchers::ContainsSubstring;
using emprl::Buffer;
using emprl::Cpu;
using emprl::index_t;
using emprl::ShapeError;
using emprl::Tensor;
using emprl::TensorView;

namespace {
struct OtherDevice {};
}  // namespace

TEST_CASE("TensorView: rows are dense and in order", "[core][tensor][unit]") {
  std::array<int, 24> data{};
  std::iota(data.begin(), data.end(), 0);
  TensorView<int, 3, Cpu> const x(data.data(), {2, 3, 4});
  CHECK(x.size() == 24);
  CHECK(x.stride(0) == 12);
  CHECK(x.stride(1) == 4);
  CHECK(x.stride(2) == 1);
  CHECK(x(1, 2, 3) == 23);
  CHECK(x(1, 0, 2) == 14);
  CHECK(x.is_contiguous());
  CHECK(shape_string(x) == "(2, 3, 4)");
  CHECK(x.rows(1, 2)(0, 0, 0) == 12);
}

TEST_CASE("TensorView: columns are a view with gaps", "[core][tensor][unit]") {
  std::array<int, 12> data{};
  std::iota(data.begin(), data.end(), 0);
  TensorView<int, 2, Cpu> const x(data.data(), {3, 4});
  auto const c = x.columns(1, 3);
  CHECK(c.extent(0) == 3);
  CHECK(c.extent(1) == 2);
  CHECK(c(2, 1) == 10);
  CHECK(c.row(1)[0] == 5);
  CHECK_FALSE(c.is_contiguous());
  CHECK_THROWS_AS(c.span(), ShapeError);
  // One row has no gaps, whatever its stride.
  CHECK(c.rows(1, 2).is_contiguous());
  CHECK(c.rows(1, 2).span()[1] == 6);
  CHECK(x.span().size() == 12);
  c(0, 0) = 100;
  CHECK(data[1] == 100);
}

TEST_CASE("TensorView: becomes const, never mutable, never another device's",
          "[core][tensor][unit]") {
  using M = TensorView<float, 2, Cpu>;
  using C = TensorView<float const, 2, Cpu>;
  static_assert(std::is_convertible_v<M, C>);
  static_assert(!std::is_convertible_v<C, M>);
  static_assert(!std::is_convertible_v<M, TensorView<float, 2, OtherDevice>>);
  static_assert(!std::is_convertible_v<M, TensorView<double const, 2, Cpu>>);
  static_assert(std::is_trivially_copyable_v<M>);
  SUCCEED();
}

TEST_CASE("TensorView: empty ones have size zero", "[core][tensor][unit]") {
  TensorView<float, 2, Cpu> const none;
  CHECK(none.size() == 0);
  CHECK(none.empty());
  Tensor<float, 2, Cpu> const rows({0, 5});
  CHECK(rows.view().empty());
  CHECK(rows.view().span().empty());
}

TEST_CASE("Tensor: owns, moves and aligns its elements", "[core][tensor][unit]") {
  static_assert(!std::is_copy_constructible_v<Tensor<float, 2, Cpu>>);
  static_assert(std::is_nothrow_move_constructible_v<Buffer<float, Cpu>>);
  Tensor<double, 2, Cpu> a({3, 5}, 2.5);
  CHECK(reinterpret_cast<std::uintptr_t>(a.data()) % 64 == 0);
  for (double const v : a.span()) CHECK(v == 2.5);
  double* const data = a.data();
  Tensor<double, 2, Cpu> b = std::move(a);
  CHECK(b.data() == data);
  CHECK(b.view().data() == data);
  b(2, 4) = 7;
  Tensor<double, 2, Cpu> c({1, 1}, 0.0);
  c = std::move(b);
  CHECK(c(2, 4) == 7);
  CHECK(c.extent(1) == 5);
}

TEST_CASE("checked_size: impossible extents are refused before anything is allocated",
          "[core][tensor][unit]") {
  using Extents = std::array<index_t, 2>;
  index_t const big = std::numeric_limits<index_t>::max();
  CHECK(emprl::checked_size(Extents{3, 4}, 8) == 12);
  CHECK(emprl::checked_size(Extents{0, big}, 8) == 0);
  CHECK(emprl::checked_size(Extents{big, 0}, 1) == 0);
  CHECK_THROWS_WITH(emprl::checked_size(Extents{-1, 4}, 8), ContainsSubstring("negative"));
  CHECK_THROWS_WITH(emprl::checked_size(Extents{big, 2}, 1), ContainsSubstring("too large"));
  CHECK_THROWS_WITH(emprl::checked_size(Extents{big / 4, 1}, 8), ContainsSubstring("too large"));
  CHECK_THROWS_AS((Tensor<float, 2, Cpu>({-1, 2})), ShapeError);
}

TEST_CASE("expects: a ShapeError says where, other errors say only what", "[core][error][unit]") {
  CHECK_NOTHROW(emprl::expects(true, "never seen"));
  CHECK_THROWS_WITH(emprl::expects(false, "the rows differ"),
                    ContainsSubstring("the rows differ") && ContainsSubstring("test_tensor.cpp:"));
  CHECK_THROWS_WITH(emprl::expects<emprl::ConfigError>(false, "top-k must be positive"),
                    "top-k must be positive");
  CHECK_THROWS_AS(emprl::expects<emprl::IoError>(false, "x"), emprl::Error);
}
