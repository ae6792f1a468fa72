// SPDX-License-Identifier: Apache-2.0
// Linked with together_second.cpp: a function in a header that is neither inline nor a template is
// defined twice, and the linker says so.
#include "all_headers.hpp"

int major_version_seen_by_second();

int main() {
  return major_version_seen_by_second() == EMPRL_VERSION_MAJOR ? 0 : 1;
}
