# SPDX-License-Identifier: Apache-2.0
# Compiles the benchmark of the kernels with nvcc, without a warning, for sm_80 and sm_90a; with
# MODE=program also links it, so that it needs nothing of this machine but cuBLASLt. Run as:
#   cmake -DMODE=compile|program -DNVCC=... -DSOURCE=... -DWORK=... -P nvcc.cmake
cmake_minimum_required(VERSION 3.25)

include("${SOURCE}/cmake/nvcc.cmake")

if(NOT NVCC)
  message(NOTICE "Skipped: nvcc was not found.")
  return()
endif()

set(include -I "${SOURCE}/include" -I "${SOURCE}/benchmarks")

file(MAKE_DIRECTORY "${WORK}")
file(GLOB sources "${SOURCE}/benchmarks/kernels/*.cu")
set(objects "")
foreach(source IN LISTS sources)
  cmake_path(GET source STEM stem)
  step("${NVCC}" -x cu ${emprl_nvcc_flags} ${include} -c "${source}" -o "${WORK}/${stem}.o")
  list(APPEND objects "${WORK}/${stem}.o")
endforeach()
list(LENGTH sources count)
message(STATUS "${count} files compiled for sm_80 and sm_90a without a warning.")
if(NOT MODE STREQUAL "program")
  return()
endif()

# What prints is host code, with fmt and JSON compiled in (fmt 9 needs its define wherever nvcc
# calls the compiler). CUDA's runtime is linked statically.
step("${NVCC}" -x c++ -std=c++20 -O2 -DFMT_HEADER_ONLY -DFMT_USE_CONSTEXPR=1
  -DEMPRL_BENCH_CUDA ${include}
  -c "${SOURCE}/benchmarks/kernels/main.cpp" -o "${WORK}/main.o")
step("${NVCC}" "${WORK}/main.o" ${objects} -lcublasLt
  -Xcompiler -static-libstdc++,-static-libgcc -Xlinker "-rpath=$ORIGIN" -o "${WORK}/bench_kernels")
