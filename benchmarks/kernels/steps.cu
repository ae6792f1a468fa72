// SPDX-License-Identifier: Apache-2.0

// What a step of decoding or of training ends with: products of a few rows, attention of one new
// token, the draw of the next, the objective's gradients, the optimiser.

#include <cstdint>
#include <span>
#include <vector>

#include "emprl/gen/sampling.cuh"
#include "emprl/ops/attention_decode.cuh"
#include "emprl/ops/linear.cuh"
#include "emprl/optim/adamw.cuh"
#include "emprl/rl/objective.cuh"
#include "kernels/measure.cuh"
#if !defined(__CUDACC__)
#include "emprl/ops/gemm_cpu.hpp"
#endif

namespace emprl::bench {

namespace {

/// A rows of a cache of `keys` keys each, heads of 64 columns. With a bias the rows' own tokens,
/// else a context as the encoder left it.
template <class T>
struct DecodeProblem {
  index_t rows, keys, heads;
  std::vector<index_t> begins, lengths;
  Tensor<T, 2, Cuda> q, k, v, o, new_k, new_v;
  Tensor<float, 2, Cuda> bias;
  Tensor<index_t, 1, Cuda> begin, length;

  DecodeProblem(KernelBench& bench, index_t its_rows, index_t its_keys, index_t its_heads)
      : rows(its_rows),
        keys(its_keys),
        heads(its_heads),
        begins(static_cast<std::size_t>(rows)),
        lengths(static_cast<std::size_t>(rows), keys),
        q(bench.random<T, 2>({rows, heads * 64}, 1)),
        k(bench.random<T, 2>({rows * keys, heads * 64}, 2)),
        v(bench.random<T, 2>({rows * keys, heads * 64}, 3)),
        o({rows, heads * 64}),
        new_k(bench.random<T, 2>({rows, heads * 64}, 4)),
        new_v(bench.random<T, 2>({rows, heads * 64}, 5)),
        bias(bench.random<float, 2>({heads, keys}, 6)) {
    for (std::size_t a = 0; a < begins.size(); ++a) begins[a] = static_cast<index_t>(a) * keys;
    begin = bench.upload(begins);
    length = bench.upload(lengths);
  }

  void cross(Cuda& dev) {
    attention_decode<T>(dev, o.view(), q, {k, v, begin, length}, heads, {}, {}, {});
  }
  void self(Cuda& dev) {
    attention_decode_append<T>(dev, o.view(), q, new_k, new_v, {k, v, begin, length}, heads, bias,
                               {}, {}, DecodeBias::distance);
  }
};

template <class T>
void decode_of_format(KernelBench& bench) {
  {
    DecodeProblem<T> x(bench, 3, 97, 2);
    Cpu host(1);
    auto const q = bench.on_host(x.q), new_k = bench.on_host(x.new_k);
    auto const new_v = bench.on_host(x.new_v), bias = bench.on_host(x.bias);
    auto k = bench.on_host(x.k), v = bench.on_host(x.v);
    TensorView<index_t const, 1, Cpu> const begin(x.begins.data(), {3}),
        length(x.lengths.data(), {3});
    Tensor<double, 2, Cpu> o(q.view().extents());
    auto const check = [&](char const* what) {
      // The output is rounded to the format; sums are float.
      bench.run.check(std::string("attention_decode ") + what + ", " + format_name<T>,
                      bench.numbers(x.o), std::vector<double>(o.data(), o.data() + o.size()),
                      std::max(unit<T>, 64 * unit<float>));
    };
    attention_decode<double>(host, o.view(), q, {k, v, begin, length}, 2, {}, {}, {});
    x.cross(bench.dev);
    check("cross");
    attention_decode_append<double>(host, o.view(), q, new_k, new_v, {k, v, begin, length}, 2, bias,
                                    {}, {}, DecodeBias::distance);
    x.self(bench.dev);
    check("self");
  }
  bool const small = bench.run.small;
  DecodeProblem<T> x(bench, small ? 3 : 32, small ? 97 : 200, small ? 2 : 12);
  double const row = static_cast<double>(x.heads * 64 * index_t{sizeof(T)});
  double const rows = static_cast<double>(x.rows);
  double const keys = static_cast<double>(x.keys);
  // q and the row's keys and values read, o written; two products of two flops a key and column.
  double const flops = 4 * rows * keys * static_cast<double>(x.heads * 64);
  std::string const shape = shape_of({x.rows, x.keys}) + ", " + std::to_string(x.heads) + " heads";
  bench.time(
      {"attention_decode", format_name<T>, "cross, " + shape, rows * row * (2 * keys + 2), flops},
      [&] { x.cross(bench.dev); });
  // The newest key and value come from elsewhere, and are written too.
  bench.time({"attention_decode", format_name<T>, "self with bias, append, " + shape,
              rows * row * (2 * keys + 4), flops},
             [&] { x.self(bench.dev); });
}

/// y = rms_norm(x) W^T, or y = residual + x W^T: the two products that a decoded token is made of.
struct FewRowsProblem {
  index_t rows, outputs, terms;
  Tensor<Bf16, 2, Cuda> x, weight, y, residual, room;
  Tensor<Bf16, 1, Cuda> norm;

