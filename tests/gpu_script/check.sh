#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What benchmarks/gpu.sh promises, where there is no GPU: what a dry run shows, what is wrong usage,
# and, with a nvidia-smi and programs that only pretend, what a run leaves behind.
#
#   check.sh SCRIPT WORK CMAKE
set -eu
script=$1
work=$2
cmake=$3
here=$(cd "$(dirname "$0")" && pwd)

failures=0
failed() {
  printf 'FAILED: %s\n' "$*"
  failures=$((failures + 1))
}
# gpu ARGUMENT...: runs the script; its status, and what it prints in $work/out and $work/err.
gpu() {
  status=0
  sh "$script" "$@" >"$work/out" 2>"$work/err" || status=$?
}
# ended STATUS CLAIM
ended() {
  [ "$status" -eq "$1" ] && return 0
  failed "$2: ended with $status"
  sed 's/^/  /' "$work/out" "$work/err"
}
# says FILE TEXT CLAIM
says() { grep -q -e "$2" "$work/$1" || failed "$3: there is no '$2' in what it printed"; }
# same A B CLAIM
same() { [ "$1" = "$2" ] || failed "$3: '$1' is not '$2'"; }

rm -rf "$work"
mkdir -p "$work/bin" "$work/programs"
PATH=$work/bin:$PATH
# pretend FILE: an executable of the lines that it reads.
pretend() {
  { printf '#!/bin/sh\n' && cat; } >"$1"
  chmod +x "$1"
}
# pretend_kernels JSON LINE: a bench_kernels that writes both, the line as printf has it.
pretend_kernels() {
  pretend "$work/programs/bench_kernels" <<EOF
while [ \$# -gt 1 ]; do
  case \$1 in
    --json) echo '$1' >"\$2" ;;
    --tsv) printf '$2\n' >"\$2" ;;
  esac
  shift
done
EOF
}
pretend "$work/bin/nvidia-smi" <<'EOF'
exit 9
EOF
pretend "$work/programs/emprl_tests_cuda" <<'EOF'
echo 'All tests passed'
EOF
pretend_kernels '{"kernels": [1, 2]}' \
  'rms_norm\tbf16\t4 x 512\temprl\t2\t1\t3\t100\t0\t0.5'

# ---- the steps

gpu --help
ended 0 "--help"
parts=$(sed -n '/^  *--only PART/,/--dry-run/p' "$work/out" | sed '$d;s/.*of://' | tr -s ' \n' ' ' |
  sed 's/^ //;s/ $//')
[ "$(echo "$parts" | wc -w)" -ge 5 ] || failed "the help lists the parts: '$parts'"

# steps: the parts that a dry run walks through.
steps() { sed -n 's/^== \([^ ]*\) .*/\1/p' "$work/out" | tr '\n' ' ' | sed 's/ $//'; }
gpu --dry-run --programs "$work/programs"
ended 0 "a dry run"
says out "Nothing was run" "a dry run"
same "$(steps)" "$parts" "a dry run walks through every part of the help, in its order"
same "$(grep -c '^== ' "$work/out")" "$(grep -c '^  timeout -k 5 [0-9]' "$work/out")" \
  "each part has a command with a limit"

gpu --dry-run --programs "$work/programs" --seconds 33
ended 0 "a dry run of 33 s"
longest=$(sed -n 's/^  timeout -k 5 \([0-9]*\) .*/\1/p' "$work/out" | sort -n | tail -n 1)
[ "$longest" -le 33 ] || failed "no part may take longer than --seconds: $longest s"

last=${parts##* }
gpu --dry-run --programs "$work/programs" --only "$last,tests"
ended 0 "--only"
same "$(steps)" "tests $last" "--only leaves the others out and keeps the order"

gpu --dry-run --pack "$work/pack"
ended 0 "a dry run of --pack"
awk '
  BEGIN { split("kernels/nvcc.cmake cuda/nvcc.cmake emprl_tests_cuda gpu.sh peers EMPRL_CUDA_PROGRAMS=ON target.emprl_program cp.*emprl devices.sh emprl-corpus", wanted, " "); n = 1 }
  n in wanted && $0 ~ wanted[n] { ++n }
  END { if (n in wanted) { print wanted[n]; exit 1 } }' "$work/out" >"$work/missing" ||
  failed "--pack builds tests, benchmarks and the program in one go, then packs: no $(cat "$work/missing")"
[ ! -e "$work/pack" ] || failed "a dry run of --pack writes nothing"

gpu --dry-run --pack "$work/pack" --emprl /elsewhere/emprl
ended 0 "--pack with a program that is there"
says out 'cp /elsewhere/emprl' "a program that is there is packed"
if grep -q CUDA_PROGRAMS "$work/out"; then failed "a program that is there is not built again"; fi

# ---- wrong usage

# refused WORD ARGUMENT...: status 2, and the word and the usage on the error stream.
refused() {
  word=$1
  shift
  gpu --dry-run "$@"
  ended 2 "$*"
  says err "$word" "$*"
  says err "--dry-run" "$*: the usage"
  [ ! -s "$work/out" ] || failed "$*: nothing else is printed"
}
refused "Unknown option: --frobnicate" --frobnicate
refused "There is no part 'nothing'" --only tests,nothing
refused "--seconds needs a whole number" --seconds soon
refused "--seconds needs a whole number" --seconds -3
for option in --pack --emprl --programs --out --seconds --only; do
  refused "$option needs a value" "$option"
done

# ---- a run

gpu --programs "$work/programs" --out "$work/none"
ended 1 "without a GPU"
says err "gpu.sh: error: There is no CUDA device" "without a GPU"
[ ! -e "$work/none" ] || failed "without a GPU nothing is written"

pretend "$work/bin/nvidia-smi" <<'EOF'
case $1 in -L) echo 'GPU 0: Pretended "GPU" (UUID: GPU-0)' ;; *) echo '1, 2, 3' ;; esac
EOF
# holds FIELD... VALUE: what the results say.
holds() { "$cmake" "-DFILE=$work/results/gpu.json" "-DWORDS=$1" "-DIS=$2" -P "$here/holds.cmake" ||
  failed "gpu.json: $1 is not $2"; }

