# SPDX-License-Identifier: Apache-2.0
# Compiles the tests of tests/cuda and every .cuh with nvcc, without a warning, for sm_80 and sm_90a,
# and runs them where there is a GPU. Run as:
#   cmake -DMODE=compile|run -DNVCC=... -DSOURCE=... -DWORK=... -DMAIN=test_main.o -P nvcc.cmake
cmake_minimum_required(VERSION 3.25)
set(program "${WORK}/emprl_tests_cuda")

function(step)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(NOT code EQUAL 0)
    list(JOIN ARGN " " words)
    message(FATAL_ERROR "${words}\nended with ${code}:\n${text}")
  endif()
endfunction()

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

set(flags
  # CMake 3.25 does not know nvcc's C++20 mode; std::array in device code needs the second.
  -std=c++20 --expt-relaxed-constexpr
  -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a
  # g++ 12 sees overlapping copies in std::string (its bug 105651).
  -O3 -Werror all-warnings -Xcompiler -Wall,-Wextra,-Wno-restrict
  -I "${SOURCE}/include" -I "${SOURCE}/tests")

file(MAKE_DIRECTORY "${WORK}")
file(GLOB sources "${SOURCE}/tests/cuda/test_*.cpp")
file(GLOB_RECURSE headers RELATIVE "${SOURCE}/include" "${SOURCE}/include/emprl/*.cuh")
set(all_headers "")
foreach(header IN LISTS headers)
  string(APPEND all_headers "#include \"${header}\"\n")
endforeach()
file(WRITE "${WORK}/all_headers.cu" "${all_headers}")
list(APPEND sources "${WORK}/all_headers.cu")

set(objects "")
foreach(source IN LISTS sources)
  cmake_path(GET source STEM stem)
  step("${NVCC}" -x cu ${flags} -c "${source}" -o "${WORK}/${stem}.o")
  list(APPEND objects "${WORK}/${stem}.o")
endforeach()
step("${NVCC}" ${MAIN} ${objects} -lcublasLt -o "${program}")
list(LENGTH sources count)
message(STATUS "${count} files compiled for sm_80 and sm_90a without a warning.")
