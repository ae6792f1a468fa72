// SPDX-License-Identifier: Apache-2.0
// Attention's kernels against the naive reference. Without nvcc they run on the host executor.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "emprl/ops/attention.cuh"
#include "emprl/ops/attention.hpp"
#include "reference/attention.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/device_array.hpp"
#include "support/formats.hpp"
#include "support/orders.hpp"
#include "support/plain_attention.hpp"

using emprl::AttentionGradients;
using emprl::AttentionInputs;
using emprl::Bf16;
using emprl::ConfigError;
using emprl::Cpu;
using emprl::Cuda;
using emprl::DropoutKey;
using emprl::index_t;
using emprl::Mask;
using emprl::ShapeError;
using emprl::Tensor;
using emprl::TensorView;
using reference::Matrix;
using support::DeviceArray;
using support::in_float;
using support::in_format;
using support::storage_rounding;

namespace {

/// One configuration of the op.
struct Case {
  std::string name;
  std::vector<index_t> queries;
  std::vector<index_t> keys;
  index_t heads = 1;
  index_t head_dim = 32;
  Mask mask = Mask::full;
  bool bias = false;
  index_t prefix = 0;
  double scale = 1;
};

std::vector<Case> cases() {
  std::vector<Case> all = {
      {"one query, one key", {1}, {1}, 1, 32, Mask::full, false, 0, 1},
      {"encoder", {31, 0, 1, 97, 2}, {31, 0, 1, 97, 2}, 2, 64, Mask::full, true, 0, 1},
      {"decoder", {33, 1, 97}, {33, 1, 97}, 1, 64, Mask::causal, true, 0, 1},
      {"decoder of narrow heads", {2, 257}, {2, 257}, 1, 32, Mask::causal, true, 1, 1},
      {"cross", {2, 31, 97}, {33, 1, 257}, 1, 32, Mask::full, false, 0, 1},
      {"encoder with one prefix key", {33, 64}, {33, 64}, 1, 64, Mask::full, true, 1, 1},
      {"decoder with a prefix", {65, 31}, {65, 31}, 2, 32, Mask::causal, true, 20, 1},
      {"prefix longer than a tile", {70, 1}, {70, 1}, 1, 32, Mask::causal, true, 97, 1},
      {"cross with a prefix", {2, 31}, {97, 0}, 1, 64, Mask::full, false, 20, 1},
      {"wide heads", {33, 97}, {33, 97}, 1, 128, Mask::causal, true, 20, 1},
      {"wide heads, scaled", {31}, {97}, 1, 128, Mask::full, false, 1, 0.0884},
      {"scaled with bias and prefix", {70}, {70}, 1, 32, Mask::full, true, 1, 0.7},
      {"rows without queries or keys",
       {0, 3, 0, 40, 66},
       {66, 0, 0, 31, 0},
       1,
       32,
       Mask::full,
       false,
       0,
       1},
      {"causal with fewer keys than queries", {130}, {31}, 1, 32, Mask::causal, true, 0, 1},
      {"causal with more keys than queries", {31}, {130}, 1, 32, Mask::causal, true, 0, 1},
      {"a hundred rows", std::vector<index_t>(100, 3), std::vector<index_t>(100, 3), 1, 32,
       Mask::full, true, 1, 1},
      // Widths without tiled kernels.
      {"one wide head, as an identifier's",
       {33, 0, 7, 1},
       {57, 3, 0, 97},
       1,
       257,
       Mask::full,
       false,
       0,
       0.0624},
      {"heads of one column", {2, 31}, {33, 1}, 3, 1, Mask::full, false, 0, 1},
      {"narrow heads, causal", {17, 1, 40}, {17, 33, 9}, 2, 20, Mask::causal, false, 0, 0.7},
  };
  // Every width, mask and prefix, at every awkward length.
  for (index_t const head_dim : {32, 64, 128}) {
    for (Mask const mask : {Mask::full, Mask::causal}) {
      for (index_t const prefix : {0, 1, 20}) {
        // As many keys as queries, then more and fewer.
        std::vector<index_t> queries{1, 33, 0, 97, 2, 31, 257, 2, 31, 97, 33, 0};
        std::vector<index_t> keys{1, 33, 0, 97, 2, 31, 2, 257, 97, 0, 1, 31};
        if (head_dim == 32) queries.push_back(257), keys.push_back(257);
        all.push_back({"heads of " + std::to_string(head_dim) +
                           (mask == Mask::full ? ", full, prefix " : ", causal, prefix ") +
                           std::to_string(prefix),
                       queries, keys, 1, head_dim, mask, true, prefix, 1});
      }
    }
  }
  return all;
}

/// A matrix on the device whose rows stand apart; what lies between is NaN.
template <class T>
struct DeviceMatrix {
  static constexpr index_t gap = 16;

