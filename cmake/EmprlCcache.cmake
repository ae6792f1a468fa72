# SPDX-License-Identifier: Apache-2.0
# Compile through ccache where it is installed and no other launcher was asked for.
find_program(EMPRL_CCACHE ccache)
mark_as_advanced(EMPRL_CCACHE)
if(EMPRL_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  # Precompiled headers need these two; without them every file that uses one is a miss.
  set(CMAKE_CXX_COMPILER_LAUNCHER
    ${CMAKE_COMMAND} -E env CCACHE_SLOPPINESS=pch_defines,time_macros ${EMPRL_CCACHE})
endif()
