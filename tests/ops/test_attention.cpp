// SPDX-License-Identifier: Apache-2.0
#include "emprl/ops/attention.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "reference/attention.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/gradient_check.hpp"

using emprl::AttentionGradients;
using emprl::AttentionInputs;
using emprl::Cpu;
using emprl::DropoutKey;
using emprl::index_t;
using emprl::Mask;
using emprl::ShapeError;
using emprl::Tensor;
using emprl::TensorView;
using support::offsets_of;
using support::random_matrix;
using support::to_tensor;
using support::values;

namespace {

/// One configuration of the op.
struct Case {
  std::string name;
  std::vector<index_t> queries;
  std::vector<index_t> keys;
  index_t heads = 1;
  index_t head_dim = 1;
  Mask mask = Mask::full;
  bool bias = false;
  index_t prefix = 0;
  double scale = 1;
};

std::vector<Case> cases() {
  return {
      {"one query, one key", {1}, {1}, 1, 1, Mask::full, false, 0, 1},
      {"encoder", {31, 1, 33, 2}, {31, 1, 33, 2}, 3, 8, Mask::full, true, 0, 1},
      {"decoder", {33, 1, 2, 31}, {33, 1, 2, 31}, 2, 7, Mask::causal, true, 0, 1},
      {"cross", {2, 31, 1}, {33, 1, 97}, 2, 33, Mask::full, false, 0, 1},
      {"encoder with a prefix", {5, 9}, {5, 9}, 2, 4, Mask::full, true, 3, 1},
      {"decoder with a prefix", {5, 1, 9}, {5, 1, 9}, 2, 4, Mask::causal, true, 31, 1},
      {"cross with a prefix", {2, 3}, {7, 1}, 2, 4, Mask::full, false, 2, 1},
      {"scaled single head", {3, 8}, {12, 2}, 1, 97, Mask::full, false, 0, 0.1015},
      {"scaled with bias and prefix", {6}, {6}, 2, 5, Mask::causal, true, 1, 0.7},
      {"rows without queries or keys",
       {0, 3, 0, 2, 4},
       {4, 0, 0, 3, 0},
       2,
       4,
       Mask::full,
       false,
       0,
       1},
      {"rows without keys but with a prefix", {3, 2}, {0, 2}, 2, 4, Mask::full, false, 2, 1},
  };
}

/// Inputs of a case in format T, and the op's view of them.
template <class T>
struct Data {
  explicit Data(Case const& c, double size = 1.0)
      : shape(c), q_offsets(offsets_of(c.queries)), k_offsets(offsets_of(c.keys)) {
    index_t const width = c.heads * c.head_dim;
    index_t longest = 1;
    for (index_t const n : c.queries) longest = std::max(longest, n);
    for (index_t const n : c.keys) longest = std::max(longest, n);
    bias_first = -(longest - 1);
    // Scores of order one: the bias weighs as much as the products.
    double const q_size = size / std::sqrt(static_cast<double>(c.head_dim)) / c.scale;
    in.q = random_matrix<T>(q_offsets.back(), width, 1, q_size);
    in.k = random_matrix<T>(k_offsets.back(), width, 2);
    in.v = random_matrix<T>(k_offsets.back(), width, 3);
    in.prefix_k = random_matrix<T>(c.prefix, width, 4);
    in.prefix_v = random_matrix<T>(c.prefix, width, 5);
    if (c.bias) in.bias_table = random_matrix<T>(2 * longest - 1, c.heads, 6);
    dy = random_matrix<T>(q_offsets.back(), width, 7);
    q = to_tensor(in.q);
    k = to_tensor(in.k);
    v = to_tensor(in.v);
    prefix_k = to_tensor(in.prefix_k);
    prefix_v = to_tensor(in.prefix_v);
    if (c.bias) {
      bias = Tensor<T, 2, Cpu>({c.heads, in.bias_table.rows});
      for (index_t h = 0; h < c.heads; ++h) {
        for (index_t r = 0; r < in.bias_table.rows; ++r) bias(h, r) = in.bias_table(r, h);
      }
    }
  }

