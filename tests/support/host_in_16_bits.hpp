// SPDX-License-Identifier: Apache-2.0
#pragma once

// A plain implementation in 16 bits, of any layer: a device whose ops are those of the CPU in
// float, and whose tensors are Bf16. An op widens what it is given, computes, and rounds what it
// hands on; sums inside an op, statistics and the gradients of parameters are float. What a layer
// in 16 bits may err by is measured with it.
//
// Ops take their arguments as the overloads for Cuda do. Those that T5's training needs are here; a
// layer that calls another does not compile until it is.

#include <array>
#include <cstdint>
#include <span>
#include <type_traits>

#include "emprl/core/arena.hpp"
#include "emprl/core/device.hpp"
#include "emprl/core/half.hpp"
#include "emprl/core/transfer.hpp"
#include "emprl/ops/attention.hpp"
#include "emprl/ops/dropout.hpp"
#include "emprl/ops/elementwise.hpp"
#include "emprl/ops/embedding.hpp"
#include "emprl/ops/linear.hpp"
#include "emprl/ops/relative_bias.hpp"
#include "emprl/ops/rms_norm.hpp"
#include "emprl/ops/token_logprob.hpp"
#include "support/compare.hpp"
#if defined(__CUDACC__)
#include "support/plain_gemm.hpp"
#else
#include "emprl/ops/gemm_cpu.hpp"
#endif

namespace support {

/// The device.
struct HostIn16Bits {
  Cpu cpu{2};
  emprl::BasicArena<HostIn16Bits, emprl::HostMemory> saved, scratch;
};

}  // namespace support

template <class T>
class emprl::Buffer<T, support::HostIn16Bits> : public emprl::Buffer<T, emprl::Cpu> {
 public:
  using OnCpu = emprl::Buffer<T, emprl::Cpu>;
  using OnCpu::OnCpu;
};

namespace support {

static_assert(emprl::Device<HostIn16Bits>);

namespace host_in_16_bits {

using emprl::Bf16;
using emprl::In;
using emprl::OptionalOut;
using emprl::Out;
using Host = HostIn16Bits;

/// Numbers that no op rounds, as the CPU's ops see them.
template <class T, int Rank>
TensorView<T, Rank, Cpu> on_cpu(TensorView<T, Rank, Host> x) {
  return {x.data(), x.extents(), x.strides()};
}

/// Calls f(element of x, element of y) for all elements.
template <class T, int Rank, class F>
void each(TensorView<T, Rank, Host> x, TensorView<float, Rank, Cpu> y, F f) {
  index_t const columns = Rank == 1 ? 1 : x.extent(Rank - 1);
  for (index_t i = 0; i < x.extent(0); ++i) {
    for (index_t j = 0; j < columns; ++j) {
      f(x.data()[i * x.stride(0) + (Rank == 1 ? 0 : j * x.stride(Rank - 1))],
        y.data()[i * columns + j]);
    }
  }
}

/// A copy in float.
template <class T, int Rank>
Tensor<float, Rank, Cpu> wide(TensorView<T, Rank, Host> x) {
  static_assert(Rank <= 2);
  Tensor<float, Rank, Cpu> y(x.extents());
  each(x, y.view(), [](auto const from, float& to) { to = static_cast<float>(from); });
  return y;
}

/// Calls f with copies of the outputs in float, and stores what it wrote.
template <class F, class... Views>
void compute(F f, Views... outputs) {
  auto const store = [](auto to, auto const& from) {
    each(to, from.view(), [](auto& x, float y) { x = std::remove_reference_t<decltype(x)>(y); });
  };
  [&](auto const&... copies) {
    f(copies.view()...);
    (store(outputs, copies), ...);
  }(wide(outputs)...);
}

/// The inputs of attention in float; the tensors hold the numbers that the views show.
struct WideAttention {
  Tensor<float, 2, Cpu> q, k, v, prefix_k, prefix_v;
  emprl::AttentionInputs<float, Cpu> in;

