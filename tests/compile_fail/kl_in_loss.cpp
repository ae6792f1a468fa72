// SPDX-License-Identifier: Apache-2.0
// k1 in the loss penalises nothing, which is said in a sentence.
// expect: k1 cannot be a penalty in the loss
#include "emprl/rl/kl.hpp"

using namespace emprl;

#ifdef EMPRL_COMPILE_FAIL
rl::KlInLoss<rl::KlK1> penalty;
#else
rl::KlInLoss<rl::KlK2> penalty;
#endif
