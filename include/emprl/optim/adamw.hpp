// SPDX-License-Identifier: Apache-2.0
#pragma once

// Adam with decoupled weight decay (Loshchilov & Hutter 2019), in the order of arithmetic of
// PyTorch's AdamW:
//   g <- g * min(1, max_norm / (|g| + 1e-6))
//   p <- p * (1 - lr * weight_decay)
//   m <- m + (g - m) * (1 - beta1)
//   v <- v * beta2 + g * g * (1 - beta2)
//   p <- p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + epsilon)
// With weight decay 0 it is Adam.

#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "emprl/core/config.hpp"
#include "emprl/core/device.hpp"
#include "emprl/core/error.hpp"
#include "emprl/core/parallel.hpp"
#include "emprl/core/scalar.hpp"
#include "emprl/optim/gradient_norm.hpp"

namespace emprl::optim {

/// Settings of AdamW.
struct AdamWConfig {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 0.0;
  /// Gradients are scaled down to this global norm; 0 leaves them as they are.
  double max_gradient_norm = 1.0;

  /// @throws ConfigError naming the field that is out of range
  void validate() const {
    expects<ConfigError>(beta1 >= 0.0 && beta1 < 1.0, "beta1 must lie in [0, 1)");
    expects<ConfigError>(beta2 >= 0.0 && beta2 < 1.0, "beta2 must lie in [0, 1)");
    expects<ConfigError>(epsilon > 0.0 && std::isfinite(epsilon), "epsilon must be above 0");
    expects<ConfigError>(weight_decay >= 0.0 && std::isfinite(weight_decay),
                         "weight_decay must not be negative");
    expects<ConfigError>(max_gradient_norm >= 0.0 && !std::isnan(max_gradient_norm),
                         "max_gradient_norm must be 0 (off) or more");
  }
};

/// What a step multiplies by, the same for every parameter.
template <Scalar T>
struct AdamWCoefficients {
  T clip, decay, one_minus_beta1, beta2, one_minus_beta2, root_correction2, epsilon, step_size;

  /// @param step  counted from 1      @param clip  what gradients are multiplied by
  EMPRL_HD static AdamWCoefficients of(AdamWConfig const& config, index_t step,
                                       double learning_rate, double clip) {
    double const t = static_cast<double>(step);
    double const correction1 = 1.0 - std::pow(config.beta1, t);
    double const correction2 = 1.0 - std::pow(config.beta2, t);
    return {static_cast<T>(clip),
            static_cast<T>(1.0 - learning_rate * config.weight_decay),
            static_cast<T>(1.0 - config.beta1),
            static_cast<T>(config.beta2),
            static_cast<T>(1.0 - config.beta2),
            static_cast<T>(std::sqrt(correction2)),
            static_cast<T>(config.epsilon),
            static_cast<T>(learning_rate / correction1)};
  }

  /// One parameter's step.
  EMPRL_HD void update(T& p, T g, T& m, T& v) const {
    T const gradient = g * clip;
    m += (gradient - m) * one_minus_beta1;
    v = v * beta2 + gradient * gradient * one_minus_beta2;
    T const denominator = std::sqrt(v) / root_correction2 + epsilon;
    p = p * decay - step_size * (m / denominator);
  }
};

/// Parameters and their gradients, of the same extent.
template <Scalar T>
struct ParameterSpan {
  std::span<T> parameters;
  std::span<T> gradients;
};

/// AdamW over spans of parameters, usually one arena. The spans belong to the caller and must
/// outlive the optimiser. A step is the same, bit for bit, with any number of threads.
template <Scalar T>
class AdamW {
 public:
  /// @throws ShapeError if a span's gradients are not as many as its parameters, ConfigError if a
  /// setting is out of range
  AdamW(AdamWConfig const& config, std::vector<ParameterSpan<T>> spans)
      : config_(config), spans_(std::move(spans)) {
    config_.validate();
    std::size_t size = 0;
    for (auto const& s : spans_) {
      expects(s.parameters.size() == s.gradients.size(),
              "an optimiser needs one gradient for each parameter");
      size += s.parameters.size();
    }
    first_moment_.assign(size, T{0});
    second_moment_.assign(size, T{0});
  }

  AdamW(AdamWConfig const& config, std::span<T> parameters, std::span<T> gradients)
      : AdamW(config, std::vector<ParameterSpan<T>>{{parameters, gradients}}) {}

  /// Sets every gradient to 0.
  void zero_gradients() {
    for (auto const& s : spans_) {
      for (T& g : s.gradients) g = T{0};
    }
  }

  /// One step with the configured clipping. @return the gradients' norm before clipping
  double step(Cpu& dev, double learning_rate) {
    return step(dev, learning_rate, config_.max_gradient_norm);
  }

  /// One step, gradients clipped to `max_norm` (0: not clipped). Gradients keep their values.
  /// @return the gradients' norm before clipping
  /// @throws Error if the norm is not finite; nothing has moved then
  double step(Cpu& dev, double learning_rate, double max_norm) {
    expects<ConfigError>(std::isfinite(learning_rate), "the learning rate must be finite");
    double const norm = gradient_norm(dev);
    expects<Error>(std::isfinite(norm), "the gradient norm is not finite at optimiser step " +
                                            std::to_string(steps_ + 1) +
                                            "; the parameters were left as they were");
    ++steps_;
    auto const c =
        AdamWCoefficients<T>::of(config_, steps_, learning_rate, clip_factor(norm, max_norm));
    T* m = first_moment_.data();
    T* v = second_moment_.data();
    for (auto const& s : spans_) {
      T* const p = s.parameters.data();
      T const* const g = s.gradients.data();
      auto const n = static_cast<index_t>(s.parameters.size());
      parallel_for(dev, n, 16384,
                   [&](index_t begin, index_t end) { update(p, g, m, v, begin, end, c); });
      m += n;
      v += n;
    }
    return norm;
  }

  /// The Euclidean norm of all gradients.
  double gradient_norm(Cpu& dev) const {
    double squares = 0.0;
    for (auto const& s : spans_) squares += squared_norm(dev, std::span<T const>(s.gradients));
    return std::sqrt(squares);
  }

  AdamWConfig const& config() const { return config_; }

  /// Steps taken so far.
  index_t steps() const { return steps_; }
  /// Moving averages of gradients and of their squares, in the order of the spans: with steps(),
  /// all that a resumed run needs.
  std::span<T const> first_moment() const { return first_moment_; }
  std::span<T const> second_moment() const { return second_moment_; }

  /// Takes up a saved state. @throws ShapeError if it is of another size
  void restore(index_t steps, std::span<T const> first_moment, std::span<T const> second_moment) {
    expects(steps >= 0 && first_moment.size() == first_moment_.size() &&
                second_moment.size() == second_moment_.size(),
            "the saved optimiser state is not of this model");
    steps_ = steps;
    first_moment_.assign(first_moment.begin(), first_moment.end());
    second_moment_.assign(second_moment.begin(), second_moment.end());
  }

 private:
  static void update(T* __restrict p, T const* __restrict g, T* __restrict m, T* __restrict v,
                     index_t begin, index_t end, AdamWCoefficients<T> c) {
    for (index_t i = begin; i < end; ++i) c.update(p[i], g[i], m[i], v[i]);
  }

  AdamWConfig config_;
  std::vector<ParameterSpan<T>> spans_;
  std::vector<T> first_moment_;
  std::vector<T> second_moment_;
  index_t steps_ = 0;
};

}  // namespace emprl::optim
