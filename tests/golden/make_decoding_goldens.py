# SPDX-License-Identifier: Apache-2.0
"""What transformers decodes with the models of this folder: greedily and with beams, with penalties
and bars, for a batch of contexts of different lengths.

    pip install -r requirements.txt
    python make_decoding_goldens.py               # writes t5_v1_0/decoding.json, t5_v1_1/decoding.json
    python make_decoding_goldens.py --compare     # with another transformers: notes in those files
                                                  # which cases that version decodes otherwise

A decoding.json holds
  end_row    row 1 (</s>) of the output embedding, in place of the one in model.safetensors: with
             random weights no response would end. In t5_v1_0 it is the input embedding's row, too.
  contexts   the encoder's tokens, row after row
  cases      options as generate() takes them, and for each context the responses, best first
             (tokens after the start token, </s> included), and with beams their scores
  compared   {version: names of the cases that it decodes otherwise}. 5.24.0 decodes greedily as
             4.44.2 does; its beam search is another program, and 4 and 5 of the 33 searches of
             the two models end elsewhere in it.
Tokens and scores are of a run in double. Every case gives the same tokens in float32, and in double
after each weight was changed by one part in a million, three times: no choice hangs on rounding.
`float32_error` of a case is the largest difference of a score between float32 and double.

length_penalty, early_stopping, num_beams, no_repeat_ngram_size and repetition_penalty are
transformers' own; min_length counts the start token, as it does there.
"""

import argparse
import contextlib
import itertools
import json
import pathlib

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file
from transformers import T5ForConditionalGeneration

from make_t5_goldens import EOS, PAD, pad, true_double

HERE = pathlib.Path(__file__).resolve().parent
MAX_NEW_TOKENS = 12
CONTEXT_LENGTHS = [7, 1, 19, 4, 11]


def all_cases():
    """Options by name. Every option is met alone, and some together."""
    cases = {
        "greedy": {},
        "greedy, repetition penalty": dict(repetition_penalty=1.3),
        "greedy, repetition reward": dict(repetition_penalty=0.8),
        "greedy, no bigram twice": dict(no_repeat_ngram_size=2),
        "greedy, no token twice": dict(no_repeat_ngram_size=1),
        "greedy, min length": dict(min_length=7),
        "greedy, barred": dict(suppress_tokens=[5, 9, 13, 14]),
        "greedy, all": dict(repetition_penalty=1.2, no_repeat_ngram_size=3, min_length=5,
                            suppress_tokens=[6, 8]),
    }
    for beams, early in itertools.product((2, 3, 5), (False, True, "never")):
        for penalty in (0.0, 0.6, 1.0, 2.0, -1.0):
            if beams != 3 and penalty not in (0.6, 1.0):
                continue
            cases[f"beams {beams}, early stopping {early}, length penalty {penalty}"] = dict(
                num_beams=beams, early_stopping=early, length_penalty=penalty,
                num_return_sequences=beams)
    beams = dict(num_beams=4, num_return_sequences=2)
    cases |= {
        "beams 4, repetition penalty": dict(beams, repetition_penalty=1.3),
        "beams 4, no bigram twice": dict(beams, no_repeat_ngram_size=2),
        "beams 4, min length": dict(beams, min_length=6),
        "beams 4, barred": dict(beams, suppress_tokens=[5, 9, 13, 14]),
        "beams 4, all": dict(beams, repetition_penalty=1.2, no_repeat_ngram_size=2, min_length=5,
                             length_penalty=1.5, early_stopping="never", suppress_tokens=[6, 8]),
        "beams 8": dict(num_beams=8),
    }
    return cases


@torch.no_grad()
def decode(model, contexts, options):
    """[(tokens, score or None)] of each context."""
    best = options.get("num_return_sequences", 1)
    mask = pad([np.ones(len(r), np.int64) for r in contexts], 0)
    out = model.generate(input_ids=pad(contexts, PAD), attention_mask=mask,
                         max_new_tokens=MAX_NEW_TOKENS, do_sample=False,
                         return_dict_in_generate=True, output_scores=True, **options)
    rows = []
    for ids in out.sequences[:, 1:].tolist():
        rows.append(ids[: ids.index(EOS) + 1] if EOS in ids else ids)
    scores = out.sequences_scores.tolist() if "num_beams" in options else [None] * len(rows)
    both = list(zip(rows, scores))
    return [both[i: i + best] for i in range(0, len(both), best)]


def tokens_of(decoded):
    return [[tokens for tokens, _ in responses] for responses in decoded]


def load(name, end_row=None):
    folder = HERE / name
    model = T5ForConditionalGeneration.from_pretrained(folder).eval()
    recorded = load_file(folder / "model.safetensors")
    for key, p in model.named_parameters():
        assert np.array_equal(recorded[key], p.detach().numpy()), key
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = EOS
    model.generation_config.decoder_start_token_id = PAD
    if end_row is not None:
        with torch.no_grad():
            model.get_output_embeddings().weight[EOS] = torch.tensor(end_row)
    return model


