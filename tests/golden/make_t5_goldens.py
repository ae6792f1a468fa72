# SPDX-License-Identifier: Apache-2.0
"""Writes the T5 goldens: small random models run by Hugging Face transformers.

    pip install -r requirements.txt
    python make_t5_goldens.py [NAME ...]     # writes beside this file; all models unless some are named

A folder for each model of MODELS below with
  config.json, model.safetensors   the model, as Hugging Face stores it
  expected.safetensors             inputs and results; everything packed row after row, no padding:
    input_ids, input_offsets       encoder tokens (int64; offsets have rows + 1 entries)
    labels, label_offsets          decoder targets; the decoder reads (start, y_0, ..., y_{n-2})
    encoder_output                 (input tokens, d_model), after the final norm
    decoder_output                 (label tokens, d_model), after the final norm, not scaled
    logits, logprobs, loss         (label tokens, vocabulary), (label tokens), mean over label tokens
    grad/<name>                    d loss / d <name> for every parameter
    greedy                         (rows, 8) argmax continuations, never stopped at </s>
    adamw/<run>/...                two runs of 5 steps of torch.optim.AdamW on that loss, both with
                                   lr 1e-2, betas 0.9 and 0.999, eps 1e-8 and the gradient clipped
                                   to norm 1 by clip_grad_norm_:
      weight_decay                 0 in the run `plain`, 0.1 in the run `decay`
      losses, gradient_norms       before each step; norms before clipping
      <name>                       every parameter after the fifth step
  and, for every result r above that is not an integer, float32_error/<r>: the largest absolute
  difference between the same computation in float32 and in float64, the worst of 25 float32 runs
  whose sums run in other orders (the units of the model permuted), since one run can be lucky.
Results are float64, computed from the stored weights.

With a vocabulary of 32128 a result that has an entry for every token of it would be large. The file
then has sampled_ids: these results hold the entries of those tokens alone (columns of logits, rows
of everything shaped like the embedding), and beside each result r stands projection/<r>, the sum
over all its elements x_i, counted from 0 row after row, of x_i * cos(i): no element is left out of
that.

relative_bucket.json holds transformers' relative position buckets for a few settings.
"""

import contextlib
import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm

HERE = pathlib.Path(__file__).resolve().parent
VERSION = "2"
PAD, EOS = 0, 1

ADAMW_RUNS = {"plain": 0.0, "decay": 0.1}
ADAMW_STEPS = 5

