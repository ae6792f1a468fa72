// SPDX-License-Identifier: Apache-2.0
#pragma once

// What every layer promises, as one test: inference equals forward, backward adds to parameter
// gradients and overwrites activation gradients, nothing is read before it is written, scratch
// memory is given back, no batch row influences another, and the gradients are those of the
// function.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "emprl/core/device.hpp"
#include "emprl/ops/dropout.hpp"
#include "support/catch.hpp"
#include "support/compare.hpp"
#include "support/gradient_check.hpp"

namespace support {

/// Packed rows; `ids` tells which rows they are, so that a layer with other inputs can supply the
/// same ones for each.
template <class T>
struct LayerBatch {
  std::vector<index_t> ids;
  std::vector<index_t> offsets;
  TensorView<T const, 2, Cpu> x;

  TensorView<index_t const, 1, Cpu> offsets_view() const {
    return {offsets.data(), {static_cast<index_t>(offsets.size())}};
  }
};

/// Something trained: its values, and the gradient that backward adds to.
template <class T>
struct LayerParameter {
  std::string name;
  std::span<T> values;
  std::span<T> gradient;
};

template <class T>
struct LayerUnderTest {
  std::string name;
  index_t inputs = 0;
  index_t outputs = 0;
  std::vector<LayerParameter<T>> parameters;
  std::function<void(Cpu&, LayerBatch<T> const&, TensorView<T, 2, Cpu>)> inference;
  /// Keeps its context for `backward`; `sites` are for layers with dropout.
  std::function<void(Cpu&, LayerBatch<T> const&, TensorView<T, 2, Cpu>, emprl::DropoutSites&)>
      forward;
  std::function<void(Cpu&, TensorView<T const, 2, Cpu>, TensorView<T, 2, Cpu>)> backward;
  /// True for a layer that documents dx += instead of dx = .
  bool adds_to_dx = false;
  bool has_dropout = false;
  /// For the central differences; ReLU needs a step that crosses no kink.
  GradientCheckOptions gradients{};
};

namespace detail {

/// The packed input of the rows named by ids: row i always has the same numbers.
template <class T>
struct LayerInput {
  LayerInput(index_t width, std::vector<index_t> const& lengths, std::vector<index_t> const& ids) {
    std::vector<index_t> chosen;
    for (index_t const i : ids) chosen.push_back(lengths[static_cast<std::size_t>(i)]);
    batch.ids = ids;
    batch.offsets = offsets_of(chosen);
    x = Tensor<T, 2, Cpu>({batch.offsets.back(), width});
    for (std::size_t r = 0; r < ids.size(); ++r) {
      auto const row =
          random_values<T>(chosen[r] * width, 1000 + static_cast<std::uint64_t>(ids[r]));
      std::copy(row.begin(), row.end(), x.data() + batch.offsets[r] * width);
    }
    batch.x = x.view();
  }

