# SPDX-License-Identifier: Apache-2.0
"""Writes the LoRA goldens: adapters made and run by PEFT on the models of make_t5_goldens.py.

    pip install -r requirements.txt
    python make_lora_goldens.py          # writes beside this file; needs t5_v1_0/ and t5_v1_1/

For each case a folder lora_<case>/ with
  adapter_config.json, adapter_model.safetensors    the adapter, as PEFT saves it (float32), but
                                   that base_model_name_or_path is the base model's folder here
  expected.safetensors             for the inputs of the base model's own expected.safetensors:
    logits, logprobs, loss         (label tokens, vocabulary), (label tokens), mean over label tokens
    grad/<name>                    d loss / d <name> for every A and B, named as in the adapter's file
    adamw_losses                   losses before each of 4 AdamW steps on A and B (lr 1e-2, weight
                                   decay 0): the last is that after 3 steps
  and float32_error/<r> as make_t5_goldens.py explains.
Results are float64, computed from the float32 weights. B is random, not zero: A would have no
gradient.
"""

import json
import pathlib
import shutil

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers import T5ForConditionalGeneration

import make_t5_goldens as t5

HERE = pathlib.Path(__file__).resolve().parent
VERSION = "1"

CASES = {
    "q_v": dict(
        base="t5_v1_0", seed=11,
        config=dict(r=4, lora_alpha=12, target_modules=["q", "v"], lora_dropout=0.1)),
    "all_linear": dict(
        base="t5_v1_1", seed=12,
        config=dict(r=2, lora_alpha=8, target_modules="all-linear", use_rslora=True)),
    "patterns": dict(
        base="t5_v1_0", seed=13,
        config=dict(r=3, lora_alpha=6,
                    target_modules=r".*(decoder\..*\.EncDecAttention\.(k|v|o)|DenseReluDense\.wi)",
                    rank_pattern={"EncDecAttention.k": 1, r"block\.[12].*wi": 5},
                    alpha_pattern={"EncDecAttention.k": 2, r"block\.[12].*wi": 10})),
}
ROOT = "base_model.model."


def randomise(model, seed):
    """A as PEFT draws it; B of a size that matters."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            if ".lora_A." in name:
                p.copy_(torch.from_numpy(rng.uniform(-1, 1, p.shape) * p.shape[1] ** -0.5))
            elif ".lora_B." in name:
                p.copy_(torch.from_numpy(rng.normal(0.0, 0.2, p.shape)))


def axes(name, model_order, hidden_order):
    """t5.permuted_axes for the weights below an adapter and for its matrices."""
    module, matrix = name.split(".lora_") if ".lora_" in name else (name, "")
    plain = module.replace(ROOT, "").replace(".base_layer", "")
    plain = plain if plain.endswith(".weight") or not matrix else plain + ".weight"
    both = t5.permuted_axes(plain, model_order, hidden_order)
    if not matrix or not both:
        return both
    # A (rank, inputs) and B (outputs, rank).
    return [None, both[1]] if matrix.startswith("A") else [both[0], None]


def run(model, inputs, labels, backward=True):
    """t5.run on the adapted model; gradients of A and B alone, under the file's names."""
    model.zero_grad()
    mask = t5.pad([np.ones(len(r), np.int64) for r in inputs], 0)
    out = model(input_ids=t5.pad(inputs, t5.PAD), attention_mask=mask, labels=t5.pad(labels, -100))
    if not backward:
        return float(out.loss)
    out.loss.backward()
    logprobs = torch.log_softmax(out.logits, -1)
    chosen = torch.gather(logprobs, 2, t5.pad(labels, 0).unsqueeze(-1)).squeeze(-1)
    result = {
        "logits": t5.pack(out.logits, labels),
        "logprobs": t5.pack(chosen, labels),
        "loss": out.loss.detach().numpy().reshape(1),
    }
    for name, p in model.named_parameters():
        assert p.requires_grad == (".lora_" in name), name
        if p.requires_grad:
            result["grad/" + name.replace(".default.", ".")] = p.grad.detach().numpy().copy()
    return result


def float32_runs(model, inputs, labels, seed, count=9):
    """As t5.float32_runs: the units of d_model and d_ff in other orders, results put back."""
    rng = np.random.default_rng(seed)
    original = {k: v.detach().clone() for k, v in model.named_parameters()}
    runs = []
    for i in range(count):
        orders = [rng.permutation(n) if i > 0 else np.arange(n)
                  for n in (model.config.d_model, model.config.d_ff)]
        with torch.no_grad():
            for name, p in model.named_parameters():
                value = original[name].numpy()
                for axis, order in enumerate(axes(name, *orders)):
                    if order is not None:
                        value = np.take(value, order, axis)
                p.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        result = run(model, inputs, labels)
        for key in result:
            for axis, order in enumerate(axes(key, *orders)):
                if order is not None:
                    result[key] = np.take(result[key], np.argsort(order), axis)
        runs.append(result)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(original[name])
    return runs


def adamw_losses(model, inputs, labels, steps=4):
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        losses.append(run(model, inputs, labels)["loss"][0])
        optimiser.step()
    return np.asarray(losses, np.float64)


def rows_of(recorded, ids, offsets):
    at = recorded[offsets]
    return [recorded[ids][a:b] for a, b in zip(at[:-1], at[1:])]


def make(name, spec):
    folder = HERE / f"lora_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    base = T5ForConditionalGeneration.from_pretrained(HERE / spec["base"]).eval()
    recorded = load_file(str(HERE / spec["base"] / "expected.safetensors"))
    inputs = rows_of(recorded, "input_ids", "input_offsets")
    labels = rows_of(recorded, "labels", "label_offsets")
    config = peft.LoraConfig(task_type="SEQ_2_SEQ_LM", **spec["config"])
    model = peft.get_peft_model(base, config).eval()
    randomise(model, spec["seed"])
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink()
    # The path of this machine says nothing to others.
    path = folder / "adapter_config.json"
    written = json.loads(path.read_text())
    written["base_model_name_or_path"] = spec["base"]
    written["target_modules"] = (sorted(written["target_modules"])
                                 if isinstance(written["target_modules"], list)
                                 else written["target_modules"])
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")

    singles = float32_runs(model, inputs, labels, spec["seed"] + 2000)
    model = model.double()
    with t5.true_double():
        double = run(model, inputs, labels)
        losses = adamw_losses(model, inputs, labels)
    stored = load_file(str(folder / "adapter_model.safetensors"))
    assert {"grad/" + k for k in stored} == {k for k in double if k.startswith("grad/")}
    assert np.max(np.abs(double["logits"] - recorded["logits"])) > 0.1

    expected = {}
    for key, value in double.items():
        expected[key] = np.ascontiguousarray(value)
        error = max(np.max(np.abs(s[key].astype(np.float64) - value)) for s in singles)
        assert error <= 1e-4 * np.max(np.abs(value)), (key, error, np.max(np.abs(value)))
        assert np.any(value != 0), key
        expected["float32_error/" + key] = np.asarray([error])
    expected["adamw_losses"] = losses
    save_file(expected, str(folder / "expected.safetensors"), metadata={
        "format": "pt", "emprl_golden": VERSION, "torch": torch.__version__,
        "transformers": transformers.__version__, "peft": peft.__version__})
    for file in folder.iterdir():
        file.chmod(0o644)
    print(name, "loss", double["loss"][0], "adamw", losses, len(stored), "matrices")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for case, case_spec in CASES.items():
        make(case, case_spec)