  DeviceMatrix(index_t rows, index_t cols, std::vector<T> const& values)
      : rows_(rows), cols_(cols) {
    std::vector<T> spread = DeviceArray<T>::poisoned(rows * (cols + gap)).values();
    for (index_t i = 0; i < rows; ++i) {
      std::copy_n(values.begin() + i * cols, cols, spread.begin() + i * (cols + gap));
    }
    array_ = std::make_unique<DeviceArray<T>>(spread);
  }
  DeviceMatrix(index_t rows, index_t cols)
      : DeviceMatrix(rows, cols, DeviceArray<T>::poisoned(rows * cols).values()) {}
  explicit DeviceMatrix(Matrix<float> const& m)
      : DeviceMatrix(m.rows, m.cols, in_format<T>(m.values)) {}

  TensorView<T, 2, Cuda> view() const { return {array_->data(), {rows_, cols_}, {cols_ + gap, 1}}; }
  std::vector<T> values() const {
    auto const spread = array_->values();
    std::vector<T> x;
    for (index_t i = 0; i < rows_; ++i) {
      auto const row = spread.begin() + i * (cols_ + gap);
      x.insert(x.end(), row, row + cols_);
    }
    return x;
  }
  std::vector<float> floats() const { return in_float(values()); }

 private:
  index_t rows_, cols_;
  std::unique_ptr<DeviceArray<T>> array_;
};

template <class T>
Matrix<T> transposed(Matrix<T> const& m) {
  Matrix<T> x(m.cols, m.rows);
  for (index_t i = 0; i < m.rows; ++i) {
    for (index_t j = 0; j < m.cols; ++j) x(j, i) = m(i, j);
  }
  return x;
}

/// Inputs of a case, rounded to format T, on host and device.
template <class T>
struct Data {
  explicit Data(Case const& c, double size = 1.0)
      : shape(c),
        q_offsets(support::offsets_of(c.queries)),
        k_offsets(support::offsets_of(c.keys)),
        longest_queries(*std::max_element(c.queries.begin(), c.queries.end())),
        longest_keys(*std::max_element(c.keys.begin(), c.keys.end())),
        on_device_q_offsets(q_offsets),
        on_device_k_offsets(k_offsets),
        in(inputs(c, size)),
        dy(random(q_offsets.back(), c.heads * c.head_dim, 7)),
        q(in.q),
        k(in.k),
        v(in.v),
        prefix_k(in.prefix_k),
        prefix_v(in.prefix_v),
        bias(transposed(in.bias_table)),
        d_o(dy) {}

  static Matrix<float> random(index_t rows, index_t cols, std::uint64_t seed, double size = 1.0) {
    return support::random_in_format<T>(rows, cols, seed, size);
  }

  reference::AttentionInputs<float> inputs(Case const& c, double size) const {
    index_t const width = c.heads * c.head_dim;
    index_t const longest = std::max<index_t>(1, std::max(longest_queries, longest_keys));
    reference::AttentionInputs<float> x;
    // Scores of order one: the bias weighs as much as the products.
    double const q_size = size / std::sqrt(static_cast<double>(c.head_dim)) / c.scale;
    x.q = random(q_offsets.back(), width, 1, q_size);
    x.k = random(k_offsets.back(), width, 2);
    x.v = random(k_offsets.back(), width, 3);
    x.prefix_k = random(c.prefix, width, 4);
    x.prefix_v = random(c.prefix, width, 5);
    // The table is float in every format.
    if (c.bias) x.bias_table = support::random_matrix<float>(2 * longest - 1, c.heads, 6);
    return x;
  }

