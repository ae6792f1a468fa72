// SPDX-License-Identifier: Apache-2.0

// Kernels that read and write rows once: log-probabilities, RMS normalisation, the embedding. What
// counts is the share of the copy's bytes a second.

#include <cstdint>
#include <set>
#include <vector>

#include "emprl/ops/embedding.cuh"
#include "emprl/ops/embedding.hpp"
#include "emprl/ops/rms_norm.cuh"
#include "emprl/ops/rms_norm.hpp"
#include "emprl/ops/token_logprob.cuh"
#include "emprl/ops/token_logprob.hpp"
#include "kernels/measure.cuh"

namespace emprl::bench {

namespace {

template <int Rank>
std::vector<double> numbers_of(Tensor<double, Rank, Cpu> const& t) {
  return std::vector<double>(t.data(), t.data() + t.size());
}

/// Ids below `rows`: few often, most seldom, as in text.
std::vector<std::int32_t> some_ids(index_t n, index_t rows) {
  RandomSequence random(7, Stream::initialise);
  std::vector<std::int32_t> ids;
  for (index_t i = 0; i < n; ++i) {
    double const u = random.uniform();
    ids.push_back(static_cast<std::int32_t>(static_cast<double>(rows) * u * u * u));
  }
  return ids;
}

/// N rows of logits over V tokens.
template <class T>
struct LogprobProblem {
  index_t n, vocabulary;
  std::vector<std::int32_t> ids;
  Tensor<T, 2, Cuda> logits;
  Tensor<std::int32_t, 1, Cuda> targets;
  Tensor<float, 1, Cuda> logp, lse, dlogp;

  LogprobProblem(KernelBench& bench, index_t rows, index_t columns)
      : n(rows),
        vocabulary(columns),
        ids(some_ids(rows, columns)),
        logits(bench.random<T, 2>({n, vocabulary}, 1, 8.0f)),
        targets(bench.upload(ids)),
        logp({n}),
        lse({n}),
        dlogp(bench.random<float, 1>({n}, 2)) {}

  void forward(Cuda& dev) {
    token_logprob_forward<T>(dev, logp.view(), lse.view(), {}, logits, targets);
  }
  void backward(Cuda& dev) { token_logprob_backward<T>(dev, logits.view(), dlogp, lse, targets); }
};

template <class T>
void logprob_of_format(KernelBench& bench) {
  {
    LogprobProblem<T> x(bench, 3, 1031);
    auto const logits = bench.on_host(x.logits);
    auto const dlogp = bench.on_host(x.dlogp);
    x.forward(bench.dev);
    x.backward(bench.dev);
    Cpu host(1);
    Tensor<double, 1, Cpu> logp({3}), lse({3});
    TensorView<std::int32_t const, 1, Cpu> const targets(x.ids.data(), {3});
    token_logprob_forward<double>(host, logp.view(), lse.view(), {}, logits, targets);
    token_logprob_backward<double>(host, logits.view(), dlogp, lse, targets);
    std::string const name = std::string("token_logprob, ") + format_name<T> + ": ";
    // Statistics are float whatever the logits are; a sum of a thousand terms in float.
    bench.run.check(name + "logp", bench.numbers(x.logp), numbers_of(logp), 64 * unit<float>);
    bench.run.check(name + "dlogits", bench.numbers(x.logits), numbers_of(logits), 64 * unit<T>);
  }
  LogprobProblem<T> x(bench, bench.run.small ? 3 : 960, bench.run.small ? 1031 : 32128);
  std::string const shape = shape_of({x.n, x.vocabulary});
  double const bytes = static_cast<double>(x.n * x.vocabulary * index_t{sizeof(T)});
  // Forward: the logits are read. Backward: they are read, and their gradient is written over them.
  bench.time({"token_logprob_forward", format_name<T>, shape, bytes, 0},
             [&] { x.forward(bench.dev); });
  bench.time({"token_logprob_backward", format_name<T>, shape, 2 * bytes, 0},
             [&] { x.backward(bench.dev); });
}

template <class T>
struct NormProblem {
  index_t n, columns;
  Tensor<T, 2, Cuda> a, b, dy, y, sum, dx;
  Tensor<T, 1, Cuda> weight;
  Tensor<float, 1, Cuda> rstd, dweight;

  NormProblem(KernelBench& bench, index_t its_n, index_t its_columns)
      : n(its_n),
        columns(its_columns),
        a(bench.random<T, 2>({n, columns}, 1)),
        b(bench.random<T, 2>({n, columns}, 2)),
        dy(bench.random<T, 2>({n, columns}, 3)),
        y({n, columns}),
        sum({n, columns}),
        dx(bench.zeros<T, 2>({n, columns})),
        weight(bench.random<T, 1>({columns}, 4)),
        rstd({n}),
        dweight(bench.zeros<float, 1>({columns})) {}

