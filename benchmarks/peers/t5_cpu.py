# SPDX-License-Identifier: Apache-2.0
"""T5 on the CPU against Hugging Face transformers: the same weights, ids and threads, in one run.

    EMPRL_DATA=DIR python t5_cpu.py --bench build/bin/bench_t5 --program build/bin/emprl [--threads N]

T5-small's shape with the random weights that `emprl init` draws, T5's tokenizer from
$EMPRL_DATA/t5_tokenizer, texts from $EMPRL_DATA/empathetic_dialogues. Forward (no gradients) and a
training step (loss, gradients, clipping to norm 1, AdamW) take 8 rows; greedy decoding takes 32 rows
and 20 tokens each, with a cache. Both sides are asked for the loss, the losses of the training steps
and the decoded tokens first, and nothing is printed about speed unless they agree. The sides run in
turns, twice each, so that a machine that changes meanwhile does so to both; the middle of all
measurements counts. Beam search is measured by --beams N where the program has it.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import sentencepiece
import torch
import transformers
from transformers import T5ForConditionalGeneration

ROWS, BATCH, TOKENS, END = 32, 8, 20, 1


def texts(file, count):
    """The first pairs of turns of a CSV file of EmpatheticDialogues."""
    pairs, before, conversation = [], "", None
    with open(file, encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            fields = line.split(",")
            text = fields[5].replace("_comma_", ",").strip() if len(fields) > 6 else ""
            if fields[0] != conversation:
                conversation, before = fields[0], ""
            if before and text and int(fields[1]) % 2 == 0:
                pairs.append((before, text))
                if len(pairs) == count:
                    return pairs
            before = (before + " " + text).strip()
    sys.exit("%s has too few pairs." % file)


def padded(rows, fill):
    out = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.long)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row)
    return out


class Transformers:
    def __init__(self, folder, rows):
        self.folder = folder
        self.inputs = [r["input"] for r in rows]
        self.labels = [r["labels"] for r in rows]

    def batch(self, count):
        x = self.inputs[:count]
        return {"input_ids": padded(x, 0), "attention_mask": padded([[1] * len(r) for r in x], 0)}

    def measure(self, repetitions, beams):
        model = T5ForConditionalGeneration.from_pretrained(self.folder).eval()
        labels = padded(self.labels[:BATCH], -100)
        seconds, out = {}, {}
        # Versions that know one kind of attention only do not name it.
        out["attention"] = getattr(model.config, "_attn_implementation", None) or "eager"

        def timed(name, work):
            work()
            seconds[name] = []
            for _ in range(repetitions):
                begin = time.perf_counter()
                work()
                seconds[name].append(time.perf_counter() - begin)

        def forward():
            with torch.no_grad():
                out["loss"] = float(model(**self.batch(BATCH), labels=labels).loss)

        def decode(**more):
            with torch.no_grad():
                ids = model.generate(**self.batch(ROWS), do_sample=False, max_new_tokens=TOKENS,
                                     min_new_tokens=TOKENS, **more)
            out["greedy"] = [row[1:] for row in ids.tolist()]

        timed("forward", forward)
        if beams > 1:
            timed("beams", lambda: decode(num_beams=beams, early_stopping=False))
        timed("greedy", lambda: decode(num_beams=1))
        # In eval mode still: attention draws its dropout from a number that no module shows.
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
        losses = []

        def training():
            optimiser.zero_grad()
            loss = model(**self.batch(BATCH), labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(float(loss.detach()))

        timed("training", training)
        out["losses"] = losses
        return seconds, out


def emprl_beams(options, folder, lines, repetitions):
    """Seconds of `emprl generate --beams`, the program's start and the model's reading taken off:
    what a second run with one token for each row takes."""
    def once(tokens):
        begin = time.perf_counter()
        done = subprocess.run(
            [options.program, "generate", "--model", folder / "model", "--input", lines, "--output",
             folder / "out.jsonl", "--beams", str(options.beams), "--max-tokens", str(tokens),
             "--min-tokens", str(tokens), "--threads", str(options.threads)],
            capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit("emprl generate --beams ended with %d: %s" % (done.returncode, done.stderr))
        return time.perf_counter() - begin

    return [once(TOKENS) - once(1) for _ in range(repetitions)]


def check(ours, theirs):
    """@throws SystemExit unless both sides computed the same."""
    def near(a, b, tolerance):
        return abs(a - b) <= tolerance * abs(b)

    if not near(ours["loss"], theirs["loss"], 1e-5):
        sys.exit("losses differ: %r and %r" % (ours["loss"], theirs["loss"]))
    for i, (a, b) in enumerate(zip(ours["losses"], theirs["losses"])):
        if not near(a, b, 1e-3):
            sys.exit("losses of training step %d differ: %r and %r" % (i + 1, a, b))
    same = sum(a == b for a, b in zip(ours["greedy"], theirs["greedy"]))
    # Random weights leave near ties; after one of them a row goes its own way.
    if same < 0.9 * ROWS:
        sys.exit("only %d of %d rows are decoded alike" % (same, ROWS))
    return same


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bench", type=pathlib.Path, required=True, help="the program bench_t5")
    parser.add_argument("--program", type=pathlib.Path, required=True, help="the program emprl")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repetitions", type=int, default=3, help="of each of the two turns")
    parser.add_argument("--beams", type=int, default=0, help="measure beam search too; 0: not")
    parser.add_argument("--json", type=pathlib.Path, help="write the measurements to this file")
    options = parser.parse_args()
    if "EMPRL_DATA" not in os.environ:
        sys.exit("set EMPRL_DATA to the folder of t5_tokenizer and empathetic_dialogues.")
    data = pathlib.Path(os.environ["EMPRL_DATA"])
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory(prefix="emprl-bench-") as name:
        folder = pathlib.Path(name)
        subprocess.run([options.program, "init", "--preset", "small", "--tokenizer",
                        data / "t5_tokenizer", "--out", folder / "model"], check=True,
                       capture_output=True)
        pieces = sentencepiece.SentencePieceProcessor(str(data / "t5_tokenizer/spiece.model"))
        pairs = texts(data / "empathetic_dialogues/train.csv", ROWS)
        rows = [{"input": pieces.encode(c)[:199] + [END], "labels": pieces.encode(r)[:49] + [END]}
                for c, r in pairs]
        ids, lines = folder / "ids.jsonl", folder / "texts.jsonl"
        ids.write_text("".join(json.dumps(r) + "\n" for r in rows))
        lines.write_text("".join(json.dumps({"context": c}) + "\n" for c, _ in pairs))

        ours, theirs = {}, {}
        peer = Transformers(folder / "model", rows)
        for _ in range(2):
            subprocess.run([options.bench, "--model", folder / "model", "--input", ids, "--threads",
                            str(options.threads), "--repetitions", str(options.repetitions),
                            "--batch", str(BATCH), "--tokens", str(TOKENS), "--json",
                            folder / "bench.json"], check=True, capture_output=True)
            report = json.loads((folder / "bench.json").read_text())
            seconds, out = peer.measure(options.repetitions, options.beams)
            same = check(report, out)
            for work, result in report["results"].items():
                ours.setdefault(work, []).extend(result["seconds"])
            for work, result in seconds.items():
                theirs.setdefault(work, []).extend(result)
        if options.beams > 1:
            ours["beams"] = emprl_beams(options, folder, lines, options.repetitions)

    machine = report["machine"]
    print("machine       %s, %d threads on both sides" % (machine["processor"], options.threads))
    print("emprl         %s, %s, %s, float; rows packed without padding" % (
        machine["compiler"], machine["instruction_set"], machine["matrix_products"]))
    print("transformers  %s, torch %s, float32, attention %s; rows padded on the right" % (
        transformers.__version__, torch.__version__, out["attention"]))
    print("model         T5-small's shape, %d parameters, random weights" % report["parameters"])
    print("agreement     loss %.6f and %.6f, %d of %d rows decoded alike" % (
        report["loss"], out["loss"], same, ROWS))
    print("%-10s %12s %16s %8s   (medians of %d, milliseconds; above 1: emprl is faster)" % (
        "work", "emprl", "transformers", "ratio", 2 * options.repetitions))
    for work in ("forward", "training", "greedy", "beams"):
        if work in ours and work in theirs:
            a, b = statistics.median(ours[work]), statistics.median(theirs[work])
            print("%-10s %12.1f %16.1f %8.2f" % (work, 1e3 * a, 1e3 * b, b / a))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "torch": torch.__version__,
                                            "transformers": transformers.__version__,
                                            "emprl": ours, "peer": theirs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
