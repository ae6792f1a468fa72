# SPDX-License-Identifier: Apache-2.0
"""emprl score and emprl generate --greedy against transformers, on fresh random T5 folders.

    python parity.py --program build/bin/emprl [--seed N]

For each shape of T5 below a folder of random weights is written, sentences are drawn, and both
sides get them. The sum of a response's log-probabilities must be as near to transformers in
float64 as
    max(2 * E, 8 * 2^-24 * |sum|)
allows, with E the worst difference of transformers in float32: rows alone, rows in one batch, rows
in a batch of another order. Greedy tokens must be the same wherever the choice is none between two
tokens that are nearer to each other than 1e-4.
"""

import copy
import sys

import numpy as np
import torch

from _t5 import (arguments, batch, emprl, make_model, make_tokenizer, read_lines, sentence,
                 true_double, workshop, write_lines)

MAX_CONTEXT, MAX_RESPONSE, GREEDY_TOKENS = 200, 50, 12

# Rows of the embedding are counted from the tokenizer's size.
SHAPES = {
    "v1.0": dict(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4,
        feed_forward_proj="relu", tie_word_embeddings=True, extra_rows=0),
    "Flan": dict(
        d_model=48, d_kv=16, d_ff=96, num_layers=2, num_decoder_layers=3, num_heads=5,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, extra_rows=28),
    "odd": dict(
        d_model=21, d_kv=11, d_ff=37, num_layers=3, num_decoder_layers=1, num_heads=3,
        relative_attention_num_buckets=16, relative_attention_max_distance=41,
        feed_forward_proj="relu", tie_word_embeddings=False, extra_rows=3),
}


@torch.no_grad()
def sums(model, inputs, labels):
    """The log-probability of each row's labels."""
    logits = model(**batch(inputs, labels)).logits
    logp = torch.log_softmax(logits, -1)
    return np.asarray([float(sum(logp[i, t, y].double() for t, y in enumerate(row)))
                       for i, row in enumerate(labels)])


@torch.no_grad()
def greedy(model, row, barred):
    """The likeliest continuation by transformers' generate, and the smallest difference that
    decided about one of its tokens. Without a cache: transformers 5 makes one of as many layers as
    the encoder has and ends in an IndexError where the decoder has more."""
    ids = model.generate(input_ids=torch.tensor([row]), do_sample=False, num_beams=1,
                         max_new_tokens=GREEDY_TOKENS, suppress_tokens=barred or None,
                         use_cache=False)[0].tolist()
    logits = model(input_ids=torch.tensor([row]), decoder_input_ids=torch.tensor([ids])).logits[0]
    logits[:, barred] = -np.inf
    margin = np.inf
    for t in range(len(ids) - 1):
        top = torch.topk(logits[t], 2).values
        margin = min(margin, float(top[0] - top[1]))
    return ids[1:], margin


def compare(options, folder, name, tokens, spec, rng):
    spec = dict(spec)
    spec["vocab_size"] = tokens.size + spec.pop("extra_rows")
    model = make_model(folder / name, folder / "tokenizer", int(rng.integers(1 << 30)), **spec)
    texts = [{"context": sentence(rng, 1, 40), "response": sentence(rng, 1, 12)} for _ in range(21)]
    texts.append({"context": sentence(rng, 300, 300), "response": sentence(rng, 80, 80)})
    texts.append({"context": "i", "response": "i"})
    write_lines(folder / "in.jsonl", texts)
    inputs = [tokens.encode(t["context"], MAX_CONTEXT) for t in texts]
    labels = [tokens.encode(t["response"], MAX_RESPONSE) for t in texts]
    assert max(map(len, inputs)) == MAX_CONTEXT and max(map(len, labels)) == MAX_RESPONSE

    emprl(options.program, "score", "--model", folder / name, "--input", folder / "in.jsonl",
          "--output", folder / "scores.jsonl", "--batch", 7)
    scores = read_lines(folder / "scores.jsonl")
    ours = np.asarray([s["logprob"] for s in scores])
    same_counts = [s["tokens"] for s in scores] == [len(y) for y in labels]
    with true_double():
        truth = sums(copy.deepcopy(model).double(), inputs, labels)
    order = rng.permutation(len(inputs))[:13]
    own = max(
        np.max(np.abs(sums(model, inputs, labels) - truth)),
        np.max(np.abs(np.concatenate([sums(model, [x], [y]) for x, y in zip(inputs, labels)])
                      - truth)),
        np.max(np.abs(sums(model, [inputs[i] for i in order], [labels[i] for i in order])
                      - truth[order])))
    error = np.abs(ours - truth)
    allowed = np.maximum(2 * own, 8 * 2.0 ** -24 * np.abs(truth))
    worst = np.argmax(error / allowed)

    emprl(options.program, "generate", "--model", folder / name, "--input", folder / "in.jsonl",
          "--output", folder / "out.jsonl", "--greedy", "--min-tokens", 0, "--max-tokens",
          GREEDY_TOKENS)
    answers = [line["generated"] for line in read_lines(folder / "out.jsonl")]
    barred = list(range(tokens.size, spec["vocab_size"]))
    different, ties = [], 0
    for i, row in enumerate(inputs):
        ids, margin = greedy(model, row, barred)
        if margin < 1e-4:
            ties += 1
        elif answers[i] != tokens.decode(ids):
            different.append((i, answers[i], tokens.decode(ids)))
    good = same_counts and np.all(error <= allowed) and not different and ties <= len(inputs) // 10
    print("%-5s %d rows: the worst has log p %.2f, error %.2e, allowed %.2e, transformers in "
          "float32 %.2e; greedy: %d the same, %d different, %d near ties; %s" % (
              name, len(ours), truth[worst], error[worst], allowed[worst], own,
              len(inputs) - ties - len(different), len(different), ties,
              "good" if good else "FAILED"), flush=True)
    if not same_counts:
        print("the program counts other tokens than sentencepiece")
    for i, a, b in different:
        print("row %d: the program says %r, transformers %r" % (i, a, b))
    return good


def main():
    options = arguments(__doc__.split("\n")[0])
    rng = np.random.default_rng(options.seed)
    with workshop() as folder:
        tokens = make_tokenizer(options.program, folder / "tokenizer", rng)
        results = [compare(options, folder, name, tokens, spec, rng)
                   for name, spec in SHAPES.items()]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
