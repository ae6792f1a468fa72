// SPDX-License-Identifier: Apache-2.0
// An objective of the entropy needs an actor whose entropy can be trained.
// expect: backward(dlogp, dvalues, dentropy, context)
#include "compile_fail/spec_parts.hpp"

using namespace emprl;
using namespace parts;

struct EntropyActor {
  using Scalar = float;
  struct Context {};
  using In = std::span<float const>;
  void forward(rl::TokenBatch const&, std::span<float>, std::span<float>, Context&);
  void backward(In, In, Context&);
  void entropy(std::span<float>, Context const&) const;
#ifndef EMPRL_COMPILE_FAIL
  void backward(In, In, In, Context&);
#endif
};

using Spec = rl::PpoSpec<EntropyActor, Reference, Reward, Draw, Decode, Descent, rl::KlK1,
                         rl::AdaptiveKl, rl::Gae, rl::EntropyBonus<rl::PpoClipObjective>>;
static_assert(sizeof(rl::PpoTrainer<Spec>) > 0);
