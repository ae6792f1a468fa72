# SPDX-License-Identifier: Apache-2.0
# Compiles the program's half for a GPU with nvcc, for sm_80 and sm_90a without a warning, links it
# with a main of a few lines, and runs that. Run as:
#   cmake -DNVCC=... -DSOURCE=... -DWORK=... -P nvcc.cmake
cmake_minimum_required(VERSION 3.25)

include("${SOURCE}/cmake/nvcc.cmake")

if(NOT NVCC)
  message(NOTICE "Skipped: nvcc was not found.")
  return()
endif()

file(MAKE_DIRECTORY "${WORK}")
step("${NVCC}" -x cu ${emprl_nvcc_flags} -I "${SOURCE}/include"
  -c "${SOURCE}/examples/emprl/engine.cu" -o "${WORK}/engine.o")
step("${NVCC}" -x c++ -std=c++20 -O1 -I "${SOURCE}/include"
  -c "${SOURCE}/tests/cuda/program/main.cpp" -o "${WORK}/main.o")
step("${NVCC}" "${WORK}/main.o" "${WORK}/engine.o" -lcublasLt -o "${WORK}/engine")
execute_process(COMMAND "${WORK}/engine" COMMAND_ERROR_IS_FATAL ANY)