  LayerBatch<T> batch;
  Tensor<T, 2, Cpu> x;
};

template <class T>
void clear_gradients(LayerUnderTest<T> const& layer) {
  for (auto const& p : layer.parameters) std::fill(p.gradient.begin(), p.gradient.end(), T(0));
}

inline bool same(emprl::Arena::Mark a, emprl::Arena::Mark b) {
  return a.block == b.block && a.used == b.used;
}

}  // namespace detail

/// Checks the contract in format T; gradients against central differences if T is double.
/// @param lengths  of the batch rows that the layer is tried on
template <class T>
void check_layer_contract(LayerUnderTest<T>& layer, std::vector<index_t> const& lengths) {
  INFO("layer " << layer.name);
  Cpu dev(2);
  dev.scratch.poison(true);
  dev.saved.poison(true);
  std::vector<index_t> all;
  for (std::size_t i = 0; i < lengths.size(); ++i) all.push_back(static_cast<index_t>(i));
  detail::LayerInput<T> const in(layer.inputs, lengths, all);
  index_t const n = in.x.extent(0);
  std::array<index_t, 2> const y_extents{n, layer.outputs};
  emprl::DropoutSites none;

  // inference equals forward, to the last bit; outputs are written wholly; scratch is given back.
  auto y = poisoned<T, 2>(y_extents);
  auto const mark = dev.scratch.mark();
  layer.inference(dev, in.batch, y.view());
  CHECK(detail::same(dev.scratch.mark(), mark));
  auto y_forward = poisoned<T, 2>(y_extents);
  layer.forward(dev, in.batch, y_forward.view(), none);
  CHECK(detail::same(dev.scratch.mark(), mark));
  CHECK(max_abs(values(y)) < std::numeric_limits<double>::infinity());
  CHECK(max_difference(values(y), values(y_forward)) == 0.0);

  // backward: twice doubles what is accumulated, and leaves dx as it was.
  auto const dy = to_tensor(random_matrix<T>(n, layer.outputs, 77));
  std::array<index_t, 2> const dx_extents{n, layer.inputs};
  auto const fresh_dx = [&] {
    return layer.adds_to_dx ? Tensor<T, 2, Cpu>(dx_extents, T(0)) : poisoned<T, 2>(dx_extents);
  };
  detail::clear_gradients(layer);
  auto dx = fresh_dx();
  layer.backward(dev, dy, dx.view());
  CHECK(detail::same(dev.scratch.mark(), mark));
  std::vector<std::vector<T>> once;
  for (auto const& p : layer.parameters) {
    once.emplace_back(p.gradient.begin(), p.gradient.end());
    INFO("gradient of " << p.name);
    CHECK(max_abs(once.back()) < std::numeric_limits<double>::infinity());
    CHECK(max_abs(once.back()) > 0);
  }
  auto dx_again = fresh_dx();
  layer.backward(dev, dy, dx_again.view());
  CHECK(max_difference(values(dx), values(dx_again)) == 0.0);
  for (std::size_t i = 0; i < once.size(); ++i) {
    auto const& p = layer.parameters[i];
    auto doubled = reference::convert<double>(once[i]);
    for (double& v : doubled) v *= 2;
    check_error(p.name + ": gradient after two backward passes",
                std::vector<T>(p.gradient.begin(), p.gradient.end()), doubled, 0.0, 64);
  }
  if (layer.adds_to_dx) {
    layer.backward(dev, dy, dx_again.view());
    auto doubled = reference::convert<double>(values(dx));
    for (double& v : doubled) v *= 2;
    check_error("dx accumulated twice", values(dx_again), doubled, 0.0, 64);
  }

  // A row's result is its own: alone, in another order, beside other rows.
  auto const check_rows = [&](std::vector<index_t> const& ids) {
    detail::LayerInput<T> const part(layer.inputs, lengths, ids);
    auto y_part = poisoned<T, 2>({part.x.extent(0), layer.outputs});
    layer.inference(dev, part.batch, y_part.view());
    for (std::size_t r = 0; r < ids.size(); ++r) {
      auto const u = static_cast<std::size_t>(ids[r]);
      auto const here =
          values(y_part.view().rows(part.batch.offsets[r], part.batch.offsets[r + 1]));
      auto const there = values(y.view().rows(in.batch.offsets[u], in.batch.offsets[u + 1]));
      check_error("row " + std::to_string(ids[r]) + " in another batch", here,
                  reference::convert<double>(there), 0.0, 64);
    }
  };
  for (index_t const i : all) check_rows({i});
  check_rows({all.rbegin(), all.rend()});

  // No rows at all.
  detail::LayerInput<T> const empty(layer.inputs, lengths, {});
  Tensor<T, 2, Cpu> no_y({0, layer.outputs});
  layer.inference(dev, empty.batch, no_y.view());
  layer.forward(dev, empty.batch, no_y.view(), none);
  Tensor<T, 2, Cpu> no_dx({0, layer.inputs});
  layer.backward(dev, no_y, no_dx.view());

  if constexpr (std::is_same_v<T, double>) {
    // One thread: thousands of tiny passes would mostly wait for the other.
    dev.threads = 1;
    for (double const probability : {0.0, 0.3}) {
      if (probability > 0 && !layer.has_dropout) continue;
      INFO("dropout " << probability);
      auto const f = [&] {
        emprl::ArenaScope const scope(dev.saved);
        emprl::DropoutSites sites(probability, 11, 3);
        layer.forward(dev, in.batch, y.view(), sites);
        double sum = 0;
        for (index_t i = 0; i < y.size(); ++i) sum += y.data()[i] * dy.data()[i];
        return sum;
      };
      emprl::DropoutSites sites(probability, 11, 3);
      layer.forward(dev, in.batch, y.view(), sites);
      detail::clear_gradients(layer);
      auto gradient = fresh_dx();
      layer.backward(dev, dy, gradient.view());
      std::vector<GradientInput> inputs{{"x", in.x.span(), values(gradient)}};
      for (auto const& p : layer.parameters) {
        inputs.push_back({p.name, p.values, {p.gradient.begin(), p.gradient.end()}});
      }
      check_gradients(f, inputs, layer.gradients);
    }
  }
}

}  // namespace support
