# SPDX-License-Identifier: Apache-2.0
# emprl::build_flags: how this project compiles its own tests, programs and benchmarks. It is never
# part of the installed interface.
include_guard(GLOBAL)

add_library(emprl_build_flags INTERFACE)
add_library(emprl::build_flags ALIAS emprl_build_flags)
target_compile_features(emprl_build_flags INTERFACE cxx_std_20)

target_compile_options(emprl_build_flags INTERFACE
  -Wall -Wextra -Wconversion
  # In joined files it would compare names across files.
  $<$<NOT:$<BOOL:$<TARGET_PROPERTY:UNITY_BUILD>>>:-Wshadow>
  # Arithmetic is the same in tests and programs, so that what is tested is what runs:
  # multiply-adds may be fused, loops with sqrt or exp may be vectorised because nothing reads errno
  # or the floating-point exception flags. Associativity, NaN and infinity keep IEEE rules.
  -ffp-contract=fast -fno-math-errno -fno-trapping-math)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # g++ 12 sees overlapping copies in std::string's operator+ (its bug 105651, mended in 13).
  target_compile_options(emprl_build_flags INTERFACE -Wno-restrict)
endif()
if(EMPRL_WERROR)
  target_compile_options(emprl_build_flags INTERFACE -Werror)
endif()
if(EMPRL_NATIVE)
  target_compile_options(emprl_build_flags INTERFACE -march=native)
endif()
if(EMPRL_SANITIZE)
  target_compile_options(emprl_build_flags INTERFACE
    -fsanitize=${EMPRL_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g1)
  if(EMPRL_SANITIZE MATCHES "undefined")
    # Three checks before every access through a pointer: AddressSanitizer catches what null and
    # object-size would, nothing here has virtual bases, and without them a file of templates
    # compiles in half the time.
    target_compile_options(emprl_build_flags INTERFACE -fno-sanitize=null,object-size,vptr)
  endif()
  target_link_options(emprl_build_flags INTERFACE -fsanitize=${EMPRL_SANITIZE})
endif()
