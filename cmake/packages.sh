# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=sh
#
# Sourced by tests/run.sh and examples/quickstart.sh: installs what is missing, from Debian's or
# Ubuntu's packages, and says so first. Where nothing is missing it does nothing, on any system.

say() { printf '%s\n' "$*"; }

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

# have_header HEADER...: the compiler finds every one of them.
have_header() {
  for emprl_header in "$@"; do
    printf '#include <%s>\n' "$emprl_header"
  done | c++ -std=c++20 -E -x c++ -I /usr/include/eigen3 - >/dev/null 2>&1
}

# want PACKAGE CHECK...: puts PACKAGE on the list unless CHECK succeeds.
want() {
  emprl_package=$1
  shift
  "$@" >/dev/null 2>&1 || emprl_missing="$emprl_missing $emprl_package"
}

# install_missing PART...: PART is 'tests' or 'programs'; both need the compiler and the libraries.
install_missing() {
  emprl_missing=
  want g++ command -v c++
  want cmake command -v cmake
  want ninja-build command -v ninja
  want libeigen3-dev have_header Eigen/Core
  want nlohmann-json3-dev have_header nlohmann/json.hpp
  want libsentencepiece-dev have_header sentencepiece_processor.h sentencepiece_trainer.h
  want libdnnl-dev have_header dnnl.h
  want libfmt-dev have_header fmt/core.h
  want libcli11-dev have_header CLI/CLI.hpp
  for emprl_part in "$@"; do
    [ "$emprl_part" = tests ] || continue
    want catch2 have_catch
    want libboost-context-dev have_header boost/context/fiber.hpp
  done
  [ -n "$emprl_missing" ] || return 0

  command -v apt-get >/dev/null 2>&1 || fail "Missing:$emprl_missing (names of Debian's packages)." \
    "This system has no apt-get, so please install their equivalents and run this again."
  emprl_root=
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || fail "Missing:$emprl_missing. Installing them needs root" \
      "and there is no sudo: please run as root: apt-get install$emprl_missing"
    emprl_root=sudo
  fi

  say "Installing from this system's packages:$emprl_missing"
  as_root apt-get update -q || fail "apt-get update failed; its message is above."
  # oneDNN only makes float matrix products faster: a system without that package can do without it.
  if ! apt-cache show libdnnl-dev >/dev/null 2>&1; then
    emprl_missing=$(printf '%s' "$emprl_missing" | sed 's/ libdnnl-dev//')
  fi
  # shellcheck disable=SC2086 # a list of package names
  as_root apt-get install -q -y --no-install-recommends $emprl_missing ||
    fail "apt-get install failed; its message is above."
}

have_catch() {
  have_header catch2/catch_test_macros.hpp || have_header catch2/catch.hpp
}

as_root() {
  $emprl_root env DEBIAN_FRONTEND=noninteractive "$@"
}

# The generator for a new build folder, as words for cmake's command line.
cmake_generator() {
  if command -v ninja >/dev/null 2>&1; then printf '%s' '-GNinja'; else printf '%s' '-GUnix Makefiles'; fi
}

processors() {
  nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || printf '2\n'
}
