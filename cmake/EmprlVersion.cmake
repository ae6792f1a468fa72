# SPDX-License-Identifier: Apache-2.0
# The version stands in one place, include/emprl/core/config.hpp; this reads it from there.
set(EMPRL_VERSION 0.1.0)
set(emprl_config_header "${CMAKE_CURRENT_LIST_DIR}/../include/emprl/core/config.hpp")
if(EXISTS "${emprl_config_header}")
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${emprl_config_header}")
  file(STRINGS "${emprl_config_header}" emprl_version_lines
    REGEX "^#define EMPRL_VERSION_(MAJOR|MINOR|PATCH) +[0-9]+")
  if(emprl_version_lines MATCHES
     "MAJOR +([0-9]+).*MINOR +([0-9]+).*PATCH +([0-9]+)")
    set(EMPRL_VERSION ${CMAKE_MATCH_1}.${CMAKE_MATCH_2}.${CMAKE_MATCH_3})
  endif()
endif()
