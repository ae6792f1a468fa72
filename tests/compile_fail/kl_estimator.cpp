// SPDX-License-Identifier: Apache-2.0
// A KL estimator takes two log-probabilities.
// expect: k(logp, reference)
#include "emprl/rl/concepts.hpp"

using namespace emprl;

struct OfRatio {
#ifdef EMPRL_COMPILE_FAIL
  double operator()(double log_ratio) const;
#else
  double operator()(double logp, double reference) const;
#endif
};

static_assert(rl::KlEstimator<OfRatio>);
