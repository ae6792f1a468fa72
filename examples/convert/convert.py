#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes model folders that emprl loads of what lies in pickles.

    pip install torch safetensors          # and, for a spiece.model: sentencepiece protobuf
    python convert.py --model DIR --out DIR
    python convert.py --identifier FILE.pt --encoder DIR --out DIR/er

--model takes a T5 folder whose weights are in pytorch_model.bin, whole or split over several files.
The tensors go into model.safetensors as they are, in their own type; a value head of TRL's
(v_head.summary.*) into value_head.safetensors; config.json and the tokenizer's files beside them. Of
a folder with tokenizer.json alone it makes the spiece.model that emprl cuts text by.

--identifier takes one empathy identifier as the EmpRL scripts save it, a state dict with the names
context_encoder.*, response_encoder.* (each a T5EncoderModel or the stack in it), attn.q_linear,
attn.k_linear, attn.v_linear, attn.out, classifier.0 and classifier.3. --encoder is the T5 folder
that its encoders came from: config.json and spiece.model are taken from there. Three of them, in
folders er, ip and ex, are what `emprl label --identifiers` reads.

Pickles are read with torch.load(weights_only=True), which builds tensors and nothing else.
"""

import argparse
import base64
import json
import os
import pathlib
import shutil
import sys

import torch
from safetensors.torch import load_file, save_file

SMALL_FILES = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
    "spiece.model",
)
EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Refusal(Exception):
    """What is wrong, in a sentence for the user."""


def read_json(path):
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Refusal(f"{path} is missing.") from None
    except ValueError as error:
        raise Refusal(f"{path}: this is not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise Refusal(f"{path}: a JSON object was expected.")
    return value


def read_pickle(path):
    """The tensors of a state dict by name, whatever a trainer has wrapped it in."""
    if not path.is_file():
        raise Refusal(f"{path} is missing.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the unpickler does
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refusal(
            f"{path} cannot be read without running code from it ({first_line}); save the state "
            "dict alone: torch.save(model.state_dict(), FILE)."
        ) from None
    for key in ("state_dict", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state:
        raise Refusal(f"{path} holds no state dict.")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise Refusal(f"{path} holds {name!r}, which is no tensor; a state dict was expected.")
    for prefix in ("module.", "_orig_mod."):  # of DataParallel and torch.compile
        if all(name.startswith(prefix) for name in state):
            state = {name[len(prefix) :]: tensor for name, tensor in state.items()}
    return state


def read_weights(folder):
    """All tensors of a model folder: of pickles, or of safetensors where there are any."""
    for whole, index, read in (
        ("model.safetensors", "model.safetensors.index.json", load_file),
        ("pytorch_model.bin", "pytorch_model.bin.index.json", read_pickle),
    ):
        if (folder / whole).is_file():
            return read(folder / whole)
        if not (folder / index).is_file():
            continue
        weight_map = read_json(folder / index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise Refusal(f"{folder / index} has no weight_map.")
        state = {}
        for shard in sorted(set(map(str, weight_map.values()))):
            if pathlib.PurePath(shard).name != shard:
                raise Refusal(f"{folder / index} names {shard!r}, which is not in the folder.")
            for name, tensor in read(folder / shard).items():
                if name in state:
                    raise Refusal(f"{folder / shard}: tensor {name!r} is in another file, too.")
                state[name] = tensor
        missing = sorted(set(weight_map) - set(state))
        if missing:
            raise Refusal(f"{folder / index} names {missing[0]!r}, which no file has.")
        return state
    raise Refusal(f"{folder} has neither pytorch_model.bin nor model.safetensors.")


def write_tensors(path, state):
    tensors = {}
    for name, tensor in sorted(state.items()):
        if tensor.dtype not in FLOATS:
            raise Refusal(f"tensor {name!r} is of type {tensor.dtype}; numbers were expected.")
        # Tensors that share memory are written each by itself.
        tensors[name] = tensor.detach().contiguous().clone()
    temporary = path.with_name(path.name + ".tmp")
    save_file(tensors, str(temporary), metadata={"format": "pt"})
    os.replace(temporary, path)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def prepare(out, source):
    if out.resolve() == source.resolve():
        raise Refusal("--out must be another folder than the one that is converted.")
    out.mkdir(parents=True, exist_ok=True)


def precompiled_table(normaliser):
    """The table of sentencepiece's normaliser in a tokenizer.json, wherever it is nested."""
    if not isinstance(normaliser, dict):
        return b""
    if normaliser.get("type") == "Precompiled":
        return base64.b64decode(normaliser.get("precompiled_charsmap") or "")
    for part in normaliser.get("normalizers", []):
        table = precompiled_table(part)
        if table:
            return table
    return b""