  FewRowsProblem(KernelBench& bench, index_t m, index_t n, index_t k)
      : rows(m),
        outputs(n),
        terms(k),
        x(bench.random<Bf16, 2>({m, k}, 1)),
        weight(bench.random<Bf16, 2>({n, k}, 2)),
        y({m, n}),
        residual(bench.random<Bf16, 2>({m, n}, 3)),
        room({m, k}),
        norm(bench.random<Bf16, 1>({k}, 4)) {}

  void normed(Cuda& dev) {
    NormedRows<Bf16, Cuda> rows_to_norm(x, norm, 1e-6, room.view());
    linear_forward(dev, y.view(), rows_to_norm, weight);
  }
  void added(Cuda& dev) { linear_forward<Bf16, Cuda>(dev, y.view(), x, weight, {}, residual); }
};

struct SamplingCase {
  char const* name;
  gen::SamplingConfig config;
  /// Logits are uniform in [-scale, scale): with 8 a nucleus of 0.9 has a seventh of all tokens,
  /// with 400 some hundred of 32128.
  float scale;
};

std::vector<SamplingCase> sampling_cases() {
  std::vector<SamplingCase> cases(5);
  cases[0] = {"greedy", {}, 400};
  cases[0].config.greedy = true;
  cases[1] = {"all tokens", {}, 8};
  cases[2] = {"top-k 50", {}, 400};
  cases[2].config.top_k = 50;
  cases[3] = {"top-p 0.9, a hundred tokens", {}, 400};
  cases[3].config.top_p = 0.9;
  cases[4] = {"top-p 0.9, thousands", {}, 8};
  cases[4].config.top_p = 0.9;
  return cases;
}

struct SamplingProblem {
  index_t rows, vocabulary;
  gen::SamplingConfig config;
  Tensor<float, 2, Cuda> logits;
  Tensor<std::int32_t, 1, Cuda> token, barred;
  Tensor<float, 1, Cuda> logp;
  Tensor<std::uint32_t, 1, Cuda> row_ids;
  Tensor<index_t, 1, Cuda> generated;

  SamplingProblem(KernelBench& bench, SamplingCase const& c, index_t its_rows, index_t columns)
      : rows(its_rows),
        vocabulary(columns),
        config(c.config),
        logits(bench.random<float, 2>({rows, columns}, 1, c.scale)),
        token({rows}),
        logp({rows}) {
    std::vector<std::uint32_t> ids;
    for (index_t r = 0; r < rows; ++r) ids.push_back(static_cast<std::uint32_t>(r));
    row_ids = bench.upload(ids);
    generated = bench.upload(std::vector<index_t>(ids.size(), 3));
    barred = bench.upload(config.barred);
  }

  void sample(Cuda& dev) {
    gen::sample_tokens(dev, {token, logp, {}, {}}, logits.view(), config, barred.view(),
                       {5, 3, row_ids, generated});
  }
};

struct ObjectiveProblem {
  std::vector<float> logp, value;
  std::vector<rl::TokenContext> context;
  std::vector<std::uint8_t> mask;
  Tensor<rl::ObjectiveSums, 1, Cuda> sums{{1}};
  Tensor<float, 1, Cuda> logp_there, value_there, dlogp, dvalue;
  Tensor<rl::TokenContext, 1, Cuda> context_there;
  Tensor<std::uint8_t, 1, Cuda> mask_there;

