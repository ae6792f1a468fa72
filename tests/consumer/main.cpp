// SPDX-License-Identifier: Apache-2.0
#include <cstdio>

#include "emprl/core/config.hpp"
#include "emprl/core/rng.hpp"

int main() {
  double const draw = emprl::uniform({.seed = 7, .stream = emprl::Stream::sample});
  std::printf("EmpRL %s drew %.17g\n", EMPRL_VERSION_STRING, draw);
  return draw >= 0.0 && draw < 1.0 ? 0 : 1;
}
