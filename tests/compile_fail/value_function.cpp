// SPDX-License-Identifier: Apache-2.0
// A value function whose forward has no context is told how it is called.
// expect: v.forward(batch, values, context)
#include <span>

#include "emprl/rl/concepts.hpp"

using namespace emprl;

struct Values {
  using Scalar = float;
  struct Context {};
#ifdef EMPRL_COMPILE_FAIL
  void forward(rl::TokenBatch const&, std::span<float>);
#else
  void forward(rl::TokenBatch const&, std::span<float>, Context&);
#endif
  void backward(std::span<float const>, Context&);
};

static_assert(rl::ValueFunction<Values>);