  ObjectiveProblem(KernelBench& bench, index_t n) : dlogp({n}), dvalue({n}) {
    RandomSequence random(11, Stream::initialise);
    for (index_t i = 0; i < n; ++i) {
      rl::TokenContext t;
      t.old_logp = -3 * random.uniform();
      t.old_value = random.normal();
      t.advantage = random.normal();
      t.ret = t.old_value + 0.5 * random.normal();
      context.push_back(t);
      // A sixth of the tokens is clipped.
      logp.push_back(static_cast<float>(t.old_logp + 0.15 * random.normal()));
      value.push_back(static_cast<float>(t.old_value + 0.15 * random.normal()));
      mask.push_back(random.below(32) != 0 ? 1 : 0);
    }
    logp_there = bench.upload(logp);
    value_there = bench.upload(value);
    context_there = bench.upload(context);
    mask_there = bench.upload(mask);
  }

  double size() const { return static_cast<double>(logp.size()); }

  void evaluate(Cuda& dev) {
    rl::evaluate_objective(dev, sums.view(), rl::PpoClipObjective{}, logp_there, value_there,
                           context_there, mask_there, size(), dlogp.view(), dvalue.view());
  }
};

struct AdamWProblem {
  Tensor<float, 1, Cuda> parameters, gradients;
  Tensor<Bf16, 1, Cuda> bf16;
  optim::CudaAdamW optimiser;

