# SPDX-License-Identifier: Apache-2.0
"""Writes the T5 goldens: small random models run by Hugging Face transformers.

    pip install -r requirements.txt
    python make_t5_goldens.py            # writes beside this file

For each model a folder t5_v1_0/ and t5_v1_1/ with
  config.json, model.safetensors   the model, as Hugging Face stores it (float32)
  expected.safetensors             inputs and results; everything packed row after row, no padding:
    input_ids, input_offsets       encoder tokens (int64; offsets have rows + 1 entries)
    labels, label_offsets          decoder targets; the decoder reads (start, y_0, ..., y_{n-2})
    encoder_output                 (input tokens, d_model), after the final norm
    decoder_output                 (label tokens, d_model), after the final norm, not scaled
    logits, logprobs, loss         (label tokens, vocabulary), (label tokens), mean over label tokens
    grad/<name>                    d loss / d <name> for every parameter
    greedy                         (rows, 8) argmax continuations, never stopped at </s>
    adamw_losses                   losses before each of 4 AdamW steps (lr 1e-2, weight decay 0)
  and, for every result r above that is not an integer, float32_error/<r>: the largest absolute
  difference between the same computation in float32 and in float64, the worst of 9 float32 runs
  whose sums run in other orders (the units of the model permuted), since one run can be lucky.
Results are float64, computed from the float32 weights.

relative_bucket.json holds transformers' relative position buckets for a few settings.
"""

import contextlib
import json
import pathlib

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from transformers import T5Config, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm

HERE = pathlib.Path(__file__).resolve().parent
VERSION = "1"
PAD, EOS = 0, 1

MODELS = {
    "t5_v1_0": dict(
        seed=148,
        config=dict(
            vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_decoder_layers=3,
            num_heads=3, relative_attention_num_buckets=8, relative_attention_max_distance=20,
            feed_forward_proj="relu", tie_word_embeddings=True),
        input_lengths=[9, 1, 23],
        label_lengths=[6, 13, 1]),
    "t5_v1_1": dict(
        seed=50,
        config=dict(
            vocab_size=37, d_model=12, d_kv=8, d_ff=20, num_layers=1, num_decoder_layers=2,
            num_heads=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        input_lengths=[4, 47, 11],
        label_lengths=[3, 7, 45]),
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
        direction = grad / grad.norm()
        loss = []
        with torch.no_grad():
            for step in (h, -h):
                p.add_(direction, alpha=step)
                loss.append(run(model, inputs, labels, backward=False))
                p.sub_(direction, alpha=step)
        numeric = (loss[0] - loss[1]) / (2 * h)
        # 1e-5: a ReLU may change sides within +-h; a float32 step inside would be off by 1e-2.
        assert abs(numeric - float(grad.norm())) <= 1e-5 * float(grad.norm()), (name, numeric)


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


def permuted_axes(name, model_order, hidden_order):
    """For each axis of a parameter or result, the order in which its units are taken, or None."""
    if name.endswith((".wi.weight", ".wi_0.weight", ".wi_1.weight")):
        return [hidden_order, model_order]
    if name.endswith(".wo.weight"):
        return [model_order, hidden_order]
    if name.endswith(".o.weight"):
        return [model_order, None]
    if name.endswith("layer_norm.weight"):
        return [model_order]
    if name.endswith((".q.weight", ".k.weight", ".v.weight", "shared.weight", "lm_head.weight",
                      "encoder_output", "decoder_output")):
        return [None, model_order]
    return []


def float32_runs(model, inputs, labels, seed, count=9):
    """The same float32 computation with the units of d_model and d_ff in other orders, results
    put back into the original order."""
    rng = np.random.default_rng(seed)
    original = {k: v.detach().clone() for k, v in model.named_parameters()}
    runs = []
    for i in range(count):
        orders = [rng.permutation(n) if i > 0 else np.arange(n)
                  for n in (model.config.d_model, model.config.d_ff)]
        with torch.no_grad():
            for name, p in model.named_parameters():
                value = original[name].numpy()
                for axis, order in enumerate(permuted_axes(name, *orders)):
                    if order is not None:
                        value = np.take(value, order, axis)
                p.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        result = run(model, inputs, labels)
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


def adamw_losses(model, inputs, labels, steps=4):
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8,
                                  weight_decay=0.0)
    losses = []
    for _ in range(steps):
        losses.append(run(model, inputs, labels)["loss"][0])
        optimiser.step()
    return np.asarray(losses, np.float64)


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


def make(name, spec):
    folder = HERE / name
    folder.mkdir(exist_ok=True)
    config = T5Config(dropout_rate=0.0, decoder_start_token_id=PAD, **spec["config"])
    config.architectures = ["T5ForConditionalGeneration"]
    model = T5ForConditionalGeneration(config).eval()
    initialise(model, spec["seed"])
    rng = np.random.default_rng(spec["seed"] + 1000)
    # The last token of every row is </s>; some ids repeat, so embedding gradients accumulate.
    rows = lambda lengths: [np.append(rng.integers(2, config.vocab_size, n - 1), EOS)
                            for n in lengths]
    inputs, labels = rows(spec["input_lengths"]), rows(spec["label_lengths"])

    singles = float32_runs(model, inputs, labels, spec["seed"] + 2000)
    state = {k: v.detach().numpy().copy() for k, v in model.named_parameters()}
    model = model.double()
    with true_double():
        double = run(model, inputs, labels)
        check_differences(model, inputs, labels, double)
        continuations = greedy(model, inputs)
        losses = adamw_losses(model, inputs, labels)
    assert set(singles[0]) == set(double)

    expected = {
        "input_ids": np.concatenate(inputs).astype(np.int64), "input_offsets": offsets(inputs),
        "labels": np.concatenate(labels).astype(np.int64), "label_offsets": offsets(labels),
        "greedy": continuations,
    }
    for key, value in double.items():
        expected[key] = np.ascontiguousarray(value)
        error = max(np.max(np.abs(s[key].astype(np.float64) - value)) for s in singles)
        assert error <= 1e-4 * np.max(np.abs(value)), key
        expected["float32_error/" + key] = np.asarray([error])
        assert np.any(value != 0), key
    expected["adamw_losses"] = losses

    metadata = {"format": "pt", "emprl_golden": VERSION, "torch": torch.__version__,
                "transformers": transformers.__version__}
    save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    save_file(expected, str(folder / "expected.safetensors"), metadata=metadata)
    (folder / "config.json").write_text(
        json.dumps(json.loads(config.to_json_string()), indent=2, sort_keys=True) + "\n")
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)
    print(name, "loss", double["loss"][0], "adamw", expected["adamw_losses"],
          "greedy", expected["greedy"].tolist())


def relative_buckets():
    cases = []
    for bidirectional in (True, False):
        for buckets, distance in ((32, 128), (8, 20), (16, 64), (64, 256)):
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
    for model_name, model_spec in MODELS.items():
        make(model_name, model_spec)
    relative_buckets()