def make_spiece_model(tokenizer_json, path):
    """Writes the sentencepiece model that a fast T5 tokenizer was made of."""
    try:
        from sentencepiece import sentencepiece_model_pb2 as proto
    except ImportError:
        raise Refusal(
            "to make a spiece.model of tokenizer.json: pip install sentencepiece protobuf"
        ) from None
    fast = read_json(tokenizer_json)
    model = fast.get("model", {})
    vocabulary = model.get("vocab")
    if model.get("type", "Unigram") != "Unigram" or not isinstance(vocabulary, list):
        raise Refusal(f"{tokenizer_json} is not the unigram tokenizer of a T5.")
    if model.get("byte_fallback"):
        raise Refusal(f"{tokenizer_json} falls back to bytes, which T5's tokenizers do not.")
    while vocabulary and vocabulary[-1][0].startswith("<extra_id_"):
        vocabulary = vocabulary[:-1]
    if [piece for piece, _ in vocabulary[:3]] != ["<pad>", "</s>", "<unk>"]:
        raise Refusal(f"{tokenizer_json} does not start with <pad>, </s> and <unk>, as T5 does.")
    spiece = proto.ModelProto()
    types = spiece.SentencePiece
    kinds = {0: types.CONTROL, 1: types.CONTROL, 2: types.UNKNOWN}
    for number, (piece, score) in enumerate(vocabulary):
        spiece.pieces.add(piece=piece, score=score, type=kinds.get(number, types.NORMAL))
    trainer = spiece.trainer_spec
    trainer.model_type = trainer.UNIGRAM
    trainer.vocab_size = len(vocabulary)
    trainer.pad_id, trainer.eos_id, trainer.unk_id, trainer.bos_id = 0, 1, 2, -1
    spiece.normalizer_spec.name = "from_tokenizer_json"
    spiece.normalizer_spec.precompiled_charsmap = precompiled_table(fast.get("normalizer"))
    path.write_bytes(spiece.SerializeToString())


def copy_small_files(source, out):
    for name in SMALL_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    if (out / "spiece.model").is_file():
        return
    if not (source / "tokenizer.json").is_file():
        raise Refusal(f"{source} has neither spiece.model nor tokenizer.json.")
    make_spiece_model(source / "tokenizer.json", out / "spiece.model")


def convert_model(source, out):
    config = read_json(source / "config.json")
    if config.get("model_type") != "t5":
        raise Refusal(f"{source / 'config.json'}: the model is not a T5.")
    state = read_weights(source)
    prepare(out, source)
    if "shared.weight" in state:
        # The same embedding under other names; one that is another stays, for emprl to judge.
        aliases = EMBEDDINGS
        if config.get("tie_word_embeddings", True) and config.get("scale_decoder_outputs", True):
            aliases += ("lm_head.weight",)
        for name in aliases:
            if name in state and torch.equal(state[name], state["shared.weight"]):
                del state[name]
    head = {name: state.pop(name) for name in sorted(state) if name.startswith("v_head.summary.")}
    copy_small_files(source, out)
    write_json(out / "config.json", config)
    if head:
        write_tensors(out / "value_head.safetensors", head)
    write_tensors(out / "model.safetensors", state)
    return len(state)


