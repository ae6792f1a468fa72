# SPDX-License-Identifier: Apache-2.0
# emprl_join_sources(OUT DIRECTORY SOURCE...): joins source files into a few, since most of the
# compiler's time goes into the same templates in every file (tests/rl in 44 s for 86 s, tests/nn in
# 16 s for 59 s, g++ 12, 2026-11-25).
#
# CMake's own unity build would let the files' helpers meet. Here each file stands in a namespace of
# its own, and all that any of them includes stands before, so that inside of the namespaces an
# include finds its guard and does nothing. The sources are not changed, and messages name their
# lines; they must not open a namespace of the library's.
function(emprl_join_sources out directory)
  # Bytes stand for time: two processors should have several equal parts each.
  set(most 60000)
  set(joined "")
  set(part 0)
  set(bytes 0)
  set(head "")
  set(body "")
  list(SORT ARGN)
  set(room "")
  foreach(source IN LISTS ARGN)
    cmake_path(GET source STEM stem)
    cmake_path(GET source PARENT_PATH folder)
    cmake_path(GET folder FILENAME name)
    file(SIZE "${source}" size)
    math(EXPR sum "${bytes} + ${size}")
    if(bytes GREATER 0 AND (sum GREATER most OR NOT room STREQUAL name))
      emprl_write_joined(joined "${directory}/${room}_${part}.cpp" "${head}" "${body}")
      math(EXPR part "${part} + 1")
      set(head "")
      set(body "")
      set(bytes 0)
    endif()
    if(NOT room STREQUAL name)
      set(part 0)
      set(room "${name}")
    endif()
    math(EXPR bytes "${bytes} + ${size}")
    # What a file includes, with the conditions around it.
    file(STRINGS "${source}" directives REGEX "^#[ ]*(include|if|ifdef|ifndef|elif|else|endif)")
    list(JOIN directives "\n" directives)
    string(REPLACE "\"../" "\"${folder}/../" directives "${directives}")
    string(APPEND head "${directives}\n")
    string(APPEND body "namespace test_file_${stem} {\n#include \"${source}\"\n}\n")
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${source}")
  endforeach()
  if(bytes GREATER 0)
    emprl_write_joined(joined "${directory}/${room}_${part}.cpp" "${head}" "${body}")
  endif()
  set(${out} "${joined}" PARENT_SCOPE)
endfunction()

function(emprl_write_joined list path head body)
  file(CONFIGURE OUTPUT "${path}" CONTENT "${head}${body}" @ONLY)
  list(APPEND ${list} "${path}")
  set(${list} "${${list}}" PARENT_SCOPE)
endfunction()