  AttentionInputs<T, Cpu> op(DropoutKey dropout = {}) const {
    AttentionInputs<T, Cpu> x;
    x.q = q.view();
    x.k = k.view();
    x.v = v.view();
    x.q_offsets = {q_offsets.data(), {static_cast<index_t>(q_offsets.size())}};
    x.k_offsets = {k_offsets.data(), {static_cast<index_t>(k_offsets.size())}};
    x.heads = shape.heads;
    x.scale = static_cast<T>(shape.scale);
    x.mask = shape.mask;
    if (shape.bias) {
      x.bias = bias.view();
      x.bias_first = bias_first;
    }
    if (shape.prefix > 0) {
      x.prefix_k = prefix_k.view();
      x.prefix_v = prefix_v.view();
    }
    x.dropout = dropout;
    return x;
  }

  reference::AttentionShape naive() const {
    reference::AttentionShape s;
    s.heads = shape.heads;
    s.query_offsets = q_offsets;
    s.key_offsets = k_offsets;
    s.scale = shape.scale;
    s.causal = shape.mask == Mask::causal;
    if (shape.bias) s.bucket = [first = bias_first](index_t relative) { return relative - first; };
    return s;
  }

  Case shape;
  std::vector<index_t> q_offsets, k_offsets;
  index_t bias_first = 0;
  reference::AttentionInputs<T> in;
  reference::Matrix<T> dy;
  Tensor<T, 2, Cpu> q, k, v, prefix_k, prefix_v, bias;
};

template <class T>
reference::AttentionInputs<double> in_double(reference::AttentionInputs<T> const& x) {
  using reference::convert;
  return {convert<double>(x.q),          convert<double>(x.k),        convert<double>(x.v),
          convert<double>(x.bias_table), convert<double>(x.prefix_k), convert<double>(x.prefix_v)};
}

/// Gradient tensors of a case: activations poisoned, accumulated ones zero.
template <class T>
struct Gradients {
  explicit Gradients(Data<T> const& d)
      : dq(support::poisoned<T, 2>(d.q.view().extents())),
        dk(support::poisoned<T, 2>(d.k.view().extents())),
        dv(support::poisoned<T, 2>(d.v.view().extents())),
        dbias(d.bias.view().extents(), T(0)),
        dprefix_k(d.prefix_k.view().extents(), T(0)),
        dprefix_v(d.prefix_v.view().extents(), T(0)) {}

  AttentionGradients<T, Cpu> views() const {
    return {dq.view(), dk.view(), dv.view(), dbias.view(), dprefix_k.view(), dprefix_v.view()};
  }

  /// dbias as the reference lays it out: (R, H).
  std::vector<T> bias_by_distance() const {
    std::vector<T> x;
    for (index_t r = 0; r < dbias.extent(1); ++r) {
      for (index_t h = 0; h < dbias.extent(0); ++h) x.push_back(dbias(h, r));
    }
    return x;
  }

  Tensor<T, 2, Cpu> dq, dk, dv, dbias, dprefix_k, dprefix_v;
};

}  // namespace

TEMPLATE_TEST_CASE("attention: forward matches the loops", "[ops][attention][unit]", float,
                   double) {
  using T = TestType;
  for (int const threads : {1, 2}) {
    Cpu dev(threads);
    dev.scratch.poison(true);
    for (Case const& c : cases()) {
      INFO(c.name);
      Data<T> const d(c);
      auto o = support::poisoned<T, 2>(d.q.view().extents());
      auto lse = support::poisoned<T, 2>({c.heads, d.q.extent(0)});
      emprl::attention_forward<T>(dev, o.view(), lse, d.op());
      support::check_two_times("o", values(o), reference::attention(d.naive(), d.in).values,
                               reference::attention(d.naive(), in_double(d.in)).values);
      auto without = support::poisoned<T, 2>(d.q.view().extents());
      emprl::attention_forward<T>(dev, without.view(), {}, d.op());
      CHECK(values(without) == values(o));
    }
  }
}

