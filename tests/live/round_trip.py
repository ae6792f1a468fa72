#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Folders go from emprl to transformers and back with nothing lost.

    python round_trip.py --program build/bin/emprl [--folder DIR]

Needs torch, transformers (4 or 5), sentencepiece and safetensors; without them it exits with 77,
which CTest reads as skipped. --folder keeps the models for a look.

For T5 with ReLU and with gated GELU, embeddings tied and not:
  1. what `emprl init` and `emprl finetune` write transformers loads without a missing, unexpected
     or mismatched key and without a warning, the tokenizers too;
  2. what transformers' save_pretrained writes, whole and in shards, in float32, float16 and
     bfloat16, emprl loads;
  3. both give the same log-probabilities, as `emprl score` prints them;
  4. fields of config.json that emprl does not know, generation_config.json and a value head that
     TRL left among the weights come through `emprl finetune`.
"""

import argparse
import contextlib
import itertools
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")
try:
    import sentencepiece  # noqa: F401  (transformers needs it for spiece.model)
    import torch
    import transformers
    from safetensors.torch import load_file, save_file
    from transformers import T5ForConditionalGeneration, T5Tokenizer, T5TokenizerFast
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

torch.set_num_threads(1)
transformers.utils.logging.disable_default_handler()  # what it says is looked at below
transformers.utils.logging.disable_progress_bar()
MAJOR = int(transformers.__version__.split(".")[0])

WHO = ("my sister", "my dog", "an old friend", "the neighbour", "my boss")
WHAT = ("left town", "won a prize", "broke a leg", "forgot me", "sang for me")
REPLIES = ("I am sorry to hear that.", "How wonderful!", "What happened then?")
LINES = [
    {
        "context": f"Yesterday {WHO[i % 5]} {WHAT[i // 5 % 5]}, it was day {i}",
        "response": f"{REPLIES[i % 3]} Tell me about {WHO[i * 7 % 5]}.",
    }
    for i in range(60)
]
# What tokenizers disagree on: spaces, marks, letters that are not in the vocabulary.
ODD = [
    {"context": "  two   spaces , and a tab\there ", "response": "caf\u00e9 \u2013 \ufb01ne\u2026"},
    {"context": "Tell me \U0001f642 about it", "response": "\u4f60\u597d  Yesterday"},
    {"context": "a", "response": "."},
]


class Failure(Exception):
    """What went another way than it must, in a sentence."""


def expect(condition, sentence):
    if not condition:
        raise Failure(sentence)


def emprl(program, *arguments):
    """Runs the program; its standard error is returned."""
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    expect(
        done.returncode == 0,
        f"emprl {' '.join(map(str, arguments))} ended with {done.returncode}: {done.stderr}",
    )
    return done.stderr


class Listener(logging.Handler):
    """Collects what a library says at the level of warnings and above."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


@contextlib.contextmanager
def listening():
    listener = Listener()
    logger = logging.getLogger("transformers")
    logger.addHandler(listener)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield listener.said
    logger.removeHandler(listener)
    # Deprecations inside of other packages are none of the folder's doing.
    listener.said += [str(w.message) for w in caught if issubclass(w.category, UserWarning)]


def is_known(sentence, tied):
    """transformers 5 calls every T5 tied and says so of each that is not, its own among them."""
    return MAJOR >= 5 and not tied and "so we will NOT tie them" in sentence


def load_model(folder, tied):
    """The model in float32, loaded without a complaint."""
    with listening() as said:
        kind = {"dtype" if MAJOR >= 5 else "torch_dtype": torch.float32}
        model, info = T5ForConditionalGeneration.from_pretrained(
            folder, output_loading_info=True, **kind
        )
    for what, keys in info.items():
        expect(not keys, f"{folder}: transformers reports {what}: {keys}")
    complaints = [sentence for sentence in said if not is_known(sentence, tied)]
    expect(not complaints, f"{folder}: transformers says: {complaints}")
    return model.eval()


