// SPDX-License-Identifier: Apache-2.0
// A reference is asked for log-probabilities under this name.
// expect: logprobs
#include <span>

#include "emprl/rl/concepts.hpp"

using namespace emprl;

struct Reference {
#ifdef EMPRL_COMPILE_FAIL
  void log_probs(rl::TokenBatch const&, std::span<float>);
#else
  void logprobs(rl::TokenBatch const&, std::span<float>);
#endif
};

static_assert(rl::ReferencePolicy<Reference, float>);
