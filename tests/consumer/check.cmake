# SPDX-License-Identifier: Apache-2.0
# Configures, builds and runs the consumer. Run as:
#   cmake -DMODE=installed|subdirectory -DEMPRL_BINARY=... -DEMPRL_SOURCE=... -DWORK=...
#         -DGENERATOR=... -DCOMPILER=... -P check.cmake
cmake_minimum_required(VERSION 3.25)
function(step)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(NOT code EQUAL 0)
    list(JOIN ARGN " " words)
    message(FATAL_ERROR "${words}\nended with ${code}:\n${text}")
  endif()
endfunction()

file(REMOVE_RECURSE "${WORK}")
if(MODE STREQUAL "installed")
  step(${CMAKE_COMMAND} --install "${EMPRL_BINARY}" --prefix "${WORK}/prefix")
  set(where "-DCMAKE_PREFIX_PATH=${WORK}/prefix")
else()
  set(where "-DEMPRL_SOURCE_DIR=${EMPRL_SOURCE}")
endif()
step(${CMAKE_COMMAND} -S "${EMPRL_SOURCE}/tests/consumer" -B "${WORK}/build" -G "${GENERATOR}"
  "-DCMAKE_CXX_COMPILER=${COMPILER}" "${where}")
step(${CMAKE_COMMAND} --build "${WORK}/build")
step("${WORK}/build/consumer")
