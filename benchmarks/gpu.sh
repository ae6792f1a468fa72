#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# All that this project asks of a machine with a GPU, in one command of less than nine minutes: the
# tests of the kernels, their benchmarks and the model's, and PyTorch's on the same machine.
#
#   sh benchmarks/gpu.sh [--programs DIR] [--out DIR] [--seconds N] [--only PART,...] [--dry-run]
#   sh benchmarks/gpu.sh --pack DIR [--emprl FILE] [--dry-run]
#
#   --pack DIR       build the programs, emprl with --device cuda among them, and put them into DIR
#                    with this script and the rivals: all that a machine needs which has a driver,
#                    cuBLASLt and, for the rivals, PyTorch
#   --emprl FILE     the program emprl, built with -DEMPRL_CUDA_PROGRAMS=ON, emprl-corpus beside it:
#                    to be packed instead of a new one, or to be run (else beside the programs)
#   --programs DIR   where the programs are (else beside this script, else build/gpu-programs, where
#                    they are built if need be)
#   --out DIR        where gpu.json, gpu.txt and gpu.log go (else $OUT, else build/gpu)
#   --seconds N      end after so many seconds at most (else 520)
#   --only PART,...  of: tests kernels model generation training ppo attention decode program
#                    adamw rows memcheck flex racecheck
#   --dry-run        print every command instead
#
# The parts run in this order, each with a limit of its own; the results are written anew after each,
# so that a run cut short leaves what it has. Parts take less than their limits where nothing has to
# be compiled for minutes; where they take all of them, those up to decode, 515 s together, still
# have their time, and the last are left out. Exit status: 0 done, 1 a part failed or there is no GPU,
# 2 wrong usage.
set -eu

usage() { sed -n '3,/^set -eu/{/^set -eu/d;s/^# \{0,1\}//;p;}' "$0"; }
say() { printf '%s\n' "$*"; }
fail() {
  printf 'gpu.sh: error: %s\n' "$*" >&2
  exit 1
}
wrong() {
  printf '%s\n' "$*" >&2
  usage >&2
  exit 2
}
absolute() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s' "$PWD/$1" ;; esac }

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/.." && pwd)
pack=
emprl=
programs=
out=
seconds=520
only=
dry=
all_parts="tests kernels model generation training ppo attention decode program adamw rows \
memcheck flex racecheck"
# Of these the rivals in Python.
peer_parts="generation training ppo attention flex adamw rows decode"
while [ $# -gt 0 ]; do
  case $1 in
    --pack | --emprl | --programs | --out | --seconds | --only)
      [ $# -ge 2 ] || wrong "$1 needs a value."
      case $1 in
        --pack) pack=$(absolute "$2") ;;
        --emprl) emprl=$(absolute "$2") ;;
        --programs) programs=$(absolute "$2") ;;
        --out) out=$(absolute "$2") ;;
        --seconds)
          case $2 in '' | *[!0-9]*) wrong "--seconds needs a whole number, not '$2'." ;; esac
          seconds=$2
          ;;
        --only)
          only=$(printf '%s' "$2" | tr ',' ' ')
          for part in $only; do
            case " $all_parts " in *" $part "*) ;; *) wrong "There is no part '$part'." ;; esac
          done
          ;;
      esac
      shift
      ;;
    --dry-run) dry=yes ;;
    -h | --help) usage; exit 0 ;;
    *) wrong "Unknown option: $1" ;;
  esac
  shift
done

# run COMMAND...: runs it, or prints it.
run() {
  if [ -n "$dry" ]; then
    say "  $*"
  else
    "$@"
  fi
}

find_nvcc() {
  command -v nvcc 2>/dev/null && return 0
  for candidate in "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" /usr/local/cuda/bin/nvcc; do
    [ -x "$candidate" ] && printf '%s\n' "$candidate" && return 0
  done
  return 1
}

