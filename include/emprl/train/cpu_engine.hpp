// SPDX-License-Identifier: Apache-2.0
#pragma once

// The host as an engine. Whoever instantiates it includes ops/gemm_cpu.hpp.

#include <concepts>
#include <memory>

#include "emprl/train/engine_models.hpp"

namespace emprl::train {

/// The host's threads. Models refer to the weights that they are given. A template, so that nothing
/// of it is compiled, matrix products least of all, before somebody makes one.
template <std::same_as<Cpu> D>
class HostEngine final : public Engine {
 public:
  /// @param determinism  what is said of it in checkpoints, so that runs go on on either device;
  /// the host's bits are the same in any case
  explicit HostEngine(int threads, Determinism determinism = Determinism::off)
      : dev_(threads), determinism_(determinism) {}

  Cpu* cpu() override { return &dev_; }
  DeviceEngine* device() override { return nullptr; }
  Precision precision() const override { return Precision::float32; }
  Determinism determinism() const override { return determinism_; }

  std::unique_ptr<EngineT5> load(T5Weights<float, Cpu> const& host) override {
    return std::make_unique<DeviceT5<float, Cpu>>(dev_, borrowed(host));
  }
  std::unique_ptr<EngineIdentifier> load(
      empathy::Identifier<float, Cpu> const& model,
      empathy::IdentifierParameters<float, Cpu> const& host) override {
    return std::make_unique<DeviceIdentifier<float, Cpu>>(dev_, model.config(), borrowed(host));
  }

 private:
  /// A pointer that does not own.
  template <class X>
  static std::shared_ptr<X const> borrowed(X const& x) {
    return {std::shared_ptr<void>(), &x};
  }

  D dev_;
  Determinism determinism_;
};

using CpuEngine = HostEngine<Cpu>;

}  // namespace emprl::train