def load_tokenizers(folder):
    with listening() as said:
        tokenizers = [T5Tokenizer.from_pretrained(folder), T5TokenizerFast.from_pretrained(folder)]
    # transformers 4 complains of a setting that its own save_pretrained has written.
    theirs = "add_prefix_space" in (folder / "tokenizer_config.json").read_text()
    complaints = [x for x in said if not (theirs and x.startswith("You set `add_prefix_space`"))]
    expect(not complaints, f"{folder}: a tokenizer of transformers says: {complaints}")
    return tokenizers


def logprobs_of(model, tokenizer, lines):
    """Log-probability of each response and </s>, and how many tokens that is."""
    results = []
    with torch.no_grad():
        for line in lines:
            context = tokenizer(line["context"], return_tensors="pt").input_ids
            labels = tokenizer(line["response"], return_tensors="pt").input_ids
            logits = model(input_ids=context, labels=labels).logits
            picked = logits.double().log_softmax(-1).gather(-1, labels[..., None])
            results.append((picked.sum().item(), labels.shape[1]))
    return results


def score(program, folder, lines, work):
    source, target = work / "score.jsonl", work / "scored.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = emprl(program, "score", "--model", folder, "--input", source, "--output", target)
    scored = [json.loads(line) for line in target.read_text().splitlines()]
    return [(line["logprob"], line["tokens"]) for line in scored], said


def compare(program, folder, tied, work, quiet=True):
    """Both programs on one folder. Returns the largest relative difference."""
    model = load_model(folder, tied)
    lines = LINES[:6] + ODD
    ours, said = score(program, folder, lines, work)
    expect(not quiet or "warning" not in said, f"{folder}: emprl says: {said}")
    worst = 0.0
    for tokenizer in load_tokenizers(folder):
        theirs = logprobs_of(model, tokenizer, lines)
        for line, (a, n), (b, m) in zip(lines, ours, theirs):
            expect(
                n == m,
                f"{folder}: {line['response']!r} has {n} tokens in emprl and {m} in "
                f"{type(tokenizer).__name__}",
            )
            worst = max(worst, abs(a - b) / abs(b))
    # Sixteen units in the last place of float32; two dozen rounded numbers are summed.
    expect(worst < 1e-6, f"{folder}: log-probabilities differ by {worst:.1e} of themselves")
    return worst


def save_with_transformers(model, tokenizer_folder, out, **options):
    model.save_pretrained(out, **options)
    # transformers 5 no longer writes spiece.model.
    load_tokenizers(tokenizer_folder)[0].save_pretrained(out)
    shutil.copyfile(tokenizer_folder / "spiece.model", out / "spiece.model")