# build DIR: both programs, compiled for sm_80 and sm_90a, with the C++ and CUDA runtimes in them.
build() {
  [ -f "$root/tests/cuda/nvcc.cmake" ] || fail "There are no sources here to build from."
  nvcc=$(find_nvcc) || { [ -n "$dry" ] || fail "nvcc was not found."; nvcc=nvcc; }
  [ -n "$dry" ] || command -v cmake >/dev/null 2>&1 || fail "CMake was not found."
  work=$root/build/gpu-work
  say "Building the programs in $1 (some minutes)"
  # Nothing of an earlier build: every object there is linked.
  run rm -rf "$work"
  run mkdir -p "$1" "$work/tests" "$work/benchmarks"
  run cmake -DMODE=program "-DNVCC=$nvcc" "-DSOURCE=$root" "-DWORK=$work/benchmarks" \
    -P "$root/benchmarks/kernels/nvcc.cmake"
  run c++ -std=c++20 -O1 "-I$root/tests" -c "$root/tests/support/test_main.cpp" \
    -o "$work/test_main.o"
  run cmake -DMODE=compile "-DNVCC=$nvcc" "-DSOURCE=$root" "-DWORK=$work/tests" \
    "-DMAIN=$work/test_main.o" -P "$root/tests/cuda/nvcc.cmake"
  # Again from the same objects, so that it runs on a machine with an older libstdc++.
  # $ORIGIN is the loader's word, not the shell's.
  # shellcheck disable=SC2016
  run "$nvcc" "$work/test_main.o" "$work"/tests/*.o -lcublasLt \
    -Xcompiler -static-libstdc++,-static-libgcc -Xlinker '-rpath=$ORIGIN' \
    -o "$1/emprl_tests_cuda"
  run cp "$work/benchmarks/bench_kernels" "$1/bench_kernels"
  run strip "$1/emprl_tests_cuda" "$1/bench_kernels"
}

# build_program: emprl with --device cuda, and emprl-corpus, in $work/program/bin, after build.
# Without oneDNN, whose library alone has 40 MB. What it is linked with is found beside it, by those
# libraries too, for which the older of the two tags is needed.
build_program() {
  say "Building the program emprl (some minutes more)"
  # shellcheck disable=SC2016 # the loader's word
  run cmake -S "$root" -B "$work/program" -DCMAKE_BUILD_TYPE=Release -DEMPRL_UNITY=ON \
    -DEMPRL_WERROR=OFF -DEMPRL_BUILD_TESTS=OFF -DEMPRL_WITH_ONEDNN=OFF -DEMPRL_CUDA_PROGRAMS=ON \
    "-DCMAKE_CUDA_COMPILER=$nvcc" -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
    '-DCMAKE_INSTALL_RPATH=$ORIGIN' -DCMAKE_EXE_LINKER_FLAGS=-Wl,--disable-new-dtags
  run cmake --build "$work/program" --parallel "$(nproc 2>/dev/null || echo 2)" \
    --target emprl_program emprl_corpus
  emprl=$work/program/bin/emprl
}

# knows_cuda FILE: whether it is the program emprl with --device cuda.
knows_cuda() { [ -x "$1" ] && "$1" score --help 2>/dev/null | grep -q 'cpu or cuda'; }

# Libraries that neither every Linux has nor CUDA brings.
other_libraries() {
  ldd "$@" | awk '/=> \// { print $3 }' | sort -u |
    grep -v -e '/ld-linux' -e '/lib\(c\|m\|rt\|dl\|pthread\|cublasLt\|cuda\)\.so' || :
}

# compress FILE: a program that unpacks itself where it runs. The same kernels come in file after
# file: a quarter of the bytes remains.
compress() {
  gzip -9 -f "$1"
  cat >"$1" <<'EOF'
#!/bin/sh
program=$(mktemp) || exit 1
trap 'rm -f "$program"' EXIT
trap 'exit 1' HUP INT TERM
gzip -dc "$0.gz" >"$program" && chmod +x "$program" || exit 1
"$program" "$@"
EOF
  chmod +x "$1"
}

if [ -n "$pack" ]; then
  build "$pack"
  run mkdir -p "$pack/peers"
  run cp "$here/gpu.sh" "$pack/gpu.sh"
  run cp "$here"/peers/*.py "$pack/peers/"
  [ -n "$emprl" ] || build_program
  [ -n "$dry" ] || knows_cuda "$emprl" || fail "$emprl is not the program emprl with --device cuda."
  run cp "$emprl" "$pack/emprl"
  run cp "$here/devices.sh" "$pack/devices.sh"
  run strip "$pack/emprl"
  # Something to train on where there are no other dialogues.
  run "$(dirname "$emprl")/emprl-corpus" --out "$pack/corpus" --dialogues 2000 --posts 10
  if [ -n "$dry" ]; then
    say "Nothing was run."
    exit 0
  fi
  commit=$(git -C "$root" describe --always --dirty 2>/dev/null) || commit=unknown
  printf '%s\n' "$commit" >"$pack/commit"
  for library in $(other_libraries "$pack/emprl_tests_cuda" "$pack/bench_kernels" "$pack/emprl"); do
    cp "$library" "$pack/"
  done
  compress "$pack/emprl_tests_cuda"
  compress "$pack/bench_kernels"
  size=$(du -sk "$pack" | cut -f1)
  [ "$size" -le 65536 ] || fail "$pack holds $size KiB; more than 64 MiB does not travel."
  say "$pack holds $size KiB. There: sh gpu.sh --out DIR"
  exit 0
fi

started=$(date +%s)
[ -n "$out" ] || out=${OUT:-$root/build/gpu}
if [ -z "$programs" ]; then
  if [ -x "$here/bench_kernels" ]; then
    programs=$here
  else
    programs=$root/build/gpu-programs
    if [ ! -x "$programs/bench_kernels" ] || [ ! -x "$programs/emprl_tests_cuda" ]; then
      build "$programs"
      # Building does not count: what is limited is the time on the GPU.
      started=$(date +%s)
    fi
  fi
fi
if [ -z "$dry" ]; then
  nvidia-smi -L 2>/dev/null | grep -q 'GPU ' ||
    fail "There is no CUDA device (nvidia-smi -L shows none)."
  for program in bench_kernels emprl_tests_cuda; do
    [ -x "$programs/$program" ] ||
      fail "$programs/$program is missing; sh benchmarks/gpu.sh --pack DIR makes it."
  done
  mkdir -p "$out"
  work=$(mktemp -d "${TMPDIR:-/tmp}/emprl-gpu.XXXXXX")
  : >"$out/gpu.log"
else
  work=/tmp/emprl-gpu
fi

# cuBLASLt: the loader's, the toolkit's or PyTorch's. The programs want version 13.
find_cublaslt() {
  ldconfig -p 2>/dev/null | grep -q 'libcublasLt\.so\.13' && return 0
  for folder in "${CUDA_HOME:-/usr/local/cuda}"/lib64 /usr/local/cuda*/lib64 /usr/local/cuda*/lib \
    /usr/local/cuda*/targets/x86_64-linux/lib; do
    [ -e "$folder/libcublasLt.so.13" ] && printf '%s\n' "$folder" && return 0
  done
  python3 -c 'import glob, site, sys
for base in sys.path:
    for path in glob.glob(base + "/nvidia/*/lib/libcublasLt.so.13"):
        print(path.rsplit("/", 1)[0])
        sys.exit()' 2>/dev/null || :
}
folder=$(find_cublaslt)
if [ -n "$folder" ]; then
  LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  export LD_LIBRARY_PATH
