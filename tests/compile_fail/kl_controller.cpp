// SPDX-License-Identifier: Apache-2.0
// The coefficient is read through a const controller and may not throw.
// expect: coefficient()
#include <cstdint>

#include "emprl/rl/concepts.hpp"

using namespace emprl;

struct Controller {
#ifdef EMPRL_COMPILE_FAIL
  double coefficient();
#else
  double coefficient() const noexcept;
#endif
  void update(double, std::int64_t);
};

static_assert(rl::KlController<Controller>);
