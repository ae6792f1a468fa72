// SPDX-License-Identifier: Apache-2.0
#pragma once

// A T5 whose units stand in another order is the same model, with every sum in another order. The
// units of d_model, of d_ff and of each head change places, as in golden/make_t5_goldens.py.

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/nn/parameters.hpp"
#include "emprl/t5/config.hpp"
#include "support/orders.hpp"

namespace support {

/// The places of a model's units. An empty list leaves an axis as it is.
class UnitOrders {
 public:
  /// @param order       0 for the natural one
  /// @param heads_only  leave the units of d_model and d_ff where they are: dropout draws by their
  ///                    places, but never inside a head
  UnitOrders(emprl::t5::Config const& c, std::uint64_t order, bool heads_only = false)
      : head_width_(c.d_kv), head_(shuffled(c.d_kv, order, 2)) {
    if (heads_only) return;
    model_ = shuffled(c.d_model, order, 0);
    hidden_ = shuffled(c.d_ff, order, 1);
  }

  /// Parameters (or their gradients), all in one vector, with their units in this order.
  template <class T>
  std::vector<T> apply(std::vector<T> x, std::vector<emprl::nn::ParameterInfo> const& infos) const {
    return move(std::move(x), infos, true);
  }
  /// The inverse.
  template <class T>
  std::vector<T> undo(std::vector<T> x, std::vector<emprl::nn::ParameterInfo> const& infos) const {
    return move(std::move(x), infos, false);
  }
  /// The inverse for states, rows of d_model numbers.
  template <class T>
  std::vector<T> undo_states(std::vector<T> x) const {
    if (model_.empty()) return x;
    move_matrix(std::span<T>(x), static_cast<index_t>(x.size() / model_.size()), {}, model_, false);
    return x;
  }

 private:
  using Order = std::vector<index_t>;

  /// The orders of the rows and columns of a parameter; a vector is one row.
  std::array<Order, 2> axes(emprl::nn::ParameterInfo const& info) const {
    std::string_view const name = info.name;
    auto const ends = [name](auto... end) { return (name.ends_with(end) || ...); };
    if (ends(".wi.weight", ".wi_0.weight", ".wi_1.weight")) return {hidden_, model_};
    if (ends(".wo.weight")) return {model_, hidden_};
    if (ends("Attention.o.weight")) return {model_, all_heads(info.shape[1])};
    if (ends(".q.weight", ".k.weight", ".v.weight")) return {all_heads(info.shape[0]), model_};
    if (ends("layer_norm.weight", "shared.weight", "lm_head.weight", "summary.weight")) {
      return {Order{}, model_};
    }
    if (name.starts_with("prefix.")) return {Order{}, all_heads(info.shape[1])};
    return {};
  }

  /// The same order in every head.
  Order all_heads(index_t width) const {
    Order x;
    for (index_t i = 0; i < width; ++i) {
      x.push_back(i / head_width_ * head_width_ + head_[static_cast<std::size_t>(i % head_width_)]);
    }
    return x;
  }

  template <class T>
  static void move_matrix(std::span<T> x, index_t rows, Order const& row_order,
                          Order const& column_order, bool there) {
    if (rows == 0 || x.empty()) return;
    auto const columns = static_cast<index_t>(x.size()) / rows;
    std::vector<T> const from(x.begin(), x.end());
    auto const at = [](Order const& order, index_t i) {
      return order.empty() ? i : order[static_cast<std::size_t>(i)];
    };
    for (index_t i = 0; i < rows; ++i) {
      for (index_t j = 0; j < columns; ++j) {
        auto const ordered = static_cast<std::size_t>(i * columns + j);
        auto const natural =
            static_cast<std::size_t>(at(row_order, i) * columns + at(column_order, j));
        x[there ? ordered : natural] = from[there ? natural : ordered];
      }
    }
  }

  template <class T>
  std::vector<T> move(std::vector<T> x, std::vector<emprl::nn::ParameterInfo> const& infos,
                      bool there) const {
    if (x.empty()) return x;
    for (auto const& info : infos) {
      auto const [rows, columns] = axes(info);
      move_matrix(std::span<T>(x).subspan(static_cast<std::size_t>(info.offset),
                                          static_cast<std::size_t>(info.size)),
                  info.shape.size() == 2 ? info.shape[0] : 1, rows, columns, there);
    }
    return x;
  }

  index_t head_width_;
  Order model_, hidden_, head_;
};

/// Adds each named part of a store's numbers to results.
template <class T>
void add_parts(Results<T>& results, std::string const& what,
               std::vector<emprl::nn::ParameterInfo> const& infos, std::vector<T> const& numbers) {
  for (auto const& info : infos) {
    results[what + info.name] = {numbers.begin() + info.offset,
                                 numbers.begin() + info.offset + info.size};
  }
}

}  // namespace support