fi

# string TEXT: as a string of JSON.
string() {
  printf '%s' "$1" | tr '\n\t' '  ' | sed 's/\\/\\\\/g;s/"/\\"/g;s/^/"/;s/$/"/'
}

# join: writes what there is, gpu.json of all parts and gpu.txt with one table.
join() {
  [ -z "$dry" ] || return 0
  {
    say "{"
    say "\"gpu\": $(string "$(nvidia-smi -L 2>/dev/null | head -n 1 | sed 's/ (UUID.*//')"),"
    say "\"state\": $(string "$(nvidia-smi --query-gpu=driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu \
      --format=csv,noheader 2>/dev/null | head -n 1)"),"
    say "\"state_is\": \"driver, SM clock, its maximum, memory clock, power limit, temperature\","
    say "\"commit\": $(string "$commit"),"
    say "\"date\": \"$(date -u +%Y-%m-%dT%H:%M:%SZ)\","
    say "\"parts\": {"
    separator=
    for p in $all_parts; do
      [ -e "$work/$p.status" ] || continue
      printf '%s"%s": {"ended": %s' "$separator" "$p" "$(string "$(cat "$work/$p.status")")"
      if [ -s "$work/$p.json" ]; then
        printf ', "result": '
        cat "$work/$p.json"
      fi
      printf '}'
      separator=",
"
    done
    say ""
    say "}}"
  } >"$out/gpu.json.part" && mv "$out/gpu.json.part" "$out/gpu.json"
  {
    say "EmpRL on $(nvidia-smi -L 2>/dev/null | head -n 1 | sed 's/ (UUID.*//'), commit $commit"
    say "Rivals: $(rivals)"
    say ""
    for p in $all_parts; do
      [ ! -e "$work/$p.status" ] || printf '%-10s %s\n' "$p" "$(cat "$work/$p.status")"
    done
    say ""
    table
    say ""
    marks
    say ""
    say "Medians and quartiles in microseconds, L2 cold. 'times emprl' above 1: slower than this"
    say "library on the same machine. 'of ceiling': of what the machine's own copy and product allow."
  } >"$out/gpu.txt.part" && mv "$out/gpu.txt.part" "$out/gpu.txt"
}

