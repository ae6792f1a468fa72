# SPDX-License-Identifier: Apache-2.0
# One case. Run as: cmake -DCOMPILER=... -DCASE=... -DINCLUDES=a;b -P check.cmake
cmake_minimum_required(VERSION 3.25)
file(STRINGS "${CASE}" expectations REGEX "^// expect: ")
if(NOT expectations)
  message(FATAL_ERROR "${CASE} has no line '// expect: TEXT'.")
endif()
file(STRINGS "${CASE}" guard REGEX "^#ifn?def EMPRL_COMPILE_FAIL")
if(NOT guard)
  message(FATAL_ERROR "${CASE} does not guard its wrong line with #ifdef EMPRL_COMPILE_FAIL.")
endif()

set(command ${COMPILER} -std=c++20 -fsyntax-only)
foreach(folder IN LISTS INCLUDES)
  if(folder)
    list(APPEND command "-I${folder}")
  endif()
endforeach()

execute_process(COMMAND ${command} "${CASE}" RESULT_VARIABLE code ERROR_VARIABLE output)
if(NOT code EQUAL 0)
  message(FATAL_ERROR "Without its wrong line, ${CASE} should compile:\n${output}")
endif()

execute_process(COMMAND ${command} -DEMPRL_COMPILE_FAIL "${CASE}"
  RESULT_VARIABLE code ERROR_VARIABLE output)
if(code EQUAL 0)
  message(FATAL_ERROR "${CASE} should not compile, and it does.")
endif()
string(REGEX MATCH "^([^\n]*\n?[^\n]*\n?[^\n]*\n?[^\n]*\n?[^\n]*\n?[^\n]*\n?[^\n]*\n?[^\n]*\n?[^\n]*\n?[^\n]*)"
  head "${output}")
foreach(line IN LISTS expectations)
  string(REGEX REPLACE "^// expect: " "" text "${line}")
  string(FIND "${head}" "${text}" at)
  if(at EQUAL -1)
    message(FATAL_ERROR "The first ten lines do not say '${text}':\n${head}")
  endif()
endforeach()
