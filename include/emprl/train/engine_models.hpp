// SPDX-License-Identifier: Apache-2.0
#pragma once

// Frozen models behind the functions of engine.hpp, the same source for every device.

#include <algorithm>
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

namespace detail {

/// The generation loop of the device: that of the GPU looks at tokens every few steps only, where
/// it can draw them.
template <Element T, Device D>
Ragged generate_on([[maybe_unused]] D& dev, T5Decoder<T, D>& decoder, RaggedView contexts,
                   gen::SamplingConfig const& config, std::span<gen::DrawSite const> sites) {
  if constexpr (!std::same_as<D, Cpu>) {
    bool const looks_back = config.repetition_penalty != 1 || config.no_repeat_ngram > 0;
    bool const one_draw = std::all_of(sites.begin(), sites.end(), [&](gen::DrawSite const& site) {
      return site.seed == sites.front().seed && site.step == sites.front().step;
    });
    if (!sites.empty() && one_draw && !looks_back) {
      std::vector<std::uint32_t> ids;
      for (gen::DrawSite const& site : sites) ids.push_back(site.row);
      return generate(dev, decoder, contexts, config, sites.front().seed, sites.front().step,
                      std::span<std::uint32_t const>(ids));
    }
  }
  return gen::generate(decoder, contexts, config, sites);
}

}  // namespace detail

/// A frozen T5 in the memory of device D.
template <Element T, Device D>
class DeviceT5 final : public EngineT5 {
 public:
  DeviceT5(D& dev, std::shared_ptr<T5Weights<T, D> const> weights)
      : dev_(dev), weights_(std::move(weights)), decoder_(dev, *weights_) {}

  t5::Config const& config() const override { return weights_->config(); }

  using EngineT5::logprobs;
  void logprobs(RaggedView contexts, RaggedView responses, std::span<float> logp,
                std::span<float> entropy) override {
    token_logprobs(dev_, *weights_, contexts, responses, logp, {}, 1.0f, entropy);
  }

  using EngineT5::generate;
  Ragged generate(RaggedView contexts, gen::SamplingConfig const& config,
                  std::span<gen::DrawSite const> sites) override {
    return detail::generate_on(dev_, decoder_, contexts, config, sites);
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
