// SPDX-License-Identifier: Apache-2.0
#pragma once

// Attention over packed ragged rows, one score at a time: relative bias by bucket, causal mask,
// prefix keys, scale; and its derivatives through the explicit probabilities.

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "reference/matrix.hpp"

namespace reference {

/// What one attention does. Query i of a row stands at position i + query_shift of the row's keys.
struct AttentionShape {
  index_t heads = 1;
  std::vector<index_t> query_offsets;
  std::vector<index_t> key_offsets;
  double scale = 1.0;
  bool causal = false;
  index_t query_shift = 0;
  /// Maps (key position - query position) to a column of the bias table; empty for no bias.
  std::function<index_t(index_t)> bucket;
};

/// q (Nq, heads*Dh), k and v (Nk, heads*Dh), bias_table (buckets, heads), prefix_k and prefix_v (P,
/// heads*Dh; P may be 0). Prefix keys stand before every row, have no bias and are never masked.
template <class T>
struct AttentionInputs {
  Matrix<T> q, k, v, bias_table, prefix_k, prefix_v;
};

/// How a backward pass comes by the probabilities: as the forward pass made them, or again from the
/// log-sum-exp that it saved. The second rounds once more at the size of the log-sum-exp; an op
/// that works so is measured against it.
enum class Probabilities { kept, from_log_sum_exp };

namespace detail {

/// Scores of query i of row r and head h over [prefix keys, keys of the row]; -inf for what is
/// masked.
template <class T>
std::vector<T> scores(AttentionShape const& shape, AttentionInputs<T> const& in, index_t r,
                      index_t i, index_t h) {
  auto const u = static_cast<std::size_t>(r);
  index_t const q0 = shape.query_offsets[u];
  index_t const k0 = shape.key_offsets[u];
  index_t const keys = shape.key_offsets[u + 1] - k0;
  index_t const prefix = in.prefix_k.rows;
  index_t const dh = in.q.cols / shape.heads;
  std::vector<T> s(static_cast<std::size_t>(prefix + keys), -std::numeric_limits<T>::infinity());
  for (index_t j = 0; j < prefix + keys; ++j) {
    bool const is_prefix = j < prefix;
    index_t const relative = (j - prefix) - (i + shape.query_shift);
    if (!is_prefix && shape.causal && relative > 0) continue;
    T score = 0;
    for (index_t d = 0; d < dh; ++d) {
      T const key = is_prefix ? in.prefix_k(j, h * dh + d) : in.k(k0 + j - prefix, h * dh + d);
      score += in.q(q0 + i, h * dh + d) * key;
    }
    score *= static_cast<T>(shape.scale);
    if (!is_prefix && shape.bucket) score += in.bias_table(shape.bucket(relative), h);
    s[static_cast<std::size_t>(j)] = score;
  }
  return s;
}

/// Their softmax.
template <class T>
std::vector<T> probabilities(AttentionShape const& shape, AttentionInputs<T> const& in, index_t r,
                             index_t i, index_t h, Probabilities how = Probabilities::kept) {
  std::vector<T> p = scores(shape, in, r, i, h);
  T most = -std::numeric_limits<T>::infinity();
  for (T const x : p) most = std::max(most, x);
  T sum = 0;
  auto const shifted_exp = [](T x, T shift) {
    return x == -std::numeric_limits<T>::infinity() ? T(0) : std::exp(x - shift);
  };
  for (T const x : p) sum += shifted_exp(x, most);
  if (how == Probabilities::from_log_sum_exp) {
    T const log_sum_exp = most + std::log(sum);
    for (T& x : p) x = shifted_exp(x, log_sum_exp);
  } else {
    for (T& x : p) x = sum > 0 ? shifted_exp(x, most) / sum : T(0);
  }
  return p;
}

}  // namespace detail

/// (heads, Nq): the logarithm of the sum of the exponentials of each query's scores, -inf for a
/// query that sees no key.
template <class T>
std::vector<T> log_sum_exp(AttentionShape const& shape, AttentionInputs<T> const& in) {
  std::vector<T> lse;
  for (index_t h = 0; h < shape.heads; ++h) {
    for (std::size_t r = 0; r + 1 < shape.query_offsets.size(); ++r) {
      for (index_t i = 0; i < shape.query_offsets[r + 1] - shape.query_offsets[r]; ++i) {
        auto const s = detail::scores(shape, in, static_cast<index_t>(r), i, h);
        T most = -std::numeric_limits<T>::infinity();
        for (T const x : s) most = std::max(most, x);
        T sum = 0;
        for (T const x : s) sum += x == most ? T(1) : std::exp(x - most);
        lse.push_back(sum > 0 ? most + std::log(sum) : most);
      }
    }
  }
  return lse;
}

/// (Nq, heads*Dh). A query that sees no key gives zero.
template <class T>
Matrix<T> attention(AttentionShape const& shape, AttentionInputs<T> const& in) {
  Matrix<T> y(in.q.rows, in.q.cols);
  index_t const dh = in.q.cols / shape.heads;
  index_t const prefix = in.prefix_k.rows;
  for (std::size_t r = 0; r + 1 < shape.query_offsets.size(); ++r) {
    index_t const q0 = shape.query_offsets[r];
    index_t const k0 = shape.key_offsets[r];
    for (index_t i = 0; i < shape.query_offsets[r + 1] - q0; ++i) {
      for (index_t h = 0; h < shape.heads; ++h) {
        auto const p = detail::probabilities(shape, in, static_cast<index_t>(r), i, h);
        for (index_t j = 0; j < static_cast<index_t>(p.size()); ++j) {
          for (index_t d = 0; d < dh; ++d) {
            T const value =
                j < prefix ? in.prefix_v(j, h * dh + d) : in.v(k0 + j - prefix, h * dh + d);
            y(q0 + i, h * dh + d) += p[static_cast<std::size_t>(j)] * value;
          }
        }
      }
    }
  }
  return y;
}

/// Gradients of sum(dy * attention(...)) by all inputs, in the shape of the inputs.
template <class T>
AttentionInputs<T> attention_backward(AttentionShape const& shape, AttentionInputs<T> const& in,
                                      Matrix<T> const& dy,
                                      Probabilities how = Probabilities::kept) {
  Matrix<T> const y = attention(shape, in);
  AttentionInputs<T> g;
  g.q = Matrix<T>(in.q.rows, in.q.cols);
  g.k = Matrix<T>(in.k.rows, in.k.cols);
  g.v = Matrix<T>(in.v.rows, in.v.cols);
  g.bias_table = Matrix<T>(in.bias_table.rows, in.bias_table.cols);
  g.prefix_k = Matrix<T>(in.prefix_k.rows, in.prefix_k.cols);
  g.prefix_v = Matrix<T>(in.prefix_v.rows, in.prefix_v.cols);
  index_t const dh = in.q.cols / shape.heads;
  index_t const prefix = in.prefix_k.rows;
  T const scale = static_cast<T>(shape.scale);
  for (std::size_t r = 0; r + 1 < shape.query_offsets.size(); ++r) {
    index_t const q0 = shape.query_offsets[r];
    index_t const k0 = shape.key_offsets[r];
    for (index_t i = 0; i < shape.query_offsets[r + 1] - q0; ++i) {
      for (index_t h = 0; h < shape.heads; ++h) {
        auto const p = detail::probabilities(shape, in, static_cast<index_t>(r), i, h, how);
        std::vector<T> dp(p.size(), T(0));
        // sum_j p_j dp_j, which is also dy . y.
        T weighted = 0;
        for (index_t c = h * dh; c < (h + 1) * dh; ++c) weighted += dy(q0 + i, c) * y(q0 + i, c);
        for (std::size_t j = 0; j < p.size(); ++j) {
          auto const s = static_cast<index_t>(j);
          for (index_t d = 0; d < dh; ++d) {
            index_t const c = h * dh + d;
            T const out = dy(q0 + i, c);
            dp[j] += out * (s < prefix ? in.prefix_v(s, c) : in.v(k0 + s - prefix, c));
            (s < prefix ? g.prefix_v(s, c) : g.v(k0 + s - prefix, c)) += p[j] * out;
          }
        }
        for (std::size_t j = 0; j < p.size(); ++j) {
          auto const s = static_cast<index_t>(j);
          T const dscore = p[j] * (dp[j] - weighted);
          // A masked key has probability zero and must not name a bucket: it may have none.
          if (p[j] == T(0)) continue;
          if (s >= prefix && shape.bucket) {
            g.bias_table(shape.bucket((s - prefix) - (i + shape.query_shift)), h) += dscore;
          }
          for (index_t d = 0; d < dh; ++d) {
            index_t const c = h * dh + d;
            T const key = s < prefix ? in.prefix_k(s, c) : in.k(k0 + s - prefix, c);
            g.q(q0 + i, c) += scale * dscore * key;
            (s < prefix ? g.prefix_k(s, c) : g.k(k0 + s - prefix, c)) +=
                scale * dscore * in.q(q0 + i, c);
          }
        }
      }
    }
  }
  return g;
}

}  // namespace reference
