# SPDX-License-Identifier: Apache-2.0
"""What the scripts of this folder share: the program, T5 folders with random weights, tokens."""

import argparse
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import sentencepiece
import torch
import transformers
from safetensors.numpy import save_file
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5LayerNorm

SENTINELS = 100
PAD, END = 0, 1

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def arguments(description, **more):
    """The program's path and --seed, which is drawn and printed where it is not given."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--program", type=pathlib.Path, required=True, help="the program emprl")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "little"))
    for name, settings in more.items():
        parser.add_argument("--" + name.replace("_", "-"), **settings)
    options = parser.parse_args()
    options.program = options.program.resolve()
    print("seed %d, torch %s, transformers %s" % (options.seed, torch.__version__,
                                                  transformers.__version__), flush=True)
    torch.manual_seed(options.seed)
    return options


@contextlib.contextmanager
def workshop():
    """A folder that goes when the script ends."""
    with tempfile.TemporaryDirectory(prefix="emprl-live-") as folder:
        yield pathlib.Path(folder)


def emprl(program, *arguments):
    """Runs the program; what it says goes on only where it fails."""
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit("%s\nended with %d:\n%s" % (" ".join(command), done.returncode, done.stderr))
    return done.stdout


def write_lines(path, objects):
    path.write_text("".join(json.dumps(o) + "\n" for o in objects))


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Tokens:
    """Ids as T5 gives them, by sentencepiece itself."""

    def __init__(self, folder):
        self.model = sentencepiece.SentencePieceProcessor(str(folder / "spiece.model"))
        self.pieces = self.model.get_piece_size()
        self.size = self.pieces + SENTINELS

    def encode(self, text, most):
        return self.model.encode(text)[: most - 1] + [END]

    def decode(self, ids):
        assert all(i < self.pieces for i in ids), "a sentinel: its embedding was to be zero"
        # T5Tokenizer strips what sentencepiece returns: a last bare word boundary leaves a space.
        return self.model.decode([i for i in ids if i > 2]).strip()


# Words that real dialogues have too, for tokenizers and inputs made of nothing else.
WORDS = """i you my your sister brother dog friend boss was were is am are so very really happy sad
angry proud lonely afraid when since because after before the a an party exam work school hospital
nobody called came left lost found won that this must have been hard great wonderful sorry hear
what happened then do you feel about it now tell me more hope things get better soon""".split()


def sentence(rng, low, high):
    return " ".join(rng.choice(WORDS, rng.integers(low, high + 1)))


def make_tokenizer(program, folder, rng, vocabulary=260):
    """A tokenizer that the program trains, on sentences of WORDS."""
    folder.mkdir(parents=True)
    text = folder / "texts.txt"
    text.write_text("".join(sentence(rng, 4, 14) + ".\n" for _ in range(400)))
    emprl(program, "tokenizer", "--input", text, "--out", folder, "--vocabulary", vocabulary)
    return Tokens(folder)


def weights_of(config, pieces, seed):
    """Random weights at scales where every term matters. Sentinels and rows beyond the tokenizer
    have no embedding, so that they are never the likeliest token."""
    c = T5Config(**config)
    rng = np.random.default_rng(seed)
    inner, width = c.num_heads * c.d_kv, c.d_model
    weights = {}

    def add(name, shape, deviation):
        weights[name] = rng.normal(0.0, deviation, shape)

    add("shared.weight", (c.vocab_size, width), 1.0)
    if not config["tie_word_embeddings"]:
        add("lm_head.weight", (c.vocab_size, width), width ** -0.5)
    for name in weights:
        weights[name][pieces:] = 0
    gated = config["feed_forward_proj"].startswith("gated")
    for stack, layers in (("encoder", c.num_layers), ("decoder", c.num_decoder_layers)):
        kinds = ["SelfAttention", "EncDecAttention"][: 1 if stack == "encoder" else 2]
        for block in range(layers):
            at = "%s.block.%d.layer." % (stack, block)
            for layer, kind in enumerate(kinds):
                name = "%s%d.%s." % (at, layer, kind)
                add(name + "q.weight", (inner, width), 1.5 * (width * c.d_kv) ** -0.5)
                add(name + "k.weight", (inner, width), width ** -0.5)
                add(name + "v.weight", (inner, width), width ** -0.5)
                add(name + "o.weight", (width, inner), 1.5 * inner ** -0.5)
            name = "%s%d.DenseReluDense." % (at, len(kinds))
            for part in ("wi_0", "wi_1") if gated else ("wi",):
                add(name + part + ".weight", (c.d_ff, width), width ** -0.5)
            add(name + "wo.weight", (width, c.d_ff), 1.5 * c.d_ff ** -0.5)
            for layer in range(len(kinds) + 1):
                weights["%s%d.layer_norm.weight" % (at, layer)] = rng.uniform(0.8, 1.2, width)
        add(stack + ".block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            (c.relative_attention_num_buckets, c.num_heads), 0.5)
        weights[stack + ".final_layer_norm.weight"] = rng.uniform(0.8, 1.2, width)
    return {k: np.ascontiguousarray(v, np.float32) for k, v in weights.items()}


def make_model(folder, tokenizer_folder, seed, **config):
    """Writes a T5 folder with random weights in the files that published T5 folders have, and loads
    it with transformers."""
    config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"],
              "decoder_start_token_id": PAD, "pad_token_id": PAD, "eos_token_id": END,
              "dropout_rate": 0.0, **config}
    weights = weights_of(config, Tokens(tokenizer_folder).pieces, seed)
    folder.mkdir()
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "spiece.model").write_bytes((tokenizer_folder / "spiece.model").read_bytes())
    model = T5ForConditionalGeneration.from_pretrained(folder).eval()
    for name, p in model.named_parameters():
        # A tied lm_head goes by the name of the embedding.
        expected = weights.get(name, weights["shared.weight"])
        assert p.dtype == torch.float32 and np.array_equal(p.detach().numpy(), expected), name
    return model


@contextlib.contextmanager
def true_double():
    """transformers drops to float32 inside the norm and the softmax, whatever the model's format.
    Within this context double stays double."""
    norm_forward, to_float = T5LayerNorm.forward, torch.Tensor.float

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)
                                              + self.variance_epsilon))

    T5LayerNorm.forward = forward
    torch.Tensor.float = lambda x: x if x.dtype == torch.float64 else to_float(x)
    try:
        yield
    finally:
        T5LayerNorm.forward, torch.Tensor.float = norm_forward, to_float


def padded(rows, fill):
    out = torch.full((len(rows), max(map(len, rows))), fill, dtype=torch.long)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row)
    return out


def batch(inputs, labels):
    """The arguments of a T5ForConditionalGeneration that learns labels."""
    return {"input_ids": padded(inputs, PAD), "attention_mask": padded([[1] * len(r) for r in inputs], 0),
            "labels": padded(labels, -100)}
