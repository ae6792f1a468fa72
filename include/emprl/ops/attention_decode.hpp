// SPDX-License-Identifier: Apache-2.0
#pragma once

// Attention of one new token a row against cached keys and values.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/math/exp.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

/// Cached keys and values: a row's keys are rows [begin, begin + length) of k and v.
template <Scalar T, Device D>
struct CachedKeys {
  TensorView<T const, 2, D> k;             // (rows of the cache, H*Dh)
  TensorView<T const, 2, D> v;             // (rows of the cache, H*Dh)
  TensorView<index_t const, 1, D> begin;   // (A)
  TensorView<index_t const, 1, D> length;  // (A)
};

/// o[a] = sum_j softmax_j(q[a] . k[j] + bias[h, j]) v[j] over the prefix (no bias), then the cached
/// keys of active row a.
/// @param o (A, H*Dh), written      @param q (A, H*Dh)
/// @param bias (H, at least the longest length): the bias of the j-th cached key; empty for none
/// @param prefix_k, prefix_v (P, H*Dh), empty for none
/// @throws ShapeError if extents disagree
template <Scalar T>
void attention_decode(Cpu& dev, Out<T, 2, Cpu> o, In<T, 2, Cpu> q,
                      std::type_identity_t<CachedKeys<T, Cpu>> const& cache, index_t heads,
                      In<T, 2, Cpu> bias, In<T, 2, Cpu> prefix_k, In<T, 2, Cpu> prefix_v) {
  index_t const active = q.extent(0);
  expects(o.extents() == q.extents() && heads > 0 && q.extent(1) % heads == 0 &&
              cache.k.extent(1) == q.extent(1) && cache.v.extent(1) == q.extent(1) &&
              cache.begin.extent(0) == active && cache.length.extent(0) == active,
          "attention_decode: one cached range for each query row, keys as wide as queries");
  expects(cache.v.extent(0) == cache.k.extent(0) && (bias.empty() || bias.extent(0) == heads) &&
              prefix_k.extents() == prefix_v.extents() &&
              (prefix_k.empty() || prefix_k.extent(1) == q.extent(1)),
          "attention_decode: as many values as keys, the bias one row a head, a prefix as wide as "
          "queries");
  for (index_t a = 0; a < active; ++a) {
    expects(cache.begin(a) >= 0 && cache.length(a) >= 0 &&
                cache.begin(a) + cache.length(a) <= cache.k.extent(0) &&
                (bias.empty() || cache.length(a) <= bias.extent(1)),
            "attention_decode: a cached range leaves the cache, or is longer than the bias");
  }
  index_t const width = q.extent(1) / heads;
  index_t const prefix = prefix_k.extent(0);
  parallel_for(dev, active * heads, 4, [&](index_t first, index_t last) {
    std::vector<T> scores;
    for (index_t task = first; task < last; ++task) {
      index_t const a = task / heads;
      index_t const h = task % heads;
      index_t const begin = cache.begin(a);
      index_t const n = prefix + cache.length(a);
      T* const out = o.row(a) + h * width;
      std::fill(out, out + width, T(0));
      if (n == 0) continue;
      scores.resize(static_cast<std::size_t>(n));
      T const* const query = q.row(a) + h * width;
      auto const head_of = [&](In<T, 2, Cpu> head_rows, In<T, 2, Cpu> rows, index_t j) {
        return (j < prefix ? head_rows.row(j) : rows.row(begin + j - prefix)) + h * width;
      };
      T most = -std::numeric_limits<T>::infinity();
      for (index_t j = 0; j < n; ++j) {
        T const* const key = head_of(prefix_k, cache.k, j);
        T partial[8] = {};
        index_t d = 0;
        for (; d + 8 <= width; d += 8) {
          for (int l = 0; l < 8; ++l) partial[l] += query[d + l] * key[d + l];
        }
        T sum = T(0);
        for (; d < width; ++d) sum += query[d] * key[d];
        for (T const x : partial) sum += x;
        if (!bias.empty() && j >= prefix) sum += bias(h, j - prefix);
        scores[static_cast<std::size_t>(j)] = sum;
        most = std::max(most, sum);
      }
      T sum = T(0);
      for (T& s : scores) {
        s = exp_branchless(s - most);
        sum += s;
      }
      T const inverse = T(1) / sum;
      for (index_t j = 0; j < n; ++j) {
        T const* const value = head_of(prefix_v, cache.v, j);
        T const p = scores[static_cast<std::size_t>(j)] * inverse;
        for (index_t d = 0; d < width; ++d) out[d] += p * value[d];
      }
    }
  });
}

}  // namespace emprl
