#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing, builds, and runs every test: optimised with warnings as errors, then the
# same suite under AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   sh tests/run.sh [--release-only] [--build-dir DIR]
#
#   --release-only, --no-sanitizers   leave out the second build
#   --build-dir DIR                   build under DIR (else build/tests in the repository)
#
# EMPRL_DATA names the folder of real data sets; tests that read them are left out without it. Where
# it is not set, shared/data beside the repository is taken if it exists.
set -eu

usage() { sed -n '3,/^set -eu/{/^set -eu/d;s/^# \{0,1\}//;p;}' "$0"; }

root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/tests
sanitizers=yes
while [ $# -gt 0 ]; do
  case $1 in
    --release-only | --no-sanitizers) sanitizers=no ;;
    --build-dir)
      [ $# -ge 2 ] || { usage >&2; exit 2; }
      case $2 in /*) build=$2 ;; *) build=$PWD/$2 ;; esac
      shift
      ;;
    -h | --help) usage; exit 0 ;;
    *) printf 'Unknown option: %s\n' "$1" >&2; usage >&2; exit 2 ;;
  esac
  shift
done

. "$root/cmake/packages.sh"
install_missing tests

if [ -z "${EMPRL_DATA-}" ] && [ -d "$root/../shared/data" ]; then
  EMPRL_DATA=$(cd "$root/../shared/data" && pwd)
fi
[ -z "${EMPRL_DATA-}" ] || export EMPRL_DATA
[ -n "${EMPRL_DATA-}" ] || say "EMPRL_DATA is not set: tests that read the real data sets are left out."
jobs=$(processors)

# count LOG: "PASSED FAILED" of a CTest log. An entry that runs Catch2 counts its test cases, any
# other entry counts as one, and so does one that ended without a summary.
count() {
  awk '
    /^[0-9]+\/[0-9]+ Test: / { seen = 0; bad = 0 }
    /^All tests passed \(/ {
      for (i = 1; i < NF; ++i) if ($(i + 1) ~ /^test/ && $i ~ /^[0-9]+$/) { passed += $i; seen = 1 }
    }
    /^test cases: / {
      for (i = 3; i < NF; ++i) {
        if ($(i + 1) == "passed") passed += $i
        if ($(i + 1) == "failed") { failed += $i; bad = 1 }
      }
      seen = 1
    }
    /^Test Passed\.$/ { if (!seen) ++passed }
    /^Test Failed\.$/ || /^Unable to find executable/ || /^Test (timed out|not run)/ { if (!bad) ++failed }
    END { printf "%d %d\n", passed, failed }' "$1"
}

total_passed=0
total_failed=0
# suite NAME CMAKE-OPTION...: configures, builds, runs and counts.
suite() {
  name=$1
  shift
  started=$(date +%s)
  say ""
  say "== $name"
  if ! cmake -S "$root" -B "$build/$name" "$(cmake_generator)" -DEMPRL_WERROR=ON \
      -DEMPRL_UNITY=ON "$@" ||
    ! cmake --build "$build/$name" --parallel "$jobs"; then
    say "$name: the build failed; the messages are above."
    total_failed=$((total_failed + 1))
    return
  fi
  built=$(date +%s)
  status=0
  ctest --test-dir "$build/$name" --output-on-failure --no-tests=error --parallel "$jobs" || status=$?
  # shellcheck disable=SC2046 # two numbers
  set -- $(count "$build/$name/Testing/Temporary/LastTest.log")
  passed=$1
  failed=$2
  # Whatever the log says, a suite that CTest calls failed has failed.
  if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then failed=1; fi
  total_passed=$((total_passed + passed))
  total_failed=$((total_failed + failed))
  say "$name: $passed passed, $failed failed"
  say "($name: built in $((built - started)) s, run in $(($(date +%s) - built)) s)"
}

suite release -DCMAKE_BUILD_TYPE=Release -DEMPRL_BUILD_BENCHMARKS=ON
if [ "$sanitizers" = yes ]; then
  suite sanitizers -DCMAKE_BUILD_TYPE=Debug -DCMAKE_CXX_FLAGS_DEBUG=-Og \
    -DEMPRL_SANITIZE=address,undefined
  say ""
  say "Each test counts once for each of the two builds:"
fi
say "emprl: $total_passed passed, $total_failed failed"
[ "$total_failed" -eq 0 ] && [ "$total_passed" -gt 0 ]