# rivals: their versions.
rivals() {
  for p in $peer_parts; do
    [ ! -e "$work/$p.json" ] || cat "$work/$p.json"
  done | tr '{' ',' | tr ',' '\n' | awk -F '"' '
    $2 == "torch" || $2 == "transformers" { version[$2] = $4 }
    END {
      if (!("torch" in version)) { print "none yet"; exit }
      printf "PyTorch %s, ", version["torch"]
      print "transformers" in version ? "transformers " version["transformers"] : "no transformers"
    }'
}

# results: the lines of all programs.
results() {
  for p in kernels model $peer_parts; do
    [ ! -e "$work/$p.tsv" ] || cat "$work/$p.tsv"
  done
}

# table: those lines, what is the same operation side by side.
table() {
  [ -n "$(results)" ] || { say "No times yet."; return 0; }
  results | awk -F '\t' '
    {
      key = $1 FS $2 FS $3
      if (!(key in seen)) { seen[key] = ++keys; name[keys] = key }
      lines[key, ++count[key]] = $0
      if ($4 == "emprl") own[key] = $5
      for (i = 1; i <= 4; ++i) if (length($i) > wide[i]) wide[i] = length($i)
    }
    function most(a, b) { return a > b ? a : b }
    END {
      form = sprintf("%%-%ds %%-%ds %%-%ds %%-%ds %%10s %%24s %%11s %%8s %%8s %%10s\n",
        most(wide[1], 6), most(wide[2], 6), most(wide[3], 5), most(wide[4], 14))
      printf form, "kernel", "format", "shape", "implementation", "us", "quartiles", "times emprl",
        "GB/s", "TFLOP/s", "of ceiling"
      for (k = 1; k <= keys; ++k) {
        for (i = 1; i <= count[name[k]]; ++i) {
          split(lines[name[k], i], f, FS)
          printf form, f[1], f[2], f[3], f[4], sprintf("%.1f", f[5]),
            sprintf("[%.1f,%.1f]", f[6], f[7]),
            (f[4] != "emprl" && own[name[k]] > 0 ? sprintf("%.2f", f[5] / own[name[k]]) : "-"),
            (f[8] > 0 ? sprintf("%.0f", f[8]) : "-"), (f[9] > 0 ? sprintf("%.2f", f[9]) : "-"),
            (f[10] > 0 ? sprintf("%.1f %%", 100 * f[10]) : "-")
        }
      }
    }'
}

