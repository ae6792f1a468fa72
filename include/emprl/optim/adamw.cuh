// SPDX-License-Identifier: Apache-2.0
#pragma once

// AdamW on the GPU, in the arithmetic of adamw.hpp: weights and moments in float, and in the same
// pass a copy of the weights in Bf16 for the next forward pass. A step is ordered on the stream and
// waits for nothing: the norm, the clip factor, the step's number and whether it counts are made on
// the device.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "emprl/core/half.hpp"
#include "emprl/optim/adamw.hpp"
#include "emprl/optim/gradient_norm.cuh"

namespace emprl::optim {

/// Parameters on the GPU, their gradients, and their copy in Bf16, of the same extent and dense.
struct CudaParameterSpan {
  TensorView<float, 1, Cuda> parameters;
  TensorView<float, 1, Cuda> gradients;
  TensorView<Bf16, 1, Cuda> copy;  ///< written by every step; empty if there is none
};

/// What the steps so far have come to.
struct AdamWProgress {
  index_t steps = 0;          ///< that moved the parameters
  index_t refused = 0;        ///< whose gradient norm was not finite: nothing moved
  index_t first_refused = 0;  ///< the number that the first of those would have had
  double gradient_norm = 0;   ///< of the last step, before clipping
};

namespace detail {

/// In device memory: what a step knows before it looks at single parameters.
struct AdamWState {
  double squared_norm;
  AdamWProgress progress;
  AdamWCoefficients<float> coefficients;
  bool moves;
};

inline constexpr int adamw_threads = 256;

/// Counts the step or refuses it, and makes its coefficients.
/// PRECOND: one thread; squared_norm is that of all gradients
EMPRL_KERNEL adamw_prepare_kernel(AdamWState* state, AdamWConfig config, double learning_rate,
                                  double max_norm) {
  double const norm = std::sqrt(state->squared_norm);
  AdamWProgress& progress = state->progress;
  progress.gradient_norm = norm;
  state->moves = std::isfinite(norm);
  if (!state->moves) {
    if (progress.refused == 0) progress.first_refused = progress.steps + 1;
    ++progress.refused;
    return;
  }
  ++progress.steps;
  state->coefficients = AdamWCoefficients<float>::of(config, progress.steps, learning_rate,
                                                     clip_factor(norm, max_norm));
}

/// Moves n parameters: a pack of Width a thread, and element by element what remains.
/// PRECOND: a thread a pack at least; all begin at a multiple of a pack; `copy` null or n elements
template <int Width>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(adamw_threads)
    adamw_update_kernel(float* p, float const* g, float* m, float* v, Bf16* copy, index_t n,
                        AdamWState const* state) {
  if (!state->moves) return;
  AdamWCoefficients<float> const c = state->coefficients;
  index_t const packs = n / Width;
  index_t const i = cuda::global_thread_x();
  if (i < packs) {
    auto weights = cuda::load_pack<Width>(p + i * Width);
    auto const gradients = cuda::load_pack<Width>(g + i * Width);
    auto first = cuda::load_pack<Width>(m + i * Width);
    auto second = cuda::load_pack<Width>(v + i * Width);
    cuda::Pack<Bf16, Width> small;
    EMPRL_UNROLL
    for (int j = 0; j < Width; ++j) {
      c.update(weights.x[j], gradients.x[j], first.x[j], second.x[j]);
      small.x[j] = Bf16(weights.x[j]);
    }
    cuda::store_pack(p + i * Width, weights);
    cuda::store_pack(m + i * Width, first);
    cuda::store_pack(v + i * Width, second);
    if (copy != nullptr) cuda::store_pack(copy + i * Width, small);
  }
  index_t const rest = packs * Width + i;
  if (rest < n) {
    c.update(p[rest], g[rest], m[rest], v[rest]);
    if (copy != nullptr) copy[rest] = Bf16(p[rest]);
  }
}

}  // namespace detail

/// AdamW over spans of parameters on the GPU, usually one arena. The spans belong to the caller and
/// must outlive the optimiser, as must the context, on whose stream all its work is ordered.
class CudaAdamW {
 public:
  /// @throws ShapeError if a span's gradients or copies are not as many as its parameters,
  /// ConfigError if a setting is out of range
  CudaAdamW(Cuda& dev, AdamWConfig const& config, std::vector<CudaParameterSpan> spans)
      : dev_(dev), config_(config), spans_(std::move(spans)) {
    config_.validate();
    auto const dense = [](auto const& x) { return x.empty() || x.is_contiguous(); };
    for (auto const& s : spans_) {
      index_t const n = s.parameters.extent(0);
      expects(s.gradients.extent(0) == n && dense(s.parameters) && dense(s.gradients),
              "an optimiser needs one gradient for each parameter, all without gaps");
      expects(s.copy.empty() || (s.copy.extent(0) == n && dense(s.copy)),
              "an optimiser needs one copy for each parameter, or none");
      size_ += padded(n);
    }
    state_ = memory_.allocate<detail::AdamWState, 1>({1}).data();
    first_moment_ = memory_.allocate<float, 1>({size_}).data();
    second_moment_ = memory_.allocate<float, 1>({size_}).data();
    cuda::zero_bytes(dev_.stream, state_, sizeof *state_);
    cuda::zero_bytes(dev_.stream, first_moment_, bytes(size_));
    cuda::zero_bytes(dev_.stream, second_moment_, bytes(size_));
  }

