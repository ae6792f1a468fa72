#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What scripts may rely on in the program built with CUDA, beside the one without:
# * on the CPU both write the same bytes, whatever the command;
# * --device cuda runs each of the nine commands that compute; where there is no GPU, each ends with
#   status 1 and one line that says what is missing, and writes nothing;
# * with --deterministic a command writes the same bytes again, and PPO that was stopped those of PPO
#   that was not: on the CPU, and on a GPU where there is one;
# * --help names the device, and what does not go together is wrong usage.
#
#   check.sh --with EMPRL --without EMPRL --corpus EMPRL-CORPUS --work DIR
set -eu

with=
without=
corpus=
work=
while [ $# -ge 2 ]; do
  case $1 in
    --with) with=$2 ;;
    --without) without=$2 ;;
    --corpus) corpus=$2 ;;
    --work) work=$2 ;;
    *) break ;;
  esac
  shift 2
done
if [ $# -gt 0 ] || [ -z "$with" ] || [ -z "$without" ] || [ -z "$corpus" ] || [ -z "$work" ]; then
  echo "usage: check.sh --with EMPRL --without EMPRL --corpus EMPRL-CORPUS --work DIR" >&2
  exit 2
fi

failures=0
failed() {
  printf 'FAILED: %s\n' "$*"
  failures=$((failures + 1))
}
# show FILE...: what a failure needs to be understood.
show() { for shown in "$@"; do sed "s|^|  $shown: |" "$shown"; done; }

# command NAME OPTION...: runs a command with $program on what lies in `base`, so that every program
# and device reads the same; it writes into `here`.
command() {
  name=$1
  shift
  case $name in
    finetune)
      set -- --model base/start --train corpus/dialogues --out here/finetune --epochs 1 \
        --batch 16 "$@"
      ;;
    identify)
      set -- --encoder base/start --data corpus/empathy --out here/identify --epochs 1 "$@"
      ;;
    label)
      set -- --identifiers base/identify --input base/lines.jsonl --output here/label.jsonl "$@"
      ;;
    align)
      set -- --model base/finetune --identifiers base/identify --data base/label.jsonl \
        --out here/align --steps 2 --batch 4 --mini-batch 4 "$@"
      ;;
    generate | score)
      set -- --model base/align --input base/lines.jsonl --output "here/$name.jsonl" "$@"
      ;;
    evaluate)
      set -- --model base/align --identifiers base/identify --data corpus/dialogues --limit 8 \
        --bootstrap 20 --report here/evaluate.json "$@"
      ;;
    chat) set -- --model base/align "$@" ;;
    run)
      set -- --dialogues corpus/dialogues --empathy-data corpus/empathy --model base/start \
        --generator-epochs 1 --identifier-epochs 1 --ppo-steps 1 --ppo-batch 4 --controls none \
        --limit 4 --best-of 1 --out here/run "$@"
      ;;
  esac
  status=0
  "$program" "$name" "$@" <base/lines.txt >out 2>err || status=$?
}
commands="finetune identify label align generate score evaluate chat run"

# keep NAME FOLDER: what a command has written goes to FOLDER, but for seconds and dates, which are
# nobody's promise.
keep() {
  [ "$1" != chat ] || cp out here/chat.txt
  rm -f here/run/stages.json
  find here -name 'events.*' -exec rm {} +
  find here -path 'here/run/report.*' \
    -exec sed -i 's/\(seconds before evaluation[^0-9]*\)[0-9]*/\1/' {} +
  find here \( -name '*.json' -o -name '*.jsonl' \) \
    -exec sed -i -E 's/("(seconds|tokens_per_second)": ?)[0-9.e+-]+/\1/' {} +
  mkdir -p "$2"
  [ -z "$(ls -A here)" ] || cp -R here/. "$2"
  rm -rf here
  mkdir here
}

rm -rf "$work"
mkdir -p "$work/base" "$work/here"
cd "$work"
"$corpus" --out corpus --dialogues 60 --posts 24
"$without" tokenizer --input corpus/dialogues --vocabulary 300 --out base/tokenizer >out
cat >base/config.json <<'EOF'
{"model_type": "t5", "vocab_size": 304, "d_model": 64, "d_kv": 32, "d_ff": 64, "num_layers": 1,
 "num_decoder_layers": 1, "num_heads": 2, "feed_forward_proj": "relu"}
EOF
"$without" init --config base/config.json --tokenizer base/tokenizer --out base/start >out
printf 'My dog left town.\nHe came back today.\n' >base/lines.txt
for day in 1 2 3 4 5 6; do
  printf '{"context": "My sister won prize %d.", "response": "How wonderful!"}\n' $day
done >base/lines.jsonl

# ---- the CPU

# all FOLDER: every command on the CPU; what they write goes to FOLDER.
all() {
  for name in $commands; do
    command "$name"
    [ "$status" -eq 0 ] || {
      failed "$program $name ended with $status"
      show err
      exit 1
    }
    # What the later commands read.
    [ "$1" != without ] || [ ! -e "here/$name" ] || cp -R "here/$name" base/
    [ "$1" != without ] || [ ! -e "here/$name.jsonl" ] || cp "here/$name.jsonl" base/
    keep "$name" "$1"
  done
}
program=$without
all without
program=$with
all with
diff -r without with >different ||
  failed "on the CPU both programs write the same: $(cut -c1-200 different | head -n 20)"
