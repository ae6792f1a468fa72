# SPDX-License-Identifier: Apache-2.0
"""Writes tokenizer.json: what transformers' T5 tokenizers make of texts, with a small model.

    pip install -r requirements.txt
    build/bin/emprl-corpus --out corpus                         # the project's own dialogues
    build/bin/emprl tokenizer --input corpus/dialogues --out tokenizer --vocabulary 600
    python make_tokenizer_goldens.py --model tokenizer          # writes beside this file

tokenizer_model/spiece.model is a copy of that model, so that the goldens do not change with the
version of sentencepiece that trains. Each entry has
  text   what was encoded, or "hex", its UTF-8 (texts with NUL and other control characters)
  ids    of T5Tokenizer(legacy=True), without </s>
  back   the text that it makes of the ids but <unk>, not "cleaned up" and without a space at the end
  fast   true where T5TokenizerFast has the same ids
"""

import argparse
import json
import pathlib
import shutil

import transformers
from transformers import T5Tokenizer, T5TokenizerFast

HERE = pathlib.Path(__file__).resolve().parent

TEXTS = [
    "", " ", "i am so happy about my dog.", "  two  spaces\tand a tab \n", "I'm PROUD of you!",
    "dog <extra_id_0> happy<extra_id_99>", "dog<extra_id_0>happy <extra_id_99>", "<extra_id_7>",
    "<extra_id_1><extra_id_2> <extra_id_1>", "end.<extra_id_5>, and", "<extra_id_100> <extra_id_07>",
    "<extra_id_> <extra_id_-1> <extra_id_1", "<<extra_id_4>>", "<extra_id_0>\u2581b", "a\u2581b \u2581",
    "\u0085<extra_id_3>\u0085x", "\u2003<extra_id_3>\u00a0x", "\x1c<extra_id_3>\x1dx", "\u0085", "a\u0085b",
    "caf\u00e9 cafe\u0301 \u0301", "\ufb01ne \uff48\uff49 \u2460 \u00bd", "\uff1cextra_id_0\uff1e",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 ok \U0001f44d\U0001f3fd\u2764\ufe0f",
    "\u05e9\u05dc\u05d5\u05dd \u202eabc\u202c \u200f.", "\u6f22\u5b57 \uac00\u1112\u1161\u11ab \u0928\u093f",
    "\ue000 \U0010fffd \ufdd0 \uffff", "\ufeffa\ufeff \u200bb\u00adc", "\ufffd a\ufffdb", "\x00", "a\x00b", "\x01\x02a\x1f\x7f",
    "ha" * 400, "x" * 250 + " y", "\u00e9" * 120, "so " * 120, "i was sad, and then i was not. " * 12,
]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="a folder with spiece.model")
    spiece = pathlib.Path(parser.parse_args().model) / "spiece.model"
    kept = HERE / "tokenizer_model"
    kept.mkdir(exist_ok=True)
    if spiece.resolve() != (kept / "spiece.model").resolve():
        shutil.copyfile(spiece, kept / "spiece.model")
    transformers.logging.set_verbosity_error()
    slow = T5Tokenizer(str(kept / "spiece.model"), legacy=True)
    fast = T5TokenizerFast(str(kept / "spiece.model"), legacy=True)
    entries = []
    for text in TEXTS:
        ids = slow.encode(text, add_special_tokens=False)
        entry = {"hex": text.encode().hex()} if any(ord(c) < 32 for c in text) else {"text": text}
        entry["ids"] = ids
        back = slow.decode([i for i in ids if i > 2], clean_up_tokenization_spaces=False)
        entry["back"] = back.rstrip(" ")
        for limit in (200, 50):
            cut = slow(text, truncation=True, max_length=limit)["input_ids"]
            assert cut == (ids + [1] if len(ids) < limit else ids[:limit - 1] + [1])
        entry["fast"] = ids == fast.encode(text, add_special_tokens=False)
        entries.append(entry)
    lines = ",\n".join(json.dumps(entry, ensure_ascii=True) for entry in entries)
    (HERE / "tokenizer.json").write_text(
        '{"transformers": "%s",\n"entries": [\n%s\n]}\n' % (transformers.__version__, lines))


main()