  /// Sets every gradient to 0.
  void zero_gradients() {
    for (auto const& s : spans_) {
      cuda::zero_bytes(dev_.stream, s.gradients.data(), bytes(s.gradients.extent(0)));
    }
  }

  /// One step with the configured clipping.
  void step(double learning_rate) { step(learning_rate, config_.max_gradient_norm); }

  /// One step, gradients clipped to `max_norm` (0: not clipped). Gradients keep their values. If
  /// their norm is not finite nothing moves and the step does not count; progress() tells.
  void step(double learning_rate, double max_norm) {
    expects<ConfigError>(std::isfinite(learning_rate), "the learning rate must be finite");
    TensorView<double, 1, Cuda> const squares(&state_->squared_norm, {1});
    cuda::zero_bytes(dev_.stream, squares.data(), sizeof(double));
    for (auto const& s : spans_) add_squared_norm(dev_, squares, s.gradients);
    cuda::launch<detail::adamw_prepare_kernel>(dev_.stream, {.grid = {1}, .block = {1}}, state_,
                                               config_, learning_rate, max_norm);
    index_t offset = 0;
    for (auto const& s : spans_) {
      index_t const n = s.parameters.extent(0);
      if (n > 0) update(s, offset);
      offset += padded(n);
    }
  }

  /// What the steps so far have come to. Waits for the GPU.
  AdamWProgress progress() {
    AdamWProgress result;
    cuda::copy_bytes(dev_.stream, &result, &state_->progress, sizeof result);
    dev_.synchronize();
    return result;
  }

  /// The same. @throws Error if a step was refused
  AdamWProgress checked_progress() {
    AdamWProgress const result = progress();
    expects<Error>(result.refused == 0, "the gradient norm is not finite at optimiser step " +
                                            std::to_string(result.first_refused) +
                                            "; the parameters were left as they were");
    return result;
  }

  AdamWConfig const& config() const { return config_; }

  /// Moving averages of gradients and of their squares, in the order of the spans, on the host:
  /// with progress().steps, all that a resumed run needs. Wait for the GPU.
  std::vector<float> first_moment() { return fetch(first_moment_); }
  std::vector<float> second_moment() { return fetch(second_moment_); }