def contexts_of(name, vocabulary):
    rng = np.random.default_rng(len(name) + vocabulary)
    return [np.append(rng.integers(2, vocabulary, n - 1), EOS) for n in CONTEXT_LENGTHS]


def end_rows(model, seed):
    """Rows of </s> to try: random, of several sizes."""
    rng = np.random.default_rng(seed)
    for size in itertools.cycle((0.8, 1.0, 1.2)):
        yield [float(np.float32(x)) for x in rng.normal(0.0, size, model.config.d_model)]


def varied(decode_case, names):
    """Whether early stopping, length penalty and the greedy options show in what is decoded."""
    early = [f"beams 3, early stopping {e}, length penalty 1.0" for e in (False, True, "never")]
    penalty = [f"beams 3, early stopping False, length penalty {p}"
               for p in (0.0, 0.6, 1.0, 2.0, -1.0)]
    greedy = [n for n in names if n.startswith("greedy")]
    for group, least in ((early, 2), (greedy, 7), (penalty, 3)):
        if len({json.dumps(tokens_of(decode_case(n))) for n in group}) < least:
            return False
    return True


def ends_vary(results):
    """Whether responses of many lengths end, and some are cut."""
    rows = [tokens for decoded in results.values() for responses in decoded
            for tokens, _ in responses]
    ended = sum(tokens[-1] == EOS for tokens in rows)
    return len({len(tokens) for tokens in rows}) >= 8 and ended >= 50 and len(rows) - ended >= 10


def results_of(name, end_row, contexts, cases):
    """Results in double, and the worst float32 error; None if rounding decides anywhere."""
    single = load(name, end_row)
    double = load(name, end_row).double()
    with true_double():
        if not varied(lambda c: decode(double, contexts, cases[c]), cases):
            return None
        results = {c: decode(double, contexts, options) for c, options in cases.items()}
    if not ends_vary(results):
        return None
    others = [(single, contextlib.nullcontext)]
    rng = torch.Generator().manual_seed(1)
    for _ in range(3):
        changed = load(name, end_row).double()
        with torch.no_grad():
            for p in changed.parameters():
                p.mul_(1 + 1e-6 * torch.randn(p.shape, generator=rng, dtype=torch.float64))
        others.append((changed, true_double))
    errors = {}
    for model, context in others:
        with context():
            for c, options in cases.items():
                decoded = decode(model, contexts, options)
                if tokens_of(decoded) != tokens_of(results[c]):
                    return None
                if model is single and "num_beams" in options:
                    errors[c] = max(abs(a[1] - b[1]) for x, y in zip(decoded, results[c])
                                    for a, b in zip(x, y))
    return results, errors


def write(path, data):
    cases = ",\n".join(json.dumps(c) for c in data["cases"])
    head = {k: v for k, v in data.items() if k != "cases"}
    text = json.dumps(head, indent=1)[:-2] + ',\n "cases": [\n' + cases + "\n]}\n"
    assert json.loads(text) == data
    path.write_text(text)


def make(name):
    cases = all_cases()
    plain = load(name)
    contexts = contexts_of(name, plain.config.vocab_size)
    for attempt, end_row in enumerate(end_rows(plain, 1)):
        found = results_of(name, end_row, contexts, cases)
        if found is not None:
            break
        print(name, attempt, flush=True)
        assert attempt < 300, "no row of </s> was found that shows everything"
    results, errors = found
    data = {
        "transformers": transformers.__version__, "torch": torch.__version__,
        "end_row": end_row, "max_new_tokens": MAX_NEW_TOKENS,
        "contexts": [row.tolist() for row in contexts], "compared": {},
        "cases": [{"name": c, "options": options, "responses": tokens_of(results[c])}
                  | ({"scores": [[s for _, s in responses] for responses in results[c]],
                      "float32_error": errors[c]} if "num_beams" in options else {})
                  for c, options in cases.items()],
    }
    write(HERE / name / "decoding.json", data)
    print(name, "attempt", attempt, "cases", len(cases))


def compare(name):
    path = HERE / name / "decoding.json"
    data = json.loads(path.read_text())
    model = load(name, data["end_row"])
    # Version 5.24.0 counts its cache's layers by the encoder, and these models' decoders are deeper.
    model.generation_config.use_cache = False
    contexts = [np.asarray(row, np.int64) for row in data["contexts"]]
    differ = [case["name"] for case in data["cases"]
              if tokens_of(decode(model, contexts, case["options"])) != case["responses"]]
    data["compared"][transformers.__version__] = differ
    write(path, data)
    print(name, transformers.__version__, len(differ), "of", len(data["cases"]), "differ", differ)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--compare", action="store_true")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for model_name in ("t5_v1_0", "t5_v1_1"):
        (compare if arguments.compare else make)(model_name)
