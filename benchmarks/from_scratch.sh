#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A generator from nothing but text: a new T5 with T5's own tokenizer, span corruption on books and
# dialogues, then the responses of EmpatheticDialogues. Prints what each stage took and the perplexity
# on the validation split, beside that of the same training without the first stage (--control).
#
#   sh benchmarks/from_scratch.sh --program EMPRL --work DIR [options]
#
#   --program EMPRL     the program
#   --work DIR          where models and logs go. What a stopped run has done is not done again: the
#                       same command goes on with the stage that was under way
#   --data DIR          the data (else $EMPRL_DATA): t5_tokenizer/, pretraining/books.txt.xz and
#                       dialogues.jsonl.xz, empathetic_dialogues/
#   --preset NAME       tiny or small (else small: T5-small's shape)
#   --device NAME       cpu or cuda (else cpu)
#   --precision NAME    float32 or bf16 (else float32)
#   --steps N           of pre-training (else 20000)
#   --length N          tokens of a window of text (else 256)
#   --batch-tokens N    tokens of text in a step of pre-training (else 32768)
#   --lr X              peak learning rate of pre-training (else 1e-3)
#   --epochs N          of EmpatheticDialogues (else 3)
#   --batch N           pairs in a step there (else 32)
#   --finetune-lr X     peak learning rate there (else 5e-4)
#   --limit N           only the first N lines of each training file, for a trial (else 0: all)
#   --control           the second stage from the new model too
#   --json FILE         the result, as one object
#   --dry-run           show the commands and run none
#
# Exit status: 0 done, 1 a stage failed, 2 wrong usage.
set -eu

usage() { sed -n '3,/^set -eu/{/^set -eu/d;s/^# \{0,1\}//;p;}' "$0"; }
wrong() {
  printf '%s\n' "$*" >&2
  usage >&2
  exit 2
}

program=
work=
data=${EMPRL_DATA:-}
preset=small
device=cpu
precision=float32
steps=20000
length=256
batch_tokens=32768
lr=1e-3
epochs=3
batch=32
finetune_lr=5e-4
limit=0
control=
json=
dry_run=
while [ $# -gt 0 ]; do
  case $1 in
    --control) control=yes ;;
    --dry-run) dry_run=yes ;;
    -h | --help) usage; exit 0 ;;
    --program | --work | --data | --preset | --device | --precision | --steps | --length | \
      --batch-tokens | --lr | --epochs | --batch | --finetune-lr | --limit | --json)
      [ $# -ge 2 ] || wrong "$1 needs a value."
      case $1 in
        --program) program=$2 ;;
        --work) work=$2 ;;
        --data) data=$2 ;;
        --preset) preset=$2 ;;
        --device) device=$2 ;;
        --precision) precision=$2 ;;
        --steps) steps=$2 ;;
        --length) length=$2 ;;
        --batch-tokens) batch_tokens=$2 ;;
        --lr) lr=$2 ;;
        --epochs) epochs=$2 ;;
        --batch) batch=$2 ;;
        --finetune-lr) finetune_lr=$2 ;;
        --limit) limit=$2 ;;
        --json) json=$2 ;;
      esac
      shift
      ;;
    *) wrong "Unknown option: $1" ;;
  esac
  shift
done
if [ -z "$program" ] || [ -z "$work" ]; then wrong "--program and --work are needed."; fi
case $preset in tiny | small) ;; *) wrong "--preset needs tiny or small, not '$preset'." ;; esac
for number in "$steps" "$length" "$batch_tokens" "$epochs" "$batch" "$limit"; do
  case $number in '' | *[!0-9]*) wrong "'$number' is not a whole number." ;; esac
done
for file in t5_tokenizer/spiece.model pretraining/books.txt.xz pretraining/dialogues.jsonl.xz \
  empathetic_dialogues/train.csv empathetic_dialogues/valid.csv; do
  [ -f "${data:-.}/$file" ] || wrong "There is no $file in '$data'; --data or EMPRL_DATA says where."
done

now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }

run() {
  printf '+'
  printf ' %s' "$@"
  printf '\n'
  [ -n "$dry_run" ] || "$@"
}

# unpack FILE.xz FILE: all lines, or the first ones. head leaves when it has them, and xz then ends
# by a signal, which a pipe's status does not show.
unpack() {
  printf '+ xz -dc %s%s >%s\n' "$1" "$([ "$limit" -eq 0 ] || printf ' | head -n %s' "$limit")" "$2"
  [ -z "$dry_run" ] || return 0
  if [ "$limit" -eq 0 ]; then xz -dc "$1" >"$2"; else xz -dc "$1" | head -n "$limit" >"$2"; fi
}