TEMPLATE_TEST_CASE("attention: scores too large for exp are no danger", "[ops][attention][unit]",
                   float, double) {
  using T = TestType;
  Cpu dev;
  Data<T> const d(cases()[1], 300.0);
  auto o = support::poisoned<T, 2>(d.q.view().extents());
  emprl::attention_forward<T>(dev, o.view(), {}, d.op());
  support::check_two_times("o", values(o), reference::attention(d.naive(), d.in).values,
                           reference::attention(d.naive(), in_double(d.in)).values);
}

TEMPLATE_TEST_CASE("attention: backward matches the derivatives written out",
                   "[ops][attention][grad]", float, double) {
  using T = TestType;
  for (int const threads : {1, 2, 5}) {
    Cpu dev(threads);
    dev.scratch.poison(true);
    for (Case const& c : cases()) {
      INFO(c.name);
      Data<T> const d(c);
      Tensor<T, 2, Cpu> o(d.q.view().extents());
      Tensor<T, 2, Cpu> lse({c.heads, d.q.extent(0)});
      emprl::attention_forward<T>(dev, o.view(), lse, d.op());
      Gradients<T> g(d);
      emprl::attention_backward<T>(dev, g.views(), d.op(), o, lse, to_tensor(d.dy));
      auto const plain = reference::attention_backward(d.naive(), d.in, d.dy,
                                                       reference::Probabilities::from_log_sum_exp);
      auto const truth = reference::attention_backward(d.naive(), in_double(d.in),
                                                       reference::convert<double>(d.dy));
      support::check_two_times("dq", values(g.dq), plain.q.values, truth.q.values);
      support::check_two_times("dk", values(g.dk), plain.k.values, truth.k.values);
      support::check_two_times("dv", values(g.dv), plain.v.values, truth.v.values);
      support::check_two_times("dbias", g.bias_by_distance(), plain.bias_table.values,
                               truth.bias_table.values);
      support::check_two_times("dprefix_k", values(g.dprefix_k), plain.prefix_k.values,
                               truth.prefix_k.values);
      support::check_two_times("dprefix_v", values(g.dprefix_v), plain.prefix_v.values,
                               truth.prefix_v.values);

      // Again: activations as before, shared gradients doubled.
      auto const dq = values(g.dq);
      auto const dk = values(g.dk);
      auto const dbias = values(g.dbias);
      auto const dprefix = values(g.dprefix_k);
      emprl::attention_backward<T>(dev, g.views(), d.op(), o, lse, to_tensor(d.dy));
      CHECK(values(g.dq) == dq);
      CHECK(values(g.dk) == dk);
      auto const twice = [](std::vector<T> const& x) {
        auto y = reference::convert<double>(x);
        for (double& v : y) v *= 2;
        return y;
      };
      support::check_error("dbias twice", values(g.dbias), twice(dbias), 0.0);
      support::check_error("dprefix_k twice", values(g.dprefix_k), twice(dprefix), 0.0);
    }
  }
}

TEST_CASE("attention: gradients that are not asked for change nothing", "[ops][attention][unit]") {
  Cpu dev(2);
  for (Case const& c : cases()) {
    Data<double> const d(c);
    Tensor<double, 2, Cpu> o(d.q.view().extents());
    Tensor<double, 2, Cpu> lse({c.heads, d.q.extent(0)});
    emprl::attention_forward<double>(dev, o.view(), lse, d.op());
    Gradients<double> all(d);
    emprl::attention_backward<double>(dev, all.views(), d.op(), o, lse, to_tensor(d.dy));
    Gradients<double> some(d);
    emprl::attention_backward<double>(dev, {some.dq, some.dk, some.dv, {}, {}, {}}, d.op(), o, lse,
                                      to_tensor(d.dy));
    CHECK(values(all.dq) == values(some.dq));
    CHECK(values(all.dk) == values(some.dk));
    CHECK(values(all.dv) == values(some.dv));
  }
}

