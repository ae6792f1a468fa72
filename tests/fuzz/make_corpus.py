# SPDX-License-Identifier: Apache-2.0
"""Writes the fuzz targets' corpora: small inputs that are right, and some that are nearly so.

    python3 make_corpus.py            # writes corpus/<target>/ beside this file

Needs nothing but Python. Files named finding_* are inputs that once broke a target; they are kept
as they were found and this script leaves them alone.
"""

import json
import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent
CORPUS = HERE / "corpus"


def put(target, name, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


# ---- safetensors


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def write_safetensors():
    types = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
             "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
    header, at = {"__metadata__": {"format": "pt", "note": "a \"quoted\" text, é"}}, 0
    for name, size in types.items():
        header[name.lower()] = tensor(name, [1, 2], at, at + 2 * size)
        at += 2 * size
    put("safetensors", "every_type", safetensors(header, bytes(i % 2 for i in range(at))))
    put("safetensors", "empty", safetensors({}))
    put("safetensors", "spaces", safetensors(b'{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}   ',
                                             struct.pack("<f", 1.5)))
    put("safetensors", "zero_sized", safetensors(
        {"a": tensor("F32", [0, 3], 0, 0), "b": tensor("U8", [2], 0, 2), "c": tensor("I8", [0], 2, 2)},
        b"xy"))
    put("safetensors", "gap", safetensors({"a": tensor("U8", [1], 1, 2)}, b"xy"))
    put("safetensors", "overlap", safetensors(
        {"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, b"xyz"))
    put("safetensors", "wrapping_product", safetensors(
        {"a": tensor("U8", [1 << 32, 1 << 32], 0, 0)}))
    put("safetensors", "twice", safetensors(
        b'{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"))
    put("safetensors", "long_header", safetensors({}, length=(1 << 64) - 1))
    put("safetensors", "deep", safetensors(b'{"a":' + b"[" * 70 + b"]" * 70 + b"}"))

    moments = {"first_moment": tensor("F32", [3], 0, 12), "second_moment": tensor("F32", [3], 12, 24),
               "steps": tensor("I64", [1], 24, 32)}
    data = struct.pack("<6fq", 0.5, -1.0, 2.0, 0.25, 1.0, 4.0, 7)
    put("optimizer_state", "three", safetensors(moments, data))
    put("optimizer_state", "negative_steps", safetensors(moments, data[:24] + struct.pack("<q", -1)))
    put("optimizer_state", "half", safetensors(
        {"first_moment": tensor("F16", [3], 0, 6), "second_moment": tensor("F32", [3], 6, 18),
         "steps": tensor("I64", [1], 18, 26)}, bytes(26)))


# ---- JSON


def write_json():
    put("json", "everything", json.dumps(
        {"text": "a\n\u00e9\U0001f600", "numbers": [0, -1, 2.5, 1e-300, 18446744073709551615],
         "nested": {"a": [[], {}, [True, False, None]]}}))
    put("json", "duplicate", '{"a":1,"a":{"b":2,"b":3}}')
    put("json", "deep", "[" * 64 + "]" * 64)
    put("json", "too_deep", "[" * 65 + "]" * 65)
    put("json", "surrogates", '["\\ud83d\\ude00","\\ud83d"]')
    put("json", "cut", '{"a": [1, 2')

    pairs = [{"id": "hit:1", "context": "i lost my dog.", "response": "oh no, i am sorry.",
              "emotion": "sad", "levels": {"er": 2, "ip": 0, "ex": 1}},
             {"context": "we won!", "response": "that is great", "levels": None, "more": [1, {}]},
             {"id": 7, "context": "é 😀", "response": " x "}]
    put("json_lines", "pairs", "".join(json.dumps(p, ensure_ascii=False) + "\n" for p in pairs))
    put("json_lines", "windows", "\ufeff" + '{"context":"a","response":"b"}\r\n\r\n{"x":1}\r\n')
    put("json_lines", "levels", '{"context":"a","response":"b","levels":{"er":3,"ip":0}}\n'
                                '{"context":"a","response":"b","levels":{"er":1e9,"ip":-1,"ex":0}}')
    put("json_lines", "no_object", '{"context":"a","response":"b"}\n[1]\n')

    config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "vocab_size": 40,
              "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 3,
              "num_heads": 3, "relative_attention_num_buckets": 8,
              "relative_attention_max_distance": 20, "dropout_rate": 0.1,
              "layer_norm_epsilon": 1e-6, "feed_forward_proj": "relu", "tie_word_embeddings": True}
    put("model_config", "t5", json.dumps(config))
    put("model_config", "v1_1", json.dumps({**config, "feed_forward_proj": "gated-gelu",
                                            "tie_word_embeddings": False}))
    put("model_config", "nulls", json.dumps({**config, "num_decoder_layers": None}))
    put("model_config", "huge", json.dumps({**config, "d_model": 1 << 62, "num_layers": -1}))
    put("model_config", "wrong_type", json.dumps({**config, "d_kv": 8.5}))

    identity = {"batch": 4, "mode": "corrected", "data": {"rows": 10}}
    ppo = {"step": 3, "score_mean": 0.5, "score_variance": 0.25, "score_deviation": 0.5,
           "score_count": 12.0, "kl_controller": [0.2, 3.0], "advantages": [], "clipped": False,
           "reward": [1.0]}
    fit = {"step": 9, "epoch": 1, "batch": 2, "loss_sum": 3.5, "epochs": [[2.0, 2.5], [1.5, 2.25]],
           "best_epoch": 1, "best_loss": 2.25, "score_sum": 1.0, "steps": 2}
    put("run_state", "ppo", json.dumps({"identity": identity, "state": {"ppo": ppo}}))
    put("run_state", "flat", json.dumps({"identity": identity, "state": ppo}))
    put("run_state", "fit", json.dumps({"identity": {}, "state": fit}))
    put("run_state", "no_identity", json.dumps({"state": [1, 2]}))
    put("run_state", "odd", json.dumps({"identity": [1], "state": {"ppo": {"step": 1e300}}}))

    put("options_file", "every_kind", json.dumps(
        {"text": "a b", "number": 7, "real": 1e-4, "flag": True, "fixed": True,
         "list": ["er", "ex"], "either": "x"}))
    put("options_file", "negatives", json.dumps({"flag": False, "fixed": False, "list": [],
                                                 "other": "-x", "text": ""}))
    put("options_file", "unknown", json.dumps({"txet": "a"}))
    put("options_file", "wrong", json.dumps({"number": [1], "flag": "yes", "real": None}))
    put("options_file", "excluded", json.dumps({"either": "x", "other": "y", "text": "[a,b]"}))


# ---- CSV


def write_csv():
    put("quoted_csv", "quotes", 'a,"b ""c""","d\ne"\r\n\n"",,x"y"\n')
    put("quoted_csv", "unclosed", 'a,"b\nc')
    put("quoted_csv", "after_quote", '"a"b,c\n')
    head = "sp_id,rp_id,seeker_post,response_post,level,rationales\n"
    put("mental_health", "posts", head + 'a1,b1,"i am sad,\nvery","that ""hurts""",2,x|\n'
                                         "a2,b2,no one called,ok,0,\n")
    put("mental_health", "bad_level", head + "a,b,c,d,3,\n")
    put("mental_health", "blank", head + 'a,b," ",d,1,\n')
    put("mental_health", "columns", head + "a,b,c,d,1\n")
    head = "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\n"
    put("empathetic_dialogues", "two", head +
        "hit:0_conv:1,1,sad,i lost_comma_ it,1,i lost my \"dog\".,5|5|5_2|2|5,\n"
        "hit:0_conv:1,2,sad,i lost_comma_ it,0,oh no_comma_ sorry!,5|5|5_2|2|5,\n"
        "hit:1_conv:3,1,proud,we won,1,we won!,5|5|5,\n")
    put("empathetic_dialogues", "holes", head + "c,1,sad,p,1,a,5,\nc,3,sad,p,1,b,5,\nc,1,sad,p,1,d,5,\n"
                                                "c,0,sad,p,1,e,5,\nc,2,sad,p,1, ,5,\nx,1,too,few\n")
    put("empathetic_dialogues", "candidates", head + "c,1,sad,p,1,a,5|5,,x|y|z\r\nc,2,s,p,1,b,5,t,no\r\n")
    put("empathetic_dialogues", "marks", head + "c,1,_comma_,_comma__comma_,1,_comma_comma_,5,\n")


# ---- sentencepiece


def varint(x):
    out = b""
    while x >= 0x80:
        out += bytes([x & 0x7F | 0x80])
        x >>= 7
    return out + bytes([x])


def number(field, value):
    return varint(field << 3) + varint(value)


def message(field, data):
    return varint(field << 3 | 2) + varint(len(data)) + data


def one_key_table():
    """A normaliser's table that maps "a" to "x": the root's children at 256, the leaf at 512."""
    units = [0x80000000] * 768
    units[0] = 256 << 10
    units[256 ^ ord("a")] = (256 ^ ord("a") ^ 512) << 10 | 0x100 | ord("a")
    units[512] = 0x80000000
    return struct.pack("<I", 4 * len(units)) + struct.pack("<768I", *units) + b"x\0"


def spiece_model(words, table=b"", kinds=None, unigram=1, specials=("<pad>", "</s>", "<unk>")):
    out = b""
    for i, word in enumerate(list(specials) + words):
        kind = (kinds or {}).get(word, 2 if word == "<unk>" else 3 if i < 3 else 1)
        out += message(1, message(1, word.encode()) + b"\x15" + struct.pack("<f", -float(i)) +
                       number(3, kind))
    out += message(2, number(3, unigram) + number(4, len(words) + 3) + number(40, 2) +
                   number(42, 1) + number(43, 0) + message(45, b"<unk>") + message(47, b"</s>") +
                   message(48, b"<pad>"))
    return out + message(3, message(1, b"identity") + (message(2, table) if table else b"") +
                         number(3, 1) + number(4, 1))


def write_models():
    words = ["\u2581i", "\u2581am", "\u2581", "a", "m", "x", "\u2581dog", "d", "o", "g", "<", ">", "\u00e9"]
    put("spiece_model", "small", spiece_model(words))
    put("spiece_model", "with_table", spiece_model(words, one_key_table()))
    put("spiece_model", "sentinels", spiece_model(words + ["<extra_id_0>"], kinds={"<extra_id_0>": 4}))
    put("spiece_model", "byte_pieces", spiece_model(words + ["<0x41>"], kinds={"<0x41>": 6}))
    put("spiece_model", "bpe", spiece_model(words, unigram=2))
    put("spiece_model", "wrong_ids", spiece_model(words, specials=("<unk>", "</s>", "<pad>")))
    put("spiece_model", "twice", spiece_model(words + ["a"]))
    put("spiece_model", "cut", spiece_model(words)[:-4])
    put("spiece_model", "table_outside", spiece_model(
        words, one_key_table()[:4] + struct.pack("<I", 0x7FFFFFFF) + one_key_table()[8:]))

    put("tokenizer_text", "plain", "i am so happy about my dog.")
    put("tokenizer_text", "sentinels", "dog <extra_id_0> happy<extra_id_99></s> <extra_id_100> <extra_id_")
    put("tokenizer_text", "unicode", "e\u0301 \U0001f469\u200d\U0001f467 \u05e9\u05dc\u202e \ue000 \ufb01 \u2581a")
    put("tokenizer_text", "control", b"a\0b\x01\x7f\xc2\x80 \xff\xfe \xed\xa0\x80 \xf4\x90\x80\x80")
    put("tokenizer_text", "spaces", " \t\n\r\u00a0\u3000 i  am ")
    put("tokenizer_text", "ids", struct.pack("<8i", 0, 1, 2, 3, 55, 56, 155, 156))
    put("tokenizer_text", "negative_id", struct.pack("<2i", 3, -1))


def write_folders():
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    index = {"metadata": {"total_size": 12}, "weight_map": {"a": one, "b": two}}
    put("weight_index", "two", json.dumps(index))
    put("weight_index", "float_size", json.dumps({**index, "metadata": {"total_size": 12.0}}))
    put("weight_index", "missing", json.dumps({"weight_map": {"a": one, "b": "x.safetensors"}}))
    put("weight_index", "swapped", json.dumps({"weight_map": {"a": two, "b": one}}))
    put("weight_index", "outside", json.dumps({"weight_map": {"a": "../" + one}}))
    put("weight_index", "twice", '{"weight_map":{"a":"%s","a":"%s"}}' % (one, two))
    put("weight_index", "empty", '{"weight_map":{}}')
    fast = {"model": {"type": "Unigram", "unk_id": 2, "vocab": [["<pad>", 0.0], ["</s>", 0.0],
                                                                 ["<unk>", 0.0], ["\u2581a", -2.5]]},
            "added_tokens": [{"id": 0, "content": "<pad>"}, {"id": 4, "content": "<extra_id_0>"}]}
    put("fast_tokenizer", "small", json.dumps(fast))
    put("fast_tokenizer", "no_list", json.dumps({**fast, "added_tokens": None}))
    put("fast_tokenizer", "other_type", json.dumps({"model": {"type": "BPE", "vocab": {}}}))
    put("fast_tokenizer", "bad_entries", json.dumps(
        {"model": {"vocab": [["a", "b"], [1]]}, "added_tokens": [{"id": 1e300, "content": 1}]}))


def write_adapters():
    lora = {"peft_type": "LORA", "task_type": "SEQ_2_SEQ_LM", "r": 2, "lora_alpha": 16,
            "lora_dropout": 0.1, "target_modules": ["q", "v"], "bias": "none"}
    put("adapter_config", "lora", json.dumps(lora))
    put("adapter_config", "pattern", json.dumps({**lora, "target_modules": ".*[.](q|v)",
                                                 "r": 4, "rank_pattern": {r"q|layer\.[01].*v": 2},
                                                 "alpha_pattern": {"SelfAttention.q": 4.5}}))
    put("adapter_config", "other_rank", json.dumps({**lora, "r": 3}))
    put("adapter_config", "dora", json.dumps({**lora, "use_dora": True}))
    put("adapter_config", "large", json.dumps({**lora, "r": 1 << 62, "lora_alpha": 1e308}))
    put("adapter_config", "prefix", json.dumps({"adapter_type": "prefix", "length": 3}))
    put("adapter_config", "long_prefix", json.dumps({"adapter_type": "prefix", "length": 4096}))
    put("adapter_config", "peft_prefix", json.dumps({"peft_type": "PREFIX_TUNING",
                                                     "num_virtual_tokens": 3}))


write_safetensors()
write_folders()
write_adapters()
write_json()
write_csv()
write_models()
