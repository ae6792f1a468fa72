// SPDX-License-Identifier: Apache-2.0
// An objective for numbers alone has no gradient: it must be a template over the number.
// expect: o(dual, dual, t)
#include "emprl/rl/concepts.hpp"

using namespace emprl;

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

static_assert(rl::Objective<Reinforce>);
