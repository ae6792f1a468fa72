// SPDX-License-Identifier: Apache-2.0
// A matrix is indexed with two numbers; a third is an error that names the view.
// expect: TensorView
#include "emprl/core/device.hpp"
#include "emprl/core/tensor.hpp"

float corner(emprl::TensorView<float, 2, emprl::Cpu> const& matrix);

float corner(emprl::TensorView<float, 2, emprl::Cpu> const& matrix) {
#ifdef EMPRL_COMPILE_FAIL
  return matrix(0, 0, 0);
#else
  return matrix(0, 0);
#endif
}