# number FILE NAME: the number NAME at the top of a JSON object.
number() { sed -n 's/^ *"'"$2"'": *\([-+.0-9eE]*\),\{0,1\}$/\1/p' "$1" | tail -n 1; }

rows=
# stage NAME FOLDER WORDS...: runs the program into FOLDER and keeps what it says of itself, in
# FOLDER.done too, under the command.
stage() {
  name=$1
  folder=$2
  shift 2
  set -- "$program" "$@" --out "$folder" --device "$device" --precision "$precision"
  if [ -z "$dry_run" ] && [ "$(head -n 1 "$folder.done" 2>/dev/null)" = "$* --limit $limit" ]; then
    rows="$rows$(tail -n 1 "$folder.done")
"
    return 0
  fi
  begin=$(now)
  run "$@"
  [ -z "$dry_run" ] || return 0
  wall=$(since "$begin")
  row=$(awk -v name="$name" -v wall="$wall" -v steps="$(number "$folder/training.json" steps)" \
    -v tokens="$(number "$folder/training.json" tokens)" \
    -v seconds="$(number "$folder/training.json" seconds)" \
    -v loss="$(number "$folder/training.json" best_validation_loss)" 'BEGIN {
      printf "%s\t%s\t%.0f\t%.0f\t%.0f\t%.4f\t%.2f\n", name, wall, steps, tokens,
        (seconds > 0 ? tokens / seconds : 0), loss, exp(loss) }')
  printf '%s\n%s\n' "$* --limit $limit" "$row" >"$folder.done"
  rows="$rows$row
"
}

[ -n "$dry_run" ] || mkdir -p "$work/dialogues"
start=$(now)
unpack "$data/pretraining/books.txt.xz" "$work/books.txt"
unpack "$data/pretraining/dialogues.jsonl.xz" "$work/dialogues.jsonl"
dialogues=$data/empathetic_dialogues
if [ "$limit" -gt 0 ]; then
  dialogues=$work/dialogues
  printf '+ head -n %s %s >%s\n' "$limit" "$data/empathetic_dialogues/train.csv" \
    "$dialogues/train.csv"
  if [ -z "$dry_run" ]; then
    head -n "$limit" "$data/empathetic_dialogues/train.csv" >"$dialogues/train.csv"
    cp "$data/empathetic_dialogues/valid.csv" "$dialogues/valid.csv"
  fi
fi
run "$program" init --preset "$preset" --tokenizer "$data/t5_tokenizer" --out "$work/new"
stage "span corruption" "$work/pretrained" pretrain --model "$work/new" --text "$work/books.txt" \
  --dialogues "$work/dialogues.jsonl" --steps "$steps" --length "$length" \
  --batch-tokens "$batch_tokens" --lr "$lr" --warmup "$((steps / 20))" \
  --validate-every "$(((steps + 9) / 10))"
tune() {
  stage "$1" "$3" finetune --model "$2" --train "$dialogues" --tuning full --epochs "$epochs" \
    --batch "$batch" --lr "$finetune_lr" --warmup 100
}
tune "responses" "$work/pretrained" "$work/generator"
[ -z "$control" ] || tune "responses, no pre-training" "$work/new" "$work/control"
[ -z "$dry_run" ] || exit 0

total=$(since "$start")
printf '\n%-28s %9s %8s %12s %10s %10s %11s\n' stage 'wall, s' steps tokens tokens/s 'valid loss' \
  perplexity
printf '%s' "$rows" | awk -F '\t' '{
  printf "%-28s %9s %8s %12s %10s %10s %11s\n", $1, $2, $3, $4, $5, $6, $7 }'
printf '\n%s s in all; %s, %s, %s.\n' "$total" "$preset" "$device" "$precision"
cat <<'NOTE'
Tokens are those of the inputs and targets that a stage read since it was last started, and tokens/s
those of its training steps alone. The perplexity of span corruption is that of the hidden tokens of
held-out windows; the others are those of the responses of the validation split, by which the epoch
was chosen.
NOTE
if [ -n "$json" ]; then
  printf '%s' "$rows" | awk -F '\t' -v preset="$preset" -v device="$device" \
    -v precision="$precision" -v total="$total" '
    BEGIN { printf "{\"preset\": \"%s\", \"device\": \"%s\", \"precision\": \"%s\", \"seconds\": %s, \"stages\": [",
      preset, device, precision, total }
    { printf "%s{\"stage\": \"%s\", \"seconds\": %s, \"steps\": %s, \"tokens\": %s, \"tokens_per_second\": %s, \"valid_loss\": %s, \"perplexity\": %s}",
      (NR > 1 ? ", " : ""), $1, $2, $3, $4, $5, $6, $7 }
    END { print "]}" }' >"$json"
fi
