// SPDX-License-Identifier: Apache-2.0
#include "emprl/cuda/buffer.cuh"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "emprl/nn/parameters.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"

using emprl::Buffer;
using emprl::Cuda;
using emprl::index_t;
using emprl::Tensor;
using emprl::TensorView;

namespace {

constexpr index_t awkward[] = {1, 2, 31, 33, 97, 257};

struct Views {
  TensorView<float, 2, Cuda> matrix;
  TensorView<float, 1, Cuda> vector;
  template <class F>
  void visit(index_t n, F&& f) {
    f("matrix", matrix, std::array<index_t, 2>{n, 3});
    f("vector", vector, std::array<index_t, 1>{n});
  }
};

template <class T>
std::vector<std::remove_const_t<T>> back(Cuda& dev, TensorView<T, 1, Cuda> x) {
  std::vector<std::remove_const_t<T>> values(static_cast<std::size_t>(x.size()));
  copy(dev, std::span<std::remove_const_t<T>>(values), x);
  return values;
}

}  // namespace

TEST_CASE("cuda: values come back from the device as they went there", "[cuda][buffer]") {
  Cuda dev;
  for (index_t const n : awkward) {
    auto const x = support::random_values<float>(2 * n, 1);
    Tensor<float, 2, Cuda> const there({2, n});
    copy(dev, there.view(), x);
    std::vector<float> values(x.size(), std::numeric_limits<float>::quiet_NaN());
    copy(dev, std::span<float>(values), TensorView<float const, 2, Cuda>(there));
    CHECK(values == x);
    // Rows in the middle only.
    std::vector<float> row(static_cast<std::size_t>(n));
    copy(dev, std::span<float>(row), there.view().rows(1, 2));
    CHECK(std::equal(row.begin(), row.end(), x.begin() + n));
  }
}

TEST_CASE("cuda: a transfer of a view with gaps or of another size is refused", "[cuda][buffer]") {
  Cuda dev;
  Tensor<float, 2, Cuda> const there({3, 4});
  std::vector<float> values(6);
  CHECK_THROWS_AS(copy(dev, there.view().columns(0, 2), values), emprl::ShapeError);
  CHECK_THROWS_AS(copy(dev, std::span<float>(values), there.view()), emprl::ShapeError);
  CHECK_THROWS_AS(clear(dev, there.view().columns(0, 2)), emprl::ShapeError);
  CHECK_THROWS_AS((Buffer<float, Cuda>(-1)), emprl::ShapeError);
}

TEST_CASE("cuda: a copy in an arena survives the host's, and poison is where nothing was written",
          "[cuda][buffer]") {
  Cuda dev;
  dev.saved.poison(true);
  std::vector<std::int32_t> ids{4, 5, 6};
  auto const there = on_device(dev, dev.saved, std::span<std::int32_t const>(ids));
  auto const beside = dev.saved.allocate<std::int32_t, 1>({2});
  ids.assign(3, 0);
  CHECK(back(dev, there) == std::vector<std::int32_t>{4, 5, 6});
  CHECK(back(dev, beside) == std::vector<std::int32_t>{-1, -1});
  clear(dev, beside);
  CHECK(back(dev, beside) == std::vector<std::int32_t>{0, 0});
  // Nothing at all is a copy too.
  CHECK(on_device(dev, dev.saved, std::span<std::int32_t const>()).empty());
}

TEST_CASE("cuda: buffers move, and the host cannot touch their elements", "[cuda][buffer]") {
  Buffer<float, Cuda> first(5);
  float* const at = first.data();
  Buffer<float, Cuda> second(std::move(first));
  CHECK(second.data() == at);
  CHECK(second.size() == 5);
  CHECK(first.data() == nullptr);
  first = std::move(second);
  CHECK(first.data() == at);
  static_assert(!std::is_invocable_v<Tensor<float, 1, Cuda> const&, index_t>);
  static_assert(
      !std::is_convertible_v<TensorView<float, 1, Cuda>, TensorView<float, 1, emprl::Cpu>>);
}

TEST_CASE("cuda: parameters begin at zero and are set from the host's by one copy",
          "[cuda][parameters]") {
  Cuda dev;
  emprl::nn::ParameterStore<Views, float, Cuda> const store(dev, index_t{7});
  REQUIRE(store.size() == 28);
  CHECK(back(dev, store.all()) == std::vector<float>(28, 0.0f));
  auto const values = support::random_values<float>(28, 2);
  copy(dev, store.all(), values);
  CHECK(back(dev, store.views().vector) == std::vector<float>(values.begin() + 21, values.end()));
}