# marks: what is to be reached on an H200 in 16 bits, and what was: beside it what the machine's own
# copy and product would allow, and the fastest rival of this run.
marks() {
  say "Marks (one H200, T5-base, 16 bits)"
  results | awk -F '\t' '
    $4 == "emprl" { own[$1, $2, $3] = $5; flops[$1, $2, $3] = $9; part[$1, $2, $3] = $10; next }
    $4 ~ /as published$/ { published[$1, $3] = $5; by[$1, $3] = $4 }
    $4 ~ /compiled/ { compiled[$1, $2, $3] = 1 }
    !(($1, $2, $3) in best) || $5 < best[$1, $2, $3] { best[$1, $2, $3] = $5; who[$1, $2, $3] = $4 }
    function of(k, f, s) { return k SUBSEP f SUBSEP s }
    function line(mark, value, reached, ceiling, rival) {
      printf "%-52s %16s %-4s %22s   %s\n", mark, value,
        (value == "-" ? "" : reached ? "yes" : "no"), ceiling, rival
    }
    function ceiling(x, unit, scale) {
      return part[x] > 0 ? sprintf("%.1f %s", own[x] * part[x] / scale, unit) : "-"
    }
    function rival(x, unit, scale) {
      return x in best ? sprintf("%.1f %s, %s", best[x] / scale, unit, who[x]) : "-"
    }
    # A time in `unit`, which is `scale` microseconds.
    function duration(mark, x, most, unit, scale) {
      if (!(x in own)) { line(mark, "-", 0, "-", rival(x, unit, scale)); return }
      line(mark, sprintf("%.1f %s", own[x] / scale, unit), own[x] / scale <= most,
        ceiling(x, unit, scale), rival(x, unit, scale))
    }
    function ratio(mark, a, b, least, name) {
      if (a > 0 && b > 0) line(mark, sprintf("%.2f", a / b), a / b >= least, "-", name)
      else line(mark, "-", 0, "-", "-")
    }
    END {
      printf "%-52s %16s %-4s %22s   %s\n", "mark", "measured", "", "ceiling", "fastest rival"
      with = of("attention_backward", "Bf16", "encoder with bias, 32 x 200, 12 heads")
      without = of("attention_backward", "Bf16", "encoder, 32 x 200, 12 heads")
      mark = "attention backward with / without bias <= 1.10"
      other = "-"
      if (best[with] > 0 && best[without] > 0) {
        other = sprintf("%.2f, %s", best[with] / best[without], who[with])
      }
      if (own[with] > 0 && own[without] > 0) {
        value = own[with] / own[without]
        line(mark, sprintf("%.2f", value), value <= 1.1, "-", other)
      } else {
        line(mark, "-", 0, "-", other)
      }
      duration("decoding step, 32 rows, contexts of 200 <= 250 us",
        of("t5_decode_step", "Bf16", "32 x 200"), 250, "us", 1)
      duration("generation of 32 x 30 tokens <= 10 ms",
        of("t5_generate", "Bf16", "32 x 200 -> 30"), 10, "ms", 1000)
      x = of("t5_training_step", "Bf16", "32 x 200 -> 50, dropout")
      mark = "supervised training, 32 x 200 -> 50 >= 300 TFLOP/s"
      if (own[x] > 0) {
        most = other = "-"
        if (part[x] > 0) most = sprintf("%.0f TFLOP/s", flops[x] / part[x])
        if (best[x] > 0) other = sprintf("%.0f TFLOP/s, %s", flops[x] * own[x] / best[x], who[x])
        line(mark, sprintf("%.0f TFLOP/s", flops[x]), flops[x] >= 300, most, other)
      } else {
        line(mark, "-", 0, "-", "-")
      }
      shape = "32 x 200/30, 4 epochs of mini-batches of 8"
      x = of("ppo_iteration", "Bf16", shape)
      duration("PPO iteration, 32 x 200/30 <= 100 ms", x, 100, "ms", 1000)
      # Against a rival that could not be compiled in this run the mark stays open.
      if (x in compiled) ratio("  tuned PyTorch / emprl >= 3", best[x], own[x], 3, who[x])
      else line("  tuned PyTorch / emprl >= 3", "-", 0, "-", "no compiled one was measured")
      ratio("  as published / emprl >= 30", published["ppo_iteration", shape], own[x], 30,
        by["ppo_iteration", shape])
    }'
}

commit=unknown
if [ -f "$programs/commit" ]; then
  commit=$(cat "$programs/commit")
elif [ -z "$dry" ]; then
  commit=$(git -C "$root" describe --always --dirty 2>/dev/null) || commit=unknown
fi

failed=
finish() {
  trap - EXIT HUP INT TERM
  join || :
  [ -n "$dry" ] || rm -rf "$work"
}
child=
stop() {
  if [ -n "$child" ]; then
    kill "$child" 2>/dev/null || :
    printf 'stopped from outside\n' >"$work/$name.status"
  fi
  say "Stopped; what there is lies in $out."
  finish
  exit 1
}
trap finish EXIT
trap stop HUP INT TERM

# wanted NAME: true if the part is to be run.
wanted() { case " ${only:-$all_parts} " in *" $1 "*) return 0 ;; *) return 1 ;; esac }

# without PART COMMAND: true, and said, if the part needs a command that is not here.
without() {
  [ -z "$dry" ] && wanted "$1" && ! command -v "$2" >/dev/null 2>&1 || return 1
  say "== $1: left out, there is no $2"
  printf 'left out: there is no %s\n' "$2" >"$work/$1.status"
}

