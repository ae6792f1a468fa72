// SPDX-License-Identifier: Apache-2.0
#pragma once

// Attention over ragged batches with a learned relative bias and prefix keys, forward and backward.
//
// For batch row b, head h, query i and key j of the same row (positions count from the row's first
// token):
//   s[i,j] = scale q[i] . k[j] + bias[h, j - i - first]
//   p = softmax_j s,   o[i] = sum_j p[i,j] v[j]
// Prefix keys, the same for all rows, stand before the row's own keys, take no bias and are never
// masked. Causal attention sees the prefix and keys j <= i. T5 uses scale 1: there is no 1/sqrt(d)
// unless it is asked for.
//
// Only the log-sum-exp of each query's scores is kept for the backward pass (Dao et al. 2022),
// which computes the probabilities again. A query without any key gives zeros.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/math/exp.hpp"
#include "emprl/ops/dropout.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

/// Which keys of its own row a query sees.
enum class Mask { full, causal };

/// The inputs that both directions of attention share. Dimensions: Nq, Nk packed query and key
/// rows; H heads of width Dh side by side in H*Dh columns; P prefix keys; R distances. T is a
/// Scalar, or on the GPU a 16-bit format.
template <class T, Device D>
struct AttentionInputs {
  TensorView<T const, 2, D> q;                // (Nq, H*Dh)
  TensorView<T const, 2, D> k;                // (Nk, H*Dh)
  TensorView<T const, 2, D> v;                // (Nk, H*Dh)
  TensorView<index_t const, 1, D> q_offsets;  // (B+1)
  TensorView<index_t const, 1, D> k_offsets;  // (B+1)
  index_t heads = 1;
  Accumulator<T> scale = 1;
  Mask mask = Mask::full;
  TensorView<Accumulator<T> const, 2, D> bias;  // (H, R), empty for none
  index_t bias_first = 0;                       // the distance of bias column 0
  TensorView<T const, 2, D> prefix_k;           // (P, H*Dh), empty for none
  TensorView<T const, 2, D> prefix_v;           // (P, H*Dh)
  DropoutKey dropout;                           // on the probabilities
  /// The most queries and the most keys, prefix aside, of a ragged row: what the host must know
  /// where it cannot read the offsets. 0 for "not known": then as if one row held all, which is
  /// right, slower, and takes more scratch memory. The CPU does not look at them.
  index_t longest_queries = 0;
  index_t longest_keys = 0;
};

namespace detail {

/// What can be checked without reading offsets.
template <class T, class D>
void check_attention_shapes(AttentionInputs<T, D> const& in) {
  index_t const width = in.q.extent(1);
  expects(in.heads > 0 && width % in.heads == 0,
          "attention: the columns of q must divide among the heads");
  expects(in.k.extent(1) == width && in.v.extent(1) == width && in.k.extent(0) == in.v.extent(0),
          "attention: q, k and v must have the same columns, k and v the same rows");
  expects(in.q_offsets.extent(0) == in.k_offsets.extent(0) && in.q_offsets.extent(0) >= 1,
          "attention: queries and keys must have the same number of ragged rows");
  expects(in.prefix_k.extents() == in.prefix_v.extents() &&
              (in.prefix_k.empty() || in.prefix_k.extent(1) == width),
          "attention: prefix keys and values must have the same shape, as wide as q");
  expects(in.bias.empty() || in.bias.extent(0) == in.heads,
          "attention: the bias needs one row a head");
}

/// @throws ShapeError unless the bias table has every distance in a row of such lengths
template <class T, class D>
void check_bias_reach(AttentionInputs<T, D> const& in, index_t queries, index_t keys) {
  if (in.bias.empty() || queries == 0 || keys == 0) return;
  index_t const furthest = in.mask == Mask::causal ? 0 : keys - 1;
  expects(-(queries - 1) >= in.bias_first && furthest < in.bias_first + in.bias.extent(1),
          "attention: the bias does not reach the longest distance in the batch");
}

template <Scalar T>
void check_attention(AttentionInputs<T, Cpu> const& in) {
  check_attention_shapes(in);
  index_t const last = in.q_offsets.extent(0) - 1;
  bool rising = in.q_offsets(0) == 0 && in.k_offsets(0) == 0 &&
                in.q_offsets(last) == in.q.extent(0) && in.k_offsets(last) == in.k.extent(0);
  for (index_t b = 0; b < last; ++b) {
    rising =
        rising && in.q_offsets(b) <= in.q_offsets(b + 1) && in.k_offsets(b) <= in.k_offsets(b + 1);
  }
  expects(rising, "attention: offsets must rise from 0 to the number of packed rows");
  for (index_t b = 0; b < last; ++b) {
    check_bias_reach(in, in.q_offsets(b + 1) - in.q_offsets(b),
                     in.k_offsets(b + 1) - in.k_offsets(b));
  }
}

/// One head of one ragged row: its keys and values, prefix first, transposed so that loops over
/// keys are dense.
template <class T>
struct AttentionTile {
  index_t head_dim = 0, prefix = 0, keys = 0;  // keys counts the prefix too
  std::vector<T> k_t, v_t;                     // (Dh, keys)

