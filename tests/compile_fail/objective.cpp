// SPDX-License-Identifier: Apache-2.0
// An objective for numbers alone has no gradient: it must be a template over the number. The
// trainer says so.
// expect: spec.objective must be an Objective: template <class S> S operator()(S logp
#include "compile_fail/spec_parts.hpp"

using namespace emprl;
using namespace parts;

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
