// SPDX-License-Identifier: Apache-2.0
#pragma once

// Frozen models behind the functions of engine.hpp, the same source for every device.

#include <concepts>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "emprl/gen/generate.hpp"
#include "emprl/train/engine.hpp"
#include "emprl/train/t5_adaptors.hpp"

namespace emprl::train {

/// How device D generates, and what it keeps for that between two batches; cuda_engine.cuh has the
/// GPU's.
template <Element T, Device D>
class T5Generation;

/// The CPU keeps nothing.
template <Element T>
class T5Generation<T, Cpu> {
 public:
  /// The decoder must outlive it.
  T5Generation(Cpu&, T5Decoder<T, Cpu>& decoder) : decoder_(decoder) {}

  /// @throws as gen::generate
  Ragged operator()(RaggedView contexts, gen::SamplingConfig const& config,
                    std::span<gen::DrawSite const> sites) {
    return gen::generate(decoder_, contexts, config, sites);
  }

 private:
  T5Decoder<T, Cpu>& decoder_;
};

/// A frozen T5 in the memory of device D.
template <Element T, Device D>
class DeviceT5 final : public EngineT5 {
 public:
  DeviceT5(D& dev, std::shared_ptr<T5Weights<T, D> const> weights)
      : dev_(dev),
        weights_(std::move(weights)),
        decoder_(dev, *weights_),
        generation_(dev, decoder_) {}
  DeviceT5(DeviceT5 const&) = delete;
  DeviceT5& operator=(DeviceT5 const&) = delete;

  t5::Config const& config() const override { return weights_->config(); }

  using EngineT5::logprobs;
  void logprobs(RaggedView contexts, RaggedView responses, std::span<float> logp,
                std::span<float> entropy) override {
    token_logprobs(dev_, *weights_, contexts, responses, logp, {}, 1.0f, entropy);
  }

  using EngineT5::generate;
  Ragged generate(RaggedView contexts, gen::SamplingConfig const& config,
                  std::span<gen::DrawSite const> sites) override {
    return generation_(contexts, config, sites);
  }

  std::unique_ptr<State> start(RaggedView contexts) override {
    return std::make_unique<Cache>(decoder_.start(contexts));
  }

  void step(State& state, std::span<index_t const> rows, std::span<std::int32_t const> tokens,
            TensorView<float, 2, Cpu> logits) override {
    // start() has made it.
    decoder_.step(static_cast<Cache&>(state).cache, rows, tokens, logits);
  }

  void reorder(State& state, std::span<index_t const> sources) override {
    decoder_.reorder(static_cast<Cache&>(state).cache, sources);
  }

 private:
  struct Cache final : State {
    explicit Cache(typename T5Decoder<T, D>::State&& state) : cache(std::move(state)) {}
    typename T5Decoder<T, D>::State cache;
  };

  D& dev_;
  std::shared_ptr<T5Weights<T, D> const> weights_;
  T5Decoder<T, D> decoder_;
  T5Generation<T, D> generation_;
};

/// A frozen identifier in the memory of device D.
template <Element T, Device D>
class DeviceIdentifier final : public EngineIdentifier {
 public:
  using Weights = empathy::IdentifierParameters<T, D>;

  DeviceIdentifier(D& dev, t5::Config const& config, std::shared_ptr<Weights const> weights)
      : dev_(dev), model_(config), weights_(std::move(weights)) {}

  void logits(RaggedView contexts, RaggedView responses, TensorView<float, 2, Cpu> out) override {
    if constexpr (std::same_as<T, float> && std::same_as<D, Cpu>) {
      model_.inference(dev_, weights_->views(), contexts, responses, out);
    } else {
      ArenaScope scope(dev_.scratch);
      auto const there = dev_.scratch.template allocate<T, 2>(out.extents());
      model_.inference(dev_, weights_->views(), contexts, responses, there);
      std::vector<T> numbers(static_cast<std::size_t>(out.size()));
      copy(dev_, std::span<T>(numbers), there);
      for (std::size_t i = 0; i < numbers.size(); ++i) {
        out.span()[i] = static_cast<float>(numbers[i]);
      }
    }
  }

 private:
  D& dev_;
  empathy::Identifier<T, D> model_;
  std::shared_ptr<Weights const> weights_;
};

}  // namespace emprl::train