  void load(AttentionInputs<T, Cpu> const& in, index_t b, index_t h, bool values) {
    head_dim = in.q.extent(1) / in.heads;
    prefix = in.prefix_k.extent(0);
    index_t const first = in.k_offsets(b);
    keys = prefix + in.k_offsets(b + 1) - first;
    auto const gather = [&](std::vector<T>& to, auto const& head_rows, auto const& rows) {
      to.resize(static_cast<std::size_t>(head_dim * keys));
      for (index_t j = 0; j < keys; ++j) {
        T const* const from =
            (j < prefix ? head_rows.row(j) : rows.row(first + j - prefix)) + h * head_dim;
        for (index_t d = 0; d < head_dim; ++d) to[static_cast<std::size_t>(d * keys + j)] = from[d];
      }
    };
    gather(k_t, in.prefix_k, in.k);
    if (values) gather(v_t, in.prefix_v, in.v);
  }

  /// The number of keys that query i sees, prefix included.
  index_t visible(Mask mask, index_t i) const {
    return mask == Mask::causal ? std::min(keys, prefix + i + 1) : keys;
  }
};

/// y[j] = sum_d x[d] m[d, j], j in [0, n): a row times a matrix with row stride `stride`. Four rows
/// of m at a time, so that y is loaded and stored a quarter as often.
template <class T>
void row_times_matrix(T const* x, T const* m, index_t stride, index_t depth, index_t n, T* y) {
  std::fill(y, y + n, T(0));
  index_t d = 0;
  for (; d + 4 <= depth; d += 4) {
    T const x0 = x[d], x1 = x[d + 1], x2 = x[d + 2], x3 = x[d + 3];
    T const* const m0 = m + d * stride;
    T const* const m1 = m0 + stride;
    T const* const m2 = m1 + stride;
    T const* const m3 = m2 + stride;
    for (index_t j = 0; j < n; ++j) y[j] += x0 * m0[j] + x1 * m1[j] + x2 * m2[j] + x3 * m3[j];
  }
  for (; d < depth; ++d) {
    T const* const row = m + d * stride;
    for (index_t j = 0; j < n; ++j) y[j] += x[d] * row[j];
  }
}

/// sum_j f(j), j in [0, n), in eight running sums, because one would be a chain of dependent
/// additions that cannot be vectorised.
template <class T, class F>
T sum_in_lanes(index_t n, F f) {
  T partial[8] = {};
  index_t j = 0;
  for (; j + 8 <= n; j += 8) {
    for (int l = 0; l < 8; ++l) partial[l] += f(j + l);
  }
  T sum = T(0);
  for (; j < n; ++j) sum += f(j);
  for (T const part : partial) sum += part;
  return sum;
}

/// Scores of query i of row b in head h against the first n keys of the tile.
template <class T>
void attention_scores(AttentionInputs<T, Cpu> const& in, AttentionTile<T> const& tile, index_t b,
                      index_t h, index_t i, index_t n, T* s) {
  T const* const q = in.q.row(in.q_offsets(b) + i) + h * tile.head_dim;
  row_times_matrix(q, tile.k_t.data(), tile.keys, tile.head_dim, n, s);
  if (in.scale != T(1)) {
    for (index_t j = 0; j < n; ++j) s[j] *= in.scale;
  }
  if (!in.bias.empty()) {
    T const* const bias = in.bias.row(h) - i - in.bias_first;
    for (index_t j = tile.prefix; j < n; ++j) s[j] += bias[j - tile.prefix];
  }
}

/// The row of the dropout mask that belongs to (packed query row, head).
inline std::uint32_t dropout_row(index_t packed_row, index_t heads, index_t h) {
  return static_cast<std::uint32_t>(packed_row * heads + h);
}

/// Splits ragged rows among the threads; f(chunk, first row, last row) with chunk < dev.threads.
template <class F>
void for_each_chunk(Cpu& dev, index_t rows, F f) {
  index_t const chunks = std::min<index_t>(dev.threads, std::max<index_t>(rows, 1));
  parallel_for(dev, chunks, 1, [&](index_t begin, index_t end) {
    for (index_t c = begin; c < end; ++c) f(c, rows * c / chunks, rows * (c + 1) / chunks);
  });
}

}  // namespace detail

