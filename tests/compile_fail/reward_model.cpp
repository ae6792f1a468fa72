// SPDX-License-Identifier: Apache-2.0
// A reward writes into the scores it is given; the trainer says how it must be callable.
// expect: spec.reward must be a RewardModel: callable as reward(EpisodeBatch const&
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "emprl/rl/ppo.hpp"

using namespace emprl;

struct Actor {
  using Scalar = float;
  struct Context {};
  void forward(rl::TokenBatch const&, std::span<float>, std::span<float>, Context&);
  void backward(std::span<float const>, std::span<float const>, Context&);
};

struct Reference {
  void logprobs(rl::TokenBatch const&, std::span<float>);
};

struct Returns {
#ifdef EMPRL_COMPILE_FAIL
  std::vector<float> operator()(rl::EpisodeBatch const&);
#else
  void operator()(rl::EpisodeBatch const&, std::span<float>);
#endif
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

using Spec = rl::PpoSpec<Actor, Reference, Returns, Draw, Decode, Descent>;
static_assert(sizeof(rl::PpoTrainer<Spec>) > 0);