  AdamWProblem(KernelBench& bench, index_t n, bool with_copy)
      : parameters(bench.random<float, 1>({n}, 1)),
        gradients(bench.random<float, 1>({n}, 2)),
        bf16(with_copy ? Tensor<Bf16, 1, Cuda>({n}) : Tensor<Bf16, 1, Cuda>()),
        optimiser(bench.dev, {.weight_decay = 0.01}, {{parameters, gradients, bf16}}) {}
};

}  // namespace

void bench_decode(KernelRun& run) {
  KernelBench bench(run);
  decode_of_format<Bf16>(bench);
  decode_of_format<float>(bench);
}

void bench_few_rows(KernelRun& run) {
  KernelBench bench(run);
  Cuda& dev = bench.dev;
  {
    FewRowsProblem p(bench, 31, 48, 264);
    Cpu host(1);
    auto const x = bench.on_host(p.x), weight = bench.on_host(p.weight);
    auto const norm = bench.numbers(p.norm);
    Tensor<double, 2, Cpu> normed({p.rows, p.terms});
    // By loops: nvcc does not compile the CPU's products.
    auto const plus_product = [&](std::vector<double> y, Tensor<double, 2, Cpu> const& rows) {
      for (index_t i = 0; i < p.rows; ++i) {
        for (index_t j = 0; j < p.outputs; ++j) {
          double& sum = y[static_cast<std::size_t>(i * p.outputs + j)];
          for (index_t k = 0; k < p.terms; ++k) sum += rows(i, k) * weight(j, k);
        }
      }
      return y;
    };
    // A factor of each term, and the result, are rounded to the format.
    rms_norm_forward<double>(host, normed.view(), {}, x,
                             TensorView<double const, 1, Cpu>(norm.data(), {p.terms}), 1e-6);
    std::vector<double> const none(static_cast<std::size_t>(p.rows * p.outputs), 0.0);
    p.normed(dev);
    run.check("few rows: with norm", bench.numbers(p.y), plus_product(none, normed),
              4 * unit<Bf16>);
    p.added(dev);
    run.check("few rows: with residual", bench.numbers(p.y),
              plus_product(bench.numbers(p.residual), x), 2 * unit<Bf16>);
  }
  struct Shape {
    char const* what;
    index_t outputs, terms;
    bool normed;
  };
  // Of T5-base.
  for (Shape const s : {Shape{"query, key, value", 2304, 768, true},
                        {"output", 768, 768, false},
                        {"feed-forward in", 3072, 768, true},
                        {"feed-forward out", 768, 3072, false}}) {
    FewRowsProblem p(bench, run.small ? 3 : 32, run.small ? 48 : s.outputs,
                     run.small ? 64 : s.terms);
    // x and weight read, y written; of the residual it is as much again.
    double const numbers = static_cast<double>(p.rows * p.terms + p.outputs * p.terms +
                                               (s.normed ? 1 : 2) * p.rows * p.outputs);
    double const flops = 2 * static_cast<double>(p.rows * p.outputs * p.terms);
    std::string const shape = shape_of({p.rows, p.terms, p.outputs}) +
                              (s.normed ? ", with norm: " : ", with residual: ") + s.what;
    for (bool const own : {true, false}) {
      dev.products.few_rows = own ? 64 : 0;
      bench.time({own ? "linear" : "linear by cuBLASLt", "Bf16", shape, 2 * numbers, flops},
                 [&] { s.normed ? p.normed(dev) : p.added(dev); });
    }
  }
}

void bench_sampling(KernelRun& run) {
  KernelBench bench(run);
  for (SamplingCase const& c : sampling_cases()) {
    SamplingProblem small(bench, c, 8, 1031);
    auto const logits = bench.fetch(small.logits);
    small.sample(bench.dev);
    auto const drawn = bench.fetch(small.token);
    std::vector<double> truth, actual;
    for (std::size_t r = 0; r < drawn.size(); ++r) {
      std::span<float const> const row(logits.data() + r * 1031, 1031);
      RngAddress const at{5, Stream::sample, 3, static_cast<std::uint32_t>(r), 3};
      truth.push_back(gen::sample_token<float>(row, c.config, 3, at));
      actual.push_back(drawn[r]);
    }
    // The same draw, token by token.
    run.check(std::string("sampling, ") + c.name, actual, truth, 0);
  }
  for (SamplingCase const& c : sampling_cases()) {
    SamplingProblem x(bench, c, run.small ? 8 : 32, run.small ? 1031 : 32128);
    // The logits are read. Filters read them again, from the cache.
    bench.time(
        {"sample_tokens", "float", std::string(c.name) + ", " + shape_of({x.rows, x.vocabulary}),
         4 * static_cast<double>(x.rows * x.vocabulary), 0},
        [&] { x.sample(bench.dev); });
  }
}

void bench_objective(KernelRun& run) {
  KernelBench bench(run);
  {
    ObjectiveProblem x(bench, 257);
    x.evaluate(bench.dev);
    std::vector<float> dlogp(257), dvalue(257);
    rl::ObjectiveSums const sums = rl::evaluate_objective<float>(
        rl::PpoClipObjective{}, x.logp, x.value, std::span<rl::TokenContext const>(x.context),
        x.mask, x.size(), std::span<float>(dlogp), std::span<float>(dvalue));
    auto const compare = [&](char const* what, auto const& actual,
                             std::vector<float> const& truth) {
      // Both in double, rounded to float at the end.
      run.check(std::string("objective: ") + what, bench.numbers(actual),
                std::vector<double>(truth.begin(), truth.end()), 4 * unit<float>);
    };
    compare("dlogp", x.dlogp, dlogp);
    compare("dvalue", x.dvalue, dvalue);
    run.check("objective: loss", {bench.fetch(x.sums)[0].loss}, {sums.loss}, 1e-12);
  }
  for (index_t const n : {index_t{960}, index_t{65536}}) {
    if (run.small && n > 960) continue;
    ObjectiveProblem x(bench, n);
    // What is known of a token, its log-probability, value and mask read; two gradients written.
    bench.time({"evaluate_objective", "float", std::to_string(n) + " tokens",
                static_cast<double>(n) * (sizeof(rl::TokenContext) + 4 * sizeof(float) + 1), 0},
               [&] { x.evaluate(bench.dev); });
  }
}

void bench_adamw(KernelRun& run) {
  KernelBench bench(run);
  constexpr double rate = 1e-3;
  {
    AdamWProblem x(bench, 1031, true);
    std::vector<double> parameters = bench.numbers(x.parameters);
    std::vector<double> gradients = bench.numbers(x.gradients);
    Cpu host(1);
    optim::AdamW<double> reference(x.optimiser.config(), parameters, gradients);
    for (int step = 0; step < 3; ++step) {
      x.optimiser.step(rate);
      reference.step(host, rate);
    }
    // Each step moves by a rounded number; the parameters are of size 1.
    run.check("adamw: parameters", bench.numbers(x.parameters), parameters, 8 * unit<float>);
    run.check("adamw: their copy in Bf16", bench.numbers(x.bf16), parameters, unit<Bf16>);
  }
  // T5-base: 222,903,552 parameters.
  index_t const n = run.small ? 1031 : 222903552;
  for (bool const with_copy : {false, true}) {
    AdamWProblem x(bench, n, with_copy);
    // The gradient is read for its norm, then again with the parameter and both moments, which are
    // written; the copy is written.
    double const bytes = (with_copy ? 34.0 : 32.0) * static_cast<double>(n);
    bench.time({"adamw_step", "float", std::to_string(n) + (with_copy ? " and a copy in Bf16" : ""),
                bytes, 0},
               [&] { x.optimiser.step(rate); });
  }
}

}  // namespace emprl::bench
