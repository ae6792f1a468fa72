# SPDX-License-Identifier: Apache-2.0
# Finds what the headers stand on and hangs it on emprl::emprl, emprl::io, emprl::text and emprl::cuda. Used by
# the project's own build and by the installed package alike: a header library's optional parts are
# those of the machine that compiles it, not of the machine that packed it.
#
#   Eigen          required
#   OpenMP         optional: loops run on several threads
#   oneDNN         optional: float matrix products; defines EMPRL_HAS_ONEDNN
#   nlohmann-json  optional: emprl::io
#   sentencepiece  optional: emprl::text
#   CUDA toolkit   optional: emprl::cuda, for sources in the CUDA language

option(EMPRL_WITH_OPENMP "Use OpenMP where it is found" ON)
option(EMPRL_WITH_ONEDNN "Use oneDNN where it is found" ON)
option(EMPRL_WITH_CUDA "Offer emprl::cuda where the CUDA toolkit is found" ON)
set(EMPRL_CUDA_ARCHITECTURES "80;90a" CACHE STRING
  "The GPUs that this project's own CUDA programs are compiled for")

# A project that takes this one by add_subdirectory must see the packages' targets too.
set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL ON)

find_package(Eigen3 3.3 QUIET NO_MODULE)
if(NOT TARGET Eigen3::Eigen)
  set(emprl_dependency_failed "EmpRL needs Eigen 3.3 or newer (Debian and Ubuntu: libeigen3-dev).")
  if(NOT CMAKE_FIND_PACKAGE_NAME STREQUAL "emprl")
    message(FATAL_ERROR "${emprl_dependency_failed}")
  endif()
  return()
endif()

# emprl::emprl is an alias in the project and an imported target in an installed copy.
get_target_property(emprl_target emprl::emprl ALIASED_TARGET)
if(NOT emprl_target)
  set(emprl_target emprl::emprl)
endif()
target_link_libraries(${emprl_target} INTERFACE $<BUILD_INTERFACE:Eigen3::Eigen>)
set(emprl_parts "Eigen ${Eigen3_VERSION}")

if(EMPRL_WITH_OPENMP)
  find_package(OpenMP QUIET COMPONENTS CXX)
  if(TARGET OpenMP::OpenMP_CXX)
    target_link_libraries(${emprl_target} INTERFACE $<BUILD_INTERFACE:OpenMP::OpenMP_CXX>)
    list(APPEND emprl_parts "OpenMP ${OpenMP_CXX_VERSION}")
  endif()
endif()

# Debian's dnnl-config.cmake stops at a missing OpenCL, which the C interface does not need: so the
# header and the library are looked for directly.
if(EMPRL_WITH_ONEDNN)
  find_path(EMPRL_ONEDNN_INCLUDE dnnl.h)
  find_library(EMPRL_ONEDNN_LIBRARY dnnl)
  mark_as_advanced(EMPRL_ONEDNN_INCLUDE EMPRL_ONEDNN_LIBRARY)
  if(EMPRL_ONEDNN_INCLUDE AND EMPRL_ONEDNN_LIBRARY)
    if(NOT TARGET emprl::onednn)
      add_library(emprl::onednn INTERFACE IMPORTED GLOBAL)
      set_target_properties(emprl::onednn PROPERTIES
        INTERFACE_INCLUDE_DIRECTORIES "${EMPRL_ONEDNN_INCLUDE}"
        INTERFACE_LINK_LIBRARIES "${EMPRL_ONEDNN_LIBRARY}"
        INTERFACE_COMPILE_DEFINITIONS EMPRL_HAS_ONEDNN=1)
    endif()
    target_link_libraries(${emprl_target} INTERFACE $<BUILD_INTERFACE:emprl::onednn>)
    list(APPEND emprl_parts "oneDNN")
  endif()
endif()

find_package(nlohmann_json 3.10 QUIET)
if(TARGET nlohmann_json::nlohmann_json)
  if(NOT TARGET emprl::io)
    add_library(emprl::io INTERFACE IMPORTED GLOBAL)
    set_target_properties(emprl::io PROPERTIES
      INTERFACE_LINK_LIBRARIES "emprl::emprl;nlohmann_json::nlohmann_json")
  endif()
  list(APPEND emprl_parts "nlohmann-json ${nlohmann_json_VERSION}")
endif()

find_path(EMPRL_SENTENCEPIECE_INCLUDE sentencepiece_processor.h)
find_library(EMPRL_SENTENCEPIECE_LIBRARY sentencepiece)
find_library(EMPRL_SENTENCEPIECE_TRAIN_LIBRARY sentencepiece_train)
mark_as_advanced(EMPRL_SENTENCEPIECE_INCLUDE EMPRL_SENTENCEPIECE_LIBRARY
  EMPRL_SENTENCEPIECE_TRAIN_LIBRARY)
if(EMPRL_SENTENCEPIECE_INCLUDE AND EMPRL_SENTENCEPIECE_LIBRARY AND EMPRL_SENTENCEPIECE_TRAIN_LIBRARY)
  if(NOT TARGET emprl::text)
    add_library(emprl::text INTERFACE IMPORTED GLOBAL)
    set_target_properties(emprl::text PROPERTIES
      INTERFACE_INCLUDE_DIRECTORIES "${EMPRL_SENTENCEPIECE_INCLUDE}"
      INTERFACE_LINK_LIBRARIES
        "emprl::emprl;${EMPRL_SENTENCEPIECE_TRAIN_LIBRARY};${EMPRL_SENTENCEPIECE_LIBRARY}")
  endif()
  list(APPEND emprl_parts "sentencepiece")
endif()

# Whoever links emprl::cuda enables the CUDA language and names the architectures (CMake's 'native'
# fails where there is no GPU). CMake 3.25 does not know the C++20 mode of nvcc, so that it is asked
# for by its flag; std::array and std::bit_cast in device code need the other one.
if(EMPRL_WITH_CUDA)
  find_package(CUDAToolkit 12 QUIET)
  if(TARGET CUDA::cudart AND TARGET CUDA::cublasLt)
    if(NOT TARGET emprl::cuda)
      add_library(emprl::cuda INTERFACE IMPORTED GLOBAL)
      set_target_properties(emprl::cuda PROPERTIES
        INTERFACE_LINK_LIBRARIES "emprl::emprl;CUDA::cudart;CUDA::cublasLt"
        INTERFACE_COMPILE_OPTIONS
          "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>;$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>"
        INTERFACE_COMPILE_DEFINITIONS
          # fmt 9 under nvcc: where a program prints.
          "$<$<COMPILE_LANGUAGE:CUDA>:FMT_USE_CONSTEXPR=1>")
    endif()
    list(APPEND emprl_parts "CUDA ${CUDAToolkit_VERSION}")
  endif()
endif()

list(JOIN emprl_parts ", " emprl_parts)
if(NOT emprl_FIND_QUIETLY)
  message(STATUS "EmpRL stands on ${emprl_parts}")
endif()
