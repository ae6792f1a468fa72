# SPDX-License-Identifier: Apache-2.0
include(CMakePackageConfigHelpers)
set(emprl_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/emprl")

install(DIRECTORY include/emprl DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
  FILES_MATCHING PATTERN "*.hpp" PATTERN "*.cuh")
install(TARGETS emprl EXPORT emprlTargets)
install(EXPORT emprlTargets NAMESPACE emprl:: DESTINATION "${emprl_package_dir}")

write_basic_package_version_file("${PROJECT_BINARY_DIR}/emprlConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES
  cmake/emprlConfig.cmake
  cmake/EmprlDependencies.cmake
  "${PROJECT_BINARY_DIR}/emprlConfigVersion.cmake"
  DESTINATION "${emprl_package_dir}")
install(FILES LICENSE DESTINATION "${CMAKE_INSTALL_DOCDIR}")