  AttentionInputs<T, Cuda> op(DropoutKey dropout = {}) {
    AttentionInputs<T, Cuda> x;
    x.q = q.view();
    x.k = k.view();
    x.v = v.view();
    auto const rows = static_cast<index_t>(q_offsets.size());
    x.q_offsets = {on_device_q_offsets.data(), {rows}};
    x.k_offsets = {on_device_k_offsets.data(), {rows}};
    x.heads = shape.heads;
    x.scale = static_cast<float>(shape.scale);
    x.mask = shape.mask;
    if (shape.bias) {
      x.bias = bias.view();
      x.bias_first = first_distance();
    }
    if (shape.prefix > 0) {
      x.prefix_k = prefix_k.view();
      x.prefix_v = prefix_v.view();
    }
    x.dropout = dropout;
    x.longest_queries = longest_queries;
    x.longest_keys = longest_keys;
    return x;
  }

  index_t first_distance() const { return -(in.bias_table.rows / 2); }

  reference::AttentionShape naive() const {
    reference::AttentionShape s;
    s.heads = shape.heads;
    s.query_offsets = q_offsets;
    s.key_offsets = k_offsets;
    s.scale = static_cast<double>(static_cast<float>(shape.scale));
    s.causal = shape.mask == Mask::causal;
    if (shape.bias) {
      s.bucket = [first = first_distance()](index_t relative) { return relative - first; };
    }
    return s;
  }

  reference::AttentionInputs<double> in_double() const {
    using reference::convert;
    return {convert<double>(in.q),        convert<double>(in.k),
            convert<double>(in.v),        convert<double>(in.bias_table),
            convert<double>(in.prefix_k), convert<double>(in.prefix_v)};
  }

  Case shape;
  std::vector<index_t> q_offsets, k_offsets;
  index_t longest_queries, longest_keys;
  DeviceArray<index_t> on_device_q_offsets, on_device_k_offsets;
  reference::AttentionInputs<float> in;
  Matrix<float> dy;
  DeviceMatrix<T> q, k, v, prefix_k, prefix_v;
  DeviceMatrix<float> bias;
  DeviceMatrix<T> d_o;
};

/// Outputs of a case: what is written poisoned, what is added to `start`.
template <class T>
struct Outputs {
  explicit Outputs(Data<T> const& d, float start = 0.0f)
      : o(d.in.q.rows, d.in.q.cols),
        lse(d.shape.heads, d.in.q.rows),
        dq(d.in.q.rows, d.in.q.cols),
        dk(d.in.k.rows, d.in.k.cols),
        dv(d.in.v.rows, d.in.v.cols),
        dbias(filled(d.in.bias_table.cols, d.in.bias_table.rows, start)),
        dprefix_k(filled(d.in.prefix_k.rows, d.in.prefix_k.cols, start)),
        dprefix_v(filled(d.in.prefix_v.rows, d.in.prefix_v.cols, start)) {}

  static DeviceMatrix<float> filled(index_t rows, index_t cols, float value) {
    return {rows, cols, std::vector<float>(static_cast<std::size_t>(rows * cols), value)};
  }

  AttentionGradients<T, Cuda> views() const {
    return {dq.view(), dk.view(), dv.view(), dbias.view(), dprefix_k.view(), dprefix_v.view()};
  }

  void run(Cuda& dev, Data<T>& d, DropoutKey dropout = {}) const {
    emprl::attention_forward<T>(dev, o.view(), lse.view(), d.op(dropout));
    emprl::attention_backward<T>(dev, views(), d.op(dropout), o.view(), lse.view(), d.d_o.view());
    dev.synchronize();
  }

