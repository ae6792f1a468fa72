# SPDX-License-Identifier: Apache-2.0
# Compiles a test of tests/cuda, or every .cuh, with nvcc for sm_80 and sm_90a without a warning;
# links them; runs them where there is a GPU. Run as:
#   cmake -DMODE=compile [-DSTEM=test_rms_norm|all_headers] -DNVCC=... -DSOURCE=... -DWORK=... -P nvcc.cmake
#   cmake -DMODE=link "-DSTEMS=...;..." -DMAIN=test_main.o ...
#   cmake -DMODE=run ...
cmake_minimum_required(VERSION 3.25)
set(program "${WORK}/emprl_tests_cuda")

include("${SOURCE}/cmake/nvcc.cmake")

if(NOT NVCC)
  message(NOTICE "Skipped: nvcc was not found.")
  return()
endif()

if(MODE STREQUAL "run")
  execute_process(COMMAND nvidia-smi -L RESULT_VARIABLE code OUTPUT_VARIABLE devices ERROR_QUIET)
  if(NOT code EQUAL 0 OR NOT devices MATCHES "GPU ")
    message(NOTICE "Skipped: there is no CUDA device.")
    return()
  endif()
  execute_process(COMMAND "${program}" COMMAND_ERROR_IS_FATAL ANY)
  return()
endif()

file(MAKE_DIRECTORY "${WORK}")
if(MODE STREQUAL "link")
  list(TRANSFORM STEMS REPLACE "(.+)" "${WORK}/\\1.o" OUTPUT_VARIABLE objects)
  step("${NVCC}" ${MAIN} ${objects} -lcublasLt -o "${program}")
  return()
endif()

if(NOT STEM)
  file(GLOB tests "${SOURCE}/tests/cuda/test_*.cpp")
  list(TRANSFORM tests REPLACE "^.*/(.+)\\.cpp$" "\\1" OUTPUT_VARIABLE STEM)
endif()
foreach(stem IN LISTS STEM)
  if(stem STREQUAL "all_headers")
    file(GLOB_RECURSE headers RELATIVE "${SOURCE}/include" "${SOURCE}/include/emprl/*.cuh")
    set(text "")
    foreach(header IN LISTS headers)
      string(APPEND text "#include \"${header}\"\n")
    endforeach()
    set(source "${WORK}/all_headers.cu")
    file(WRITE "${source}" "${text}")
  else()
    set(source "${SOURCE}/tests/cuda/${stem}.cpp")
  endif()
  step("${NVCC}" -x cu ${emprl_nvcc_flags}
    -I "${SOURCE}/include" -I "${SOURCE}/tests" -c "${source}" -o "${WORK}/${stem}.o")
endforeach()
