// SPDX-License-Identifier: Apache-2.0
#pragma once

// The loss of PPO on the GPU: the objectives of objective.hpp, or a user's own, evaluated with
// duals in a kernel. Anything that the CPU takes is taken here if its call is EMPRL_HD and it holds
// its settings by value.
//
//   struct Reinforce {
//     template <class S>
//     EMPRL_HD S operator()(S const& logp, S const& value, rl::TokenContext const& t) const {
//       S const error = value - S(t.ret);
//       return S(-t.advantage) * logp + S(0.5) * error * error;
//     }
//   };

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "emprl/cuda/context.cuh"
#include "emprl/cuda/kernel.hpp"
#include "emprl/cuda/launch.cuh"
#include "emprl/cuda/reduce.hpp"
#include "emprl/cuda/shared.hpp"
#include "emprl/math/dual.hpp"
#include "emprl/rl/objective.hpp"

namespace emprl::rl {

namespace detail {

/// Whether an objective is also a function of the entropy.
template <class O>
inline constexpr bool uses_entropy = requires(O const& o, Dual<double, 3> dual,
                                              TokenContext const& t) {
  o(dual, dual, dual, t);
};

inline constexpr int objective_threads = 128;

/// No token: what a search for the worst starts from.
inline constexpr index_t no_token = std::numeric_limits<index_t>::max();

/// The sums of ObjectiveSums in the order in which kernels add them, and the worst token so far.
struct ObjectivePart {
  static constexpr int sums = 8;
  double sum[sums];
  double worst;
  index_t worst_token;

  EMPRL_DEVICE static ObjectivePart zero() {
    ObjectivePart part;
    EMPRL_UNROLL
    for (int i = 0; i < sums; ++i) part.sum[i] = 0.0;
    part.worst = 0.0;
    part.worst_token = no_token;
    return part;
  }
  EMPRL_DEVICE static ObjectivePart of(ObjectiveSums const& s) {
    return {{s.tokens, s.loss, s.policy, s.value, s.clipped, s.ratio, s.k1, s.k3},
            s.worst_ratio_error,
            s.worst_ratio_error > 0.0 ? static_cast<index_t>(s.worst_token) : no_token};
  }
  EMPRL_DEVICE ObjectiveSums to_sums() const {
    ObjectiveSums s;
    s.tokens = sum[0];
    s.loss = sum[1];
    s.policy = sum[2];
    s.value = sum[3];
    s.clipped = sum[4];
    s.ratio = sum[5];
    s.k1 = sum[6];
    s.k3 = sum[7];
    s.worst_ratio_error = worst;
    s.worst_token = worst_token == no_token ? 0 : static_cast<std::size_t>(worst_token);
    return s;
  }