# part NAME SECONDS COMMAND...: runs it with at most so much time and as much as is left.
part() {
  name=$1
  limit=$2
  shift 2
  wanted "$name" || return 0
  left=$((seconds - ($(date +%s) - started)))
  [ "$left" -ge "$limit" ] || limit=$left
  if [ "$limit" -lt 5 ]; then
    say "== $name: no time is left"
    [ -n "$dry" ] || printf 'no time was left\n' >"$work/$name.status"
    return 0
  fi
  say "== $name (at most $limit s)"
  if [ -n "$dry" ]; then
    say "  timeout -k 5 $limit $*"
    return 0
  fi
  begin=$(date +%s)
  code=0
  printf '== %s: %s\n' "$name" "$*" >>"$out/gpu.log"
  # In the background, so that a signal does not wait for the program.
  timeout -k 5 "$limit" "$@" >"$work/log" 2>&1 &
  child=$!
  wait "$child" || code=$?
  child=
  cat "$work/log" >>"$out/gpu.log"
  took=$(($(date +%s) - begin))
  case $code in
    0) word="done in $took s" ;;
    124 | 137)
      word="cut short after $took s"
      # A rival says what it measures next.
      during=$(sed -n 's/^Measuring //p' "$work/log" | tail -n 1)
      [ -z "$during" ] || word="$word, measuring $during"
      ;;
    *)
      word="failed with $code after $took s: $(grep -v '^ *$' "$work/log" | tail -n 1)"
      failed="$failed $name"
      ;;
  esac
  ! grep -q '^Skipped: ' "$work/log" ||
    word="$word; $(grep -c '^Skipped: ' "$work/log") left out: $(grep -m 1 '^Skipped: ' "$work/log" | cut -c10-)"
  say "  $word"
  printf '%s\n' "$word" >"$work/$name.status"
  join
}

bench=$programs/bench_kernels
# Once, and not as often as it runs; compute-sanitizer is to see the program and not a shell.
if [ -z "$dry" ] && [ -e "$bench.gz" ]; then
  gzip -dc "$bench.gz" >"$work/bench_kernels" && chmod +x "$work/bench_kernels" ||
    fail "$bench.gz does not unpack."
  bench=$work/bench_kernels
fi
peers=$programs/peers
[ -d "$peers" ] || peers=$here/peers
# peer PART SECONDS FILE: a rival in Python.
peer() {
  without "$1" python3 ||
    part "$1" "$2" python3 -B "$peers/$3" --json "$work/$1.json" --tsv "$work/$1.tsv"
}
# sanitize PART SECONDS TOOL: the kernels on small shapes under a tool of compute-sanitizer.
sanitize() {
  without "$1" compute-sanitizer ||
    part "$1" "$2" compute-sanitizer --tool "$3" --error-exitcode 9 "$bench" kernels --validate-only
}

# The program, if it is here: its losses on the CPU and on the GPU.
program() {
  [ -n "$dry" ] || [ -n "$emprl" ] || emprl=$programs/emprl
  if [ -z "$dry" ] && wanted program && ! knows_cuda "$emprl"; then
    say "== program: left out, there is no emprl with --device cuda"
    printf 'left out: there is no emprl with --device cuda\n' >"$work/program.status"
    return 0
  fi
  dialogues=${EMPRL_DATA:+$EMPRL_DATA/empathetic_dialogues}
  [ -n "$dialogues" ] && [ -f "$dialogues/train.csv" ] || dialogues=$programs/corpus/dialogues
  if [ -z "$dry" ] && wanted program && [ ! -f "$dialogues/train.csv" ]; then
    say "== program: left out, there are no dialogues; EMPRL_DATA says where"
    printf 'left out: there are no dialogues; EMPRL_DATA says where\n' >"$work/program.status"
    return 0
  fi
  script=$programs/devices.sh
  [ -e "$script" ] || script=$here/devices.sh
  part program 120 env "LD_LIBRARY_PATH=$programs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
    sh "$script" --program "${emprl:-emprl}" --dialogues "$dialogues" --work "$work/devices" \
    --json "$work/program.json"
}

# own PART SECONDS: a group of our benchmarks.
own() {
  part "$1" "$2" "$bench" "$1" --seconds 0.3 --json "$work/$1.json" --tsv "$work/$1.tsv"
}

part tests 110 "$programs/emprl_tests_cuda"
own kernels 60
own model 75
peer generation 65 generation.py
peer training 55 training.py
peer ppo 110 ppo.py
peer attention 25 attention.py
peer decode 15 decode.py
program
peer adamw 20 adamw.py
peer rows 30 rows.py
sanitize memcheck 60 memcheck
peer flex 90 attention_flex.py
sanitize racecheck 60 racecheck

if [ -n "$dry" ]; then
  say "Nothing was run. Results would go to $out."
  exit 0
fi
finish
cat "$out/gpu.txt"
say "$out/gpu.json, gpu.txt and gpu.log hold everything."
[ -z "$failed" ] || fail "failed:$failed"
