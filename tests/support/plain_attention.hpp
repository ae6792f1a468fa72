// SPDX-License-Identifier: Apache-2.0
#pragma once

// Attention as a plain program has it, in the format of the kernels: what their errors are measured
// by. The naive reference in double (reference/attention.hpp) is the truth that both miss.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "reference/attention.hpp"
#include "support/formats.hpp"
#include "support/orders.hpp"

namespace support {

/// The outputs of plain_attention. Gradients by the bias and the prefix are float in every format.
struct PlainAttention {
  reference::Matrix<float> o;
  std::vector<float> lse;  // (H, Nq)
  reference::AttentionInputs<float> gradients;
};

/// Attention and the gradients of sum(dy * o), every step a pass of its own over whole matrices, as
/// PyTorch's eager mode runs it in format T: sums are float, and what a step hands on is stored in
/// T, namely scores (after the product, the scale and the bias each), probabilities, o, and the
/// gradients by probabilities and scores. In float nothing of that rounds twice.
/// @param order  0 for sums in their natural order; any other number shuffles the columns of a
///               head, the keys and the queries, by which every sum runs in another order
template <class T>
PlainAttention plain_attention(reference::AttentionShape const& shape,
                               reference::AttentionInputs<float> const& in,
                               reference::Matrix<float> const& dy, std::uint64_t order) {
  using Row = std::vector<float>;
  using Order = std::vector<index_t>;
  constexpr float nothing = -std::numeric_limits<float>::infinity();
  index_t const dh = in.q.cols / shape.heads;
  index_t const prefix = in.prefix_k.rows;
  auto const scale = static_cast<float>(shape.scale);
  auto const zeros = [](index_t n) { return Row(static_cast<std::size_t>(n)); };

  PlainAttention y;
  auto& g = y.gradients;
  auto const like = [](reference::Matrix<float> const& m) {
    return reference::Matrix<float>(m.rows, m.cols);
  };
  y.o = like(in.q);
  g = {like(in.q),          like(in.k),        like(in.v),
       like(in.bias_table), like(in.prefix_k), like(in.prefix_v)};
  y.lse.assign(static_cast<std::size_t>(shape.heads * in.q.rows), nothing);

  for (std::size_t r = 0; r + 1 < shape.query_offsets.size(); ++r) {
    index_t const q0 = shape.query_offsets[r];
    index_t const k0 = shape.key_offsets[r];
    Order const queries = shuffled(shape.query_offsets[r + 1] - q0, order, 0);
    Order const keys = shuffled(prefix + shape.key_offsets[r + 1] - k0, order, 1);
    auto const n = static_cast<index_t>(keys.size());
    for (index_t h = 0; h < shape.heads; ++h) {
      // One head's keys and values in that order, a row for each column.
      Order columns = shuffled(dh, order, 2);
      for (index_t& c : columns) c += h * dh;
      auto const gathered = [&](auto const& of_prefix, auto const& of_row) {
        Row x;
        for (index_t const c : columns) {
          for (index_t const j : keys) {
            x.push_back(j < prefix ? of_prefix(j, c) : of_row(k0 + j - prefix, c));
          }
        }
        return x;
      };
      Row const k = gathered(in.prefix_k, in.k), v = gathered(in.prefix_v, in.v);
      Row dk(k.size()), dv(k.size());
      for (index_t const i : queries) {
        // A row of a head times the matrix of its keys or values: a number a key.
        auto const by_keys = [&](reference::Matrix<float> const& x, Row const& m) {
          Row s = zeros(n);
          for (index_t c = 0; c < dh; ++c) {
            float const factor = x(q0 + i, columns[static_cast<std::size_t>(c)]);
            float const* const from = m.data() + c * n;
            for (index_t j = 0; j < n; ++j) s[static_cast<std::size_t>(j)] += factor * from[j];
          }
          for (float& a : s) a = rounded<T>(a);
          return s;
        };
        // The other way: a number a column.
        auto const by_columns = [&](reference::Matrix<float>& to, Row const& x, Row const& m) {
          for (index_t c = 0; c < dh; ++c) {
            float const* const from = m.data() + c * n;
            float sum = 0;
            for (index_t j = 0; j < n; ++j) sum += x[static_cast<std::size_t>(j)] * from[j];
            to(q0 + i, columns[static_cast<std::size_t>(c)]) = rounded<T>(sum);
          }
        };
        auto const add_products = [&](Row& to, Row const& x, reference::Matrix<float> const& m) {
          for (index_t c = 0; c < dh; ++c) {
            float const factor = m(q0 + i, columns[static_cast<std::size_t>(c)]);
            float* const out = to.data() + c * n;
            for (index_t j = 0; j < n; ++j) out[j] += x[static_cast<std::size_t>(j)] * factor;
          }
        };
        Row p = by_keys(in.q, k);
        float most = nothing;
        for (std::size_t a = 0; a < p.size(); ++a) {
          index_t const distance = keys[a] - prefix - i;
          bool const own = keys[a] >= prefix;
          p[a] = rounded<T>(scale * p[a]);
          if (own && shape.causal && distance > 0) {
            p[a] = nothing;
          } else if (own && shape.bucket) {
            p[a] = rounded<T>(p[a] + in.bias_table(shape.bucket(distance), h));
          }
          most = std::max(most, p[a]);
        }
        if (most == nothing) continue;
        float sum = 0;
        for (float& x : p) {
          x = std::exp(x - most);
          sum += x;
        }
        y.lse[static_cast<std::size_t>(h * in.q.rows + q0 + i)] = most + std::log(sum);
        for (float& x : p) x = rounded<T>(x / sum);
        by_columns(y.o, p, v);

        Row ds = by_keys(dy, v);
        float delta = 0;
        for (std::size_t a = 0; a < p.size(); ++a) delta += p[a] * ds[a];
        for (std::size_t a = 0; a < p.size(); ++a) {
          ds[a] = rounded<T>(p[a] * (ds[a] - delta));
          if (keys[a] >= prefix && shape.bucket && p[a] > 0) {
            g.bias_table(shape.bucket(keys[a] - prefix - i), h) += ds[a];
          }
          ds[a] = rounded<T>(scale * ds[a]);
        }
        by_columns(g.q, ds, k);
        add_products(dk, ds, in.q);
        add_products(dv, p, dy);
      }
      for (std::size_t x = 0; x < k.size(); ++x) {
        index_t const c = columns[x / keys.size()];
        index_t const j = keys[x % keys.size()];
        (j < prefix ? g.prefix_k(j, c) : g.k(k0 + j - prefix, c)) += dk[x];
        (j < prefix ? g.prefix_v(j, c) : g.v(k0 + j - prefix, c)) += dv[x];
      }
    }
  }
  for (auto* const x : {&g.k, &g.v}) *x = rounded<T>(*x);
  return y;
}

}  // namespace support
