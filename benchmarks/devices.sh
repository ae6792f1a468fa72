#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Supervised training of a tiny model by the program, once on the CPU and once on the GPU, float32 and
# dropout of the same masks: the losses of the first steps must agree.
#
#   sh benchmarks/devices.sh --program EMPRL --work DIR [--dialogues DIR] [--steps N] [--within X]
#                            [--devices A,B] [--json FILE]
#
#   --program EMPRL   the program, built with -DEMPRL_CUDA_PROGRAMS=ON
#   --dialogues DIR   a folder of EmpatheticDialogues CSVs (else $EMPRL_DATA/empathetic_dialogues)
#   --work DIR        where models and logs go
#   --steps N         steps that are compared (else 200)
#   --within X        the largest difference of two losses (else 0.001)
#   --devices A,B     what is compared (else cpu,cuda)
#   --json FILE       the result, as one object
#
# Exit status: 0 they agree, 1 they do not or a run failed, 2 wrong usage.
set -eu

usage() { sed -n '3,/^set -eu/{/^set -eu/d;s/^# \{0,1\}//;p;}' "$0"; }
wrong() {
  printf '%s\n' "$*" >&2
  usage >&2
  exit 2
}

program=
dialogues=${EMPRL_DATA:+$EMPRL_DATA/empathetic_dialogues}
work=
steps=200
within=0.001
devices=cpu,cuda
json=
while [ $# -gt 0 ]; do
  case $1 in
    --program | --dialogues | --work | --steps | --within | --devices | --json)
      [ $# -ge 2 ] || wrong "$1 needs a value."
      case $1 in
        --program) program=$2 ;;
        --dialogues) dialogues=$2 ;;
        --work) work=$2 ;;
        --steps) steps=$2 ;;
        --within) within=$2 ;;
        --devices) devices=$2 ;;
        --json) json=$2 ;;
      esac
      shift
      ;;
    -h | --help) usage; exit 0 ;;
    *) wrong "Unknown option: $1" ;;
  esac
  shift
done
if [ -z "$program" ] || [ -z "$work" ]; then wrong "--program and --work are needed."; fi
case $steps in '' | *[!0-9]*) wrong "--steps needs a whole number, not '$steps'." ;; esac
[ -f "${dialogues:-.}/train.csv" ] ||
  wrong "There is no train.csv in '$dialogues'; --dialogues or EMPRL_DATA says where."

# As many pairs as the steps need, and few to validate on: a dialogue has a pair for every second
# line. Batches of eight.
mkdir -p "$work/dialogues"
head -n $((steps * 24)) "$dialogues/train.csv" >"$work/dialogues/train.csv"
head -n 60 "$dialogues/valid.csv" >"$work/dialogues/valid.csv"
"$program" tokenizer --input "$work/dialogues" --vocabulary 2000 --out "$work/tokenizer"
"$program" init --preset tiny --tokenizer "$work/tokenizer" --out "$work/initial"

losses() {
  # "step": N ... "loss": X in lines of the phase finetune, in any order of the fields.
  awk -v most="$steps" '
    /"phase": *"finetune"[,}]/ && /"loss"/ {
      step = $0; sub(/.*"step": */, "", step); sub(/[,}].*/, "", step)
      loss = $0; sub(/.*"loss": */, "", loss); sub(/[,}].*/, "", loss)
      if (step + 0 <= most) print step, loss
    }' "$1"
}

for device in $(printf '%s' "$devices" | tr ',' ' '); do
  rm -rf "${work:?}/$device"
  begin=$(date +%s)
  "$program" finetune --model "$work/initial" --train "$work/dialogues" --out "$work/$device" \
    --tuning full --epochs 1 --batch 8 --lr 1e-3 --warmup 20 --device "$device"
  printf '%s\n' $(($(date +%s) - begin)) >"$work/$device.seconds"
  losses "$work/$device/metrics.jsonl" >"$work/$device.losses"
done
a=${devices%,*}
b=${devices#*,}
paste -d ' ' "$work/$a.losses" "$work/$b.losses" | awk \
  -v a="$a" -v b="$b" -v within="$within" -v steps="$steps" -v json="$json" \
  -v a_seconds="$(cat "$work/$a.seconds")" -v b_seconds="$(cat "$work/$b.seconds")" '
  {
    if ($1 != $3) { print "step " $1 " of " a " stands beside step " $3 " of " b; broken = 1 }
    d = $2 - $4; if (d < 0) d = -d
    if (!(d <= most)) { most = d; at = $1 }
    first = NR == 1 ? $2 : first
    last = $2
    ++n
  }
  END {
    printf "%d steps: loss %.4f to %.4f on %s; largest difference on %s %.2g, at step %d\n",
      n, first, last, a, b, most, at
    if (json != "") {
      printf "{\"steps\": %d, \"first_loss\": %s, \"last_loss\": %s, \"largest_difference\": %.9g, \"at_step\": %d, \"seconds\": {\"%s\": %d, \"%s\": %d}}\n",
        n, first, last, most, at, a, a_seconds, b, b_seconds >json
    }
    if (n < steps) { print "fewer than " steps " steps"; broken = 1 }
    if (!(most <= within)) { print "more than " within; broken = 1 }
    if (!(last < first)) { print "nothing was learnt"; broken = 1 }
    exit broken
  }'
