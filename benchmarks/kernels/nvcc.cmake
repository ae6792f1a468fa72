# SPDX-License-Identifier: Apache-2.0
# Compiles the benchmark of the kernels with nvcc, without a warning, for sm_80 and sm_90a, and
# compares the compiler's report of every kernel with the table registers.txt; with MODE=table writes
# that table instead; with MODE=program also links the program, so that it needs nothing of this
# machine but cuBLASLt. Run as:
#   cmake -DMODE=compile|table|program -DNVCC=... -DSOURCE=... -DWORK=... -P nvcc.cmake
cmake_minimum_required(VERSION 3.25)

include("${SOURCE}/cmake/nvcc.cmake")
include("${SOURCE}/benchmarks/kernels/registers.cmake")

if(NOT NVCC)
  message(NOTICE "Skipped: nvcc was not found.")
  return()
endif()

set(include -I "${SOURCE}/include" -I "${SOURCE}/benchmarks")

file(MAKE_DIRECTORY "${WORK}")
file(GLOB sources "${SOURCE}/benchmarks/kernels/*.cu")
set(objects "")
set(report "")
foreach(source IN LISTS sources)
  cmake_path(GET source STEM stem)
  step("${NVCC}" -x cu ${emprl_nvcc_flags} -Xptxas -v ${include}
    -c "${source}" -o "${WORK}/${stem}.o")
  string(APPEND report "${step_output}")
  list(APPEND objects "${WORK}/${stem}.o")
endforeach()
list(LENGTH sources count)
message(STATUS "${count} files compiled for sm_80 and sm_90a without a warning.")

set(table "${SOURCE}/benchmarks/kernels/registers.txt")
execute_process(COMMAND "${NVCC}" --version OUTPUT_VARIABLE version COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCH "V[0-9.]+" version "${version}")
read_kernel_report(rows "${report}" "${WORK}")
if(MODE STREQUAL "table")
  list(JOIN rows "\n" lines)
  file(WRITE "${table}" "# nvcc ${version}\n${lines}\n")
  return()
endif()
check_kernel_report("${rows}" "${version}" "${table}")
if(NOT MODE STREQUAL "program")
  return()
endif()

# What prints is host code, with fmt and JSON compiled in (fmt 9 needs its define wherever nvcc
# calls the compiler), and so is the model's reference, with Eigen for its products. CUDA's runtime
# is linked statically.
find_path(eigen Eigen/Core PATHS /usr/include /usr/local/include PATH_SUFFIXES eigen3 REQUIRED)
foreach(stem main model_reference)
  step("${NVCC}" -x c++ -std=c++20 -O2 -DFMT_HEADER_ONLY -DFMT_USE_CONSTEXPR=1
    -DEMPRL_BENCH_CUDA ${include} -isystem "${eigen}"
    -c "${SOURCE}/benchmarks/kernels/${stem}.cpp" -o "${WORK}/${stem}.o")
  list(APPEND objects "${WORK}/${stem}.o")
endforeach()
step("${NVCC}" ${objects} -lcublasLt
  -Xcompiler -static-libstdc++,-static-libgcc -Xlinker "-rpath=$ORIGIN" -o "${WORK}/bench_kernels")
