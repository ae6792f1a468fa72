// SPDX-License-Identifier: Apache-2.0

// Attention, forward and backward, at the shapes of T5-base.

#include <cstdint>
#include <string>
#include <vector>

#include "emprl/ops/attention.cuh"
#include "kernels/measure.cuh"

namespace emprl::bench {

namespace {

/// Rows of one length; heads of 64 columns.
struct AttentionShape {
  std::string name;
  index_t rows, queries, keys, heads;
  Mask mask;
  bool bias;

  index_t head_dim() const { return 64; }
  index_t width() const { return heads * head_dim(); }
  /// Distances from the oldest key to the newest that a query may see.
  index_t distances() const { return mask == Mask::causal ? queries : queries + keys - 1; }

  /// Pairs of a query and a key that it sees, over rows and heads.
  double pairs() const {
    double const q = static_cast<double>(queries);
    double const a_row = mask == Mask::causal ? q * (q + 1) / 2 : q * static_cast<double>(keys);
    return a_row * static_cast<double>(rows * heads);
  }

  std::string text() const {
    return name + (bias ? " with bias, " : ", ") + shape_of({rows, queries}) +
           (mask == Mask::causal || queries == keys ? "" : " to " + std::to_string(keys)) + ", " +
           std::to_string(heads) + " heads";
  }
};

template <class T>
struct AttentionProblem {
  AttentionShape shape;
  Tensor<T, 2, Cuda> q, k, v, d_o, o, dq, dk, dv;
  Tensor<float, 2, Cuda> bias, dbias, lse;
  Tensor<index_t, 1, Cuda> q_offsets, k_offsets;

  AttentionProblem(KernelBench& bench, AttentionShape const& s)
      : shape(s),
        q(bench.random<T, 2>({s.rows * s.queries, s.width()}, 1)),
        k(bench.random<T, 2>({s.rows * s.keys, s.width()}, 2)),
        v(bench.random<T, 2>({s.rows * s.keys, s.width()}, 3)),
        d_o(bench.random<T, 2>({s.rows * s.queries, s.width()}, 4)),
        o(q.view().extents()),
        dq(q.view().extents()),
        dk(k.view().extents()),
        dv(k.view().extents()),
        lse({s.heads, s.rows * s.queries}),
        q_offsets(bench.upload(offsets(s.queries))),
        k_offsets(bench.upload(offsets(s.keys))) {
    if (!s.bias) return;
    bias = bench.random<float, 2>({s.heads, s.distances()}, 5);
    dbias = bench.zeros<float, 2>({s.heads, s.distances()});
  }

  std::vector<index_t> offsets(index_t length) const {
    std::vector<index_t> all;
    for (index_t b = 0; b <= shape.rows; ++b) all.push_back(b * length);
    return all;
  }

  AttentionInputs<T, Cuda> inputs() const {
    AttentionInputs<T, Cuda> in;
    in.q = q;
    in.k = k;
    in.v = v;
    in.q_offsets = q_offsets;
    in.k_offsets = k_offsets;
    in.heads = shape.heads;
    in.mask = shape.mask;
    in.bias = bias;
    in.bias_first = -(shape.queries - 1);
    in.longest_queries = shape.queries;
    in.longest_keys = shape.keys;
    return in;
  }