  void forward(Cuda& dev) { rms_norm_forward<T>(dev, y.view(), rstd.view(), a, weight, 1e-6); }
  void add_forward(Cuda& dev) {
    add_rms_norm_forward<T>(dev, y.view(), rstd.view(), sum.view(), a, b, weight, 1e-6);
  }
  void backward(Cuda& dev) {
    rms_norm_backward<T>(dev, dx.view(), dweight.view(), dy, a, weight, rstd, Write::overwrite);
  }
};

template <class T>
void norm_of_format(KernelBench& bench) {
  {
    NormProblem<T> x(bench, 33, 257);
    x.forward(bench.dev);
    x.backward(bench.dev);
    Cpu host(1);
    auto const a = bench.on_host(x.a), dy = bench.on_host(x.dy);
    auto const weight = bench.on_host(x.weight);
    Tensor<double, 2, Cpu> y(a.view().extents()), dx(a.view().extents());
    Tensor<double, 1, Cpu> rstd({33}), dweight({257}, 0.0);
    rms_norm_forward<double>(host, y.view(), rstd.view(), a, weight, 1e-6);
    rms_norm_backward<double>(host, dx.view(), dweight.view(), dy, a, weight, rstd,
                              Write::overwrite);
    std::string const name = std::string("rms_norm, ") + format_name<T> + ": ";
    // Float within a row, one rounding to the format at the end; dweight is float.
    double const few = std::max(unit<T>, 32 * unit<float>);
    bench.run.check(name + "y", bench.numbers(x.y), numbers_of(y), few);
    bench.run.check(name + "dx", bench.numbers(x.dx), numbers_of(dx), few);
    bench.run.check(name + "dweight", bench.numbers(x.dweight), numbers_of(dweight),
                    32 * unit<float>);
    x.add_forward(bench.dev);
    std::vector<double> sums = numbers_of(a);
    auto const b = bench.numbers(x.b);
    for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += b[i];
    bench.run.check(name + "a + b", bench.numbers(x.sum), sums, unit<T>);
  }
  NormProblem<T> x(bench, bench.run.small ? 33 : 6400, bench.run.small ? 256 : 768);
  std::string const shape = shape_of({x.n, x.columns});
  double const matrix = static_cast<double>(x.n * x.columns * index_t{sizeof(T)});
  // Forward: x read, y written. With the residual sum: a, b read, sum, y written. Backward: dy, x
  // read, dx written.
  bench.time({"rms_norm_forward", format_name<T>, shape, 2 * matrix, 0},
             [&] { x.forward(bench.dev); });
  bench.time({"add_rms_norm_forward", format_name<T>, shape, 4 * matrix, 0},
             [&] { x.add_forward(bench.dev); });
  bench.time({"rms_norm_backward", format_name<T>, shape, 3 * matrix, 0},
             [&] { x.backward(bench.dev); });
}

template <class T>
struct EmbeddingProblem {
  index_t n, vocabulary, columns;
  std::vector<std::int32_t> tokens;
  Tensor<T, 2, Cuda> table, dy, y;
  Tensor<float, 2, Cuda> dtable;
  Tensor<std::int32_t, 1, Cuda> ids;

  EmbeddingProblem(KernelBench& bench, index_t its_n, index_t rows, index_t its_columns)
      : n(its_n),
        vocabulary(rows),
        columns(its_columns),
        tokens(some_ids(n, rows)),
        table(bench.random<T, 2>({rows, columns}, 1)),
        dy(bench.random<T, 2>({n, columns}, 2)),
        y({n, columns}),
        dtable(bench.zeros<float, 2>({rows, columns})),
        ids(bench.upload(tokens)) {}

  void forward(Cuda& dev) { embedding_forward<T>(dev, y.view(), table, ids); }
  void backward(Cuda& dev) {
    if constexpr (std::is_same_v<T, Bf16>) {
      embedding_backward(dev, dtable.view(), dy, ids);
    } else {
      embedding_backward<float>(dev, dtable.view(), dy, ids);
    }
  }
};

template <class T>
void embedding_of_format(KernelBench& bench) {
  {
    EmbeddingProblem<T> x(bench, 97, 50, 128);
    x.forward(bench.dev);
    x.backward(bench.dev);
    Cpu host(1);
    auto const table = bench.on_host(x.table), dy = bench.on_host(x.dy);
    Tensor<double, 2, Cpu> y({97, 128}), dtable({50, 128}, 0.0);
    TensorView<std::int32_t const, 1, Cpu> const ids(x.tokens.data(), {97});
    embedding_forward<double>(host, y.view(), table, ids);
    embedding_backward<double>(host, dtable.view(), dy, ids);
    std::string const name = std::string("embedding, ") + format_name<T> + ": ";
    bench.run.check(name + "y", bench.numbers(x.y), numbers_of(y), 0);
    // A sum of at most 97 terms in float.
    bench.run.check(name + "dtable", bench.numbers(x.dtable), numbers_of(dtable), 32 * unit<float>);
  }
  EmbeddingProblem<T> x(bench, bench.run.small ? 97 : 6400, bench.run.small ? 50 : 32128,
                        bench.run.small ? 128 : 768);
  std::string const shape = shape_of({x.n, x.columns}) + " of " + std::to_string(x.vocabulary);
  double const rows = static_cast<double>(x.n * x.columns * index_t{sizeof(T)});
  auto const distinct =
      static_cast<double>(std::set<std::int32_t>(x.tokens.begin(), x.tokens.end()).size());
  // Forward: rows of the table read (again where an id comes again), y written. Backward: dy read,
  // and each row of the float table that an id names read and written once.
  bench.time({"embedding_forward", format_name<T>, shape, 2 * rows, 0},
             [&] { x.forward(bench.dev); });
  bench.time({"embedding_backward", format_name<T>, shape,
              rows + 8 * distinct * static_cast<double>(x.columns), 0},
             [&] { x.backward(bench.dev); });
}

}  // namespace

void bench_token_logprob(KernelRun& run) {
  KernelBench bench(run);
  logprob_of_format<Bf16>(bench);
  logprob_of_format<float>(bench);
}

void bench_rms_norm(KernelRun& run) {
  KernelBench bench(run);
  norm_of_format<Bf16>(bench);
  norm_of_format<float>(bench);
}

void bench_embedding(KernelRun& run) {
  KernelBench bench(run);
  embedding_of_format<Bf16>(bench);
  embedding_of_format<float>(bench);
}

}  // namespace emprl::bench