  /// The larger error, or of equal ones the earlier token; never one that is not a number.
  EMPRL_DEVICE void meet(double error, index_t token) {
    if (error > worst || (error == worst && token < worst_token)) {
      worst = error;
      worst_token = token;
    }
  }
};

/// The parts of all threads of a block, joined in an order that the block's shape fixes; thread 0
/// gets the whole.
EMPRL_DEVICE ObjectivePart block_join(ObjectivePart part) {
  constexpr int warps = objective_threads / cuda::warp_size;
  EMPRL_SHARED(double, sums, warps* ObjectivePart::sums);
  EMPRL_SHARED(double, errors, warps);
  EMPRL_SHARED(index_t, tokens, warps);
  EMPRL_UNROLL
  for (int i = 0; i < ObjectivePart::sums; ++i) part.sum[i] = cuda::warp_sum(part.sum[i]);
  EMPRL_UNROLL
  for (int bits = cuda::warp_size / 2; bits > 0; bits /= 2) {
    double const error = cuda::shuffle_xor(part.worst, bits);
    index_t const token = cuda::shuffle_xor(part.worst_token, bits);
    part.meet(error, token);
  }
  int const warp = cuda::warp_index();
  if (cuda::lane_index() == 0) {
    EMPRL_UNROLL
    for (int i = 0; i < ObjectivePart::sums; ++i) {
      sums[warp * ObjectivePart::sums + i] = part.sum[i];
    }
    errors[warp] = part.worst;
    tokens[warp] = part.worst_token;
  }
  cuda::sync_threads();
  if (cuda::thread_rank() == 0) {
    for (int w = 1; w < warps; ++w) {
      for (int i = 0; i < ObjectivePart::sums; ++i) {
        double const other = sums[w * ObjectivePart::sums + i];
        part.sum[i] += other;
      }
      double const error = errors[w];
      index_t const token = tokens[w];
      part.meet(error, token);
    }
  }
  return part;
}

/// A token a thread; partial[b] = the sums of block b.
/// PRECOND: `entropy` and `dentropy` are null unless the objective uses the entropy
template <class O, bool Itemised>
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(objective_threads)
    evaluate_objective_kernel(ObjectiveSums* partial, O objective, float const* logp,
                              float const* value, TokenContext const* tokens,
                              std::uint8_t const* mask, double normaliser, float* dlogp,
                              float* dvalue, float const* entropy, float* dentropy, index_t n) {
  constexpr bool of_entropy = uses_entropy<O>;
  using S = Dual<double, of_entropy ? 3 : 2>;
  index_t const t = cuda::global_thread_x();
  ObjectivePart part = ObjectivePart::zero();
  if (t < n && mask[t] == 0) {
    dlogp[t] = 0.0f;
    dvalue[t] = 0.0f;
    if constexpr (of_entropy) dentropy[t] = 0.0f;
  } else if (t < n) {
    TokenContext const token = tokens[t];
    double const lp = static_cast<double>(logp[t]);
    double const v = static_cast<double>(value[t]);
    S loss;
    if constexpr (of_entropy) {
      loss = objective(S::variable(lp, 0), S::variable(v, 1),
                       S::variable(static_cast<double>(entropy[t]), 2), token);
      dentropy[t] = static_cast<float>(loss.derivative[2] / normaliser);
    } else {
      loss = objective(S::variable(lp, 0), S::variable(v, 1), token);
    }
    dlogp[t] = static_cast<float>(loss.derivative[0] / normaliser);
    dvalue[t] = static_cast<float>(loss.derivative[1] / normaliser);

    double const log_ratio = lp - token.old_logp;
    double const ratio = std::exp(log_ratio);
    part.sum[0] = 1.0;
    part.sum[1] = loss.value;
    if constexpr (Itemised) {
      part.sum[2] = objective.policy(lp, token);
      part.sum[3] = objective.value(v, token);
      part.sum[4] = objective.clipped(lp, token) ? 1.0 : 0.0;
    }
    part.sum[5] = ratio;
    part.sum[6] = -log_ratio;
    part.sum[7] = ratio - 1.0 - log_ratio;
    double const error = std::fabs(ratio - 1.0);
    if (error > 0.0) part.meet(error, t);
  }
  part = block_join(part);
  if (cuda::thread_rank() == 0) partial[cuda::block_index().x] = part.to_sums();
}

/// sums[0] = the parts of `count` blocks together.
/// PRECOND: one block
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(objective_threads)
    join_objective_kernel(ObjectiveSums* sums, ObjectiveSums const* partial, index_t count) {
  ObjectivePart part = ObjectivePart::zero();
  for (index_t b = cuda::thread_rank(); b < count; b += objective_threads) {
    ObjectivePart const other = ObjectivePart::of(partial[b]);
    EMPRL_UNROLL
    for (int i = 0; i < ObjectivePart::sums; ++i) part.sum[i] += other.sum[i];
    part.meet(other.worst, other.worst_token);
  }
  part = block_join(part);
  if (cuda::thread_rank() == 0) sums[0] = part.to_sums();
}

/// PRECOND: `dentropy` null or n elements
EMPRL_KERNEL EMPRL_LAUNCH_BOUNDS(objective_threads)
    skip_above_ratio_kernel(ObjectiveSums const* sums, double threshold, float* dlogp,
                            float* dvalue, float* dentropy, index_t n) {
  double const tokens = sums->tokens;
  double const mean = tokens > 0.0 ? sums->ratio / tokens : 1.0;
  index_t const t = cuda::global_thread_x();
  if (!(mean > threshold) || t >= n) return;
  dlogp[t] = 0.0f;
  dvalue[t] = 0.0f;
  if (dentropy != nullptr) dentropy[t] = 0.0f;
}

}  // namespace detail

/// Evaluates the objective at every token and differentiates it by log-probability, value and, if
/// it is a function of it, entropy.
///   dlogp[t] = dL[t]/dlogp[t] / normaliser,  and dvalue, dentropy likewise; all are 0 where
///   masked.
/// Duals and sums are in double, as on the CPU, and sums are made in an order that the number of
/// tokens alone decides: the same bits in every run.
/// @param dev          work is ordered on dev.stream, no synchronisation; memory from dev.scratch
/// @param sums         (1), = : sums over the mask, not divided, in device memory
/// @param logp, value  (tokens) under the current parameters
/// @param tokens       (tokens) what was known at sampling
/// @param mask         (tokens) 0 where nothing about a token may matter
/// @param normaliser   tokens of the whole optimiser step, so that mini-batches of any size add up
/// to its mean
/// @param dlogp, dvalue (tokens) written (=)
/// @param entropy, dentropy (tokens) read, and written (=), by an objective of the entropy; else
/// left empty
/// @throws ShapeError if extents disagree
template <class O>
void evaluate_objective(Cuda& dev, TensorView<ObjectiveSums, 1, Cuda> sums, O const& objective,
                        TensorView<float const, 1, Cuda> logp,
                        TensorView<float const, 1, Cuda> value,
                        TensorView<TokenContext const, 1, Cuda> tokens,
                        TensorView<std::uint8_t const, 1, Cuda> mask, double normaliser,
                        TensorView<float, 1, Cuda> dlogp, TensorView<float, 1, Cuda> dvalue,
                        TensorView<float const, 1, Cuda> entropy = {},
                        TensorView<float, 1, Cuda> dentropy = {}) {
  static_assert(std::is_trivially_copyable_v<O> && std::is_copy_assignable_v<O>,
                "An objective goes to the GPU as its bytes: it must hold its settings by value, "
                "without pointers and references.");
  constexpr bool of_entropy = detail::uses_entropy<O>;
  static_assert(of_entropy || Objective<O>,
                "An objective is called as o(logp, value, token) or o(logp, value, entropy, token) "
                "with numbers and with duals.");
  index_t const n = tokens.extent(0);
  expects(sums.extent(0) == 1 && logp.extent(0) == n && value.extent(0) == n &&
              mask.extent(0) == n && dlogp.extent(0) == n && dvalue.extent(0) == n,
          "an objective needs a log-probability, a value and a mask entry for every token");
  expects(entropy.extent(0) == (of_entropy ? n : 0) && dentropy.extent(0) == entropy.extent(0),
          "an objective of the entropy, and no other, needs it for every token");
  auto const dense = [](auto const& x) { return x.empty() || x.is_contiguous(); };
  expects(dense(logp) && dense(value) && dense(tokens) && dense(mask) && dense(dlogp) &&
              dense(dvalue) && dense(entropy) && dense(dentropy),
          "an objective's tokens must lie without gaps");
  ArenaScope scope(dev.scratch);
  int const blocks = cuda::blocks_for(n, detail::objective_threads);
  auto const partial = dev.scratch.allocate<ObjectiveSums, 1>({blocks});
  if (blocks > 0) {
    cuda::launch<detail::evaluate_objective_kernel<O, ItemisedObjective<O>>>(
        dev.stream, {.grid = {blocks}, .block = {detail::objective_threads}}, partial.data(),
        objective, logp.data(), value.data(), tokens.data(), mask.data(), normaliser, dlogp.data(),
        dvalue.data(), entropy.data(), dentropy.data(), n);
  }
  cuda::launch<detail::join_objective_kernel>(
      dev.stream, {.grid = {1}, .block = {detail::objective_threads}}, sums.data(),
      static_cast<ObjectiveSums const*>(partial.data()), index_t{blocks});
}

/// Sets a mini-batch's gradients to 0 if its mean ratio is above the threshold, as update_policy
/// does, without asking the host. The sums stay: who reads them later counts what was skipped.
/// @param sums  (1), from evaluate_objective      @param dlogp, dvalue (tokens)
/// @param dentropy (tokens), or empty
/// @throws ShapeError if extents disagree
inline void skip_above_ratio(Cuda& dev, TensorView<ObjectiveSums const, 1, Cuda> sums,
                             double threshold, TensorView<float, 1, Cuda> dlogp,
                             TensorView<float, 1, Cuda> dvalue,
                             TensorView<float, 1, Cuda> dentropy = {}) {
  index_t const n = dlogp.extent(0);
  expects(
      sums.extent(0) == 1 && dvalue.extent(0) == n && (dentropy.empty() || dentropy.extent(0) == n),
      "skip_above_ratio: one sum, and as many gradients of each kind");
  if (n == 0) return;
  cuda::launch<detail::skip_above_ratio_kernel>(
      dev.stream,
      {.grid = {cuda::blocks_for(n, detail::objective_threads)},
       .block = {detail::objective_threads}},
      sums.data(), threshold, dlogp.data(), dvalue.data(), data_or_null(dentropy), n);
}

}  // namespace emprl::rl
