// SPDX-License-Identifier: Apache-2.0
#pragma once

// Dropout whose masks are never stored: a backward pass draws the same counter-based numbers again.

#include <algorithm>
#include <cstdint>

#include "emprl/core/device.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/rng.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/ops/view.hpp"

namespace emprl {

/// Where in a run a mask is drawn. `site` tells the places of one pass apart; probability 0 means
/// no dropout at all.
struct DropoutKey {
  double probability = 0;
  std::uint64_t seed = 0;
  std::uint32_t step = 0;
  std::uint32_t site = 0;

  bool active() const { return probability > 0; }

  /// 16 random bits below this number drop an element.
  std::uint32_t threshold() const {
    return static_cast<std::uint32_t>(probability * 65536.0 + 0.5);
  }
  /// What an element that stays is multiplied by.
  double keep() const { return 65536.0 / (65536.0 - threshold()); }
  /// The first word of a draw's counter.
  std::uint32_t purpose() const { return static_cast<std::uint32_t>(Stream::dropout) | site << 8; }
};

/// Hands out the sites of one pass in the order in which the layers ask. Adapters have a
/// probability of their own, and sites that they know by number, so that none moves a mask of the
/// model.
class DropoutSites {
 public:
  DropoutSites() = default;
  DropoutSites(double probability, std::uint64_t seed, std::uint32_t step,
               double adapter_probability = 0)
      : next_{probability, seed, step, 0}, adapter_probability_(adapter_probability) {}

  DropoutKey next() {
    DropoutKey const key = next_;
    ++next_.site;
    return key;
  }

  /// Whether anything of the model is dropped, adapters apart.
  bool active() const { return next_.active(); }

  /// The site of an adapter with that number, below 2^20.
  DropoutKey adapter(std::uint32_t number) const {
    return {adapter_probability_, next_.seed, next_.step, number + (std::uint32_t{1} << 20)};
  }

