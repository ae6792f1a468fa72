// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "emprl/ops/attention_decode.cuh"
#include "reference/attention.hpp"
#include "reference/linear.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/device_array.hpp"
#include "support/formats.hpp"

using emprl::Bf16;
using emprl::Cuda;
using emprl::DecodeBias;
using emprl::index_t;
using emprl::TensorView;
using support::DeviceArray;
using support::in_float;
using support::in_format;
using support::random_matrix;

namespace {

constexpr index_t cache_rows = 520;
constexpr index_t bias_columns = 260;

/// Rows whose keys lie anywhere in a cache, one of them without keys; numbers that format T holds.
template <class T>
struct Data {
  Data(index_t heads_, index_t head_dim, index_t prefix, bool with_bias) : heads(heads_) {
    auto const matrix = support::random_in_format<T>;
    index_t const width = heads * head_dim;
    q = matrix(rows(), width, 1, 0.3);
    k = matrix(cache_rows, width, 2, 1);
    v = matrix(cache_rows, width, 3, 1);
    prefix_k = matrix(prefix, width, 4, 1);
    prefix_v = matrix(prefix, width, 5, 1);
    if (with_bias) bias = random_matrix<float>(heads, bias_columns, 6);
  }

  index_t rows() const { return static_cast<index_t>(length.size()); }

  index_t heads;
  reference::Matrix<float> q, k, v, prefix_k, prefix_v, bias;
  std::vector<index_t> begin{60, 0, 518, 33, 317, 417, 450};
  std::vector<index_t> length{257, 1, 2, 0, 97, 33, 31};

  /// One row at a time through the reference, in S.
  template <class S>
  std::vector<S> naive(DecodeBias columns) const {
    std::vector<S> result;
    for (index_t a = 0; a < rows(); ++a) {
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
        index_t const shift = columns == DecodeBias::distance ? bias_columns - n : 0;
        shape.bucket = [shift](index_t relative) { return relative + shift; };
      }
      auto const y = reference::attention(shape, in);
      result.insert(result.end(), y.values.begin(), y.values.end());
    }
    return result;
  }
};

/// The data on the device, keys beside values as the cache keeps them. Cache rows that belong to no
/// range are NaN.
template <class T>
struct OnDevice {
  explicit OnDevice(Data<T> const& d)
      : rows(d.rows()),
        width(d.q.cols),
        q(in_format<T>(d.q.values)),
        cache(poisoned_cache(d)),
        prefix_k(in_format<T>(d.prefix_k.values)),
        prefix_v(in_format<T>(d.prefix_v.values)),
        bias(d.bias.values),
        begin(d.begin),
        length(d.length),
        prefix(d.prefix_k.rows),
        bias_extents{d.bias.rows, d.bias.cols} {}

  static std::vector<T> poisoned_cache(Data<T> const& d) {
    index_t const width = d.q.cols;
    std::vector<T> both(static_cast<std::size_t>(cache_rows * 2 * width),
                        T(std::numeric_limits<float>::quiet_NaN()));
    for (std::size_t a = 0; a < d.begin.size(); ++a) {
      for (index_t row = d.begin[a]; row < d.begin[a] + d.length[a]; ++row) {
        for (index_t c = 0; c < width; ++c) {
          both[static_cast<std::size_t>(row * 2 * width + c)] = T(d.k(row, c));
          both[static_cast<std::size_t>(row * 2 * width + width + c)] = T(d.v(row, c));
        }
      }
    }
    return both;
  }

  TensorView<T, 2, Cuda> keys_and_values() { return {cache.data(), {cache_rows, 2 * width}}; }

  index_t rows, width;
  DeviceArray<T> q, cache, prefix_k, prefix_v;
  DeviceArray<float> bias;
  DeviceArray<index_t> begin, length;
  index_t prefix;
  std::array<index_t, 2> bias_extents;
};

template <class T>
std::vector<T> run(Cuda& dev, OnDevice<T>& on, index_t heads, DecodeBias columns) {
  auto o = DeviceArray<T>::poisoned(on.rows * on.width);
  auto const both = on.keys_and_values();
  emprl::attention_decode(dev, TensorView<T, 2, Cuda>(o.data(), {on.rows, on.width}),
                          {on.q.data(), {on.rows, on.width}},
                          {both.columns(0, on.width),
                           both.columns(on.width, 2 * on.width),
                           {on.begin.data(), {on.rows}},
                           {on.length.data(), {on.rows}}},
                          heads, {on.bias.data(), on.bias_extents},
                          {on.prefix_k.data(), {on.prefix, on.width}},
                          {on.prefix_v.data(), {on.prefix, on.width}}, columns);
  dev.synchronize();
  return o.values();
}

}  // namespace

TEMPLATE_TEST_CASE("attention_decode on the GPU: matches the loops",
                   "[cuda][attention_decode][unit]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  dev.scratch.poison(true);
  support::for_each_schedule(2, [&] {
    for (index_t const width : {32, 64, 128}) {
      for (index_t const prefix : {0, 1, 20}) {
        for (int const kind : {0, 1, 2}) {
          INFO("width " << width << ", prefix " << prefix << ", bias " << kind);
          auto const columns = kind == 2 ? DecodeBias::distance : DecodeBias::position;
          Data<T> const d(2, width, prefix, kind > 0);
          OnDevice<T> on(d);
          auto const actual = in_float(run(dev, on, 2, columns));
          // The plain implementation in the format rounds its result to it.
          auto const plain = in_float(in_format<T>(d.template naive<float>(columns)));
          auto const truth = d.template naive<double>(columns);
          support::check_two_times("o", actual, plain, truth);
          for (index_t c = 0; prefix == 0 && c < 2 * width; ++c) {
            // The fourth row has no keys.
            CHECK(actual[static_cast<std::size_t>(3 * 2 * width + c)] == 0.0f);
          }
        }
      }
    }
  });
}