TEST_CASE("attention: backward matches central differences, with dropout too",
          "[ops][attention][grad]") {
  Cpu dev;
  for (double const probability : {0.0, 0.4}) {
    DropoutKey const dropout{probability, 5, 1, 2};
    for (Case const& c : {Case{"causal", {5, 1, 3}, {5, 1, 3}, 2, 3, Mask::causal, true, 2, 1},
                          Case{"full", {4, 2}, {4, 2}, 2, 3, Mask::full, true, 1, 0.6},
                          Case{"cross", {2, 3}, {4, 1}, 1, 4, Mask::full, false, 0, 0.5}}) {
      INFO(c.name << " dropout " << probability);
      Data<double> const d(c);
      auto const dy = to_tensor(d.dy);
      Tensor<double, 2, Cpu> o(d.q.view().extents());
      Tensor<double, 2, Cpu> lse({c.heads, d.q.extent(0)});
      auto const f = [&] {
        emprl::attention_forward<double>(dev, o.view(), lse, d.op(dropout));
        double sum = 0;
        for (index_t i = 0; i < o.size(); ++i) sum += o.data()[i] * dy.data()[i];
        return sum;
      };
      f();
      Gradients<double> g(d);
      emprl::attention_backward<double>(dev, g.views(), d.op(dropout), o, lse, dy);
      support::check_gradients(f, {{"q", d.q.span(), values(g.dq)},
                                   {"k", d.k.span(), values(g.dk)},
                                   {"v", d.v.span(), values(g.dv)},
                                   {"bias", d.bias.span(), values(g.dbias)},
                                   {"prefix_k", d.prefix_k.span(), values(g.dprefix_k)},
                                   {"prefix_v", d.prefix_v.span(), values(g.dprefix_v)}});
    }
  }
}

TEST_CASE("attention: dropout zeroes weights at its rate and keeps the mean",
          "[ops][attention][unit]") {
  Cpu dev;
  Case const c{"", {97}, {97}, 4, 1, Mask::full, false, 0, 1};
  Data<double> const d(c);
  auto q = to_tensor(reference::Matrix<double>(97, 4));
  Tensor<double, 2, Cpu> const ones({97, 4}, 1.0);
  auto in = d.op({0.25, 1, 2, 3});
  // Equal scores and values of one: an output is the kept share of the keys, times 1 / 0.75.
  in.q = q.view();
  in.v = ones.view();
  Tensor<double, 2, Cpu> o({97, 4});
  emprl::attention_forward<double>(dev, o.view(), {}, in);
  double mean = 0;
  double squares = 0;
  for (double const x : o.span()) {
    mean += x / 388;
    squares += (x - 1) * (x - 1) / 388;
  }
  double const variance = 0.25 / 0.75 / 97;
  CHECK(std::abs(mean - 1) < 5 * std::sqrt(variance / 388));
  CHECK(squares == Approx(variance).epsilon(0.4));
}

TEST_CASE("attention: a causal query never sees a later key", "[ops][attention][contract]") {
  Cpu dev;
  Case const c{"", {33}, {33}, 2, 4, Mask::causal, true, 1, 1};
  Data<float> d(c);
  Tensor<float, 2, Cpu> before({33, 8});
  emprl::attention_forward<float>(dev, before.view(), {}, d.op());
  for (index_t j = 20; j < 33; ++j) {
    for (index_t e = 0; e < 8; ++e) {
      d.k(j, e) = std::numeric_limits<float>::quiet_NaN();
      d.v(j, e) = std::numeric_limits<float>::quiet_NaN();
    }
  }
  Tensor<float, 2, Cpu> after({33, 8});
  emprl::attention_forward<float>(dev, after.view(), {}, d.op());
  CHECK(values(after.view().rows(0, 20)) == values(before.view().rows(0, 20)));
}

TEST_CASE("attention: a row never sees another row", "[ops][attention][contract]") {
  Cpu dev;
  Case const c{"", {5, 31, 2}, {7, 3, 33}, 2, 4, Mask::full, false, 0, 1};
  Data<float> d(c);
  Tensor<float, 2, Cpu> before({38, 8});
  emprl::attention_forward<float>(dev, before.view(), {}, d.op());
  for (index_t e = 0; e < 8; ++e) {
    for (index_t j = 0; j < 7; ++j) d.k(j, e) = d.v(j, e) = std::numeric_limits<float>::quiet_NaN();
    for (index_t j = 10; j < 43; ++j)
      d.k(j, e) = d.v(j, e) = std::numeric_limits<float>::infinity();
    d.q(0, e) = std::numeric_limits<float>::quiet_NaN();
  }
  Tensor<float, 2, Cpu> after({38, 8});
  emprl::attention_forward<float>(dev, after.view(), {}, d.op());
  CHECK(values(after.view().rows(5, 36)) == values(before.view().rows(5, 36)));
}

