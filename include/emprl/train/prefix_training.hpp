// SPDX-License-Identifier: Apache-2.0
#pragma once

// What makes the prefixes of a T5 in prefix-tuning, on any device: a network for each kind of
// attention (Li & Liang 2021). On a GPU a program includes emprl.cuh besides.

#include <cmath>
#include <cstdint>
#include <string_view>

#include "emprl/core/rng.hpp"
#include "emprl/nn/prefix.hpp"
#include "emprl/train/t5_weights.hpp"

namespace emprl::train {

/// The parameters of the three networks.
template <Scalar T, Device D>
struct PrefixNetworkParams {
  typename nn::PrefixNetwork<T, D>::Params encoder, decoder, cross;

  struct Shape {
    t5::Config model;
    index_t length = 0;
    index_t hidden = 0;
  };

  template <class F>
  void visit(Shape const& s, F&& f) {
    index_t const layer = 2 * s.model.inner();
    encoder.visit("prefix.encoder", {s.length, s.hidden, s.model.num_layers * layer}, f);
    decoder.visit("prefix.decoder", {s.length, s.hidden, s.model.num_decoder_layers * layer}, f);
    cross.visit("prefix.cross", {s.length, s.hidden, s.model.num_decoder_layers * layer}, f);
  }
};

/// What makes the prefixes of one model in training.
template <Scalar T, Device D = Cpu>
class PrefixTraining {
 public:
  using Params = PrefixNetworkParams<T, D>;
  using Shape = typename Params::Shape;

  PrefixTraining(Shape const& shape, std::uint64_t seed) requires(std::same_as<D, Cpu>)
      : parameters(shape), gradients(shape), flat_gradients_(flat_shape(shape)) {
    // Uniform in +-1/sqrt(inputs) for the layers, standard normal for the embedding, as PyTorch
    // does.
    std::uint32_t row = 0;
    for (nn::ParameterInfo const& info : parameters.infos()) {
      RandomSequence random(seed, Stream::initialise, 2, row++);
      bool const embedding = std::string_view(info.name).ends_with("embedding.weight");
      double const bound = 1.0 / std::sqrt(static_cast<double>(shape.hidden));
      for (T& x : parameters.span(info)) {
        x = static_cast<T>(embedding ? random.normal() : bound * (2.0 * random.uniform() - 1.0));
      }
    }
  }

  /// The same numbers on a device.
  PrefixTraining(D& dev, Shape const& shape, std::uint64_t seed)
      : parameters(dev, shape), gradients(dev, shape), flat_gradients_(dev, flat_shape(shape)) {
    PrefixTraining<T, Cpu> const host({shape.model, shape.length, shape.hidden}, seed);
    copy(dev, parameters.all(), host.parameters.span());
  }

  /// Writes the prefixes that the networks make now.
  void inference(D& dev, t5::Prefixes<T, D> const& out) const {
    network_.inference(dev, parameters.views().encoder, out.encoder);
    network_.inference(dev, parameters.views().decoder, out.decoder);
    network_.inference(dev, parameters.views().cross, out.cross);
  }

  /// The same, keeping in dev.saved what backward needs, and clears the prefixes' gradients.
  void forward(D& dev, t5::Prefixes<T, D> const& out) {
    network_.forward(dev, parameters.views().encoder, out.encoder, contexts_[0]);
    network_.forward(dev, parameters.views().decoder, out.decoder, contexts_[1]);
    network_.forward(dev, parameters.views().cross, out.cross, contexts_[2]);
    clear(dev, flat_gradients_.all());
  }

  /// Where the model's backward pass adds the prefixes' gradients.
  t5::Prefixes<T, D> const& prefix_gradients() const { return flat_gradients_.views(); }

  /// Carries them on to `gradients` (+=).
  void backward(D& dev) {
    auto const& d = flat_gradients_.views();
    network_.backward(dev, parameters.views().encoder, gradients.views().encoder, d.encoder,
                      contexts_[0]);
    network_.backward(dev, parameters.views().decoder, gradients.views().decoder, d.decoder,
                      contexts_[1]);
    network_.backward(dev, parameters.views().cross, gradients.views().cross, d.cross,
                      contexts_[2]);
  }

  nn::ParameterStore<Params, T, D> parameters;
  nn::ParameterStore<Params, T, D> gradients;

 private:
  static typename t5::Prefixes<T, D>::Shape flat_shape(Shape const& shape) {
    return {shape.model, shape.length};
  }

  nn::PrefixNetwork<T, D> network_;
  typename nn::PrefixNetwork<T, D>::Context contexts_[3];
  PrefixParameters<T, D> flat_gradients_;
};

}  // namespace emprl::train