/// o and the log-sum-exp of each query's scores (equations at the top of this header).
/// @param o   (Nq, H*Dh), written
/// @param lse (H, Nq), written; -inf for a query without keys; empty if no backward pass follows
/// @throws ShapeError if extents disagree or the bias table does not reach the longest distance
template <Scalar T>
void attention_forward(Cpu& dev, Out<T, 2, Cpu> o, OptionalOut<T, 2, Cpu> lse,
                       std::type_identity_t<AttentionInputs<T, Cpu>> const& in) {
  detail::check_attention(in);
  expects(o.extents() == in.q.extents() &&
              (lse.empty() || (lse.extent(0) == in.heads && lse.extent(1) == in.q.extent(0))),
          "attention: o must have the shape of q, lse one row a head and one column a query");
  index_t const width = in.q.extent(1) / in.heads;
  detail::for_each_chunk(dev, in.q_offsets.extent(0) - 1, [&](index_t, index_t begin, index_t end) {
    detail::AttentionTile<T> tile;
    std::vector<T> scores, factor;
    for (index_t b = begin; b < end; ++b) {
      index_t const first = in.q_offsets(b);
      index_t const queries = in.q_offsets(b + 1) - first;
      if (queries == 0) continue;
      for (index_t h = 0; h < in.heads; ++h) {
        tile.load(in, b, h, false);
        scores.resize(static_cast<std::size_t>(tile.keys));
        factor.resize(static_cast<std::size_t>(tile.keys));
        for (index_t i = 0; i < queries; ++i) {
          T* const out = o.row(first + i) + h * width;
          std::fill(out, out + width, T(0));
          index_t const n = tile.visible(in.mask, i);
          T* const s = scores.data();
          if (n == 0) {
            if (!lse.empty()) lse(h, first + i) = -std::numeric_limits<T>::infinity();
            continue;
          }
          detail::attention_scores(in, tile, b, h, i, n, s);
          T most = s[0];
          for (index_t j = 1; j < n; ++j) most = s[j] > most ? s[j] : most;
          for (index_t j = 0; j < n; ++j) s[j] = exp_branchless(s[j] - most);
          T sum = T(0);
          for (index_t j = 0; j < n; ++j) sum += s[j];
          if (!lse.empty()) lse(h, first + i) = most + std::log(sum);
          T const inverse = T(1) / sum;
          if (in.dropout.active()) {
            dropout_factors(in.dropout, detail::dropout_row(first + i, in.heads, h), 0,
                            factor.data(), n);
            for (index_t j = 0; j < n; ++j) s[j] *= factor[static_cast<std::size_t>(j)];
          }
          for (index_t j = 0; j < n; ++j) {
            T const* const value = (j < tile.prefix ? in.prefix_v.row(j)
                                                    : in.v.row(in.k_offsets(b) + j - tile.prefix)) +
                                   h * width;
            T const p = s[j] * inverse;
            for (index_t d = 0; d < width; ++d) out[d] += p * value[d];
          }
        }
      }
    }
  });
}

