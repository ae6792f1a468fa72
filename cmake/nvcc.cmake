# SPDX-License-Identifier: Apache-2.0
# What they share that call nvcc: the scripts tests/cuda/nvcc.cmake and benchmarks/kernels/nvcc.cmake,
# and examples/CMakeLists.txt.

# step(COMMAND...): runs it, and stops with its words if it fails. What it prints is left in
# step_output.
function(step)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE code OUTPUT_VARIABLE text ERROR_VARIABLE text)
  if(NOT code EQUAL 0)
    list(JOIN ARGN " " words)
    message(FATAL_ERROR "${words}\nended with ${code}:\n${text}")
  endif()
  set(step_output "${text}" PARENT_SCOPE)
endfunction()

# Every warning is an error. g++ 12 sees overlapping copies in std::string (its bug 105651).
set(emprl_nvcc_warnings -Werror all-warnings -Xcompiler -Wall,-Wextra,-Wno-restrict)

set(emprl_nvcc_flags
  # CMake 3.25 does not know nvcc's C++20 mode; std::array in device code needs the second.
  -std=c++20 --expt-relaxed-constexpr
  -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a
  -O3 ${emprl_nvcc_warnings})
