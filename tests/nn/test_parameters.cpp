// SPDX-License-Identifier: Apache-2.0
#include "emprl/nn/parameters.hpp"

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "support/catch.hpp"

using emprl::Cpu;
using emprl::index_t;
using emprl::ShapeError;
using emprl::TensorView;

namespace {

struct Sizes {
  index_t n = 3;
};

struct Views {
  TensorView<float, 2, Cpu> a, b;
  TensorView<float, 1, Cpu> c;

  template <class F>
  void visit(Sizes const& s, F&& f) {
    f("a", a, std::array<index_t, 2>{s.n, 4});
    f("b", b, std::array<index_t, 2>{2, 4});
    f("c", c, std::array<index_t, 1>{5});
  }
};

using Store = emprl::nn::ParameterStore<Views, float, Cpu>;

}  // namespace

TEST_CASE("ParameterStore: one flat memory, zero at first, named pieces in order",
          "[nn][parameters][unit]") {
  Store const store(Sizes{});
  CHECK(store.size() == 12 + 8 + 5);
  for (float const x : store.span()) CHECK(x == 0.0f);
  REQUIRE(store.infos().size() == 3);
  CHECK(store.infos()[0].name == "a");
  CHECK(store.infos()[1].offset == 12);
  CHECK(store.infos()[1].shape == std::vector<index_t>{2, 4});
  CHECK(store.infos()[2].size == 5);
  store.span()[13] = 7;
  CHECK(store.views().b(0, 1) == 7.0f);
  store.span(store.infos()[2])[4] = 9;
  CHECK(store.views().c(4) == 9.0f);
}

TEST_CASE("ParameterStore: views stay right when it moves", "[nn][parameters][unit]") {
  Store a(Sizes{});
  a.span()[24] = 3;
  Store const b = std::move(a);
  CHECK(b.views().c(4) == 3.0f);
  CHECK(b.views().a.data() == b.span().data());
}

TEST_CASE("stacked: neighbours become one matrix, strangers are refused, empty stays empty",
          "[nn][parameters][unit]") {
  Store const store(Sizes{});
  auto const both = emprl::nn::stacked(store.views().a, store.views().b);
  CHECK(both.extent(0) == 5);
  CHECK(both.extent(1) == 4);
  CHECK(both.data() == store.span().data());
  CHECK_THROWS_AS(emprl::nn::stacked(store.views().b, store.views().a), ShapeError);
  CHECK(emprl::nn::stacked(TensorView<float, 2, Cpu>{}, TensorView<float, 2, Cpu>{}).empty());
  CHECK(emprl::nn::stacked(TensorView<float, 1, Cpu>{}, TensorView<float, 1, Cpu>{}).empty());
}