TEMPLATE_TEST_CASE("attention_decode on the GPU: a new key is used and written where it belongs",
                   "[cuda][attention_decode][unit]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  support::for_each_schedule(2, [&] {
    for (index_t const width : {32, 64, 128}) {
      for (index_t const prefix : {0, 33}) {
        Data<T> const d(3, width, prefix, true);
        OnDevice<T> on(d);
        auto const without = run(dev, on, 3, DecodeBias::distance);
        auto const whole = on.cache.values();
        // The newest keys leave the cache and come as new ones.
        auto const row_elements = static_cast<std::size_t>(2 * on.width);
        std::vector<T> fresh(static_cast<std::size_t>(on.rows) * row_elements,
                             T(std::numeric_limits<float>::quiet_NaN()));
        std::vector<T> holed = whole;
        for (std::size_t a = 0; a < d.begin.size(); ++a) {
          if (d.length[a] == 0) continue;
          auto const at = static_cast<std::size_t>(d.begin[a] + d.length[a] - 1) * row_elements;
          for (std::size_t c = 0; c < row_elements; ++c) {
            fresh[a * row_elements + c] = whole[at + c];
            holed[at + c] = T(std::numeric_limits<float>::quiet_NaN());
          }
        }
        DeviceArray<T> new_rows(fresh), cache(holed);
        TensorView<T, 2, Cuda> const both(cache.data(), {cache_rows, 2 * on.width});
        TensorView<T, 2, Cuda> const new_both(new_rows.data(), {on.rows, 2 * on.width});
        auto o = DeviceArray<T>::poisoned(on.rows * on.width);
        emprl::attention_decode_append(
            dev, TensorView<T, 2, Cuda>(o.data(), {on.rows, on.width}),
            {on.q.data(), {on.rows, on.width}}, new_both.columns(0, on.width),
            new_both.columns(on.width, 2 * on.width),
            {both.columns(0, on.width),
             both.columns(on.width, 2 * on.width),
             {on.begin.data(), {on.rows}},
             {on.length.data(), {on.rows}}},
            3, {on.bias.data(), on.bias_extents}, {on.prefix_k.data(), {prefix, on.width}},
            {on.prefix_v.data(), {prefix, on.width}}, DecodeBias::distance);
        dev.synchronize();
        // The same arithmetic on the same numbers, and the cache as it was before the hole.
        auto const appended = o.values();
        auto const healed = cache.values();
        CHECK(std::memcmp(appended.data(), without.data(), appended.size() * sizeof(T)) == 0);
        CHECK(std::memcmp(healed.data(), whole.data(), healed.size() * sizeof(T)) == 0);
      }
    }
  });
}

TEST_CASE("attention_decode on the GPU: the same bits in every schedule",
          "[cuda][attention_decode][unit]") {
  Cuda dev;
  Data<float> const d(2, 32, 1, true);
  OnDevice<float> on(d);
  std::vector<float> first;
  support::for_each_schedule(10, [&] {
    auto const now = run(dev, on, 2, DecodeBias::position);
    if (first.empty()) first = now;
    CHECK(now == first);
  });
}

TEST_CASE("attention_decode on the GPU: scores beyond the range of exp",
          "[cuda][attention_decode][unit]") {
  Cuda dev;
  Data<float> d(1, 32, 0, false);
  for (float& x : d.q.values) x *= 1000.0f;
  OnDevice<float> on(d);
  auto const actual = run(dev, on, 1, DecodeBias::position);
  // A score of order 2000 is a sum of 32 products, each rounded in its last place: some 1e-3, which
  // is the relative error of a weight. Values are of order 1.
  support::check_error("o", actual, d.naive<double>(DecodeBias::position), 1e-2);
}

TEST_CASE("attention_decode on the GPU: inputs that do not fit throw",
          "[cuda][attention_decode][unit]") {
  Cuda dev;
  auto const attempt = [&](index_t head_dim, index_t heads, index_t shift) {
    Data<float> const d(2, head_dim, 0, false);
    OnDevice<float> on(d);
    auto o = DeviceArray<float>::poisoned(on.rows * on.width);
    auto const both = on.keys_and_values();
    emprl::attention_decode(dev, TensorView<float, 2, Cuda>(o.data(), {on.rows, on.width}),
                            {on.q.data(), {on.rows, on.width}},
                            {both.columns(shift, on.width + shift),
                             both.columns(on.width, 2 * on.width),
                             {on.begin.data(), {on.rows}},
                             {on.length.data(), {on.rows}}},
                            heads, {}, {}, {});
  };
  CHECK_NOTHROW(attempt(32, 2, 0));
  CHECK_THROWS_AS(attempt(32, 3, 0), emprl::ShapeError);
  CHECK_THROWS_AS(attempt(32, 2, 1), emprl::ShapeError);
  CHECK_THROWS_AS(attempt(48, 2, 0), emprl::ConfigError);
  CHECK_THROWS_WITH(attempt(48, 2, 0), Catch::Matchers::ContainsSubstring("not 48"));
}