/// The gradients that attention_backward writes.
template <class T, Device D>
struct AttentionGradients {
  TensorView<T, 2, D> dq;                      // (Nq, H*Dh), =
  TensorView<T, 2, D> dk;                      // (Nk, H*Dh), =
  TensorView<T, 2, D> dv;                      // (Nk, H*Dh), =
  TensorView<Accumulator<T>, 2, D> dbias;      // (H, R), +=, empty if not needed
  TensorView<Accumulator<T>, 2, D> dprefix_k;  // (P, H*Dh), +=, empty if not needed
  TensorView<Accumulator<T>, 2, D> dprefix_v;  // (P, H*Dh), +=
};

/// Gradients of attention_forward. With p recomputed from lse and f the dropout factors:
///   dp = f (do . v),  ds = p (dp - do . o)
///   dq = scale ds k,  dk = scale ds^T q,  dv = (f p)^T do,  dbias[h, j-i-first] += ds
/// Sums over ragged rows (bias, prefix) are taken by each thread over its share of the rows, then
/// over threads in order: the same for the same number of threads.
/// @param out  `=` and `+=` as its fields say      @param o, lse as written by attention_forward
/// @param d_o (Nq, H*Dh)
/// @throws ShapeError if extents disagree
template <Scalar T>
void attention_backward(Cpu& dev, AttentionGradients<T, Cpu> const& out,
                        std::type_identity_t<AttentionInputs<T, Cpu>> const& in, In<T, 2, Cpu> o,
                        In<T, 2, Cpu> lse, In<T, 2, Cpu> d_o) {
  detail::check_attention(in);
  expects(o.extents() == in.q.extents() && d_o.extents() == in.q.extents() &&
              out.dq.extents() == in.q.extents() && out.dk.extents() == in.k.extents() &&
              out.dv.extents() == in.v.extents(),
          "attention: gradients must have the shapes of what they are gradients of");
  expects(out.dbias.empty() || out.dbias.extents() == in.bias.extents(),
          "attention: dbias must have the shape of bias");
  expects(out.dprefix_k.empty() || (out.dprefix_k.extents() == in.prefix_k.extents() &&
                                    out.dprefix_v.extents() == in.prefix_v.extents()),
          "attention: prefix gradients must have the shape of the prefix");
  index_t const width = in.q.extent(1) / in.heads;
  index_t const prefix = in.prefix_k.extent(0);
  index_t const rows = in.q_offsets.extent(0) - 1;

  // What rows share is summed by thread first.
  index_t const chunks = std::max(1, dev.threads);
  bool const want_prefix = !out.dprefix_k.empty();
  index_t const bias_size = out.dbias.empty() ? 0 : out.dbias.size();
  index_t const prefix_size = want_prefix ? out.dprefix_k.size() : 0;
  ArenaScope scope(dev.scratch);
  auto partial = dev.scratch.template allocate<T, 2>({chunks, bias_size + 2 * prefix_size});
  for (index_t c = 0; c < chunks; ++c)
    std::fill(partial.row(c), partial.row(c) + partial.extent(1), T(0));

  detail::for_each_chunk(dev, rows, [&](index_t chunk, index_t begin, index_t end) {
    T* const my_bias = partial.row(chunk);
    T* const my_prefix_k = my_bias + bias_size;
    T* const my_prefix_v = my_prefix_k + prefix_size;
    detail::AttentionTile<T> tile;
    std::vector<T> probability, dropped, dscore, dk_t, dv_t, factor;
    for (index_t b = begin; b < end; ++b) {
      index_t const first = in.q_offsets(b);
      index_t const queries = in.q_offsets(b + 1) - first;
      index_t const first_key = in.k_offsets(b);
      for (index_t h = 0; h < in.heads; ++h) {
        tile.load(in, b, h, true);
        auto const keys = static_cast<std::size_t>(tile.keys);
        probability.resize(keys);
        dropped.resize(keys);
        dscore.resize(keys);
        factor.resize(keys);
        dk_t.assign(keys * static_cast<std::size_t>(width), T(0));
        dv_t.assign(keys * static_cast<std::size_t>(width), T(0));
        for (index_t i = 0; i < queries; ++i) {
          index_t const n = tile.visible(in.mask, i);
          T* const gradient_q = out.dq.row(first + i) + h * width;
          if (n == 0) {
            std::fill(gradient_q, gradient_q + width, T(0));
            continue;
          }
          T* const p = probability.data();
          T* const pf = dropped.data();
          T* const ds = dscore.data();
          detail::attention_scores(in, tile, b, h, i, n, p);
          T const log_sum = lse(h, first + i);
          for (index_t j = 0; j < n; ++j) p[j] = exp_branchless(p[j] - log_sum);
          // The rounding of lse is common to all of them: they are made to add up to 1 again.
          T const inverse = T(1) / detail::sum_in_lanes<T>(n, [&](index_t j) { return p[j]; });
          for (index_t j = 0; j < n; ++j) p[j] *= inverse;
          T const* const g = d_o.row(first + i) + h * width;
          detail::row_times_matrix(g, tile.v_t.data(), tile.keys, width, n, ds);
          if (in.dropout.active()) {
            dropout_factors(in.dropout, detail::dropout_row(first + i, in.heads, h), 0,
                            factor.data(), n);
            for (index_t j = 0; j < n; ++j) {
              auto const u = static_cast<std::size_t>(j);
              pf[j] = p[j] * factor[u];
              ds[j] *= factor[u];
            }
          } else {
            std::copy(p, p + n, pf);
          }
          // delta is do . o, but taken of the p and dp at hand: the ds of a query then add up to
          // nothing but the rounding of the products below. An error in do . o would be common to
          // all keys and come back multiplied by what keys have in common. A query that attends to
          // one key alone has delta == dp to the last bit, and its score no gradient.
          T const delta = detail::sum_in_lanes<T>(n, [&](index_t j) { return p[j] * ds[j]; });
          for (index_t j = 0; j < n; ++j) ds[j] = p[j] * (ds[j] - delta);
          if (bias_size > 0) {
            T* const to = my_bias + h * out.dbias.extent(1) - i - in.bias_first;
            for (index_t j = prefix; j < n; ++j) to[j - prefix] += ds[j];
          }
          if (in.scale != T(1)) {
            for (index_t j = 0; j < n; ++j) ds[j] *= in.scale;
          }
          T const* const q = in.q.row(first + i) + h * width;
          for (index_t d = 0; d < width; ++d) {
            T const* const k_row = tile.k_t.data() + d * tile.keys;
            T* const dk_row = dk_t.data() + d * tile.keys;
            T* const dv_row = dv_t.data() + d * tile.keys;
            T partial_sum[8] = {};
            T const qd = q[d], gd = g[d];
            index_t j = 0;
            for (; j + 8 <= n; j += 8) {
              for (int l = 0; l < 8; ++l) {
                partial_sum[l] += ds[j + l] * k_row[j + l];
                dk_row[j + l] += ds[j + l] * qd;
                dv_row[j + l] += pf[j + l] * gd;
              }
            }
            T sum = T(0);
            for (; j < n; ++j) {
              sum += ds[j] * k_row[j];
              dk_row[j] += ds[j] * qd;
              dv_row[j] += pf[j] * gd;
            }
            for (T const x : partial_sum) sum += x;
            gradient_q[d] = sum;
          }
        }
        auto const scatter = [&](std::vector<T> const& from, TensorView<T, 2, Cpu> to,
                                 T* to_prefix) {
          for (index_t j = 0; j < tile.keys; ++j) {
            for (index_t d = 0; d < width; ++d) {
              T const x = from[static_cast<std::size_t>(d * tile.keys + j)];
              if (j >= prefix) {
                to(first_key + j - prefix, h * width + d) = x;
              } else if (want_prefix) {
                to_prefix[j * out.dprefix_k.extent(1) + h * width + d] += x;
              }
            }
          }
        };
        scatter(dk_t, out.dk, my_prefix_k);
        scatter(dv_t, out.dv, my_prefix_v);
      }
    }
  });

  for (index_t c = 0; c < chunks; ++c) {
    T const* from = partial.row(c);
    auto const collect = [&from](TensorView<T, 2, Cpu> to) {
      for (index_t i = 0; i < to.extent(0); ++i) {
        for (index_t j = 0; j < to.extent(1); ++j) to(i, j) += *from++;
      }
    };
    if (bias_size > 0) collect(out.dbias);
    if (want_prefix) {
      collect(out.dprefix_k);
      collect(out.dprefix_v);
    }
  }
}

}  // namespace emprl
