#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The whole of EmpRL on a small synthetic corpus, on the CPU: installs what is missing, builds the
# programs, writes the corpus, trains, aligns with PPO, evaluates, and shows the result.
#
#   sh examples/quickstart.sh [--out DIR] [--build-dir DIR]
#
#   --out DIR         the run's folder (else runs/quickstart in the repository)
#   --build-dir DIR   build under DIR (else build/quickstart in the repository)
set -eu

usage() { sed -n '3,/^set -eu/{/^set -eu/d;s/^# \{0,1\}//;p;}' "$0"; }

root=$(cd "$(dirname "$0")/.." && pwd)
build=$root/build/quickstart
out=$root/runs/quickstart
absolute() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s' "$PWD/$1" ;; esac }
while [ $# -gt 0 ]; do
  case $1 in
    --out | --build-dir)
      [ $# -ge 2 ] || { usage >&2; exit 2; }
      if [ "$1" = --out ]; then out=$(absolute "$2"); else build=$(absolute "$2"); fi
      shift
      ;;
    -h | --help) usage; exit 0 ;;
    *) printf 'Unknown option: %s\n' "$1" >&2; usage >&2; exit 2 ;;
  esac
  shift
done

. "$root/cmake/packages.sh"
install_missing programs

say "Building the programs in $build (a few minutes the first time)"
cmake -S "$root" -B "$build" "$(cmake_generator)" -DCMAKE_BUILD_TYPE=Release -DEMPRL_NATIVE=ON \
  -DEMPRL_UNITY=ON -DEMPRL_WERROR=OFF -DEMPRL_BUILD_TESTS=OFF
cmake --build "$build" --parallel "$(processors)" --target emprl_program emprl_corpus

"$build/bin/emprl-corpus" --out "$out/corpus"
# Sized for two cores and three minutes: see the README for what each number is. The KL coefficient and the learning rate are
# smaller than the defaults: at 0.2 and 3e-4 a small batch's noise is as large as the gain.
exec "$build/bin/emprl" run --dialogues "$out/corpus/dialogues" --empathy-data "$out/corpus/empathy" \
  --preset tiny --vocabulary 2000 --out "$out/run" \
  --generator-epochs 5 --generator-batch 32 --generator-lr 3e-3 --generator-warmup 100 \
  --identifier-epochs 6 --ppo-steps 160 --ppo-lr 1.5e-4 --kl 0.05 --controls none \
  --limit 0 --best-of 2 \
  --title "EmpRL quickstart" \
  --note "The dialogues and the posts are synthetic: a program of this project wrote them."