  /// Takes up a saved state. @throws ShapeError if it is of another size
  void restore(index_t steps, std::span<float const> first_moment,
               std::span<float const> second_moment) {
    auto const count = static_cast<std::size_t>(parameters());
    expects(steps >= 0 && first_moment.size() == count && second_moment.size() == count,
            "the saved optimiser state is not of this model");
    AdamWProgress const progress{.steps = steps};
    cuda::copy_bytes(dev_.stream, &state_->progress, &progress, sizeof progress);
    for_each_piece([&](index_t at, index_t offset, index_t n) {
      cuda::copy_bytes(dev_.stream, first_moment_ + offset, first_moment.data() + at, bytes(n));
      cuda::copy_bytes(dev_.stream, second_moment_ + offset, second_moment.data() + at, bytes(n));
    });
    dev_.synchronize();
  }

 private:
  static std::size_t bytes(index_t n) { return static_cast<std::size_t>(n) * sizeof(float); }

  /// Moments of every span begin at a pack.
  static index_t padded(index_t n) { return (n + 3) / 4 * 4; }

  index_t parameters() const {
    index_t n = 0;
    for (auto const& s : spans_) n += s.parameters.extent(0);
    return n;
  }

  /// f(place in the host's list, place on the device, elements) for every span.
  template <class F>
  void for_each_piece(F f) const {
    index_t at = 0;
    index_t offset = 0;
    for (auto const& s : spans_) {
      index_t const n = s.parameters.extent(0);
      f(at, offset, n);
      at += n;
      offset += padded(n);
    }
  }

  std::vector<float> fetch(float const* moments) {
    std::vector<float> result(static_cast<std::size_t>(parameters()));
    for_each_piece([&](index_t at, index_t offset, index_t n) {
      cuda::copy_bytes(dev_.stream, result.data() + at, moments + offset, bytes(n));
    });
    dev_.synchronize();
    return result;
  }

  void update(CudaParameterSpan const& s, index_t offset) {
    index_t const n = s.parameters.extent(0);
    Bf16* const copy = data_or_null(s.copy);
    auto const aligned = [](void const* p, std::uintptr_t to) {
      return reinterpret_cast<std::uintptr_t>(p) % to == 0;
    };
    auto const run = [&]<int Width>(std::integral_constant<int, Width>) {
      // What remains of a last pack is less than a pack: the first threads have room for it.
      cuda::launch<detail::adamw_update_kernel<Width>>(
          dev_.stream,
          {.grid = {cuda::blocks_for((n + Width - 1) / Width, detail::adamw_threads)},
           .block = {detail::adamw_threads}},
          s.parameters.data(), static_cast<float const*>(s.gradients.data()),
          first_moment_ + offset, second_moment_ + offset, copy, n,
          static_cast<detail::AdamWState const*>(state_));
    };
    if (aligned(s.parameters.data(), 16) && aligned(s.gradients.data(), 16) && aligned(copy, 8)) {
      run(std::integral_constant<int, 4>());
    } else {
      run(std::integral_constant<int, 1>());
    }
  }

  Cuda& dev_;
  AdamWConfig config_;
  std::vector<CudaParameterSpan> spans_;
  index_t size_ = 0;
  DeviceArena memory_{1};
  detail::AdamWState* state_ = nullptr;
  float* first_moment_ = nullptr;
  float* second_moment_ = nullptr;
};

/// CudaAdamW as an rl::Optimizer: its step returns the norm, for which the host waits for the GPU
/// once a step. Refers to the optimiser, which outlives it.
struct ReportingCudaAdamW {
  CudaAdamW& optimizer;

  void zero_gradients() { optimizer.zero_gradients(); }

  /// One step, gradients clipped to `max_norm` (0: not clipped).
  /// @return the gradients' norm before clipping; if it is not finite, nothing has moved
  double step(double learning_rate, double max_norm) {
    optimizer.step(learning_rate, max_norm);
    return optimizer.progress().gradient_norm;
  }
};

}  // namespace emprl::optim
