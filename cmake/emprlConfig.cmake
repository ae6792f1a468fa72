# SPDX-License-Identifier: Apache-2.0
# find_package(emprl [COMPONENTS io text cuda]): emprl::emprl always, emprl::io, emprl::text and
# emprl::cuda where nlohmann-json, sentencepiece and the CUDA toolkit are installed. A component asked for and absent is an error.
include("${CMAKE_CURRENT_LIST_DIR}/emprlTargets.cmake")
unset(emprl_dependency_failed)
include("${CMAKE_CURRENT_LIST_DIR}/EmprlDependencies.cmake")
if(emprl_dependency_failed)
  set(emprl_FOUND FALSE)
  set(emprl_NOT_FOUND_MESSAGE "${emprl_dependency_failed}")
  return()
endif()
foreach(component IN LISTS emprl_FIND_COMPONENTS)
  if(TARGET emprl::${component})
    set(emprl_${component}_FOUND TRUE)
  elseif(emprl_FIND_REQUIRED_${component})
    set(emprl_FOUND FALSE)
    set(emprl_NOT_FOUND_MESSAGE
      "The part '${component}' was asked for and its packages are not installed.")
  endif()
endforeach()