  DeviceMatrix<T> o;
  DeviceMatrix<float> lse;
  DeviceMatrix<T> dq, dk, dv;
  DeviceMatrix<float> dbias, dprefix_k, dprefix_v;
};

/// Whether two outputs have the same bits.
template <class T>
bool same_bits(DeviceMatrix<T> const& a, DeviceMatrix<T> const& b) {
  auto const x = a.values();
  auto const y = b.values();
  return x.size() == y.size() &&
         (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(T)) == 0);
}

template <class T>
bool same_bits(Outputs<T> const& a, Outputs<T> const& b) {
  return same_bits(a.o, b.o) && same_bits(a.lse, b.lse) && same_bits(a.dq, b.dq) &&
         same_bits(a.dk, b.dk) && same_bits(a.dv, b.dv) && same_bits(a.dbias, b.dbias) &&
         same_bits(a.dprefix_k, b.dprefix_k) && same_bits(a.dprefix_v, b.dprefix_v);
}

/// Which rows have a log-sum-exp of -inf.
template <class S>
std::vector<bool> without_keys(std::vector<S> const& lse) {
  std::vector<bool> none;
  for (S const x : lse) none.push_back(x == -std::numeric_limits<S>::infinity());
  return none;
}

/// Those rows as zeros, which can be subtracted.
template <class S>
std::vector<S> finite(std::vector<S> lse) {
  std::replace(lse.begin(), lse.end(), -std::numeric_limits<S>::infinity(), S(0));
  return lse;
}

/// Outputs under the names of the kernels' own, shared gradients added to ones.
template <class S>
support::Results<S> results(Matrix<S> const& o, std::vector<S> const& lse,
                            reference::AttentionInputs<S> const& g) {
  auto const added = [](std::vector<S> x) {
    for (S& v : x) v += S(1);
    return x;
  };
  return {{"o", o.values},
          {"lse", lse},
          {"dq", g.q.values},
          {"dk", g.k.values},
          {"dv", g.v.values},
          {"dbias", added(transposed(g.bias_table).values)},
          {"dprefix_k", added(g.prefix_k.values)},
          {"dprefix_v", added(g.prefix_v.values)}};
}

}  // namespace

TEMPLATE_TEST_CASE(
    "attention: kernels err at most twice as much as a plain implementation, forward and backward",
    "[cuda][ops][grad]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  dev.scratch.poison(true);
  [[maybe_unused]] int schedule = 0;
  for (Case const& c : cases()) {
#if !defined(__CUDACC__)
    host_executor::WithOptions const with({.seed = static_cast<std::uint64_t>(++schedule)});
#endif
    INFO(c.name);
    Data<T> d(c);
    // Shared gradients are added to what is there.
    Outputs<T> const out(d, 1.0f);
    out.run(dev, d);
    auto const shape = d.naive();
    auto const in = d.in_double();
    auto const truth_lse = reference::log_sum_exp(shape, in);
    auto const lse = out.lse.values();
    CHECK(without_keys(lse) == without_keys(truth_lse));
    support::check_in_orders<float>(
        {{"o", out.o.floats()},
         {"lse", finite(lse)},
         {"dq", out.dq.floats()},
         {"dk", out.dk.floats()},
         {"dv", out.dv.floats()},
         {"dbias", out.dbias.values()},
         {"dprefix_k", out.dprefix_k.values()},
         {"dprefix_v", out.dprefix_v.values()}},
        results<double>(reference::attention(shape, in), finite(truth_lse),
                        reference::attention_backward(shape, in, reference::convert<double>(d.dy))),
        [&](std::uint64_t order) {
          auto const plain = support::plain_attention<T>(shape, d.in, d.dy, order);
          // Statistics are float in every format, and so are the scores that they are made of.
          auto const exact_scores = support::plain_attention<float>(shape, d.in, d.dy, order);
          return results<float>(plain.o, finite(exact_scores.lse), plain.gradients);
        },
        std::is_same_v<T, Bf16> ? 0x1p-4 : 0x1p-12);
  }
}

TEMPLATE_TEST_CASE("attention: kernels give the same bits under every schedule, dbias too",
                   "[cuda][ops][contract]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  dev.scratch.poison(true);
  Data<T> d({"", {70, 33, 1}, {70, 33, 1}, 2, 32, Mask::causal, true, 20, 1});
  Outputs<T> const first(d);
  first.run(dev, d);
  support::for_each_schedule(10, [&] {
    Outputs<T> const again(d);
    again.run(dev, d);
    CHECK(same_bits(first, again));
  });
}

