// SPDX-License-Identifier: Apache-2.0
// An actor-critic takes both gradients at once.
// expect: a.backward(gradient, gradient, context)
#include <span>

#include "emprl/rl/concepts.hpp"

using namespace emprl;

struct Shared {
  using Scalar = float;
  struct Context {};
  void forward(rl::TokenBatch const&, std::span<float>, std::span<float>, Context&);
#ifdef EMPRL_COMPILE_FAIL
  void backward(std::span<float const>, Context&);
#else
  void backward(std::span<float const>, std::span<float const>, Context&);
#endif
};

static_assert(rl::ActorCritic<Shared>);
