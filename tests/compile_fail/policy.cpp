// SPDX-License-Identifier: Apache-2.0
// A policy without backward cannot be trained; the message names what is missing.
// expect: backward
#include <span>

#include "emprl/rl/concepts.hpp"

using namespace emprl;

struct Frozen {
  using Scalar = float;
  struct Context {};
  void forward(rl::TokenBatch const&, std::span<float>, Context&);
#ifndef EMPRL_COMPILE_FAIL
  void backward(std::span<float const>, Context&);
#endif
};

static_assert(rl::Policy<Frozen>);
