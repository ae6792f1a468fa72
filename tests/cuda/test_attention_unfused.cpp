// SPDX-License-Identifier: Apache-2.0
// The attention that keeps its scores, called by its own name: any width of a head, also one that
// tiled kernels exist for, and rows that begin anywhere. Dropout, schedules and the way from
// attention_forward to here are in test_attention.cpp.
#include "emprl/ops/attention_unfused.cuh"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "reference/attention.hpp"
#include "support/catch.hpp"
#include "support/device_matrix.hpp"

using emprl::AttentionInputs;
using emprl::Bf16;
using emprl::ConfigError;
using emprl::Cuda;
using emprl::index_t;
using emprl::Mask;
using emprl::ShapeError;
using reference::Matrix;
using support::as_vector;
using support::DeviceArray;
using support::DeviceMatrix;

namespace {

struct Case {
  std::vector<index_t> queries, keys;
  index_t heads, width;
  Mask mask;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  // Every width with rows of awkward lengths, whose numbers of queries and keys differ.
  for (index_t const width : {1, 2, 16, 31, 32, 33, 64, 97, 257}) {
    index_t const heads = width < 97 ? 2 : 1;
    all.push_back({{2, 0, 33, 1}, {31, 3, 0, 17}, heads, width, Mask::full});
    all.push_back({{33, 1, 0}, {16, 2, 5}, heads, width, Mask::causal});
  }
  all.push_back({{97, 1}, {257, 1}, 1, 20, Mask::full});
  all.push_back({{97, 2}, {97, 31}, 1, 20, Mask::causal});
  all.push_back({{0, 0}, {0, 7}, 1, 3, Mask::full});
  return all;
}

/// Inputs in format T, each row of the device's matrices `gap` elements after the last.
template <class T>
struct Data {
  Data(Case const& c, index_t gap)
      : shape(c),
        q_offsets(support::offsets_of(c.queries)),
        k_offsets(support::offsets_of(c.keys)),
        dy(support::random_in_format<T>(q_offsets.back(), c.heads * c.width, 4)),
        places_q(q_offsets),
        places_k(k_offsets) {
    in.q = support::random_in_format<T>(q_offsets.back(), c.heads * c.width, 1);
    in.k = support::random_in_format<T>(k_offsets.back(), c.heads * c.width, 2);
    in.v = support::random_in_format<T>(k_offsets.back(), c.heads * c.width, 3);
    q = std::make_unique<DeviceMatrix<T>>(in.q, gap);
    k = std::make_unique<DeviceMatrix<T>>(in.k, gap);
    v = std::make_unique<DeviceMatrix<T>>(in.v, gap);
  }

  reference::AttentionShape naive() const {
    reference::AttentionShape s;
    s.heads = shape.heads;
    s.query_offsets = q_offsets;
    s.key_offsets = k_offsets;
    s.scale = static_cast<double>(scale());
    s.causal = shape.mask == Mask::causal;
    return s;
  }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape.width)); }

  AttentionInputs<T, Cuda> op() {
    AttentionInputs<T, Cuda> x;
    x.q = q->view();
    x.k = k->view();
    x.v = v->view();
    auto const rows = static_cast<index_t>(q_offsets.size());
    x.q_offsets = as_vector(places_q, rows);
    x.k_offsets = as_vector(places_k, rows);
    x.heads = shape.heads;
    x.scale = scale();
    x.mask = shape.mask;
    x.longest_queries = *std::max_element(shape.queries.begin(), shape.queries.end());
    x.longest_keys = *std::max_element(shape.keys.begin(), shape.keys.end());
    return x;
  }

  template <class S>
  reference::AttentionInputs<S> inputs() const {
    reference::AttentionInputs<S> x;
    x.q = reference::convert<S>(in.q);
    x.k = reference::convert<S>(in.k);
    x.v = reference::convert<S>(in.v);
    return x;
  }

  Case shape;
  std::vector<index_t> q_offsets, k_offsets;
  reference::AttentionInputs<float> in;
  Matrix<float> dy;
  DeviceArray<index_t> places_q, places_k;
  std::unique_ptr<DeviceMatrix<T>> q, k, v;
};

}  // namespace

