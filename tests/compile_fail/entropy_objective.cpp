// SPDX-License-Identifier: Apache-2.0
// An objective of the entropy needs an actor whose entropy can be trained.
// expect: backward(dlogp, dvalues, dentropy, context)
#include <cstdint>
#include <span>
#include <string>

#include "emprl/rl/ppo.hpp"

using namespace emprl;

struct Actor {
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

struct Reference {
  void logprobs(rl::TokenBatch const&, std::span<float>);
};

struct Reward {
  void operator()(rl::EpisodeBatch const&, std::span<float>);
};

struct Draw {
  Ragged operator()(RaggedView contexts, std::uint32_t step);
};

struct Decode {
  std::string operator()(std::span<std::int32_t const>);
};

struct Descent {
  void zero_gradients();
  double step(double, double);
};

using Spec = rl::PpoSpec<Actor, Reference, Reward, Draw, Decode, Descent, rl::KlK1, rl::AdaptiveKl,
                         rl::Gae, rl::EntropyBonus<rl::PpoClipObjective>>;
static_assert(sizeof(rl::PpoTrainer<Spec>) > 0);
