// SPDX-License-Identifier: Apache-2.0
// A sampler is told the step, which addresses its random draws.
// expect: s(contexts, step)
#include <cstdint>

#include "emprl/rl/concepts.hpp"

using namespace emprl;

struct Draw {
#ifdef EMPRL_COMPILE_FAIL
  Ragged operator()(RaggedView contexts);
#else
  Ragged operator()(RaggedView contexts, std::uint32_t step);
#endif
};

static_assert(rl::Sampler<Draw>);
