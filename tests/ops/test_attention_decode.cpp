// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/attention_decode.hpp"

#include <vector>

#include "reference/attention.hpp"
#include "reference/linear.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"

using emprl::CachedKeys;
using emprl::Cpu;
using emprl::index_t;
using emprl::ShapeError;
using emprl::Tensor;
using support::random_matrix;
using support::to_tensor;
using support::values;

namespace {

/// Three active rows whose keys lie anywhere in a cache of 100 rows.
template <class T>
struct Data {
  Data(index_t heads_, index_t head_dim, index_t prefix, bool with_bias)
      : heads(heads_),
        q(random_matrix<T>(3, heads * head_dim, 1, 0.5)),
        k(random_matrix<T>(100, heads * head_dim, 2)),
        v(random_matrix<T>(100, heads * head_dim, 3)),
        prefix_k(random_matrix<T>(prefix, heads * head_dim, 4)),
        prefix_v(random_matrix<T>(prefix, heads * head_dim, 5)) {
    if (with_bias) bias = random_matrix<T>(heads, 40, 6);
  }

  index_t heads;
  reference::Matrix<T> q, k, v, prefix_k, prefix_v, bias;
  std::vector<index_t> begin{60, 0, 33};
  std::vector<index_t> length{33, 1, 2};

  /// One row at a time through the reference.
  template <class S>
  std::vector<S> naive() const {
    std::vector<S> result;
    for (index_t a = 0; a < 3; ++a) {
      auto const u = static_cast<std::size_t>(a);
      index_t const n = length[u];
      index_t const width = q.cols;
      reference::AttentionInputs<S> in;
      in.q = reference::Matrix<S>(1, width);
      in.k = reference::Matrix<S>(n, width);
      in.v = reference::Matrix<S>(n, width);
      for (index_t c = 0; c < width; ++c) {
        in.q(0, c) = static_cast<S>(q(a, c));
        for (index_t j = 0; j < n; ++j) {
          in.k(j, c) = static_cast<S>(k(begin[u] + j, c));
          in.v(j, c) = static_cast<S>(v(begin[u] + j, c));
        }
      }
      in.prefix_k = reference::convert<S>(prefix_k);
      in.prefix_v = reference::convert<S>(prefix_v);
      reference::AttentionShape shape;
      shape.heads = heads;
      shape.query_offsets = {0, 1};
      shape.key_offsets = {0, n};
      if (bias.rows > 0) {
        in.bias_table = reference::transpose(reference::convert<S>(bias));
        shape.bucket = [](index_t relative) { return relative; };
      }
      auto const y = reference::attention(shape, in);
      result.insert(result.end(), y.values.begin(), y.values.end());
    }
    return result;
  }
};

}  // namespace

TEMPLATE_TEST_CASE("attention_decode: matches the loops", "[ops][attention_decode][unit]", float,
                   double) {
  using T = TestType;
  for (int const threads : {1, 2}) {
    Cpu dev(threads);
    for (index_t const prefix : {0, 1, 31}) {
      for (bool const bias : {false, true}) {
        for (index_t const width : {1, 7, 8, 33}) {
          Data<T> const d(3, width, prefix, bias);
          auto const k = to_tensor(d.k);
          auto const v = to_tensor(d.v);
          auto o = support::poisoned<T, 2>({3, 3 * width});
          CachedKeys<T, Cpu> const cache{
              k.view(), v.view(), {d.begin.data(), {3}}, {d.length.data(), {3}}};
          emprl::attention_decode<T>(dev, o.view(), to_tensor(d.q), cache, 3, to_tensor(d.bias),
                                     to_tensor(d.prefix_k), to_tensor(d.prefix_v));
          support::check_two_times("o", values(o), d.template naive<T>(),
                                   d.template naive<double>());
        }
      }
    }
  }
}

TEST_CASE("attention_decode: a row without keys gives zeros", "[ops][attention_decode][unit]") {
  Cpu dev;
  Data<float> d(2, 4, 0, false);
  d.length[1] = 0;
  auto const k = to_tensor(d.k);
  auto const v = to_tensor(d.v);
  auto o = support::poisoned<float, 2>({3, 8});
  emprl::attention_decode<float>(
      dev, o.view(), to_tensor(d.q),
      {k.view(), v.view(), {d.begin.data(), {3}}, {d.length.data(), {3}}}, 2, {}, {}, {});
  for (index_t c = 0; c < 8; ++c) CHECK(o(1, c) == 0.0f);
}