 private:
  DropoutKey next_;
  double adapter_probability_ = 0;
};

namespace detail {

/// A Philox block decides over eight elements of a row, dropout_lanes columns apart: blocks l = 0
/// .. dropout_lanes - 1 of a group serve dropout_group neighbouring columns.
inline constexpr int dropout_lanes = 16;
inline constexpr int dropout_group = 8 * dropout_lanes;

}  // namespace detail

/// The factors of columns first .. first + n of one row: 0 with the key's probability, else 1 / (1
/// - probability). `first` is a multiple of 128. A decision takes 16 random bits, so that one
/// Philox block serves eight; the probability is thereby a multiple of 2^-16 and the factor is
/// exact for that multiple. The loop over lanes is written for SIMD.
template <Scalar T>
void dropout_factors(DropoutKey const& key, std::uint32_t row, index_t first, T* factor,
                     index_t n) {
  constexpr index_t lanes = detail::dropout_lanes;
  constexpr index_t group = detail::dropout_group;
  std::uint32_t const threshold = key.threshold();
  T const keep = static_cast<T>(key.keep());
  std::uint32_t const purpose = key.purpose();
  for (index_t base = 0; base < n; base += group) {
    std::uint32_t c0[lanes], c1[lanes], c2[lanes], c3[lanes];
    for (index_t l = 0; l < lanes; ++l) {
      c0[l] = purpose;
      c1[l] = key.step;
      c2[l] = row;
      c3[l] = static_cast<std::uint32_t>((first + base) / 8 + l);
    }
    std::uint32_t k0 = static_cast<std::uint32_t>(key.seed);
    std::uint32_t k1 = static_cast<std::uint32_t>(key.seed >> 32);
    for (int round = 0; round < 10; ++round) {
      for (index_t l = 0; l < lanes; ++l) {
        std::uint64_t const p0 = std::uint64_t{0xD2511F53u} * c0[l];
        std::uint64_t const p1 = std::uint64_t{0xCD9E8D57u} * c2[l];
        std::uint32_t const n0 = static_cast<std::uint32_t>(p1 >> 32) ^ c1[l] ^ k0;
        std::uint32_t const n2 = static_cast<std::uint32_t>(p0 >> 32) ^ c3[l] ^ k1;
        c1[l] = static_cast<std::uint32_t>(p1);
        c3[l] = static_cast<std::uint32_t>(p0);
        c0[l] = n0;
        c2[l] = n2;
      }
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    T block[group];
    std::uint32_t const* const words[4] = {c0, c1, c2, c3};
    for (index_t w = 0; w < 4; ++w) {
      for (index_t l = 0; l < lanes; ++l) {
        block[2 * w * lanes + l] = (words[w][l] & 0xffffu) < threshold ? T(0) : keep;
        block[(2 * w + 1) * lanes + l] = (words[w][l] >> 16) < threshold ? T(0) : keep;
      }
    }
    std::copy(block, block + std::min(group, n - base), factor + base);
  }
}

namespace detail {

/// Calls f(row, first, n, factors) for the pieces of all rows, factors[j] that of column first + j.
template <Scalar T, class F>
void for_each_dropout(Cpu& dev, index_t rows, index_t columns, DropoutKey const& key, F f) {
  index_t const grain = std::max<index_t>(1, 4096 / std::max<index_t>(1, columns));
  parallel_for(dev, rows, grain, [&](index_t begin, index_t end) {
    constexpr index_t tile = 512;
    T factor[tile];
    for (index_t i = begin; i < end; ++i) {
      for (index_t j0 = 0; j0 < columns; j0 += tile) {
        index_t const m = std::min(tile, columns - j0);
        dropout_factors(key, static_cast<std::uint32_t>(i), j0, factor, m);
        f(i, j0, m, static_cast<T const*>(factor));
      }
    }
  });
}

}  // namespace detail

/// y[n,c] = x[n,c] factor[n,c]; forward and backward are the same operation.
/// @param y (N, C), written, may be x      @param x (N, C)
/// @throws ShapeError if extents disagree
template <Scalar T>
void dropout_forward(Cpu& dev, Out<T, 2, Cpu> y, In<T, 2, Cpu> x, DropoutKey const& key) {
  expects(x.extents() == y.extents(), "dropout: input and output must agree");
  detail::for_each_dropout<T>(dev, y.extent(0), y.extent(1), key,
                              [&](index_t i, index_t first, index_t n, T const* factor) {
                                T* const to = y.row(i) + first;
                                T const* const from = x.row(i) + first;
                                for (index_t j = 0; j < n; ++j) to[j] = from[j] * factor[j];
                              });
}

/// y[n,c] = added[n,c] + x[n,c] factor[n,c].
/// @param y (N, C), written, may be x or added      @param x, added (N, C)
/// @throws ShapeError if extents disagree
template <Scalar T>
void dropout_add(Cpu& dev, Out<T, 2, Cpu> y, In<T, 2, Cpu> x, In<T, 2, Cpu> added,
                 DropoutKey const& key) {
  expects(x.extents() == y.extents() && added.extents() == y.extents(),
          "dropout: inputs and output must agree");
  detail::for_each_dropout<T>(dev, y.extent(0), y.extent(1), key,
                              [&](index_t i, index_t first, index_t n, T const* factor) {
                                T* const to = y.row(i) + first;
                                T const* const from = x.row(i) + first;
                                T const* const more = added.row(i) + first;
                                for (index_t j = 0; j < n; ++j)
                                  to[j] = more[j] + from[j] * factor[j];
                              });
}

/// x[n,c] *= factor[n,c], nothing where the key is inactive.     x (N, C)
template <Element T, Device D>
void dropout_apply(D& dev, TensorView<T, 2, D> x, DropoutKey const& key) {
  if (key.active()) dropout_forward(dev, x, x, key);
}

}  // namespace emprl
