// SPDX-License-Identifier: Apache-2.0
// An objective for numbers alone has no gradient: it must be a template over the number. The
// trainer says so.
// expect: spec.objective must be an Objective: template <class S> S operator()(S logp
#include <cstdint>
#include <span>
#include <string>

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

struct Reinforce {
#ifdef EMPRL_COMPILE_FAIL
  double operator()(double logp, double, rl::TokenContext const& t) const {
    return -t.advantage * logp;
  }
#else
  template <class S>
  S operator()(S logp, S, rl::TokenContext const& t) const {
    return S(-t.advantage) * logp;
  }
#endif
};

using Spec = rl::PpoSpec<Actor, Reference, Reward, Draw, Decode, Descent, rl::KlK1, rl::AdaptiveKl,
                         rl::Gae, Reinforce>;
static_assert(sizeof(rl::PpoTrainer<Spec>) > 0);
