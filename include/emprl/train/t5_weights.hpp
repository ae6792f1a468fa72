// SPDX-License-Identifier: Apache-2.0
#pragma once

// A T5 with what training adds to it, in the memory of one device. Nothing here reads files or
// text: nvcc compiles it.

#include <algorithm>
#include <concepts>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "emprl/nn/value_head.hpp"
#include "emprl/t5/lora.hpp"
#include "emprl/t5/model.hpp"

namespace emprl::train {

/// The weights of nn::ValueHead.
template <Element T, Device D = Cpu>
using ValueHeadParameters = nn::ParameterStore<typename nn::ValueHead<T, D>::Params, T, D>;

/// Trained prefixes of all layers.
template <Element T, Device D = Cpu>
using PrefixParameters = nn::ParameterStore<t5::Prefixes<T, D>, T, D>;

namespace detail {

/// to = from on the device, in the order of its work; rounded where `to` is of a 16-bit format.
/// @throws ShapeError unless the stores have the same number of elements
template <Device D, class P, Element T, class Q>
void upload(D& dev, nn::ParameterStore<P, T, D> const& to,
            nn::ParameterStore<Q, Accumulator<T>, Cpu> const& from) {
  std::span<Accumulator<T>> const values = from.span();
  if constexpr (std::same_as<T, Accumulator<T>>) {
    copy(dev, to.all(), values);
  } else {
    std::vector<T> const rounded(values.begin(), values.end());
    copy(dev, to.all(), rounded);
  }
}

}  // namespace detail

/// A T5 on device D: its layers, weights, adapter and value head. A Generator is one on the CPU,
/// with a tokenizer. Move-only. A LoRA is attached: weights.views() has it beside the weights, so
/// that whoever computes with them computes with it too.
template <Element T, Device D = Cpu>
struct T5Weights {
  t5::Model<T, D> model;
  t5::Parameters<T, D> weights;
  PrefixParameters<T, D> prefix;         ///< without elements: no prefix
  ValueHeadParameters<T, D> value_head;  ///< without elements: none

  t5::Config const& config() const { return model.config(); }
  t5::Prefixes<T, D> const& prefixes() const { return prefix.views(); }
  index_t prefix_length() const { return prefix.size() > 0 ? prefix.views().encoder.extent(0) : 0; }

  /// The matrices of the LoRA; without elements: none.
  t5::LoraParameters<T, D> const& lora() const { return lora_; }
  t5::LoraShape const& lora_shape() const { return lora_shape_; }

  /// Takes a LoRA, in place of the one that was there.
  /// @throws ConfigError if it does not belong to a model of this configuration; the one that was
  /// there then stays
  void attach_lora(t5::LoraShape shape, t5::LoraParameters<T, D> parameters) {
    shape.model = config();
    t5::Params<T, D> with = weights.views();
    parameters.views().attach(shape, with);
    weights.edit_views([&](auto& p) { p = std::move(with); });
    lora_ = std::move(parameters);
    lora_shape_ = std::move(shape);
  }

  /// Leaves the model as it is without its LoRA.
  void detach_lora() {
    weights.edit_views([&](auto& p) { t5::Lora<T, D>::detach(config(), p); });
    lora_ = {};
    lora_shape_ = {};
  }

  /// All weights zero, without adapter and value head.
  explicit T5Weights(t5::Config const& config) requires(std::same_as<D, Cpu>)
      : model(config), weights(config) {}

  /// The same with weights that the caller writes before anything reads them.
  T5Weights(nn::Unset unset, t5::Config const& config) requires(std::same_as<D, Cpu>)
      : model(config), weights(unset, config) {}

  /// A copy of weights, adapter and value head on the device, in the order of its work; rounded
  /// where T is a 16-bit format. It does not follow later changes of `host`.
  T5Weights(D& dev, T5Weights<Accumulator<T>, Cpu> const& host)
      : model(host.config()), weights(dev, host.config()) {
    detail::upload(dev, weights, host.weights);
    if (host.prefix.size() > 0) {
      prefix = PrefixParameters<T, D>(
          dev, typename t5::Prefixes<T, D>::Shape{host.config(), host.prefix_length()});
      detail::upload(dev, prefix, host.prefix);
    }
    if (host.lora().size() > 0) {
      t5::LoraParameters<T, D> matrices(dev, host.lora_shape());
      detail::upload(dev, matrices, host.lora());
      attach_lora(host.lora_shape(), std::move(matrices));
    }
    if (host.value_head.size() > 0) {
      value_head = ValueHeadParameters<T, D>(dev, host.config().d_model);
      detail::upload(dev, value_head, host.value_head);
    }
  }

 private:
  t5::LoraParameters<T, D> lora_;
  t5::LoraShape lora_shape_;
};

/// Puts a LoRA into the weights and takes it away: W += scale B A. The model gives what it gave,
/// but for rounding.
template <Element T, Device D>
void merge_lora(D& dev, T5Weights<T, D>& generator) {
  t5::merge_lora(dev, generator.config(), generator.weights.views());
  generator.detach_lora();
}

/// to = from: brings trained weights, adapter and value head home, to be saved or used there. Waits
/// for the device.
/// @throws ShapeError unless both are of one configuration, with a prefix of one length, a LoRA of
/// one shape and a value head in both or in neither
template <Scalar T, Device D>
void copy_weights(D& dev, T5Weights<T, Cpu>& to, T5Weights<T, D> const& from) {
  copy(dev, to.weights.span(), from.weights.all());
  copy(dev, to.prefix.span(), from.prefix.all());
  copy(dev, to.lora().span(), from.lora().all());
  copy(dev, to.value_head.span(), from.value_head.all());
}

}  // namespace emprl::train
