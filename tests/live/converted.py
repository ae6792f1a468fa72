#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What examples/convert/convert.py makes of pickles is what was in them.

    python converted.py --program build/bin/emprl [--folder DIR]

Needs torch, transformers (4 or 5), sentencepiece, protobuf and safetensors; without them it exits
with 77, which CTest reads as skipped. --folder keeps the folders for a look.

  1. Three identifiers, made here of two T5EncoderModels and linear layers under the names of the
     EmpRL scripts, give in `emprl label --probabilities` what PyTorch computes of them.
  2. A model in pytorch_model.bin, whole and split, is refused by emprl with the command that
     converts it, and then gives the numbers of the same model saved as safetensors.
  3. A spiece.model made of tokenizer.json has the pieces and scores of the one that it was made of,
     and cuts texts in the same way.
  4. A pickle that would run code, and a state dict that is no identifier, are refused.
"""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys

import round_trip as common
from round_trip import LINES, ODD, Failure, emprl, expect, score

import torch
import transformers
from sentencepiece import SentencePieceProcessor
from torch import nn
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

CONVERT = pathlib.Path(__file__).resolve().parents[2] / "examples/convert/convert.py"
MECHANISMS = ("er", "ip", "ex")


def convert(*arguments):
    """Runs the script; its exit status and standard error are returned."""
    done = subprocess.run(
        [sys.executable, str(CONVERT), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def converted(*arguments):
    status, said = convert(*arguments)
    expect(status == 0, f"convert.py {' '.join(map(str, arguments))}: {said}")
    return said


class Attention(nn.Module):
    """One head as wide as the model; masked places get -1e9."""

    def __init__(self, width):
        super().__init__()
        self.q_linear = nn.Linear(width, width)
        self.k_linear = nn.Linear(width, width)
        self.v_linear = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, query, memory, mask):
        q, k, v = self.q_linear(query), self.k_linear(memory), self.v_linear(memory)
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        return self.out(scores.masked_fill(mask == 0, -1e9).softmax(-1) @ v)


class Identifier(nn.Module):
    """The published identifier: the response's states look at the context's."""

    def __init__(self, config):
        super().__init__()
        self.context_encoder = T5EncoderModel(config)
        self.response_encoder = T5EncoderModel(config)
        self.attn = Attention(config.d_model)
        self.classifier = nn.Sequential(
            nn.Linear(config.d_model, config.d_model // 2),
            nn.Tanh(),
            nn.Dropout(0.1),
            nn.Linear(config.d_model // 2, 3),
        )

    def forward(self, context, context_mask, response, response_mask):
        memory = self.context_encoder(input_ids=context, attention_mask=context_mask)[0]
        states = self.response_encoder(input_ids=response, attention_mask=response_mask)[0]
        mask = response_mask[:, :, None] * context_mask[:, None, :]
        states = states + self.attn(states, memory, mask)
        weight = response_mask[:, :, None].to(states.dtype)
        return self.classifier((states * weight).sum(1) / weight.sum(1))


def identifiers(program, work):
    encoder = work / "init"
    tokenizer = common.load_tokenizers(encoder)[1]
    config = T5Config.from_pretrained(encoder)
    torch.manual_seed(11)
    models = {}
    for mechanism in MECHANISMS:
        model = Identifier(config).eval()
        with torch.no_grad():
            for tensor in model.parameters():
                # Large enough to tell the responses apart.
                tensor.add_(0.3 * torch.randn_like(tensor))
        models[mechanism] = model
        state = model.state_dict()
        if mechanism == "ip":  # as a trainer on several cards leaves it
            state = {"state_dict": {f"module.{name}": t for name, t in state.items()}, "epoch": 3}
        if mechanism == "ex":  # and as encoders without their shell have it
            state = {n.replace("_encoder.encoder.", "_encoder."): t for n, t in state.items()}
        torch.save(state, work / f"{mechanism}.pt")
        said = converted("--identifier", work / f"{mechanism}.pt", "--encoder", encoder,
                         "--out", work / "identifiers" / mechanism)
        expect(not said, f"convert.py says of {mechanism}: {said}")

    lines = LINES[:12] + ODD
    source, target = work / "pairs.jsonl", work / "labelled.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    said = emprl(program, "label", "--identifiers", work / "identifiers", "--input", source,
                 "--output", target, "--probabilities")
    expect("warning" not in said, f"emprl label says: {said}")
    labelled = [json.loads(line) for line in target.read_text().splitlines()]
    context = tokenizer([x["context"] for x in lines], padding=True, return_tensors="pt")
    response = tokenizer([x["response"] for x in lines], padding=True, return_tensors="pt")
    worst, spread = 0.0, 0.0
    for mechanism, model in models.items():
        with torch.no_grad():
            logits = model(context.input_ids, context.attention_mask, response.input_ids,
                           response.attention_mask)
        theirs = logits.double().softmax(-1)
        ours = torch.tensor([x["probabilities"][mechanism] for x in labelled], dtype=torch.double)
        worst = max(worst, (ours - theirs).abs().max().item())
        spread = max(spread, theirs.std(0).max().item())
        levels = [x["levels"][mechanism] for x in labelled]
        expect(levels == ours.argmax(-1).tolist(), f"the levels of {mechanism} are not the likeliest")
    expect(spread > 0.01, "all responses get the same probabilities: nothing was compared")
    # A probability moves by at most half of what a logit does; logits here are sums of a hundred
    # rounded float32 numbers of size 10.
    expect(worst < 2e-5, f"probabilities differ by {worst:.1e}")
    print(f"identifiers: largest difference of probabilities {worst:.1e}")


def pickled_model(program, work):
    config = T5Config(vocab_size=416, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=2,
                      decoder_start_token_id=0, n_positions=512)
    torch.manual_seed(12)
    model = T5ForConditionalGeneration(config).eval()
    safe, pickled, split = work / "safe", work / "pickled", work / "split"
    common.save_with_transformers(model, work / "init", safe)
    expected = score(program, safe, LINES, work)[0]
    state = model.state_dict()  # with the embedding under all of its four names
    for folder in (pickled, split):
        shutil.copytree(safe, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(state, pickled / "pytorch_model.bin")
    names = sorted(state)
    weight_map = {}
    for part, chosen in enumerate((names[:20], names[20:]), 1):
        file = f"pytorch_model-0000{part}-of-00002.bin"
        torch.save({name: state[name].clone() for name in chosen}, split / file)
        weight_map.update(dict.fromkeys(chosen, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (split / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for folder in (pickled, split):
        done = subprocess.run(
            [program, "score", "--model", folder, "--input", work / "score.jsonl", "--output", "-"],
            capture_output=True, text=True, check=False,
        )
        expect(
            done.returncode == 1 and "pickles are refused" in done.stderr
            and f"examples/convert/convert.py --model {folder}" in done.stderr,
            f"{folder}: emprl does not say how to convert it: {done.stderr}",
        )
        out = work / f"from_{folder.name}"
        converted("--model", folder, "--out", out)
        common.compare(program, out, True, work)
        expect(score(program, out, LINES, work)[0] == expected, f"{out}: the numbers are others")
    print("pickled models: the same numbers as of safetensors")


def tokenizer_alone(program, work):
    alone, out = work / "alone", work / "from_alone"
    shutil.copytree(work / "safe", alone)
    common.load_tokenizers(work / "safe")[1].save_pretrained(alone)
    (alone / "spiece.model").unlink()
    expect((alone / "tokenizer.json").is_file(), "transformers wrote no tokenizer.json")
    done = subprocess.run(
        [program, "score", "--model", alone, "--input", work / "score.jsonl", "--output", "-"],
        capture_output=True, text=True, check=False,
    )
    expect(
        done.returncode == 1 and "tokenizer.json" in done.stderr and "convert.py" in done.stderr,
        f"emprl does not say what to do without a spiece.model: {done.stderr}",
    )
    converted("--model", alone, "--out", out)
    was = SentencePieceProcessor(model_file=str(work / "safe/spiece.model"))
    made = SentencePieceProcessor(model_file=str(out / "spiece.model"))
    expect(was.get_piece_size() == made.get_piece_size(), "the spiece.model has other pieces")
    for i in range(was.get_piece_size()):
        expect(
            was.id_to_piece(i) == made.id_to_piece(i) and was.get_score(i) == made.get_score(i)
            and was.is_control(i) == made.is_control(i) and was.is_unknown(i) == made.is_unknown(i),
            f"piece {i} is another: {was.id_to_piece(i)!r} and {made.id_to_piece(i)!r}",
        )
    for line in LINES + ODD:
        for text in line.values():
            expect(was.encode(text) == made.encode(text), f"{text!r} is cut otherwise")
    ours, said = score(program, out, LINES + ODD, work)
    expect("warning" not in said, f"emprl says: {said}")
    expect(ours == score(program, work / "safe", LINES + ODD, work)[0], "the numbers are others")
    print("spiece.model of tokenizer.json: the same pieces, scores and texts")


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


def refusals(work):
    encoder = work / "init"
    torch.save({"w": Trap(work / "caught")}, work / "trap.pt")
    status, said = convert("--identifier", work / "trap.pt", "--encoder", encoder,
                           "--out", work / "nothing")
    expect(status == 1 and "trap.pt" in said and said.count("\n") == 1, f"the trap: {said}")
    expect(not (work / "caught").exists(), "convert.py ran code from a pickle")
    state = torch.load(work / "er.pt", weights_only=True)
    del state["classifier.3.bias"]
    torch.save(state, work / "short.pt")
    status, said = convert("--identifier", work / "short.pt", "--encoder", encoder,
                           "--out", work / "nothing")
    expect(status == 1 and "classifier.3.bias" in said, f"a tensor is missing: {said}")
    status, said = convert("--model", work / "safe", "--out", work / "safe")
    expect(status == 1 and "another folder" in said, f"onto itself: {said}")
    expect(not (work / "nothing").exists(), "a refusal left a folder")
    print("refusals: a pickle with code, a missing tensor, a folder onto itself")


def run(program, work):
    (work / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    emprl(program, "tokenizer", "--input", work / "data.jsonl", "--out", work / "tokenizer",
          "--vocabulary", 250)
    config = {"model_type": "t5", "vocab_size": 352, "d_model": 32, "d_kv": 16, "d_ff": 48,
              "num_layers": 2, "num_heads": 2, "feed_forward_proj": "gated-gelu",
              "tie_word_embeddings": False}
    (work / "config.json").write_text(json.dumps(config))
    emprl(program, "init", "--config", work / "config.json", "--tokenizer", work / "tokenizer",
          "--out", work / "init")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    identifiers(program, work)
    pickled_model(program, work)
    tokenizer_alone(program, work)
    refusals(work)


if __name__ == "__main__":
    sys.exit(common.main(run, "converted", __doc__))
