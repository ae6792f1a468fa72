// SPDX-License-Identifier: Apache-2.0
// A reward writes into the scores it is given; the trainer says how it must be callable.
// expect: spec.reward must be a RewardModel: callable as reward(EpisodeBatch const&
#include <vector>

#include "compile_fail/spec_parts.hpp"

using namespace emprl;
using namespace parts;

struct Returns {
#ifdef EMPRL_COMPILE_FAIL
  std::vector<float> operator()(rl::EpisodeBatch const&);
#else
  void operator()(rl::EpisodeBatch const&, std::span<float>);
#endif
};

using Spec = rl::PpoSpec<Actor, Reference, Returns, Draw, Decode, Descent>;
static_assert(sizeof(rl::PpoTrainer<Spec>) > 0);
