// SPDX-License-Identifier: Apache-2.0
#pragma once

// LoRA on a T5 (Hu et al. 2021): which projections have one, its matrices under the names of PEFT
// (Mangrulkar et al. 2022), and what they start as.
//
// The layers find the matrices in the model's own parameters: `attach` puts views of them beside
// the weights. The same goes for gradients: parameters of a frozen model are empty views, and an
// adapter's gradients attached to them are all that backward passes then write.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emprl/core/rng.hpp"
#include "emprl/nn/lora.hpp"
#include "emprl/nn/parameters.hpp"
#include "emprl/t5/parameters.hpp"

namespace emprl::t5 {

/// What a LoRA is to be.
struct LoraConfig {
  index_t rank = 8;
  double alpha = 16;             ///< the product is scaled by alpha / rank
  double dropout = 0;            ///< of its input, in training
  bool rank_stabilised = false;  ///< scaled by alpha / sqrt(rank) (Kalajdzievski 2023)
  /// Names of modules, whole or from any dot on: "q" is every query projection, "EncDecAttention.v"
  /// the value projections of cross-attention. "all-linear" is every projection.
  std::vector<std::string> targets{"q", "v"};

  /// @throws ConfigError naming the setting that is out of range
  void validate() const {
    expects<ConfigError>(
        rank >= 1, "the rank of LoRA must be at least 1, but is " + std::to_string(rank) + ".");
    expects<ConfigError>(std::isfinite(alpha) && alpha != 0,
                         "the alpha of LoRA must be finite and not 0.");
    expects<ConfigError>(dropout >= 0 && dropout < 1, "the dropout of LoRA must be in [0, 1).");
    expects<ConfigError>(!targets.empty(), "LoRA needs at least one target.");
  }
};

/// One projection with a LoRA. O outputs, I inputs.
struct LoraModule {
  std::string name;  ///< as in "encoder.block.0.layer.0.SelfAttention.q"
  index_t outputs = 0;
  index_t inputs = 0;
  index_t rank = 0;
  double alpha = 0;

  bool operator==(LoraModule const&) const = default;
};

/// The LoRA of one model: its projections in the order in which the model visits them.
struct LoraShape {
  Config model;
  std::vector<LoraModule> modules;
  double dropout = 0;
  bool rank_stabilised = false;

  double scale(LoraModule const& m) const {
    auto const rank = static_cast<double>(m.rank);
    return m.alpha / (rank_stabilised ? std::sqrt(rank) : rank);
  }
};

/// All projections of a model that can have a LoRA, with rank and alpha 0.
inline std::vector<LoraModule> projections(Config const& config) {
  std::vector<LoraModule> all;
  Params<float, Cpu>{}.visit_projections(
      config, [&](std::string const& name, auto const&, auto const&, auto extents) {
        all.push_back({name, extents[0], extents[1], 0, 0});
      });
  return all;
}

/// Whether a target names a module: whole, or from a dot on.
inline bool is_target(std::string_view name, std::string_view target) {
  if (target == "all-linear" || name == target) return true;
  return name.size() > target.size() && name.ends_with(target) &&
         name[name.size() - target.size() - 1] == '.';
}

/// The projections that a configuration names.
/// @throws ConfigError naming the target that is none of the model's, or a setting out of range
inline LoraShape lora_shape(Config const& model, LoraConfig const& config) {
  config.validate();
  LoraShape shape{model, {}, config.dropout, config.rank_stabilised};
  std::vector<bool> used(config.targets.size(), false);
  for (LoraModule& projection : projections(model)) {
    bool chosen = false;
    for (std::size_t i = 0; i < used.size(); ++i) {
      if (!is_target(projection.name, config.targets[i])) continue;
      chosen = used[i] = true;
    }
    if (!chosen) continue;
    projection.rank = config.rank;
    projection.alpha = config.alpha;
    shape.modules.push_back(std::move(projection));
  }
  for (std::size_t i = 0; i < used.size(); ++i) {
    expects<ConfigError>(
        used[i], "LoRA: \"" + config.targets[i] +
                     "\" is no projection of this model; it has q, k, v and o, " +
                     (model.feed_forward == nn::Activation::gated_gelu ? "wi_0, wi_1" : "wi") +
                     " and wo, alone or behind SelfAttention., EncDecAttention. and so on, and "
                     "all-linear means all.");
  }
  return shape;
}

/// The matrices of a LoRA, or their gradients, in the order of the shape's modules.
template <Element T, Device D>
struct Lora {
  std::vector<nn::LoraParams<T, D>> modules;