[ "$(find with -name '*.safetensors' | wc -l)" -ge 10 ] || failed "models were written"

# A reward that counts letters, and talks nonsense behind so many responses. Its command is part of
# a run, what the command does is not.
cat >reward.sh <<'EOF'
read -r most <most.txt
n=0
while read -r line; do
  n=$((n + 1))
  [ $n -le "$most" ] || echo nonsense
  id=$(printf %s "$line" | sed 's/.*"id": *\([0-9]*\).*/\1/')
  printf '{"id": %s, "score": 0.%s}\n' "$id" "$(printf %s "$line" | tr -cd e | wc -c)"
done
EOF
# aligned STATUS MOST OPTION...: PPO of four steps, 4, 2, 4 and 2 responses, with that reward.
aligned() {
  expected=$1
  echo "$2" >most.txt
  shift 2
  status=0
  "$program" align --model base/finetune --data base/label.jsonl --steps 4 --batch 4 \
    --mini-batch 4 --save-every 1 --reward-command 'sh reward.sh' --out here/align "$@" \
    >out 2>err || status=$?
  [ "$status" -eq "$expected" ] || {
    failed "align $*: status $expected, not $status"
    show err
  }
}
# goes_on OPTION...: a run that broke off in its third step goes on to the bytes of one that did not.
goes_on() {
  aligned 0 12 "$@"
  keep align straight
  aligned 1 8 "$@"
  aligned 0 12 "$@"
  keep align resumed
  diff -r straight resumed >different ||
    failed "align $* goes on to the same bytes: $(cut -c1-200 different | head -n 20)"
  rm -rf straight resumed
}
goes_on --deterministic

# ---- the GPU

gpu=no
if nvidia-smi -L 2>/dev/null | grep -q 'GPU '; then gpu=yes; fi
for name in $commands; do
  for options in "--precision float32" "--precision bf16" "--precision bf16 --deterministic"; do
    # shellcheck disable=SC2086  # several words
    command "$name" --device cuda $options
    if [ $gpu = yes ]; then
      [ "$status" -eq 0 ] || {
        failed "$name on a GPU, $options, ended with $status"
        show err
      }
      keep "$name" once
      case $options in
        *--deterministic)
          # shellcheck disable=SC2086
          command "$name" --device cuda $options
          keep "$name" twice
          diff -r once twice >different ||
            failed "$name on a GPU, $options, twice: $(cut -c1-200 different | head -n 20)"
          ;;
      esac
      rm -rf once twice
      continue
    fi
    before=$failures
    claim="$name without a GPU, $options"
    [ "$status" -eq 1 ] || failed "$claim: status 1, not $status"
    [ "$(wc -l <err)" -eq 1 ] || failed "$claim: one line"
    grep -q -x 'emprl: error: --device cuda: .*; --device cpu needs no GPU\.' err ||
      failed "$claim: what is missing, and what to do instead"
    [ ! -s out ] || failed "$claim: nothing is printed"
    [ -z "$(ls -A here)" ] || failed "$claim: nothing is written"
    [ $failures -eq $before ] || show out err
  done
done
[ $gpu = yes ] || sed "s/^/without a GPU: /" err
if [ $gpu = yes ]; then
  goes_on --device cuda --deterministic
  goes_on --device cuda --precision bf16 --deterministic
fi

# ---- usage

# refused NAME TEXT OPTION...: status 2 and one line that holds TEXT; nothing is written.
refused() {
  name=$1
  text=$2
  shift 2
  command "$name" "$@"
  [ "$status" -eq 2 ] || failed "$name $*: status 2, not $status"
  if [ "$(wc -l <err)" -ne 1 ] || ! grep -q -e "^emprl: error: .*$text" err; then
    failed "$name $*: one line with '$text'"
    show err
  fi
  [ -z "$(ls -A here)" ] || failed "$name $*: nothing is written"
}
for name in $commands; do
  program=$with
  "$program" "$name" --help >out || failed "$name --help"
  grep -q 'cpu or cuda' out || failed "$name --help names the device"
  grep -q -e '--deterministic .*the same bits' out || failed "$name --help promises bits"
  refused "$name" 'the CPU computes in float32' --precision bf16
  refused "$name" 'fp8' --device cuda --precision fp8
  refused "$name" 'use cpu or cuda' --device tpu
  program=$without
  "$program" "$name" --help >out || failed "$name --help"
  ! grep -q 'cpu or cuda' out || failed "$name --help names a device that is not there"
  refused "$name" 'this build has no CUDA' --device cuda
done
program=$with
for name in tokenizer init merge; do
  refused "$name" 'this command computes on the CPU' --device cuda
done

[ $failures -eq 0 ] || exit 1
echo "The program with CUDA is the program without, and more."