gpu --programs "$work/programs" --out "$work/results" --only tests,kernels
ended 0 "a run in which nothing fails"
holds gpu 'GPU 0: Pretended "GPU"'
holds "parts;tests;ended" "done in [0-9]+ s"
holds "parts;kernels;result;kernels;1" 2
grep -q 'rms_norm .*emprl .*2\.0 .*\[1\.0,3\.0\].*50\.0 %' "$work/results/gpu.txt" ||
  failed "gpu.txt has a line for each kernel"
grep -q 'All tests passed' "$work/results/gpu.log" || failed "gpu.log has what was printed"

gpu --programs "$work/programs" --out "$work/results" --only program,kernels
ended 0 "a run without the program"
holds "parts;program;ended" "left out: there is no emprl with --device cuda"

# Rivals that are not there or are cut short, and the marks of those that are.
pretend_kernels '{}' \
  'ppo_iteration\tBf16\t32 x 200/30, 4 epochs of mini-batches of 8\temprl\t90\t90\t90\t0\t0\t0'
pretend "$work/bin/python3" <<'EOF'
json= tsv= script=$2
while [ $# -gt 1 ]; do
  case $1 in --json) json=$2 ;; --tsv) tsv=$2 ;; esac
  shift
done
case $script in
  *ppo.py)
    printf '{"torch": "2.99", "transformers": "4.99", "device": "cuda"}\n' >"$json"
    for name in plain $RIVAL; do
      printf 'ppo_iteration\tBf16\t32 x 200/30, 4 epochs of mini-batches of 8\tPyTorch: %s\t360\t360\t360\t0\t0\t0\n' "$name"
    done >"$tsv"
    ;;
  *adamw.py)
    echo 'Skipped: one of them'
    echo 'Measuring a first, by something'
    echo 'Measuring a second, by something else'
    exec sleep 60
    ;;
esac
exit 0
EOF
RIVAL=compiled gpu --programs "$work/programs" --out "$work/results" --only model,ppo,adamw --seconds 10
ended 0 "a run with rivals"
holds "parts;adamw;ended" "cut short after .*, measuring a second, by something else; 1 left out: one of them"
says results/gpu.txt '^Rivals: PyTorch 2.99, transformers 4.99$' "gpu.txt has the rivals' versions"
says results/gpu.txt 'tuned PyTorch / emprl >= 3  *4.00 yes .*PyTorch: plain' "a mark and its rival"
RIVAL='' gpu --programs "$work/programs" --out "$work/results" --only model,ppo
says results/gpu.txt 'tuned PyTorch / emprl >= 3  *-  .*no compiled one was measured' \
  "without the best of the rivals a mark is open"

pretend "$work/programs/emprl_tests_cuda" <<'EOF'
echo 'seven are wrong'
exit 7
EOF
gpu --programs "$work/programs" --out "$work/results" --only tests,kernels
ended 1 "a run in which a part fails"
says err "failed: tests" "a run in which a part fails"
holds "parts;tests;ended" "failed with 7 .*: seven are wrong"
holds "parts;kernels;ended" "done in"

pretend "$work/programs/emprl_tests_cuda" <<'EOF'
exec sleep 60
EOF
gpu --programs "$work/programs" --out "$work/results" --only tests,kernels --seconds 6
ended 0 "a run that is cut short"
holds "parts;tests;ended" "cut short after"
holds "parts;kernels;ended" "no time was left"

# As it is packed.
mkdir "$work/packed"
cp "$work/programs/emprl_tests_cuda" "$work/packed/"
gzip -c "$work/programs/bench_kernels" >"$work/packed/bench_kernels.gz"
pretend "$work/packed/bench_kernels" <<'EOF'
exit 3
EOF
gpu --programs "$work/packed" --out "$work/results" --only kernels
ended 0 "a program that is packed"
holds "parts;kernels;ended" "done in"
echo broken >"$work/packed/bench_kernels.gz"
gpu --programs "$work/packed" --out "$work/results" --only kernels
ended 1 "a program that is packed and damaged"
says err "bench_kernels.gz does not unpack" "a program that is packed and damaged"

rm "$work/programs/bench_kernels"
gpu --programs "$work/programs" --out "$work/results"
ended 1 "a folder without the programs"
says err "bench_kernels is missing; sh benchmarks/gpu.sh --pack DIR makes it" "without the programs"

[ "$failures" -eq 0 ] || exit 1
echo "gpu.sh keeps its promises."