  explicit WideAttention(emprl::AttentionInputs<Bf16, Host> const& x)
      : q(wide(x.q)),
        k(wide(x.k)),
        v(wide(x.v)),
        prefix_k(wide(x.prefix_k)),
        prefix_v(wide(x.prefix_v)) {
    in.q = q.view();
    in.k = k.view();
    in.v = v.view();
    in.q_offsets = on_cpu(x.q_offsets);
    in.k_offsets = on_cpu(x.k_offsets);
    in.heads = x.heads;
    in.scale = x.scale;
    in.mask = x.mask;
    in.bias = on_cpu(x.bias);
    in.bias_first = x.bias_first;
    in.prefix_k = prefix_k.view();
    in.prefix_v = prefix_v.view();
    in.dropout = x.dropout;
  }
};

}  // namespace host_in_16_bits

// Transfers.

template <class T, int Rank>
void copy(HostIn16Bits& dev, TensorView<T, Rank, HostIn16Bits> to,
          std::type_identity_t<std::span<T const>> from) {
  copy(dev.cpu, host_in_16_bits::on_cpu(to), from);
}

template <class T, int Rank>
void copy(HostIn16Bits& dev, std::span<std::remove_const_t<T>> to,
          TensorView<T, Rank, HostIn16Bits> from) {
  copy(dev.cpu, to, host_in_16_bits::on_cpu(from));
}

template <class T, int Rank>
void clear(HostIn16Bits& dev, TensorView<T, Rank, HostIn16Bits> x) {
  clear(dev.cpu, host_in_16_bits::on_cpu(x));
}

template <class A, class T>
TensorView<T const, 1, HostIn16Bits> on_device(HostIn16Bits&, A&, std::span<T const> values) {
  return {values.data(), {static_cast<index_t>(values.size())}};
}

// Ops, in the order of their headers' names. T of an output says whether it is rounded.

inline void attention_forward(HostIn16Bits& dev, TensorView<emprl::Bf16, 2, HostIn16Bits> o,
                              TensorView<float, 2, HostIn16Bits> lse,
                              emprl::AttentionInputs<emprl::Bf16, HostIn16Bits> const& in) {
  host_in_16_bits::WideAttention const wide_in(in);
  host_in_16_bits::compute(
      [&](auto y, auto l) { emprl::attention_forward<float>(dev.cpu, y, l, wide_in.in); }, o, lse);
}

inline void attention_backward(HostIn16Bits& dev,
                               emprl::AttentionGradients<emprl::Bf16, HostIn16Bits> const& out,
                               emprl::AttentionInputs<emprl::Bf16, HostIn16Bits> const& in,
                               emprl::In<emprl::Bf16, 2, HostIn16Bits> o,
                               emprl::In<float, 2, HostIn16Bits> lse,
                               emprl::In<emprl::Bf16, 2, HostIn16Bits> d_o) {
  using namespace host_in_16_bits;
  WideAttention const wide_in(in);
  compute(
      [&](auto dq, auto dk, auto dv, auto dbias, auto dprefix_k, auto dprefix_v) {
        emprl::attention_backward<float>(dev.cpu, {dq, dk, dv, dbias, dprefix_k, dprefix_v},
                                         wide_in.in, wide(o), on_cpu(lse), wide(d_o));
      },
      out.dq, out.dk, out.dv, out.dbias, out.dprefix_k, out.dprefix_v);
}

inline void convert(HostIn16Bits&, TensorView<emprl::Bf16, 2, HostIn16Bits> y,
                    emprl::In<float, 2, HostIn16Bits> x) {
  using namespace host_in_16_bits;
  auto const from = wide(x);
  each(y, from.view(), [](emprl::Bf16& to, float value) { to = emprl::Bf16(value); });
}

inline void dropout_forward(HostIn16Bits& dev, TensorView<emprl::Bf16, 2, HostIn16Bits> y,
                            emprl::In<emprl::Bf16, 2, HostIn16Bits> x,
                            emprl::DropoutKey const& key) {
  using namespace host_in_16_bits;
  compute([&](auto to) { emprl::dropout_forward<float>(dev.cpu, to, wide(x), key); }, y);
}

inline void dropout_add(HostIn16Bits& dev, TensorView<emprl::Bf16, 2, HostIn16Bits> y,
                        emprl::In<emprl::Bf16, 2, HostIn16Bits> x,
                        emprl::In<emprl::Bf16, 2, HostIn16Bits> added,
                        emprl::DropoutKey const& key) {
  using namespace host_in_16_bits;
  compute([&](auto to) { emprl::dropout_add<float>(dev.cpu, to, wide(x), wide(added), key); }, y);
}

inline void copy(HostIn16Bits& dev, TensorView<emprl::Bf16, 2, HostIn16Bits> y,
                 emprl::In<emprl::Bf16, 2, HostIn16Bits> x) {
  using namespace host_in_16_bits;
  compute([&](auto to) { emprl::copy<float>(dev.cpu, to, wide(x)); }, y);
}

inline void add(HostIn16Bits& dev, TensorView<emprl::Bf16, 2, HostIn16Bits> y,
                emprl::In<emprl::Bf16, 2, HostIn16Bits> x) {
  using namespace host_in_16_bits;
  compute([&](auto to) { emprl::add<float>(dev.cpu, to, wide(x)); }, y);
}

inline void relu_forward(HostIn16Bits& dev, TensorView<emprl::Bf16, 2, HostIn16Bits> y,
                         emprl::In<emprl::Bf16, 2, HostIn16Bits> x) {
  using namespace host_in_16_bits;
  compute([&](auto to) { emprl::relu_forward<float>(dev.cpu, to, wide(x)); }, y);
}

inline void relu_backward(HostIn16Bits& dev, TensorView<emprl::Bf16, 2, HostIn16Bits> dx,
                          emprl::In<emprl::Bf16, 2, HostIn16Bits> dy,
                          emprl::In<emprl::Bf16, 2, HostIn16Bits> y) {
  using namespace host_in_16_bits;
  compute([&](auto to) { emprl::relu_backward<float>(dev.cpu, to, wide(dy), wide(y)); }, dx);
}

inline void gated_gelu_forward(HostIn16Bits& dev, TensorView<emprl::Bf16, 2, HostIn16Bits> y,
                               emprl::In<emprl::Bf16, 2, HostIn16Bits> x) {
  using namespace host_in_16_bits;
  compute([&](auto to) { emprl::gated_gelu_forward<float>(dev.cpu, to, wide(x)); }, y);
}

inline void gated_gelu_backward(HostIn16Bits& dev, TensorView<emprl::Bf16, 2, HostIn16Bits> dx,
                                emprl::In<emprl::Bf16, 2, HostIn16Bits> dy,
                                emprl::In<emprl::Bf16, 2, HostIn16Bits> x) {
  using namespace host_in_16_bits;
  compute([&](auto to) { emprl::gated_gelu_backward<float>(dev.cpu, to, wide(dy), wide(x)); }, dx);
}

inline void embedding_forward(HostIn16Bits& dev, TensorView<emprl::Bf16, 2, HostIn16Bits> y,
                              emprl::In<emprl::Bf16, 2, HostIn16Bits> table,
                              TensorView<std::int32_t const, 1, HostIn16Bits> ids) {
  using namespace host_in_16_bits;
  compute([&](auto to) { emprl::embedding_forward<float>(dev.cpu, to, wide(table), on_cpu(ids)); },
          y);
}

inline void embedding_backward(HostIn16Bits& dev, TensorView<float, 2, HostIn16Bits> dtable,
                               emprl::In<emprl::Bf16, 2, HostIn16Bits> dy,
                               TensorView<std::int32_t const, 1, HostIn16Bits> ids) {
  using namespace host_in_16_bits;
  emprl::embedding_backward<float>(dev.cpu, on_cpu(dtable), wide(dy), on_cpu(ids));
}

template <class R>
void gemm(HostIn16Bits& dev, emprl::Trans ta, emprl::Trans tb, float alpha,
          emprl::In<emprl::Bf16, 2, HostIn16Bits> a, emprl::In<emprl::Bf16, 2, HostIn16Bits> b,
          float beta, TensorView<R, 2, HostIn16Bits> c) {
  using namespace host_in_16_bits;
  compute([&](auto to) { emprl::gemm<float>(dev.cpu, ta, tb, alpha, wide(a), wide(b), beta, to); },
          c);
}

inline void gemm_add(HostIn16Bits& dev, emprl::Trans ta, emprl::Trans tb, float alpha,
                     emprl::In<emprl::Bf16, 2, HostIn16Bits> a,
                     emprl::In<emprl::Bf16, 2, HostIn16Bits> b,
                     TensorView<emprl::Bf16, 2, HostIn16Bits> c,
                     emprl::In<emprl::Bf16, 1, HostIn16Bits> bias,
                     emprl::In<emprl::Bf16, 2, HostIn16Bits> residual) {
  using namespace host_in_16_bits;
  compute(
      [&](auto to) {
        emprl::gemm_add<float>(dev.cpu, ta, tb, alpha, wide(a), wide(b), to, wide(bias),
                               wide(residual));
      },
      c);
}

inline std::array<index_t, 2> relu_mask_extents(HostIn16Bits const&, index_t, index_t) {
  return {0, 0};
}

inline void linear_relu_forward(HostIn16Bits& dev, TensorView<emprl::Bf16, 2, HostIn16Bits> y,
                                emprl::In<emprl::Bf16, 2, HostIn16Bits> x,
                                emprl::In<emprl::Bf16, 2, HostIn16Bits> weight,
                                TensorView<std::uint8_t, 2, HostIn16Bits> = {}) {
  linear_forward(dev, y, x, weight);
  relu_forward(dev, y, y);
}

inline void linear_relu_backward(HostIn16Bits& dev, TensorView<emprl::Bf16, 2, HostIn16Bits> dx,
                                 TensorView<float, 2, HostIn16Bits> dweight,
                                 emprl::In<emprl::Bf16, 2, HostIn16Bits> dy,
                                 emprl::In<emprl::Bf16, 2, HostIn16Bits> x,
                                 emprl::In<emprl::Bf16, 2, HostIn16Bits> weight,
                                 TensorView<std::uint8_t, 2, HostIn16Bits> = {}) {
  linear_backward(dev, dx, dweight, {}, dy, x, weight);
  relu_backward(dev, dx, dx, x);
}

inline void sum_rows(HostIn16Bits& dev, TensorView<float, 1, HostIn16Bits> db,
                     emprl::In<emprl::Bf16, 2, HostIn16Bits> dy) {
  using namespace host_in_16_bits;
  emprl::sum_rows<float>(dev.cpu, on_cpu(db), wide(dy));
}

inline void add_bias(HostIn16Bits& dev, TensorView<emprl::Bf16, 2, HostIn16Bits> y,
                     emprl::In<emprl::Bf16, 1, HostIn16Bits> b) {
  using namespace host_in_16_bits;
  compute([&](auto to) { emprl::add_bias<float>(dev.cpu, to, wide(b)); }, y);
}

inline void relative_bias_forward(HostIn16Bits& dev, TensorView<float, 2, HostIn16Bits> bias,
                                  emprl::In<emprl::Bf16, 2, HostIn16Bits> table, index_t first,
                                  emprl::RelativeBuckets buckets) {
  using namespace host_in_16_bits;
  emprl::relative_bias_forward<float>(dev.cpu, on_cpu(bias), wide(table), first, buckets);
}

inline void relative_bias_backward(HostIn16Bits& dev, TensorView<float, 2, HostIn16Bits> dtable,
                                   emprl::In<float, 2, HostIn16Bits> dbias, index_t first,
                                   emprl::RelativeBuckets buckets) {
  using namespace host_in_16_bits;
  emprl::relative_bias_backward<float>(dev.cpu, on_cpu(dtable), on_cpu(dbias), first, buckets);
}

inline void rms_norm_forward(HostIn16Bits& dev, TensorView<emprl::Bf16, 2, HostIn16Bits> y,
                             TensorView<float, 1, HostIn16Bits> rstd,
                             emprl::In<emprl::Bf16, 2, HostIn16Bits> x,
                             emprl::In<emprl::Bf16, 1, HostIn16Bits> weight, double eps) {
  using namespace host_in_16_bits;
  compute(
      [&](auto to) {
        emprl::rms_norm_forward<float>(dev.cpu, to, on_cpu(rstd), wide(x), wide(weight), eps);
      },
      y);
}

inline void rms_norm_backward(HostIn16Bits& dev, TensorView<emprl::Bf16, 2, HostIn16Bits> dx,
                              TensorView<float, 1, HostIn16Bits> dweight,
                              emprl::In<emprl::Bf16, 2, HostIn16Bits> dy,
                              emprl::In<emprl::Bf16, 2, HostIn16Bits> x,
                              emprl::In<emprl::Bf16, 1, HostIn16Bits> weight,
                              emprl::In<float, 1, HostIn16Bits> rstd, emprl::Write write) {
  using namespace host_in_16_bits;
  compute(
      [&](auto to) {
        emprl::rms_norm_backward<float>(dev.cpu, to, on_cpu(dweight), wide(dy), wide(x),
                                        wide(weight), on_cpu(rstd), write);
      },
      dx);
}

template <class T>
void token_logprob_forward(HostIn16Bits& dev, TensorView<float, 1, HostIn16Bits> logp,
                           TensorView<float, 1, HostIn16Bits> lse,
                           TensorView<float, 1, HostIn16Bits> entropy,
                           emprl::In<T, 2, HostIn16Bits> logits,
                           TensorView<std::int32_t const, 1, HostIn16Bits> targets) {
  using host_in_16_bits::on_cpu;
  emprl::token_logprob_forward<T>(dev.cpu, on_cpu(logp), on_cpu(lse), on_cpu(entropy),
                                  on_cpu(logits), on_cpu(targets));
}

template <class T>
void token_logprob_backward(HostIn16Bits& dev, TensorView<T, 2, HostIn16Bits> logits,
                            emprl::In<float, 1, HostIn16Bits> dlogp,
                            emprl::In<float, 1, HostIn16Bits> lse,
                            TensorView<std::int32_t const, 1, HostIn16Bits> targets) {
  using host_in_16_bits::on_cpu;
  emprl::token_logprob_backward<T>(dev.cpu, on_cpu(logits), on_cpu(dlogp), on_cpu(lse),
                                   on_cpu(targets));
}

}  // namespace support