TEST_CASE("attention_decode: inputs that do not fit throw", "[ops][attention_decode][unit]") {
  Cpu dev;
  Data<float> const d(2, 4, 0, true);
  auto const q = to_tensor(d.q);
  auto const k = to_tensor(d.k);
  auto const v = to_tensor(d.v);
  auto const bias = to_tensor(d.bias);
  Tensor<float, 2, Cpu> o({3, 8});
  std::vector<index_t> const too_far{60, 0, 99};
  std::vector<index_t> const negative{60, -1, 33};
  CachedKeys<float, Cpu> const cache{
      k.view(), v.view(), {d.begin.data(), {3}}, {d.length.data(), {3}}};
  auto const run = [&](CachedKeys<float, Cpu> const& c, index_t heads, auto const& b) {
    emprl::attention_decode<float>(dev, o.view(), q, c, heads, b, {}, {});
  };
  CHECK_NOTHROW(run(cache, 2, bias.view()));
  CHECK_THROWS_AS(run(cache, 3, bias.view()), ShapeError);
  // A bias for another number of heads, or shorter than the longest row.
  CHECK_THROWS_AS(run(cache, 4, bias.view()), ShapeError);
  CHECK_THROWS_AS(run(cache, 2, bias.view().columns(0, 32)), ShapeError);
  // Ranges that leave the cache.
  auto bad = cache;
  bad.begin = {too_far.data(), {3}};
  CHECK_THROWS_AS(run(bad, 2, bias.view()), ShapeError);
  bad.begin = {negative.data(), {3}};
  CHECK_THROWS_AS(run(bad, 2, bias.view()), ShapeError);
  bad.begin = {d.begin.data(), {2}};
  CHECK_THROWS_AS(run(bad, 2, bias.view()), ShapeError);
}

TEST_CASE("attention_decode: a bias by distance ends at the newest key of each row",
          "[ops][attention_decode][unit]") {
  Cpu dev;
  Data<double> const d(2, 4, 1, true);
  auto const q = to_tensor(d.q);
  auto const k = to_tensor(d.k);
  auto const v = to_tensor(d.v);
  auto const bias = to_tensor(d.bias);
  auto const run = [&](index_t row, auto const& table, emprl::DecodeBias columns) {
    Tensor<double, 2, Cpu> o({1, 8});
    auto const u = static_cast<std::size_t>(row);
    emprl::attention_decode<double>(
        dev, o.view(), q.view().rows(row, row + 1),
        {k.view(), v.view(), {d.begin.data() + u, {1}}, {d.length.data() + u, {1}}}, 2, table,
        to_tensor(d.prefix_k), to_tensor(d.prefix_v), columns);
    return values(o);
  };
  for (index_t row = 0; row < 3; ++row) {
    index_t const n = d.length[static_cast<std::size_t>(row)];
    CHECK(run(row, bias.view(), emprl::DecodeBias::distance) ==
          run(row, bias.view().columns(40 - n, 40), emprl::DecodeBias::position));
  }
}

TEST_CASE("attention_decode: an appended key is as good as one that was there",
          "[ops][attention_decode][unit]") {
  Cpu dev;
  Data<float> d(2, 4, 1, true);
  d.length[1] = 0;
  auto const q = to_tensor(d.q);
  auto const k = to_tensor(d.k);
  auto const v = to_tensor(d.v);
  Tensor<float, 2, Cpu> expected({3, 8});
  emprl::attention_decode<float>(
      dev, expected.view(), q, {k.view(), v.view(), {d.begin.data(), {3}}, {d.length.data(), {3}}},
      2, to_tensor(d.bias), to_tensor(d.prefix_k), to_tensor(d.prefix_v));
  auto new_k = support::poisoned<float, 2>({3, 8});
  auto new_v = support::poisoned<float, 2>({3, 8});
  auto holed_k = to_tensor(d.k);
  auto holed_v = to_tensor(d.v);
  for (index_t const a : {0, 2}) {
    auto const u = static_cast<std::size_t>(a);
    for (index_t c = 0; c < 8; ++c) {
      index_t const at = d.begin[u] + d.length[u] - 1;
      new_k(a, c) = k(at, c);
      new_v(a, c) = v(at, c);
      holed_k(at, c) = 0.0f;
      holed_v(at, c) = 0.0f;
    }
  }
  Tensor<float, 2, Cpu> o({3, 8});
  emprl::GrowingKeys<float, Cpu> cache{
      holed_k.view(), holed_v.view(), {d.begin.data(), {3}}, {d.length.data(), {3}}};
  auto const append = [&] {
    emprl::attention_decode_append<float>(dev, o.view(), q, new_k, new_v, cache, 2,
                                          to_tensor(d.bias), to_tensor(d.prefix_k),
                                          to_tensor(d.prefix_v));
  };
  append();
  CHECK(values(o) == values(expected));
  CHECK(values(holed_k) == values(k));
  CHECK(values(holed_v) == values(v));
  std::vector<index_t> const outside{60, 0, 99};
  cache.begin = {outside.data(), {3}};
  CHECK_THROWS_AS(append(), ShapeError);
}
