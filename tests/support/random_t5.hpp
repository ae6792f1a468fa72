// SPDX-License-Identifier: Apache-2.0
#pragma once

// Small random T5 models and batches. Nothing here needs Eigen or JSON: nvcc compiles it too.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "emprl/core/ragged.hpp"
#include "emprl/t5/parameters.hpp"
#include "emprl/t5/prefix.hpp"
#include "support/compare.hpp"

namespace support {

/// A random model with every term alive; `gated` chooses v1.1.
inline emprl::t5::Config small_config(bool gated) {
  emprl::t5::Config c;
  c.vocab_size = 23;
  c.d_model = 10;
  c.d_kv = 4;
  c.d_ff = 14;
  c.num_layers = 2;
  c.num_decoder_layers = 2;
  c.num_heads = 2;
  c.relative_attention_num_buckets = 8;
  c.relative_attention_max_distance = 20;
  c.feed_forward = gated ? emprl::nn::Activation::gated_gelu : emprl::nn::Activation::relu;
  c.tie_word_embeddings = !gated;
  return c;
}

template <class T>
emprl::t5::Parameters<T, Cpu> random_parameters(emprl::t5::Config const& c, std::uint64_t seed) {
  emprl::t5::Parameters<T, Cpu> p(c);
  emprl::t5::initialise(p, c, seed);
  for (auto const& info : p.infos()) {
    auto const extra =
        random_values<T>(info.size, seed + 17 + static_cast<std::uint64_t>(info.offset), 0.2);
    auto const to = p.span(info);
    for (std::size_t i = 0; i < to.size(); ++i) to[i] += extra[i];
  }
  return p;
}

/// Random token rows of the given lengths, ids from 1.
inline emprl::Ragged random_rows(std::vector<index_t> const& lengths, index_t vocabulary,
                                 std::uint64_t seed) {
  emprl::RandomSequence random(seed, emprl::Stream::corpus);
  emprl::Ragged rows;
  for (index_t const n : lengths) {
    std::vector<std::int32_t> row;
    for (index_t i = 0; i < n; ++i)
      row.push_back(static_cast<std::int32_t>(1 + random.below(vocabulary - 1)));
    rows.push_back(row);
  }
  return rows;
}

/// Prefix vectors of all layers in the flat memory that training uses, random.
template <class T>
emprl::nn::ParameterStore<emprl::t5::Prefixes<T, Cpu>, T, Cpu> random_prefixes(
    emprl::t5::Config const& c, index_t length, std::uint64_t seed) {
  using Store = emprl::nn::ParameterStore<emprl::t5::Prefixes<T, Cpu>, T, Cpu>;
  Store store(typename emprl::t5::Prefixes<T, Cpu>::Shape{c, length});
  auto const numbers = random_values<T>(store.size(), seed);
  std::copy(numbers.begin(), numbers.end(), store.span().begin());
  return store;
}

}  // namespace support