# Seeds are chosen so that no ReLU lies on its kink and no greedy choice is a near tie; the script
# stops where one does.
MODELS = {
    # v1.0: ReLU, tied and scaled.
    "t5_v1_0": dict(
        seed=148,
        config=dict(
            vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=3,
            num_heads=3, relative_attention_num_buckets=8, relative_attention_max_distance=20,
            feed_forward_proj="relu", tie_word_embeddings=True),
        input_lengths=[9, 1, 23],
        label_lengths=[6, 13, 1]),
    # v1.1 and Flan: gated GELU, untied.
    "t5_v1_1": dict(
        seed=50,
        config=dict(
            vocab_size=37, d_model=12, d_kv=8, d_ff=20, num_layers=1, num_decoder_layers=2,
            num_heads=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        input_lengths=[4, 47, 11],
        label_lengths=[3, 7, 45]),
    # Rows of one token on both sides, and a row beyond the maximum distance on both.
    "t5_flan": dict(
        seed=1,
        config=dict(
            vocab_size=41, d_model=11, d_kv=6, d_ff=23, num_layers=1, num_decoder_layers=3,
            num_heads=2, relative_attention_num_buckets=16, relative_attention_max_distance=33,
            feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        input_lengths=[1, 70, 1],
        label_lengths=[1, 1, 40]),
    # A deep encoder and one decoder layer, heads wider than the model together, a single row.
    "t5_deep_encoder": dict(
        seed=1,
        config=dict(
            vocab_size=53, d_model=10, d_kv=7, d_ff=19, num_layers=3, num_decoder_layers=1,
            num_heads=3, relative_attention_num_buckets=32, relative_attention_max_distance=40,
            feed_forward_proj="relu", tie_word_embeddings=False),
        input_lengths=[97],
        label_lengths=[31]),
    # The smallest: one head, one layer each, tied and gated, one row of which one token is trained.
    "t5_one_token": dict(
        seed=1,
        config=dict(
            vocab_size=33, d_model=9, d_kv=3, d_ff=5, num_layers=1, num_decoder_layers=1,
            num_heads=1, relative_attention_num_buckets=6, relative_attention_max_distance=9,
            feed_forward_proj="gated-gelu", tie_word_embeddings=True),
        input_lengths=[17],
        label_lengths=[1]),
    # The 32128 rows of T5's embedding, of which a tokenizer of 32100 ids uses not all; bf16.
    "t5_wide_vocabulary": dict(
        seed=1,
        config=dict(
            vocab_size=32128, d_model=4, d_kv=3, d_ff=6, num_layers=1, num_decoder_layers=2,
            num_heads=2, feed_forward_proj="relu", tie_word_embeddings=True,
            torch_dtype="bfloat16"),
        input_lengths=[5, 1],
        label_lengths=[3, 1],
        last_ids=[32127, 32099, 31999],
        sampled=200),
}


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


def check_differences(model, inputs, labels, expected):
    """The double results are double all the way: gradients agree with central differences."""
    h = 1e-5
    for name, p in model.named_parameters():
        grad = torch.from_numpy(expected["grad/" + name])
        direction = grad / grad.norm() if grad.norm() > 0 else torch.ones_like(grad)
        loss = []
        with torch.no_grad():
            for step in (h, -h):
                p.add_(direction, alpha=step)
                loss.append(run(model, inputs, labels, backward=False))
                p.sub_(direction, alpha=step)
        numeric = (loss[0] - loss[1]) / (2 * h)
        # 1e-5: a ReLU may change sides within +-h; a float32 step inside would be off by 1e-2.
        # 1e-10: where there is no gradient, the loss does not move by more than its rounding.
        assert abs(numeric - float(grad.norm())) <= max(1e-5 * float(grad.norm()), 1e-10), (
            name, numeric)


def initialise(model, seed):
    """Scales at which every term of the model matters: logits, biases and gates of order one."""
    rng = np.random.default_rng(seed)
    c = model.config
    inner = c.num_heads * c.d_kv
    with torch.no_grad():
        for name, p in sorted(dict(model.named_parameters()).items()):
            if "layer_norm" in name:
                value = rng.uniform(0.8, 1.2, p.shape)
            elif "relative_attention_bias" in name:
                value = rng.normal(0.0, 0.5, p.shape)
            elif name == "shared.weight":
                value = rng.normal(0.0, 0.4, p.shape)
            elif name.endswith(".q.weight"):
                value = rng.normal(0.0, 1.5 * (c.d_model * c.d_kv) ** -0.5, p.shape)
            elif name.endswith(".o.weight"):
                value = rng.normal(0.0, 2.0 * inner ** -0.5, p.shape)
            elif name.endswith(".wo.weight"):
                value = rng.normal(0.0, 3.0 * c.d_ff ** -0.5, p.shape)
            else:  # k, v, wi, wi_0, wi_1, lm_head
                value = rng.normal(0.0, c.d_model ** -0.5, p.shape)
            p.copy_(torch.from_numpy(value.astype(np.float32)))


def permuted_axes(name, model_order, hidden_order, head_order):
    """For each axis of a parameter or result, the order in which its units are taken, or None."""
    if name.endswith((".wi.weight", ".wi_0.weight", ".wi_1.weight")):
        return [hidden_order, model_order]
    if name.endswith(".wo.weight"):
        return [model_order, hidden_order]
    if name.endswith(".o.weight"):
        return [model_order, head_order]
    if name.endswith((".q.weight", ".k.weight", ".v.weight")):
        return [head_order, model_order]
    if name.endswith("layer_norm.weight"):
        return [model_order]
    if name.endswith(("shared.weight", "lm_head.weight", "encoder_output", "decoder_output")):
        return [None, model_order]
    return []


def float32_runs(model, inputs, labels, seed, count=25):
    """The same float32 computation with the units of d_model, of d_ff and of each head in other
    orders, results put back into the original order."""
    rng = np.random.default_rng(seed)
    original = {k: v.detach().clone() for k, v in model.named_parameters()}
    c = model.config
    runs = []
    for i in range(count):
        orders = [rng.permutation(n) if i > 0 else np.arange(n)
                  for n in (c.d_model, c.d_ff, c.d_kv)]
        # The same order in all heads.
        orders[2] = (np.arange(c.num_heads)[:, None] * c.d_kv + orders[2]).reshape(-1)
        with torch.no_grad():
            for name, p in model.named_parameters():
                value = original[name].numpy()
                for axis, order in enumerate(permuted_axes(name, *orders)):
                    if order is not None:
                        value = np.take(value, order, axis)
                p.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        result = {**run(model, inputs, labels), **adamw_runs(model, inputs, labels)}
        for key in result:
            for axis, order in enumerate(permuted_axes(key, *orders)):
                if order is not None:
                    result[key] = np.take(result[key], np.argsort(order), axis)
        runs.append(result)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(original[name])
    return runs


def pad(rows, fill):
    out = np.full((len(rows), max(map(len, rows))), fill, np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def pack(tensor, rows):
    """(B, T, ...) -> (tokens, ...): the real positions of every row."""
    return torch.cat([tensor[i, : len(row)] for i, row in enumerate(rows)]).detach().numpy()


def run(model, inputs, labels, backward=True):
    model.zero_grad()
    mask = pad([np.ones(len(r), np.int64) for r in inputs], 0)
    out = model(input_ids=pad(inputs, PAD), attention_mask=mask, labels=pad(labels, -100),
                output_hidden_states=True)
    if not backward:
        return float(out.loss)
    out.loss.backward()
    logprobs = torch.log_softmax(out.logits, -1)
    chosen = torch.gather(logprobs, 2, pad(labels, 0).unsqueeze(-1)).squeeze(-1)
    result = {
        "encoder_output": pack(out.encoder_last_hidden_state, inputs),
        "decoder_output": pack(out.decoder_hidden_states[-1], labels),
        "logits": pack(out.logits, labels),
        "logprobs": pack(chosen, labels),
        "loss": out.loss.detach().numpy().reshape(1),
    }
    for name, p in model.named_parameters():
        result["grad/" + name] = p.grad.detach().numpy().copy()
    return result


def adamw_runs(model, inputs, labels):
    """Both runs of AdamW from the weights that the model has, which it has again afterwards."""
    original = {k: v.detach().clone() for k, v in model.named_parameters()}
    result = {}
    for name, weight_decay in ADAMW_RUNS.items():
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8,
                                      weight_decay=weight_decay)
        losses, norms = [], []
        for _ in range(ADAMW_STEPS):
            losses.append(run(model, inputs, labels)["loss"][0])
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
            optimiser.step()
        assert max(norms) > 1, f"{name}: clipping has nothing to do: change the seed"
        key = "adamw/" + name + "/"
        result[key + "losses"] = np.asarray(losses)
        result[key + "gradient_norms"] = np.asarray(norms)
        for parameter, value in model.named_parameters():
            result[key + parameter] = value.detach().numpy().copy()
        with torch.no_grad():
            for parameter, value in model.named_parameters():
                value.copy_(original[parameter])
    return result


@torch.no_grad()
def greedy(model, inputs, steps=8):
    rows = []
    margin = np.inf
    for row in inputs:
        ids = [PAD]
        for _ in range(steps):
            logits = model(input_ids=torch.from_numpy(row[None]), decoder_input_ids=torch.tensor([ids])).logits
            top = torch.topk(logits[0, -1], 2)
            margin = min(margin, float(top.values[0] - top.values[1]))
            ids.append(int(top.indices[0]))
        rows.append(ids[1:])
    assert margin > 1e-3, f"greedy margin {margin} is too small to be reproducible: change the seed"
    return np.asarray(rows, np.int64)


def offsets(rows):
    return np.concatenate([[0], np.cumsum([len(r) for r in rows])]).astype(np.int64)


def sample(results, ids, vocabulary):
    """Keeps the entries of some tokens where there is one for each of the vocabulary, and adds the
    projections of what was there."""
    kept = {}
    for key, value in results.items():
        kept[key] = value
        if value.ndim != 2 or vocabulary not in value.shape:
            continue
        kept[key] = np.take(value, ids, axis=value.shape.index(vocabulary))
        x = value.astype(np.float64).reshape(-1)
        kept["projection/" + key] = np.asarray([np.sum(x * np.cos(np.arange(x.size)))])
    return kept


def save(folder, model, config, bf16):
    state = {k: v.detach().clone() for k, v in model.named_parameters()}
    if bf16:
        state = {k: v.to(torch.bfloat16) for k, v in state.items()}
        for key, value in model.named_parameters():
            assert torch.equal(state[key].float(), value), key
    save_tensors(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(
        json.dumps(json.loads(config.to_json_string()), indent=2, sort_keys=True) + "\n")


def make(name, spec):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    config = T5Config(dropout_rate=0.0, decoder_start_token_id=PAD, **spec["config"])
    config.architectures = ["T5ForConditionalGeneration"]
    model = T5ForConditionalGeneration(config).eval().float()
    initialise(model, spec["seed"])
    bf16 = spec["config"].get("torch_dtype") == "bfloat16"
    if bf16:
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p.bfloat16().float())
    rng = np.random.default_rng(spec["seed"] + 1000)
    # The last token of every row is </s>; some ids repeat, so embedding gradients accumulate.
    rows = lambda lengths: [np.append(rng.integers(2, config.vocab_size, n - 1), EOS)
                            for n in lengths]
    inputs, labels = rows(spec["input_lengths"]), rows(spec["label_lengths"])
    if "last_ids" in spec:
        inputs[0][:3], labels[0][:2] = spec["last_ids"], spec["last_ids"][:2]
    save(folder, model, config, bf16)

    singles = float32_runs(model, inputs, labels, spec["seed"] + 2000)
    model = model.double()
    with true_double():
        double = run(model, inputs, labels)
        check_differences(model, inputs, labels, double)
        continuations = greedy(model, inputs)
        double.update(adamw_runs(model, inputs, labels))
    assert set(singles[0]) == set(double)

    expected = {
        "input_ids": np.concatenate(inputs).astype(np.int64), "input_offsets": offsets(inputs),
        "labels": np.concatenate(labels).astype(np.int64), "label_offsets": offsets(labels),
        "greedy": continuations,
    }
    if "sampled" in spec:
        ids = np.concatenate([np.arange(20), np.arange(config.vocab_size - 40, config.vocab_size),
                              *inputs, *labels, continuations.reshape(-1),
                              rng.integers(0, config.vocab_size, spec["sampled"])])
        ids = np.unique(ids).astype(np.int64)
        double = sample(double, ids, config.vocab_size)
        singles = [sample(s, ids, config.vocab_size) for s in singles]
        expected["sampled_ids"] = ids
    for run_name, weight_decay in ADAMW_RUNS.items():
        expected["adamw/" + run_name + "/weight_decay"] = np.asarray([weight_decay])
    zero = []
    for key, value in double.items():
        expected[key] = np.ascontiguousarray(value)
        errors = [np.max(np.abs(s[key].astype(np.float64) - value)) for s in singles]
        expected["float32_error/" + key] = np.asarray([max(errors)])
        if not np.any(value != 0):
            zero.append(key)
        if not key.startswith("projection/"):
            assert max(errors) <= 1e-4 * max(np.max(np.abs(value)), 1e-30), key
    # One token attends to itself whatever its query and key are; nothing else has no gradient.
    alone = [key for key in double if spec["label_lengths"] == [1]
             and key.startswith("grad/") and "decoder.block.0.layer.0" in key
             and key.endswith((".q.weight", ".k.weight", "bias.weight"))]
    assert sorted(zero) == sorted(alone), zero

    # One entry: safetensors writes several in no fixed order.
    metadata = {"emprl_golden": "version %s, torch %s, transformers %s" % (
        VERSION, torch.__version__, transformers.__version__)}
    save_file(expected, str(folder / "expected.safetensors"), metadata=metadata)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
    print(name, "loss", double["loss"][0], "norms", double["adamw/plain/gradient_norms"],
          "greedy", expected["greedy"].tolist())


def relative_buckets():
    cases = []
    for bidirectional in (True, False):
        for buckets, distance in ((32, 128), (8, 20), (16, 64), (64, 256), (6, 9)):
            # relative position = key position - query position
            positions = torch.arange(-300, 301)
            value = T5Attention._relative_position_bucket(positions, bidirectional, buckets, distance)
            cases.append(dict(bidirectional=bidirectional, num_buckets=buckets,
                              max_distance=distance, first_position=-300, buckets=value.tolist()))
    text = json.dumps({"version": VERSION, "cases": cases}, separators=(",", ":"))
    (HERE / "relative_bucket.json").write_text(text.replace('{"bidirectional"', '\n{"bidirectional"') + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for model_name in sys.argv[1:] or MODELS:
        make(model_name, MODELS[model_name])
    relative_buckets()
