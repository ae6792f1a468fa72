// SPDX-License-Identifier: Apache-2.0
#include "all_headers.hpp"

int major_version_seen_by_second();
int major_version_seen_by_second() {
  return EMPRL_VERSION_MAJOR;
}