def identifier_names(config):
    """The tensors of an identifier with encoders of this configuration."""
    gated = config.get("feed_forward_proj", "relu").startswith("gated")
    names = []
    for encoder in ("context_encoder", "response_encoder"):
        names.append(f"{encoder}.shared.weight")
        for i in range(config["num_layers"]):
            layer = f"{encoder}.encoder.block.{i}.layer"
            names += [f"{layer}.0.SelfAttention.{part}.weight" for part in "qkvo"]
            names += [f"{layer}.{part}.layer_norm.weight" for part in (0, 1)]
            inner = ("wi_0", "wi_1", "wo") if gated else ("wi", "wo")
            names += [f"{layer}.1.DenseReluDense.{part}.weight" for part in inner]
        first = f"{encoder}.encoder.block.0.layer.0.SelfAttention"
        names.append(f"{first}.relative_attention_bias.weight")
        names.append(f"{encoder}.encoder.final_layer_norm.weight")
    for part in ("attn.q_linear", "attn.k_linear", "attn.v_linear", "attn.out"):
        names += [f"{part}.weight", f"{part}.bias"]
    for part in ("classifier.0", "classifier.3"):
        names += [f"{part}.weight", f"{part}.bias"]
    return names


def identifier_name(name):
    """emprl's name of a tensor of a published identifier."""
    encoder, _, rest = name.partition(".")
    if encoder not in ("context_encoder", "response_encoder"):
        return name
    if rest in ("shared.weight", "embed_tokens.weight", "encoder.embed_tokens.weight"):
        return f"{encoder}.shared.weight"
    if rest.startswith(("block.", "final_layer_norm.")):
        return f"{encoder}.encoder.{rest}"
    return name


def convert_identifier(file, encoder, out):
    config = read_json(encoder / "config.json")
    if config.get("model_type") != "t5":
        raise Refusal(f"{encoder / 'config.json'}: the model is not a T5.")
    state = {}
    for name, tensor in read_pickle(file).items():
        new = identifier_name(name)
        if new in state and not torch.equal(state[new], tensor):
            raise Refusal(f"{file}: {name!r} is another tensor than that of the same embedding.")
        state[new] = tensor
    wanted = identifier_names(config)
    missing = [name for name in wanted if name not in state]
    if missing:
        raise Refusal(
            f"{file} lacks {len(missing)} tensors of an identifier with encoders as in {encoder}, "
            f"the first of them {missing[0]!r}."
        )
    unused = sorted(set(state) - set(wanted))
    if unused:
        print(f"convert: warning: {file}: not used: {', '.join(unused)}", file=sys.stderr)
    rows, columns = state["context_encoder.shared.weight"].shape
    if columns != config["d_model"]:
        raise Refusal(f"{file} has encoders of width {columns}, {encoder} of {config['d_model']}.")
    # Tokens that were added to the vocabulary added rows to the embedding.
    config["vocab_size"] = rows
    config["architectures"] = ["EmpathyIdentifier"]
    config["is_encoder_decoder"] = True
    prepare(out, encoder)
    copy_small_files(encoder, out)
    write_json(out / "config.json", config)
    write_tensors(out / "model.safetensors", {name: state[name] for name in wanted})
    return len(wanted)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", type=pathlib.Path, metavar="DIR")
    what.add_argument("--identifier", type=pathlib.Path, metavar="FILE")
    parser.add_argument("--encoder", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--out", type=pathlib.Path, metavar="DIR", required=True)
    options = parser.parse_args()
    if (options.identifier is None) != (options.encoder is None):
        parser.error("--identifier and --encoder go together")
    try:
        if options.model:
            count = convert_model(options.model, options.out)
        else:
            count = convert_identifier(options.identifier, options.encoder, options.out)
    except Refusal as refusal:
        print(f"convert: error: {refusal}", file=sys.stderr)
        return 1
    print(f"{count} tensors written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