def one_shape(program, work, feed_forward, tied):
    config = {
        "model_type": "t5",
        "vocab_size": 416,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 48,
        "num_layers": 2,
        "num_decoder_layers": 3,
        "num_heads": 3,
        "feed_forward_proj": feed_forward,
        "tie_word_embeddings": tied,
        "dropout_rate": 0.0,
        "task_specific_params": {"summarization": {"num_beams": 4, "prefix": "summarize: "}},
        "n_positions": 512,
    }
    (work / "config.json").write_text(json.dumps(config))
    results = {}
    made, tuned = work / "init", work / "finetuned"
    emprl(program, "init", "--config", work / "config.json", "--tokenizer", work / "tokenizer",
          "--out", made, "--seed", 3)
    results["emprl init"] = compare(program, made, tied, work)
    emprl(program, "finetune", "--model", made, "--train", work / "data.jsonl", "--out", tuned,
          "--epochs", 1, "--lr", 1e-3)
    results["emprl finetune"] = compare(program, tuned, tied, work)
    written = json.loads((tuned / "config.json").read_text())
    for field in ("task_specific_params", "n_positions"):
        expect(written.get(field) == config[field], f"{tuned}: config.json lost {field}")

    model = load_model(tuned, tied)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.02 * torch.randn(tensor.shape, generator=generator))
    model.generation_config.num_beams = 3
    model.generation_config.max_new_tokens = 17
    save_with_transformers(model, made, work / "whole")
    results["save_pretrained"] = compare(program, work / "whole", tied, work)
    save_with_transformers(model, made, work / "shards", max_shard_size="40KB")
    shards = list((work / "shards").glob("model-*-of-*.safetensors"))
    expect(len(shards) > 2, f"{work / 'shards'} has {len(shards)} shards")
    results[f"save_pretrained, {len(shards)} shards"] = compare(
        program, work / "shards", tied, work
    )
    exact = score(program, work / "whole", LINES, work)[0]
    expect(exact == score(program, work / "shards", LINES, work)[0], "shards change the numbers")
    for name in ("float16", "bfloat16"):
        half = T5ForConditionalGeneration.from_pretrained(work / "whole").to(getattr(torch, name))
        save_with_transformers(half, made, work / name, max_shard_size="60KB")
        results[f"save_pretrained, {name}"] = compare(program, work / name, tied, work)

    # A value head as TRL leaves it: two tensors among those of the model.
    head = {
        "v_head.summary.weight": torch.randn(1, 32, generator=generator),
        "v_head.summary.bias": torch.randn(1, generator=generator),
    }
    with_head = work / "with_head"
    shutil.copytree(work / "whole", with_head)
    tensors = load_file(with_head / "model.safetensors")
    save_file({**tensors, **head}, str(with_head / "model.safetensors"), metadata={"format": "pt"})
    through = work / "through"
    emprl(program, "finetune", "--model", with_head, "--train", work / "data.jsonl", "--out",
          through, "--epochs", 1, "--lr", 1e-4)
    results["save_pretrained, emprl finetune"] = compare(program, through, tied, work)
    kept = load_file(through / "value_head.safetensors")
    expect(
        kept.keys() == head.keys() and all(torch.equal(kept[name], head[name]) for name in head),
        f"{through}: the value head is another",
    )
    linear = torch.nn.Linear(32, 1)  # TRL's v_head.summary
    linear.load_state_dict({name.removeprefix("v_head.summary."): t for name, t in kept.items()})
    before = json.loads((work / "whole/config.json").read_text())
    after = json.loads((through / "config.json").read_text())
    before["tie_word_embeddings"] = tied  # transformers 5 calls every T5 tied
    before.setdefault("decoder_start_token_id", 0)
    lost = {k: v for k, v in before.items() if after.get(k) != v}
    expect(not lost, f"{through}: config.json lost {lost}")
    for name in ("generation_config.json", "tokenizer_config.json"):
        expect(
            (work / "whole" / name).read_bytes() == (through / name).read_bytes(),
            f"{through}: {name} is another",
        )
    loaded = T5ForConditionalGeneration.from_pretrained(through).generation_config
    expect((loaded.num_beams, loaded.max_new_tokens) == (3, 17), "the generation config is lost")
    return results


def run(program, work):
    (work / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    emprl(program, "tokenizer", "--input", work / "data.jsonl", "--out", work / "tokenizer",
          "--vocabulary", 250)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    print("largest relative difference of log-probabilities:")
    for feed_forward, tied in itertools.product(("relu", "gated-gelu"), (True, False)):
        folder = work / f"{feed_forward}-{'tied' if tied else 'untied'}"
        folder.mkdir()
        for name in ("data.jsonl", "tokenizer"):
            (folder / name).symlink_to(work / name)
        for what, worst in one_shape(program, folder, feed_forward, tied).items():
            print(f"  {folder.name:18} {what:36} {worst:.1e}")


def main(run, name, description):
    """run(program, folder), in a folder that goes away unless --folder names one."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--program", required=True)
    parser.add_argument("--folder", type=pathlib.Path)
    options = parser.parse_args()
    program = str(pathlib.Path(options.program).resolve())
    try:
        if options.folder:
            options.folder.mkdir(parents=True)
            run(program, options.folder.resolve())
        else:
            with tempfile.TemporaryDirectory() as work:
                run(program, pathlib.Path(work))
    except Failure as failure:
        print(f"{name}: {failure}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(run, "round_trip", __doc__))