TEMPLATE_TEST_CASE(
    "attention: a bias for all scores changes nothing, so a head's dbias sums to zero",
    "[cuda][ops][grad]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  for (Mask const mask : {Mask::full, Mask::causal}) {
    Data<T> d({"", {97, 31}, {97, 31}, 2, 32, mask, true, 0, 1});
    Outputs<T> const out(d);
    out.run(dev, d);
    auto const dbias = out.dbias.values();
    auto const columns = static_cast<std::ptrdiff_t>(dbias.size() / 2);
    for (std::ptrdiff_t h = 0; h < 2; ++h) {
      double sum = 0;
      double size = 0;
      for (auto x = dbias.begin() + h * columns; x != dbias.begin() + (h + 1) * columns; ++x) {
        sum += static_cast<double>(*x);
        size += std::abs(static_cast<double>(*x));
      }
      // do . o is rounded with o, once a query: an error of a unit of the format in numbers of the
      // size of do . o, which is that of the sum of |ds|; and 128 queries may all err alike.
      INFO("sum " << sum << " of numbers that sum to " << size);
      CHECK(size > 1);
      CHECK(std::abs(sum) <= 8 * storage_rounding<T> * size);
    }
  }
}

TEMPLATE_TEST_CASE("attention: a query that sees one key alone has a score without gradient",
                   "[cuda][ops][grad]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  Data<T> d({"", {1, 1, 1}, {1, 1, 1}, 2, 64, Mask::full, true, 0, 1});
  Outputs<T> const out(d);
  out.run(dev, d);
  CHECK(support::max_abs(out.dq.floats()) == 0);
  CHECK(support::max_abs(out.dk.floats()) == 0);
  CHECK(support::max_abs(out.dbias.floats()) == 0);
  CHECK(out.dv.floats() == d.dy.values);
  Data<T> wide({"", {1, 1}, {1, 1}, 1, 257, Mask::full, false, 0, 0.0624});
  Outputs<T> const one(wide);
  one.run(dev, wide);
  CHECK(support::max_abs(one.dq.floats()) == 0);
  CHECK(support::max_abs(one.dk.floats()) == 0);
  CHECK(one.dv.floats() == wide.dy.values);
}

