// SPDX-License-Identifier: Apache-2.0
#pragma once

// A small random T5 with a value head, the same on every device and in every format, and the
// headers that its passes on the GPU need.

#include <algorithm>
#include <span>
#include <string>
#include <vector>

#include "emprl/emprl.cuh"
#include "emprl/train/t5_adaptors.hpp"
#include "support/compare.hpp"
#include "support/random_t5.hpp"
#include "support/t5_orders.hpp"
#if defined(__CUDACC__)
#include "support/plain_gemm.hpp"
#else
#include "emprl/ops/gemm_cpu.hpp"
#endif

namespace support {

/// With heads as wide as the kernels take.
inline emprl::t5::Config device_config(bool gated = true) {
  emprl::t5::Config c = small_config(gated);
  c.d_model = 20;
  c.d_kv = 32;
  c.d_ff = 33;
  return c;
}

/// The same numbers in float, double and 16 bits. They are half as large as elsewhere: scores of
/// twenty and more, whose softmax is one key, would make of every rounding a choice.
/// @param units  the places of the model's units: another order of summation
template <class T>
emprl::train::T5Weights<T> small_t5(std::uint64_t seed, index_t prefix = 0,
                                    UnitOrders const& units = UnitOrders(device_config(), 0)) {
  emprl::t5::Config const c = device_config();
  emprl::train::T5Weights<T> g(c);
  auto const fill = [&units](auto const& store, std::vector<float> const& values) {
    auto const ordered = units.apply(values, store.infos());
    std::transform(ordered.begin(), ordered.end(), store.span().begin(), [](float x) {
      return static_cast<T>(static_cast<float>(emprl::Bf16(0.5f * x)));
    });
  };
  auto const weights = random_parameters<float>(c, seed);
  fill(g.weights, {weights.span().begin(), weights.span().end()});
  if (prefix > 0) {
    g.prefix =
        emprl::train::PrefixParameters<T>(typename emprl::t5::Prefixes<T, Cpu>::Shape{c, prefix});
    fill(g.prefix, random_values<float>(g.prefix.size(), seed + 1));
  }
  g.value_head = emprl::train::ValueHeadParameters<T>(c.d_model);
  fill(g.value_head, random_values<float>(g.value_head.size(), seed + 2, 0.3));
  return g;
}

/// All elements of a store on the host.
template <class D, class P, class T>
std::vector<T> to_host(D& dev, emprl::nn::ParameterStore<P, T, D> const& store) {
  std::vector<T> values(static_cast<std::size_t>(store.size()));
  copy(dev, std::span<T>(values), store.all());
  return values;
}

/// check_error for each named part of a store's numbers.
template <class T>
void check_parts(std::string const& what, std::vector<emprl::nn::ParameterInfo> const& infos,
                 std::vector<T> const& actual, std::vector<T> const& plain,
                 std::vector<double> const& truth, double ulps) {
  for (auto const& info : infos) {
    auto const part = [&](auto const& x) {
      using Value = typename std::decay_t<decltype(x)>::value_type;
      return std::vector<Value>(x.begin() + info.offset, x.begin() + info.offset + info.size);
    };
    check_error(what + info.name, part(actual), part(truth),
                max_difference(part(plain), part(truth)), ulps);
  }
}

}  // namespace support
