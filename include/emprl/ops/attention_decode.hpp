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

/// Which column of the bias belongs to a cached key. T5's bias is a function of the distance from
/// the newest key, so for rows of one length the two say the same of a table as wide as that
/// length. By distance one table, made once for the longest response, serves every step and rows of
/// different lengths.
enum class DecodeBias {
  position,  ///< column j is the j-th cached key of a row
  distance   ///< the last column is the row's newest key, the one before it the key before
};

/// Cached keys and values: a row's keys are rows [begin, begin + length) of k and v.
template <class T, Device D>
struct CachedKeys {
  TensorView<T const, 2, D> k;             // (rows of the cache, H*Dh)
  TensorView<T const, 2, D> v;             // (rows of the cache, H*Dh)
  TensorView<index_t const, 1, D> begin;   // (A)
  TensorView<index_t const, 1, D> length;  // (A)
};

/// o[a] = sum_j softmax_j(q[a] . k[j] + bias[h, j]) v[j] over the prefix (no bias), then the cached
/// keys of active row a.
/// @param o (A, H*Dh), written      @param q (A, H*Dh)
/// @param bias (H, at least the longest length), its columns as `columns` says; empty for none
/// @param prefix_k, prefix_v (P, H*Dh), empty for none
/// @throws ShapeError if extents disagree
template <Scalar T>
void attention_decode(Cpu& dev, Out<T, 2, Cpu> o, In<T, 2, Cpu> q,
                      std::type_identity_t<CachedKeys<T, Cpu>> const& cache, index_t heads,
                      In<T, 2, Cpu> bias, In<T, 2, Cpu> prefix_k, In<T, 2, Cpu> prefix_v,
                      DecodeBias columns = DecodeBias::position) {
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
      index_t const first_column =
          columns == DecodeBias::distance && !bias.empty() ? bias.extent(1) - cache.length(a) : 0;
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
        if (!bias.empty() && j >= prefix) sum += bias(h, first_column + j - prefix);
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

/// A cache that grows: as CachedKeys, and the last row of each range is yet to be written.
template <class T, Device D>
struct GrowingKeys {
  TensorView<T, 2, D> k;                   // (rows of the cache, H*Dh)
  TensorView<T, 2, D> v;                   // (rows of the cache, H*Dh)
  TensorView<index_t const, 1, D> begin;   // (A)
  TensorView<index_t const, 1, D> length;  // (A), the new key included; 0 for a finished row
};

/// Writes row a's new key and value to row begin[a] + length[a] - 1 of the cache, then
/// attention_decode. A row of length 0 writes nothing.
/// @param o (A, H*Dh), written      @param q, new_k, new_v (A, H*Dh)
/// @throws ShapeError if extents disagree or a range leaves the cache
template <Scalar T>
void attention_decode_append(Cpu& dev, Out<T, 2, Cpu> o, In<T, 2, Cpu> q, In<T, 2, Cpu> new_k,
                             In<T, 2, Cpu> new_v,
                             std::type_identity_t<GrowingKeys<T, Cpu>> const& cache, index_t heads,
                             In<T, 2, Cpu> bias, In<T, 2, Cpu> prefix_k, In<T, 2, Cpu> prefix_v,
                             DecodeBias columns = DecodeBias::position) {
  index_t const active = q.extent(0);
  index_t const width = q.extent(1);
  expects(
      new_k.extents() == q.extents() && new_v.extents() == q.extents() &&
          cache.k.extent(1) == width && cache.v.extents() == cache.k.extents() &&
          cache.begin.extent(0) == active && cache.length.extent(0) == active,
      "attention_decode_append: one new key and one cached range for each query, as wide as it");
  for (index_t a = 0; a < active; ++a) {
    if (cache.length(a) == 0) continue;
    index_t const at = cache.begin(a) + cache.length(a) - 1;
    expects(at >= 0 && at < cache.k.extent(0),
            "attention_decode_append: the place of a new key is not in the cache");
    std::copy(new_k.row(a), new_k.row(a) + width, cache.k.row(at));
    std::copy(new_v.row(a), new_v.row(a) + width, cache.v.row(at));
  }
  attention_decode<T>(dev, o, q, {cache.k, cache.v, cache.begin, cache.length}, heads, bias,
                      prefix_k, prefix_v, columns);
}

}  // namespace emprl
