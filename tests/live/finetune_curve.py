# SPDX-License-Identifier: Apache-2.0
"""emprl finetune against PyTorch: the training loss of every step, from one start and one data set.

    python finetune_curve.py --program build/bin/emprl [--steps N] [--seed N]

For T5 v1.0 and for a gated T5, both of the size of the preset tiny: `emprl init` makes the start,
`emprl finetune --dropout 0 --log-batches` trains on dialogues and says which pairs each step used;
then transformers and torch.optim.AdamW do the same with the same batches. The losses must agree to
1e-4 of their size at every step.

The dialogues are the first of $EMPRL_DATA/empathetic_dialogues where there is such a folder, else
those of emprl-corpus, which is looked for beside emprl.
"""

import json
import os
import pathlib
import re
import sys

import torch
from transformers import T5ForConditionalGeneration

from _t5 import (Tokens, arguments, batch, emprl, read_lines, true_double, workshop,
                 write_lines)

# The learning rate is what finetune has unless told otherwise. At ten times as much a v1.0 from
# scratch is chaotic: PyTorch in float32 is 3e-4 away from itself in float64 after 50 steps.
LEARNING_RATE, BATCH, TOLERANCE = 1e-4, 8, 1e-4
MAX_CONTEXT, MAX_RESPONSE = 200, 50

SHAPES = {
    "v1.0": dict(feed_forward_proj="relu", tie_word_embeddings=True),
    "gated": dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
}


def dialogues(options, folder):
    """A CSV file in the format of EmpatheticDialogues, and what it is called in the report."""
    real = pathlib.Path(os.environ.get("EMPRL_DATA", "")) / "empathetic_dialogues/train.csv"
    if os.environ.get("EMPRL_DATA") and real.exists():
        return real, "EmpatheticDialogues"
    corpus = options.program.with_name("emprl-corpus")
    if not corpus.exists():
        print("Skipped: there is no $EMPRL_DATA/empathetic_dialogues and no %s." % corpus)
        sys.exit(77)
    emprl(corpus, "--out", folder / "corpus")
    return next((folder / "corpus").rglob("train.csv")), "emprl-corpus"


def pairs_of(file, count):
    """The first pairs: a listener's turn is one of even index, its context all turns before. Pairs
    with two marks in a row are left out: a tokenizer may cut "...." into "." and "..." or the other
    way round with the same score, and sentencepiece 0.1.97 and 0.2.3 choose differently."""
    pairs, turns, conversation = [], [], None
    with open(file, encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            fields = line.rstrip("\n").split(",")
            if len(fields) not in (7, 8):
                continue
            if fields[0] != conversation:
                conversation, turns = fields[0], []
            text = " ".join(fields[5].replace("_comma_", ",").split())
            clear = not re.search(r"([^\w\s])\1", " ".join(turns + [text]))
            if int(fields[1]) % 2 == 0 and turns and text and clear:
                pairs.append({"id": "%s:%s" % (fields[0], fields[1]), "context": " ".join(turns),
                              "response": text})
                if len(pairs) == count:
                    return pairs
            turns.append(text)
    sys.exit("%s has fewer than %d pairs." % (file, count))


def torch_losses(model_folder, pairs, tokens, batches, dtype=torch.float32):
    """Losses and gradient norms of the same steps in PyTorch, the norms before clipping."""
    model = T5ForConditionalGeneration.from_pretrained(model_folder).train().to(dtype)
    assert model.config.dropout_rate == 0
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.999),
                                  eps=1e-8, weight_decay=0.0)
    by_id = {p["id"]: (tokens.encode(p["context"], MAX_CONTEXT),
                       tokens.encode(p["response"], MAX_RESPONSE)) for p in pairs}
    losses, norms = [], []
    for names in batches:
        optimiser.zero_grad()
        inputs, labels = zip(*[by_id[name] for name in names])
        loss = model(**batch(inputs, labels)).loss
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        optimiser.step()
        losses.append(float(loss.detach()))
    return losses, norms


def compare(options, folder, name, shape, pairs):
    config = dict(model_type="t5", d_model=128, d_kv=32, d_ff=512, num_layers=2,
                  num_decoder_layers=2, num_heads=4, dropout_rate=0.0, **shape)
    tokens = Tokens(folder / "tokenizer")
    config["vocab_size"] = (tokens.size + 7) // 8 * 8
    (folder / "config.json").write_text(json.dumps(config))
    start, out = folder / (name + "-start"), folder / (name + "-out")
    emprl(options.program, "init", "--config", folder / "config.json", "--tokenizer",
          folder / "tokenizer", "--out", start, "--seed", options.seed)
    emprl(options.program, "finetune", "--model", start, "--train", folder / "train.jsonl",
          "--valid", folder / "valid.jsonl", "--out", out, "--tuning", "full", "--epochs", 1,
          "--batch", BATCH, "--lr", LEARNING_RATE, "--schedule", "constant", "--dropout", 0,
          "--log-batches", "--seed", options.seed)
    batches = [line["pairs"] for line in read_lines(out / "batches.jsonl")]
    steps = [line for line in read_lines(out / "metrics.jsonl") if line["phase"] == "finetune"]
    assert [s["step"] for s in steps] == list(range(1, options.steps + 1)) and len(
        batches) == options.steps, "the program took other steps than were asked for"
    assert sorted(sum(batches, [])) == sorted(p["id"] for p in pairs), "an epoch uses each pair once"

    losses, norms = torch_losses(start, pairs, tokens, batches)
    with true_double():
        double, _ = torch_losses(start, pairs, tokens, batches, torch.float64)
    own = max(abs(a - b) / b for a, b in zip(losses, double))
    off = [abs(s["loss"] - loss) / loss for s, loss in zip(steps, losses)]
    norm_off = max(abs(s["gradient_norm"] - n) / n for s, n in zip(steps, norms))
    worst = max(range(len(off)), key=off.__getitem__)
    print("%-5s %d steps: loss %.4f at the first, %.4f at the last; largest relative difference "
          "%.2e, at step %d (of gradient norms %.2e); PyTorch in float32 and in float64: %.2e" % (
              name, len(steps), losses[0], losses[-1], off[worst], worst + 1, norm_off, own),
          flush=True)
    return off[worst]


def main():
    options = arguments(__doc__.split("\n")[0], steps=dict(type=int, default=50))
    with workshop() as folder:
        source, called = dialogues(options, folder)
        every = pairs_of(source, options.steps * BATCH + 40)
        pairs, valid = every[:-40], every[-40:]
        print("%s: %d pairs, batches of %d, learning rate %g" % (called, len(pairs), BATCH,
                                                                 LEARNING_RATE))
        write_lines(folder / "train.jsonl", pairs)
        write_lines(folder / "valid.jsonl", valid)
        emprl(options.program, "tokenizer", "--input", folder / "train.jsonl", "--out",
              folder / "tokenizer", "--vocabulary", 1000)
        worst = max(compare(options, folder, name, shape, pairs)
                    for name, shape in SHAPES.items())
    print("largest relative difference of both: %.2e, %s %g" % (
        worst, "within" if worst <= TOLERANCE else "BEYOND", TOLERANCE))
    sys.exit(0 if worst <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
