# SPDX-License-Identifier: Apache-2.0
# What a .cuh reaches, by the compiler's own account: not Eigen, oneDNN, fmt, nlohmann-json or
# sentencepiece, which nvcc compiles with floods of warnings or not at all, and without nvcc no header
# of CUDA. Run as:
#   cmake -DINCLUDE_DIR=... -DCOMPILER=... -P check_cuda_reach.cmake
cmake_minimum_required(VERSION 3.25)
file(GLOB_RECURSE headers "${INCLUDE_DIR}/emprl/*.cuh" "${INCLUDE_DIR}/emprl/cuda/*.hpp")
if(NOT headers)
  message(FATAL_ERROR "No .cuh was found under ${INCLUDE_DIR}/emprl.")
endif()
# What a program on the GPU includes besides.
list(APPEND headers
  "${INCLUDE_DIR}/emprl/rl/ppo.hpp" "${INCLUDE_DIR}/emprl/train/sequence_loss.hpp"
  "${INCLUDE_DIR}/emprl/train/engine.hpp")
set(wrong 0)
foreach(header IN LISTS headers)
  execute_process(COMMAND "${COMPILER}" -std=c++20 "-I${INCLUDE_DIR}" -M -x c++ "${header}"
    OUTPUT_VARIABLE reached COMMAND_ERROR_IS_FATAL ANY)
  foreach(package IN ITEMS "/Eigen/" "/dnnl" "/fmt/" "/nlohmann/" "/sentencepiece" "/cuda_[a-z0-9]+\\.h" "/cublas[A-Za-z]*\\.h")
    if(reached MATCHES "${package}")
      message(NOTICE "${header} reaches ${CMAKE_MATCH_0}.")
      math(EXPR wrong "${wrong} + 1")
    endif()
  endforeach()
endforeach()
if(wrong)
  message(FATAL_ERROR "${wrong} packages are reached that nvcc must not see.")
endif()