TEMPLATE_TEST_CASE("attention: dropout draws what the CPU draws", "[cuda][ops][grad]", float,
                   Bf16) {
  using T = TestType;
  Cuda dev;
  DropoutKey const dropout{0.3, 5, 1, 2};
  for (Case const& c : {Case{"", {97, 2}, {97, 2}, 2, 32, Mask::causal, true, 20, 1},
                        Case{"", {3}, {150}, 1, 128, Mask::full, false, 0, 1},
                        Case{"", {2}, {350}, 1, 32, Mask::full, false, 0, 1},
                        Case{"", {3, 20}, {150, 31}, 2, 20, Mask::causal, false, 0, 1}}) {
    Data<T> d(c);
    Outputs<T> const out(d);
    out.run(dev, d, dropout);

    Cpu cpu;
    auto const in = d.in_double();
    auto const tensor = [](Matrix<double> const& m) { return support::to_tensor(m); };
    auto const q = tensor(in.q), k = tensor(in.k), v = tensor(in.v);
    auto const prefix_k = tensor(in.prefix_k), prefix_v = tensor(in.prefix_v);
    auto const bias = tensor(transposed(in.bias_table));
    auto const dy = tensor(reference::convert<double>(d.dy));
    AttentionInputs<double, Cpu> op;
    op.q = q.view();
    op.k = k.view();
    op.v = v.view();
    auto const rows = static_cast<index_t>(d.q_offsets.size());
    op.q_offsets = {d.q_offsets.data(), {rows}};
    op.k_offsets = {d.k_offsets.data(), {rows}};
    op.heads = c.heads;
    op.mask = c.mask;
    op.bias = bias.view();
    op.bias_first = d.first_distance();
    op.prefix_k = prefix_k.view();
    op.prefix_v = prefix_v.view();
    op.dropout = dropout;
    Tensor<double, 2, Cpu> o({in.q.rows, in.q.cols}), lse({c.heads, in.q.rows});
    Tensor<double, 2, Cpu> dq({in.q.rows, in.q.cols}), dk({in.k.rows, in.k.cols}),
        dv({in.k.rows, in.k.cols});
    Tensor<double, 2, Cpu> dbias(bias.view().extents(), 0.0);
    Tensor<double, 2, Cpu> dprefix_k(prefix_k.view().extents(), 0.0),
        dprefix_v(prefix_k.view().extents(), 0.0);
    emprl::attention_forward<double>(cpu, o.view(), lse, op);
    emprl::attention_backward<double>(cpu, {dq, dk, dv, dbias, dprefix_k, dprefix_v}, op, o, lse,
                                      dy);

    // A wrong draw changes a number by the size of a term. A sum of up to 350 terms of which each
    // is rounded errs by less than a few units of its largest value.
    auto const close = [&](std::string const& what, std::vector<float> const& actual,
                           Tensor<double, 2, Cpu> const& expected) {
      auto const truth = support::values(expected);
      INFO(what);
      CHECK(support::max_difference(actual, truth) <=
            (std::is_same_v<T, Bf16> ? 4 : 64) * storage_rounding<T> * support::max_abs(truth));
    };
    close("o", out.o.floats(), o);
    close("dq", out.dq.floats(), dq);
    close("dk", out.dk.floats(), dk);
    close("dv", out.dv.floats(), dv);
    close("dbias", out.dbias.floats(), dbias);
    close("dprefix_k", out.dprefix_k.floats(), dprefix_k);
    close("dprefix_v", out.dprefix_v.floats(), dprefix_v);
  }
}

TEMPLATE_TEST_CASE("attention: kernels of any head width give the same bits under every schedule",
                   "[cuda][ops][contract]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  dev.scratch.poison(true);
  Data<T> d({"", {33, 1, 18}, {33, 1, 40}, 2, 20, Mask::causal, false, 0, 1});
  Outputs<T> const first(d);
  first.run(dev, d, {0.3, 5, 1, 2});
  support::for_each_schedule(5, [&] {
    Outputs<T> const again(d);
    again.run(dev, d, {0.3, 5, 1, 2});
    CHECK(same_bits(first, again));
  });
}

TEMPLATE_TEST_CASE("attention: what a query does not see changes no bit of its output",
                   "[cuda][ops][contract]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  Case const c{"", {33, 40}, {33, 40}, 1, 32, Mask::causal, true, 1, 1};
  Data<T> d(c);
  Outputs<T> const before(d);
  before.run(dev, d);
  // From key 20 of the first row on, and the whole of the second row.
  auto in = d.in;
  for (index_t j = 20; j < 73; ++j) {
    for (index_t e = 0; e < 32; ++e) in.k(j, e) = in.v(j, e) = 50.0f;
  }
  d.k = DeviceMatrix<T>(in.k);
  d.v = DeviceMatrix<T>(in.v);
  Outputs<T> const after(d);
  after.run(dev, d);
  auto const first_rows = [](DeviceMatrix<T> const& m) {
    auto x = m.floats();
    x.resize(20 * 32);
    return x;
  };
  CHECK(first_rows(before.o) == first_rows(after.o));
  CHECK(first_rows(before.dq) == first_rows(after.dq));
  CHECK(before.o.floats() != after.o.floats());
}