  using Shape = LoraShape;

  /// Calls f(name, view, extents) for A (R, I) and B (O, R) of every module, under PEFT's names but
  /// for "base_model.model." before them. @see nn::ParameterStore
  template <class F>
  void visit(LoraShape const& s, F&& f) {
    using Matrix = std::array<index_t, 2>;
    modules.resize(s.modules.size());
    for (std::size_t i = 0; i < modules.size(); ++i) {
      LoraModule const& m = s.modules[i];
      f(m.name + ".lora_A.weight", modules[i].a, Matrix{m.rank, m.inputs});
      f(m.name + ".lora_B.weight", modules[i].b, Matrix{m.outputs, m.rank});
      modules[i].scale = static_cast<Accumulator<T>>(s.scale(m));
    }
  }

  /// Puts views of the matrices beside the weights that they belong to, and takes away others.
  /// @throws ConfigError naming a module that the model does not have in this shape and place
  void attach(LoraShape const& s, Params<T, D>& p) const {
    std::size_t next = 0;
    std::uint32_t site = 0;
    p.visit_projections(s.model, [&](std::string const& name, auto const&, auto& lora,
                                     std::array<index_t, 2> extents) {
      lora = {};
      ++site;
      if (next == modules.size() || s.modules[next].name != name) return;
      LoraModule const& m = s.modules[next];
      if (m.outputs != extents[0] || m.inputs != extents[1]) return;
      lora = modules[next++];
      // By its place in the model: other targets change no mask.
      lora.site = site;
    });
    if (next < modules.size()) {
      throw ConfigError("LoRA: the model has no projection " + s.modules[next].name + " of " +
                        std::to_string(s.modules[next].inputs) + " inputs and " +
                        std::to_string(s.modules[next].outputs) +
                        " outputs, or the modules are not in the model's order.");
    }
  }

  /// Takes all views of a LoRA away from a model's parameters.
  static void detach(Config const& model, Params<T, D>& p) {
    p.visit_projections(model,
                        [](std::string const&, auto const&, auto& lora, auto) { lora = {}; });
  }
};

template <Element T, Device D>
using LoraParameters = nn::ParameterStore<Lora<T, D>, T, D>;

/// Adds every product to the weight that it stands beside: W += scale B A. With the LoRA detached
/// the model then gives what both gave, but for rounding.
/// @param p  with the LoRA attached; its weights are written
template <Element T, Device D>
void merge_lora(D& dev, Config const& model, Params<T, D> p) {
  p.visit_projections(model, [&](std::string const&, auto& weight, auto const& lora, auto) {
    nn::Lora<T, D>{}.merge(dev, lora, weight);
  });
}

/// Takes back what `merge_lora` did, but for rounding.
template <Element T, Device D>
void unmerge_lora(D& dev, Config const& model, Params<T, D> p) {
  p.visit_projections(model, [&](std::string const&, auto& weight, auto const& lora, auto) {
    nn::Lora<T, D>{}.unmerge(dev, lora, weight);
  });
}

/// A uniform in +-1/sqrt(I), which is what PEFT draws (Kaiming's uniform with a = sqrt(5)), B zero:
/// the model starts as it was. Each matrix has its own stream of numbers.
template <Scalar T>
void initialise_lora(LoraParameters<T, Cpu> const& parameters, std::uint64_t seed) {
  std::uint32_t row = 0;
  for (nn::ParameterInfo const& info : parameters.infos()) {
    RandomSequence random(seed, Stream::initialise, 4, row++);
    bool const is_a = std::string_view(info.name).ends_with(".lora_A.weight");
    double const bound = 1.0 / std::sqrt(static_cast<double>(info.shape.at(1)));
    for (T& x : parameters.span(info)) {
      x = is_a ? static_cast<T>(bound * (2.0 * random.uniform() - 1.0)) : T(0);
    }
  }
}

}  // namespace emprl::t5
