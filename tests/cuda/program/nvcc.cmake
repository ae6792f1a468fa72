# SPDX-License-Identifier: Apache-2.0
# Builds the program emprl as -DEMPRL_CUDA_PROGRAMS=ON does, warnings as errors, and holds it to
# check.sh. What does not depend on CUDA is taken as this build has compiled it. Run as:
#   cmake -DNVCC=... -DSOURCE=... -DWORK=... -DGENERATOR=... -DOBJECTS=... -DWITHOUT=... -DCORPUS=...
#         "-DOPTIONS=-D...;-D..." -P nvcc.cmake
# OPTIONS are what the objects were compiled with; WITHOUT is the program without CUDA, CORPUS
# emprl-corpus.
cmake_minimum_required(VERSION 3.25)

include("${SOURCE}/cmake/nvcc.cmake")

if(NOT NVCC)
  message(NOTICE "Skipped: nvcc was not found.")
  return()
endif()

string(REPLACE ";" "\\;" objects "${OBJECTS}")  # one word for step
step(${CMAKE_COMMAND} -S "${SOURCE}" -B "${WORK}/build" -G "${GENERATOR}" ${OPTIONS}
  -DEMPRL_WERROR=ON -DEMPRL_BUILD_TESTS=OFF -DEMPRL_CUDA_PROGRAMS=ON "-DCMAKE_CUDA_COMPILER=${NVCC}"
  "-DEMPRL_PROGRAM_OBJECTS=${objects}")
step(${CMAKE_COMMAND} --build "${WORK}/build" --target emprl_program)
execute_process(
  COMMAND sh "${SOURCE}/tests/cuda/program/check.sh" --with "${WORK}/build/bin/emprl"
    --without "${WITHOUT}" --corpus "${CORPUS}" --work "${WORK}/check"
  COMMAND_ERROR_IS_FATAL ANY)