TEMPLATE_TEST_CASE("attention: scores too large for exp are no danger to the kernels",
                   "[cuda][ops][unit]", float, Bf16) {
  using T = TestType;
  Cuda dev;
  Data<T> d({"", {70}, {70}, 1, 32, Mask::full, true, 0, 1}, 300.0);
  Outputs<T> const out(d);
  emprl::attention_forward<T>(dev, out.o.view(), {}, d.op());
  dev.synchronize();
  auto const truth = reference::attention(d.naive(), d.in_double()).values;
  double plain = 0;
  for (std::uint64_t order = 0; order < support::orders_of_summation; ++order) {
    auto const run = support::plain_attention<float>(d.naive(), d.in, d.dy, order);
    plain = std::max(plain, support::max_difference(run.o.values, truth));
  }
  // In 16 bits a probability is rounded and so is o: two units of the largest value. Scores stay in
  // float; in 16 bits those of a thousand would be wrong by whole numbers.
  double const rounding =
      std::is_same_v<T, Bf16> ? 2 * storage_rounding<T> * support::max_abs(d.in.v.values) : 0;
  INFO("plain implementation in float " << plain);
  CHECK(support::max_difference(out.o.floats(), truth) <= 2 * plain + rounding);
}

TEST_CASE("attention: kernels do not need to be told the longest row, nor asked for everything",
          "[cuda][ops][contract]") {
  Cuda dev;
  dev.scratch.poison(true);
  Data<Bf16> d({"", {70, 3}, {70, 3}, 1, 32, Mask::causal, true, 20, 1});
  Outputs<Bf16> const all(d);
  all.run(dev, d);
  Outputs<Bf16> const some(d);
  auto in = d.op();
  in.longest_queries = in.longest_keys = 0;
  emprl::attention_forward<Bf16>(dev, some.o.view(), some.lse.view(), in);
  emprl::attention_backward<Bf16>(dev, {some.dq.view(), some.dk.view(), some.dv.view(), {}, {}, {}},
                                  in, some.o.view(), some.lse.view(), d.d_o.view());
  dev.synchronize();
  CHECK(same_bits(all.o, some.o));
  CHECK(same_bits(all.lse, some.lse));
  CHECK(same_bits(all.dq, some.dq));
  CHECK(same_bits(all.dk, some.dk));
  CHECK(same_bits(all.dv, some.dv));
}

TEST_CASE("attention: a prefix is all there is to see, wherever the view of no keys points",
          "[cuda][ops][unit]") {
  Cuda dev;
  Data<Bf16> d({"", {5}, {0}, 1, 64, Mask::full, false, 20, 1});
  Outputs<Bf16> const out(d), again(d);
  emprl::attention_forward<Bf16>(dev, out.o.view(), out.lse.view(), d.op());
  auto in = d.op();
  in.k = in.v = {in.q.data() + 1, {0, in.q.extent(1)}};
  emprl::attention_forward<Bf16>(dev, again.o.view(), again.lse.view(), in);
  dev.synchronize();
  CHECK(same_bits(out.o, again.o));
  CHECK(same_bits(out.lse, again.lse));
}

TEST_CASE("attention: what the kernels cannot do is refused with a sentence", "[cuda][ops][unit]") {
  Cuda dev;
  Data<float> d({"", {5}, {5}, 2, 64, Mask::full, true, 1, 1});
  Outputs<float> const out(d);
  auto const forward = [&](auto change) {
    auto in = d.op();
    change(in);
    emprl::attention_forward<float>(dev, out.o.view(), {}, in);
  };
  CHECK_NOTHROW(forward([](auto&) {}));
  CHECK_THROWS_AS(forward([](auto& in) { in.heads = 3; }), ShapeError);
  CHECK_THROWS_AS(forward([](auto& in) { in.v = in.v.rows(0, 3); }), ShapeError);
  CHECK_THROWS_AS(forward([](auto& in) { in.bias_first += 1; }), ShapeError);
  CHECK_THROWS_AS(forward([](auto& in) { in.prefix_v = {}; }), ShapeError);
  CHECK_THROWS_AS(forward([](auto& in) {
                    in.k = {in.k.data() + 1, in.k.extents(), in.k.strides()};
                  }),
                  ShapeError);
  try {
    forward([](auto& in) {
      in.heads = 8;
      in.bias = {};
    });
    FAIL("heads of 16 columns were taken with a prefix");
  } catch (ConfigError const& error) {
    CHECK(std::string(error.what()).find(", 16, ") != std::string::npos);
  }
}