  void forward(Cuda& dev) { attention_forward<T>(dev, o.view(), lse.view(), inputs()); }
  void backward(Cuda& dev) {
    attention_backward<T>(dev, {dq, dk, dv, dbias, {}, {}}, inputs(), o, lse, d_o);
  }
};

/// Against the CPU's op in double. An output is a sum over some hundred keys of numbers of the
/// format; in Bf16 probabilities and score gradients are rounded to it too.
template <class T>
void validate(KernelBench& bench, AttentionShape const& shape) {
  AttentionProblem<T> x(bench, shape);
  x.forward(bench.dev);
  x.backward(bench.dev);

  Cpu host(1);
  auto const q = bench.on_host(x.q), k = bench.on_host(x.k), v = bench.on_host(x.v);
  auto const d_o = bench.on_host(x.d_o);
  Tensor<double, 2, Cpu> bias, dbias;
  if (shape.bias) {
    bias = bench.on_host(x.bias);
    dbias = Tensor<double, 2, Cpu>(bias.view().extents(), 0.0);
  }
  auto const q_offsets = x.offsets(shape.queries), k_offsets = x.offsets(shape.keys);
  AttentionInputs<double, Cpu> in;
  in.q = q;
  in.k = k;
  in.v = v;
  in.q_offsets = {q_offsets.data(), {shape.rows + 1}};
  in.k_offsets = {k_offsets.data(), {shape.rows + 1}};
  in.heads = shape.heads;
  in.mask = shape.mask;
  in.bias = bias;
  in.bias_first = -(shape.queries - 1);
  Tensor<double, 2, Cpu> o(q.view().extents()), dq(q.view().extents()), dk(k.view().extents()),
      dv(k.view().extents()), lse({shape.heads, q.extent(0)});
  attention_forward<double>(host, o.view(), lse.view(), in);
  attention_backward<double>(host, {dq, dk, dv, dbias, {}, {}}, in, o, lse, d_o);

  auto const numbers = [](Tensor<double, 2, Cpu> const& t) {
    return std::vector<double>(t.data(), t.data() + t.size());
  };
  double const few = (std::is_same_v<T, Bf16> ? 4 : 64) * unit<T>;
  auto const check = [&](char const* what, auto const& actual,
                         Tensor<double, 2, Cpu> const& truth) {
    bench.run.check("attention " + shape.text() + ", " + format_name<T> + ": " + what,
                    bench.numbers(actual), numbers(truth), few);
  };
  check("o", x.o, o);
  check("dq", x.dq, dq);
  check("dk", x.dk, dk);
  check("dv", x.dv, dv);
  if (shape.bias) check("dbias", x.dbias, dbias);
}

template <class T>
void measure(KernelBench& bench, AttentionShape const& shape) {
  AttentionProblem<T> x(bench, shape);
  double const width = static_cast<double>(shape.width() * index_t{sizeof(T)});
  double const q_rows = static_cast<double>(shape.rows * shape.queries);
  double const k_rows = static_cast<double>(shape.rows * shape.keys);
  double const statistics = 4 * static_cast<double>(shape.heads) * q_rows;
  double const depth = static_cast<double>(shape.head_dim());
  // Forward: q, k, v read, o and lse written. Two products, q k^T and p v, of two flops for each
  // pair and column.
  bench.time({"attention_forward", format_name<T>, shape.text(),
              width * (2 * q_rows + 2 * k_rows) + statistics, 4 * depth * shape.pairs()},
             [&] { x.forward(bench.dev); });
  // Backward: q, o, do, k, v and lse read, dq, dk, dv written. Five products: q k^T and do v^T for
  // the scores and their gradients, then those for dq, dk and dv. These kernels take the first two
  // twice; here they count once.
  bench.time({"attention_backward", format_name<T>, shape.text(),
              width * (4 * q_rows + 4 * k_rows) + statistics, 10 * depth * shape.pairs()},
             [&] { x.backward(bench.dev); });
}

template <class T>
void bench_format(KernelBench& bench) {
  std::vector<AttentionShape> const small{
      {"encoder", 2, 70, 70, 2, Mask::full, true},   {"encoder", 1, 33, 33, 1, Mask::full, false},
      {"decoder", 2, 70, 70, 1, Mask::causal, true}, {"decoder", 1, 33, 33, 1, Mask::causal, false},
      {"cross", 2, 31, 97, 1, Mask::full, false},
  };
  for (AttentionShape const& s : small) validate<T>(bench, s);
  if (bench.run.small) {
    for (AttentionShape const& s : small) measure<T>(bench, s);
    return;
  }
  measure<T>(bench, {"encoder", 32, 200, 200, 12, Mask::full, true});
  measure<T>(bench, {"encoder", 32, 200, 200, 12, Mask::full, false});
  measure<T>(bench, {"decoder", 32, 200, 200, 12, Mask::causal, true});
  measure<T>(bench, {"decoder", 32, 200, 200, 12, Mask::causal, false});
  // The responses of PPO: 960 tokens that look at contexts of 200.
  measure<T>(bench, {"cross", 32, 30, 200, 12, Mask::full, false});
}

}  // namespace

void bench_attention(KernelRun& run) {
  KernelBench bench(run);
  bench_format<Bf16>(bench);
  bench_format<float>(bench);
}

}  // namespace emprl::bench