TEMPLATE_TEST_CASE("attention_unfused: every width is as exact as the loops, forward and backward",
                   "[cuda][attention_unfused][grad]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  dev.scratch.poison(true);
  for (Case const& c : cases()) {
    // An odd gap: no row but the first begins at a multiple of 16 bytes.
    for (index_t const gap : {0, 3}) {
      INFO(c.heads << " heads of " << c.width << ", " << (c.mask == Mask::full ? "full" : "causal")
                   << ", first rows " << c.queries[0] << " and " << c.keys[0] << ", gap " << gap);
      Data<T> d(c, gap);
      auto const naive = d.naive();
      auto o = DeviceMatrix<T>::poisoned(d.in.q.rows, d.in.q.cols, gap);
      auto dq = DeviceMatrix<T>::poisoned(d.in.q.rows, d.in.q.cols, gap);
      auto dk = DeviceMatrix<T>::poisoned(d.in.k.rows, d.in.k.cols, gap);
      auto dv = DeviceMatrix<T>::poisoned(d.in.k.rows, d.in.k.cols, gap);
      auto lse = DeviceMatrix<float>::poisoned(c.heads, d.in.q.rows, 1);
      DeviceMatrix<T> d_o(d.dy, gap);
      emprl::attention_unfused_forward<T>(dev, o.view(), lse.view(), d.op());
      emprl::attention_unfused_backward<T>(dev, {dq.view(), dk.view(), dv.view(), {}, {}, {}},
                                           d.op(), lse, d_o);
      dev.synchronize();

      auto const check = [&](std::string const& what, DeviceMatrix<T> const& actual,
                             Matrix<float> const& plain, Matrix<double> const& truth) {
        support::check_stored<T>(what, actual.values(), plain.values, truth.values);
      };
      check("o", o, reference::attention(naive, d.in),
            reference::attention(naive, d.template inputs<double>()));
      auto const plain = reference::attention_backward(naive, d.in, d.dy,
                                                       reference::Probabilities::from_log_sum_exp);
      auto const truth = reference::attention_backward(naive, d.template inputs<double>(),
                                                       reference::convert<double>(d.dy));
      check("dq", dq, plain.q, truth.q);
      check("dk", dk, plain.k, truth.k);
      check("dv", dv, plain.v, truth.v);

      // A query without keys has a log-sum-exp of -inf and gives zeros.
      auto const sums = lse.values();
      auto const outputs = o.values();
      for (std::size_t r = 0; r < c.queries.size(); ++r) {
        if (c.keys[r] > 0) continue;
        for (index_t i = d.q_offsets[r]; i < d.q_offsets[r + 1]; ++i) {
          for (index_t h = 0; h < c.heads; ++h) {
            CHECK(sums[static_cast<std::size_t>(h * d.in.q.rows + i)] ==
                  -std::numeric_limits<float>::infinity());
          }
          for (index_t j = 0; j < d.in.q.cols; ++j) {
            CHECK(outputs[static_cast<std::size_t>(i * d.in.q.cols + j)] == 0.0f);
          }
        }
      }

      // Neither the longest rows nor the log-sum-exp are needed.
      auto again = DeviceMatrix<T>::poisoned(d.in.q.rows, d.in.q.cols);
      auto in = d.op();
      in.longest_queries = in.longest_keys = 0;
      emprl::attention_unfused_forward<T>(dev, again.view(), {}, in);
      dev.synchronize();
      CHECK(again.values() == outputs);
    }
  }
}

TEST_CASE("attention_unfused: what it cannot do is refused with a sentence",
          "[cuda][attention_unfused][unit]") {
  Cuda dev;
  Data<float> d({{3}, {3}, 2, 16, Mask::full}, 0);
  auto o = DeviceMatrix<float>::poisoned(3, 32);
  auto lse = DeviceMatrix<float>::poisoned(2, 3);
  auto bias = DeviceMatrix<float>::poisoned(2, 5);
  auto prefix = DeviceMatrix<float>::poisoned(1, 32);
  auto const forward = [&](auto change) {
    auto in = d.op();
    change(in);
    emprl::attention_unfused_forward<float>(dev, o.view(), lse.view(), in);
  };
  auto const nothing = [](auto&) {};
  CHECK_NOTHROW(forward(nothing));
  CHECK_THROWS_AS(forward([](auto& in) { in.heads = 3; }), ShapeError);
  CHECK_THROWS_AS(forward([](auto& in) { in.k = in.k.rows(0, 2); }), ShapeError);
  CHECK_THROWS_AS(forward([&](auto& in) {
                    in.bias = bias.view();
                    in.bias_first = -2;
                  }),
                  ConfigError);
  CHECK_THROWS_AS(forward([&](auto& in) { in.prefix_k = in.prefix_v = prefix.view(); }),
                  ConfigError);
  // More rows times heads than a grid has along z; all of them are empty.
  std::vector<index_t> const zeros(32769, 0);
  DeviceArray<index_t> offsets(zeros);
  auto const many = [&](index_t rows) {
    forward([&](auto& in) {
      in.q_offsets = in.k_offsets = as_vector(offsets, rows + 1);
      in.longest_queries = in.longest_keys = 1;
    });
  };
  CHECK_THROWS_WITH(many(32768), Catch::Matchers::ContainsSubstring("65535"));
  CHECK_THROWS_AS(emprl::attention_unfused_forward<float>(dev, prefix.view(), {}, d.op()),
                  ShapeError);
  auto g = DeviceMatrix<float>::poisoned(3, 32);
  CHECK_THROWS_AS(emprl::attention_unfused_backward<float>(
                      dev, {prefix.view(), g.view(), g.view(), {}, {}, {}}, d.op(), lse, o),
                  ShapeError);
  CHECK_THROWS_AS(emprl::attention_unfused_backward<float>(
                      dev, {g.view(), g.view(), g.view(), {}, {}, {}}, d.op(), bias, o),
                  ShapeError);
}
