// SPDX-License-Identifier: Apache-2.0
// An estimator writes advantages and returns.
// expect: a(rollout, advantages, returns)
#include <span>

#include "emprl/rl/concepts.hpp"

using namespace emprl;

struct Estimator {
#ifdef EMPRL_COMPILE_FAIL
  void operator()(rl::Rollout const&, std::span<double> advantages);
#else
  void operator()(rl::Rollout const&, std::span<double> advantages, std::span<double> returns);
#endif
};

static_assert(rl::AdvantageEstimator<Estimator>);
