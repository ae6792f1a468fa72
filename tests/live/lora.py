# SPDX-License-Identifier: Apache-2.0
"""A LoRA goes from emprl to PEFT and back with the same log-probabilities.

    python lora.py --program PATH/emprl

Trains a small model and a LoRA with emprl, reads both with transformers and PEFT, and compares the
log-probability of every response with `emprl score --adapter`; then lets PEFT train and save one,
and compares again; then merges both with `emprl merge` and lets transformers read the result.
Exit status 0 if all agree, 1 if not, 77 (skipped) without torch, transformers and PEFT.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import peft
    import sentencepiece
    import torch
    import transformers
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

PAIRS = [
    {"context": f"Yesterday {who} {what}, and {when}",
     "response": f"{reply} Tell me more about {who}."}
    for who in ("my sister", "my dog", "an old friend", "the neighbour")
    for what, reply in (("left town", "I am sorry to hear that."), ("won a prize", "How wonderful!"),
                        ("broke a leg", "What happened then?"))
    for when in ("it rained all day.", "nobody noticed.")
]
CONFIGS = {
    "relu": {"feed_forward_proj": "relu"},
    "gated": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}
# Of a sum of thirty float log-probabilities around -150, in another order of sums.
TOLERANCE = 1e-6


def emprl(program, *words):
    done = subprocess.run([str(program), *map(str, words)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"emprl {' '.join(map(str, words))}: {done.stderr}")


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def scores(program, folder, model, adapter=None):
    out = folder / "scored.jsonl"
    emprl(program, "score", "--model", model, "--input", folder / "pairs.jsonl", "--output", out,
          *(["--adapter", adapter] if adapter else []))
    return np.array([json.loads(line)["logprob"] for line in out.read_text().splitlines()])


def encode(folder, text):
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tok/spiece.model"))
    return torch.tensor([processor.encode(text) + [1]])


@torch.no_grad()
def peft_scores(model, folder):
    total = []
    for pair in PAIRS:
        labels = encode(folder, pair["response"])
        logits = model(input_ids=encode(folder, pair["context"]), labels=labels).logits
        chosen = torch.log_softmax(logits, -1).gather(2, labels.unsqueeze(-1))
        total.append(float(chosen.double().sum()))
    return np.array(total)


def base_model(folder, name):
    return transformers.T5ForConditionalGeneration.from_pretrained(folder / name).eval()


def train_with_peft(folder, base, out, **settings):
    """A few steps of AdamW, so that B is not zero."""
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", **settings)
    model = peft.get_peft_model(base_model(folder, base), config)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for pair in PAIRS[:8]:
        model(input_ids=encode(folder, pair["context"]),
              labels=encode(folder, pair["response"])).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()
    model.save_pretrained(str(folder / out))
    return peft_scores(model, folder)


class Report:
    def __init__(self):
        self.failed = False

    def compare(self, what, ours, theirs, differs_from):
        error = np.max(np.abs(ours - theirs) / np.maximum(1, np.abs(theirs)))
        moved = np.max(np.abs(theirs - differs_from))
        good = error <= TOLERANCE and moved > 0.01
        self.failed |= not good
        print(f"{'ok  ' if good else 'FAIL'} {what}: largest relative difference {error:.1e} "
              f"(the adapter moves log-probabilities by up to {moved:.3g})")


def check(program, folder, kind, report):
    base = f"model_{kind}"
    config = {"model_type": "t5", "vocab_size": 256, "d_model": 32, "d_kv": 8, "d_ff": 64,
              "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, **CONFIGS[kind]}
    (folder / "config.json").write_text(json.dumps(config))
    emprl(program, "init", "--config", folder / "config.json", "--tokenizer", folder / "tok",
          "--out", folder / base, "--seed", 3)
    plain = scores(program, folder, folder / base)

    dense = "wi" if kind == "relu" else "wi_0"
    for name, targets in (("q,v", "q,v"), ("parts", f"EncDecAttention.k,{dense},wo"),
                          ("all-linear", "all-linear")):
        out = folder / f"{kind}_{name.replace(',', '_')}"
        emprl(program, "finetune", "--model", folder / base, "--train", folder / "pairs.jsonl",
              "--tuning", "lora", "--lora-targets", targets, "--lora-rank", 3, "--lora-alpha", 9,
              "--epochs", 3, "--batch", 8, "--lr", "1e-2", "--out", out)
        model = peft.PeftModel.from_pretrained(base_model(folder, base), str(out)).eval()
        theirs = peft_scores(model, folder)
        report.compare(f"{kind}, emprl's {name} read by PEFT",
                       scores(program, folder, folder / base, out), theirs, plain)
        emprl(program, "merge", "--model", folder / base, "--adapter", out,
              "--out", folder / "merged")
        merged = peft_scores(base_model(folder, "merged"), folder)
        report.compare(f"{kind}, emprl's {name} merged, read by transformers", merged, theirs,
                       plain)

    cases = {
        "q, v": dict(r=4, lora_alpha=8, target_modules=["q", "v"], lora_dropout=0.1),
        "all-linear": dict(r=2, lora_alpha=8, target_modules="all-linear", use_rslora=True),
        "patterns": dict(r=3, lora_alpha=6, target_modules=r".*decoder.*\.(q|o|wo)",
                         rank_pattern={"EncDecAttention.q": 1}, alpha_pattern={"o": 12}),
    }
    for name, settings in cases.items():
        theirs = train_with_peft(folder, base, "from_peft", **settings)
        report.compare(f"{kind}, PEFT's {name} read by emprl",
                       scores(program, folder, folder / base, folder / "from_peft"), theirs, plain)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True, type=pathlib.Path)
    program = parser.parse_args().program.resolve()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, "
          f"PEFT {peft.__version__}")
    report = Report()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write_lines(folder / "pairs.jsonl", PAIRS)
        emprl(program, "tokenizer", "--input", folder / "pairs.jsonl", "--out", folder / "tok",
              "--vocabulary", 250)
        for kind in CONFIGS:
            check(program, folder, kind, report)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