TEST_CASE("attention: a prefix of length 0 is no prefix", "[ops][attention][contract]") {
  Cpu dev;
  Data<float> const d(cases()[2]);
  Tensor<float, 2, Cpu> const none({0, d.q.extent(1)});
  auto in = d.op();
  Tensor<float, 2, Cpu> plain(d.q.view().extents());
  emprl::attention_forward<float>(dev, plain.view(), {}, in);
  in.prefix_k = none.view();
  in.prefix_v = none.view();
  Tensor<float, 2, Cpu> empty(d.q.view().extents());
  emprl::attention_forward<float>(dev, empty.view(), {}, in);
  CHECK(values(plain) == values(empty));
}

TEST_CASE("attention: q, k and v may be columns of one matrix", "[ops][attention][unit]") {
  Cpu dev;
  Data<float> const d(cases()[1]);
  index_t const n = d.q.extent(0);
  index_t const w = d.q.extent(1);
  Tensor<float, 2, Cpu> qkv({n, 3 * w});
  for (index_t i = 0; i < n; ++i) {
    for (index_t j = 0; j < w; ++j) {
      qkv(i, j) = d.q(i, j);
      qkv(i, w + j) = d.k(i, j);
      qkv(i, 2 * w + j) = d.v(i, j);
    }
  }
  auto in = d.op();
  Tensor<float, 2, Cpu> apart({n, w});
  emprl::attention_forward<float>(dev, apart.view(), {}, in);
  in.q = qkv.view().columns(0, w);
  in.k = qkv.view().columns(w, 2 * w);
  in.v = qkv.view().columns(2 * w, 3 * w);
  Tensor<float, 2, Cpu> together({n, w});
  emprl::attention_forward<float>(dev, together.view(), {}, in);
  CHECK(values(apart) == values(together));
}

TEST_CASE("attention: inputs that do not fit throw", "[ops][attention][unit]") {
  Cpu dev;
  Data<float> const d(cases()[4]);
  Tensor<float, 2, Cpu> o(d.q.view().extents());
  auto const refused = [&](auto change) {
    auto in = d.op();
    change(in);
    CHECK_THROWS_AS(emprl::attention_forward<float>(dev, o.view(), {}, in), ShapeError);
  };
  CHECK_NOTHROW(emprl::attention_forward<float>(dev, o.view(), {}, d.op()));
  refused([](auto& in) { in.heads = 3; });
  refused([](auto& in) { in.heads = 0; });
  refused([](auto& in) { in.k = in.k.columns(0, 4); });
  refused([](auto& in) { in.v = in.v.rows(0, 3); });
  refused([](auto& in) { in.bias = in.bias.columns(0, 5); });
  refused([](auto& in) { in.bias_first += 1; });
  refused([](auto& in) { in.bias = in.bias.rows(0, 1); });
  refused([](auto& in) { in.prefix_v = {}; });
  std::vector<index_t> const short_offsets{0, 5, 13};
  std::vector<index_t> const falling{0, 20, 14};
  std::vector<index_t> const late{1, 5, 14};
  for (auto const* bad : {&short_offsets, &falling, &late}) {
    refused([&](auto& in) { in.q_offsets = {bad->data(), {3}}; });
    refused([&](auto& in) { in.k_offsets = {bad->data(), {3}}; });
  }
  std::vector<index_t> const one_row{0, 14};
  refused([&](auto& in) { in.k_offsets = {one_row.data(), {2}}; });
  Tensor<float, 2, Cpu> small({3, 8});
  CHECK_THROWS_AS(emprl::attention_forward<float>(dev, small.view(), {}, d.op()), ShapeError);
}
