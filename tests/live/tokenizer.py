# SPDX-License-Identifier: Apache-2.0
"""Holds the program's tokenizer against transformers' T5 tokenizers: the same ids and the same text.

    python3 tests/live/tokenizer.py --program build/bin/emprl [--data $EMPRL_DATA] [--seed N]

Compared, with the spiece.model of $EMPRL_DATA/t5_tokenizer (or --model DIR):
  every utterance of $EMPRL_DATA/empathetic_dialogues,
  texts that we write here: sentinels in text, white space, control characters, scripts, emoji,
  random texts made of such characters, --random N of them.
Each text's ids must be those of T5Tokenizer(legacy=True), transformers' default, which is
sentencepiece with sentinels beside it; the same with </s> and cut to 200 and to 50 ids; and the
ids' text, without <unk>, must be that tokenizer's, but for a space that it leaves at the end where
only spaces follow the last sentinel.

Not compared, because the program differs on purpose:
  texts with "</s>", "<pad>" or "<unk>": transformers makes the special token of them, so that
  whoever writes "</s>" ends a sequence; here they are text,
  T5Tokenizer(legacy=False): it joins what follows a sentinel to it, as no trained T5 has seen it,
  bytes that are not UTF-8: Python's texts cannot hold them.
  ties: sentencepiece after 0.2.1 chooses otherwise between cuts of a text that are equally likely
  ("A ww w" or "A w ww"; seen with 0.2.3). With such a version, ids that differ and have the same pieces' sum of
  scores and the same text are counted apart. Up to 0.2.1 there must be none.
Counted, but no failure: where the ids of T5TokenizerFast differ from those of T5Tokenizer. It
normalises grapheme by grapheme, breaks ties between equally likely pieces otherwise, and sees
sentinels in text that is one only after normalisation (<extra_id_0> in full width).

Prints the counts of differences; exit code 0 if there are none, 1 if there are, 77 if transformers
(of version 4: 5 has the fast tokenizer alone) or the data are not here.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

SKIPPED = 77
SPECIAL = ("</s>", "<pad>", "<unk>")

WRITTEN = [
    "", " ", "\n", "a", " a", "a ", "  a  b  ", "a\tb\nc\rd", "a\u00a0b\u3000c\u2003d\u2028e",
    "dog <extra_id_0> happy<extra_id_99>", "dog<extra_id_0>happy <extra_id_99>", "<extra_id_0>",
    "a  <extra_id_7>  b", "<extra_id_1><extra_id_2>", "x<extra_id_3>.", "A.<extra_id_5>, b",
    "<extra_id_100>", "<extra_id_07>", "<extra_id_>", "<extra_id_-1>", "<extra_id_1", "<EXTRA_ID_1>",
    "<extra_id_0>\u2581b", "\u2581", "a\u2581b", "\u2581\u2581a", "<<extra_id_4>>", "\t<extra_id_9>\n",
    "<extra_id_10 >", "\u00a0<extra_id_8>\u3000x", "<extra_id_\u0661>", "\uff1cextra_id_0\uff1e",
    "e\u0301", "\u00e9", "\u0301", "a\u0300\u0301\u0302\u0303b", "\u1e9b\u0323", "\ufb01 \uff21\uff22 \u2460",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 ok", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f!", "\U0001f44d\U0001f3fd",
    "\u05e9\u05dc\u05d5\u05dd \u202eabc\u202c", "\u0645\u0631\u062d\u0628\u0627 \u200f.", "\u0928\u092e\u0938\u094d\u0924\u0947",
    "\u6f22\u5b57\u304b\u306a", "\uac00\u1100\u1161", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\ue000\uf8ff", "\U0010fffd", "\ufdd0",
    "\ufeffa\ufeff", "\u200ba\u200cb\u200dc", "\u00ad", "\ufffd", "\x00", "a\x00b", "\x01\x02a\x1f", "\x7f\x80\x85\x9f",
    "\x1c<extra_id_0>\x1e", "\x0b\x0c", "don't can\u2019t \u201cquoted\u201d \u2014 \u2026", "1,234.56 3\u00bd \u00b2",
    "https://example.org/a?b=c&d=%20", "HELLO hello HeLLo", "a" * 300, "ab" * 2000, "word " * 300,
    "\u00e9" * 500, "\U0001f600" * 200, "x" * 199 + " y", "<", "<<", "< extra_id_0>", "I 'm fine , thanks .",
]

POOL = (
    list("abcdefghijklmnopqrstuvwxyz ETAOIN.,!?'\"-_<>/\\()[]{}0123456789")
    + [" ", " ", "  ", "\t", "\n", "\r\n", "\x00", "\x01", "\x0b", "\x1c", "\x1f", "\x7f", "\x85", "\xa0", "\xad"]
    + ["\u2581", "\u200b", "\u200c", "\u200d", "\u200e", "\u200f", "\u202a", "\u202e", "\u2028", "\u2060", "\ufeff", "\ufffd"]
    + ["\u0301", "\u0308", "\u0323", "\u20dd", "\u093f", "\u0e31", "\u05b8", "\u064b", "\u3099", "\ufe0f", "\ufe0e"]
    + ["\u00e9", "\u00df", "\u0130", "\u0131", "\u017f", "\u03c2", "\u1e9e", "\ufb03", "\u210c", "\u2167", "\u33a5", "\uff76\uff9e"]
    + ["\u05d0", "\u0627", "\u0644\u0627", "\u0928", "\u6f22", "\u304b", "\uac00", "\u1112\u1161\u11ab", "\u0e01"]
    + ["\U0001f600", "\U0001f469\u200d\U0001f680", "\U0001f3fd", "\U0001f1eb\U0001f1f7", "\U0001d49c", "\U00020000"]
    + ["\ue000", "\uf8ff", "\U000f0000", "\U0010ffff", "\ufdd0", "\uffff"]
    + ["<extra_id_0>", "<extra_id_42>", "<extra_id_99>", "<extra_id_100>", "<extra_id_", "the ", "happy", " sorry"]
)


def random_texts(n, seed):
    rng = random.Random(seed)
    for i in range(n):
        length = rng.choice([1, 2, 3, 5, 8, 13, 40, 120])
        if i % 4 == 3:
            # Any character of Unicode but surrogates.
            points = (rng.choice([0x80, 0x800, 0x10000, 0x110000]) for _ in range(length))
            codes = (rng.randrange(top) for top in points)
            yield "".join(chr(c) for c in codes if not 0xD800 <= c < 0xE000)
        else:
            yield "".join(rng.choice(POOL) for _ in range(length))


def utterances(folder):
    """Every utterance once, commas as the data set writes them and as the program reads them."""
    seen = {}
    for name in ("train.csv", "valid.csv", "test.csv"):
        path = folder / name
        if not path.exists():
            continue
        with open(path, encoding="utf-8", newline="\n") as lines:
            next(lines)
            for line in lines:
                fields = line.rstrip("\r\n").split(",")
                if len(fields) > 5:
                    seen[fields[5].replace("_comma_", ",")] = None
    return list(seen)


def apply(program, model, lines, *options):
    """What the program makes of JSON lines."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder, "in.jsonl"), pathlib.Path(folder, "out.jsonl")
        source.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        subprocess.run([program, "tokenizer", "--model", model, *options, str(source), "--output",
                        str(target)], check=True)
        with open(target, encoding="utf-8", newline="\n") as out:
            return [json.loads(line) for line in out]


class Differences:
    def __init__(self, tie):
        self.total = 0
        self.tie = tie

    def report(self, name, texts, ours, theirs, counts=True, ids=True):
        bad = [i for i in range(len(texts)) if ours[i] != theirs[i]]
        if counts and ids:
            ties = [i for i in bad if self.tie(ours[i], theirs[i])]
            bad = [i for i in bad if i not in set(ties)]
            if ties:
                print(f"{name}: {len(ties)} ties broken otherwise")
        self.total += len(bad) if counts else 0
        note = "" if counts else " (for information)"
        print(f"{name}: {len(texts)} compared, {len(bad)} different{note}")
        for i in bad[:5] if counts else []:
            print(f"  {texts[i][:60]!r}\n    here  {str(ours[i])[:200]}\n    there {str(theirs[i])[:200]}")
        sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--program", required=True)
    parser.add_argument("--data", default=os.environ.get("EMPRL_DATA", ""))
    parser.add_argument("--model", help="a folder with spiece.model; $EMPRL_DATA/t5_tokenizer")
    parser.add_argument("--random", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    try:
        import sentencepiece
        import transformers
        from transformers import T5Tokenizer, T5TokenizerFast
    except ImportError as error:
        print(f"skipped: {error}")
        return SKIPPED
    if int(transformers.__version__.split(".")[0]) >= 5:
        print(f"skipped: transformers {transformers.__version__} has no T5Tokenizer on sentencepiece "
              "any more; its one T5Tokenizer is what 4 calls T5TokenizerFast")
        return SKIPPED
    data = pathlib.Path(arguments.data or "absent")
    model = pathlib.Path(arguments.model or data / "t5_tokenizer")
    if not (model / "spiece.model").exists():
        print(f"skipped: there is no {model / 'spiece.model'}; set EMPRL_DATA or give --model")
        return SKIPPED
    print(f"transformers {transformers.__version__}, sentencepiece {sentencepiece.__version__}, "
          f"seed {arguments.seed}")
    transformers.logging.set_verbosity_error()
    spiece = str(model / "spiece.model")
    slow = T5Tokenizer(spiece, legacy=True)
    fast = T5TokenizerFast(spiece, legacy=True)

    sets = {"written": WRITTEN, "random": list(random_texts(arguments.random, arguments.seed))}
    dialogues = data / "empathetic_dialogues"
    if dialogues.is_dir():
        sets["EmpatheticDialogues"] = utterances(dialogues)
    else:
        print(f"left out: there is no {dialogues}")

    pieces = slow.sp_model.get_piece_size()
    breaks_ties = tuple(int(n) for n in sentencepiece.__version__.split(".")[:3]) >= (0, 2, 2)

    def tie(a, b):
        if not breaks_ties:
            return False

        def sums(ids):
            plain = [i for i in ids if i < pieces]
            return sum(slow.sp_model.get_score(i) for i in plain), [i for i in ids if i >= pieces]

        (x, s), (y, t) = sums(a), sums(b)
        return s == t and sorted(a) == sorted(b) and abs(x - y) <= 1e-5 * abs(x)

    differences = Differences(tie)
    for name, texts in sets.items():
        kept = [t for t in texts if not any(s in t for s in SPECIAL)]
        if len(kept) < len(texts):
            print(f"{name}: {len(texts) - len(kept)} texts with {', '.join(SPECIAL)} left out")
        lines = [{"text": t} for t in kept]
        ours = [line["ids"] for line in apply(arguments.program, str(model), lines, "--encode")]
        by_slow = [slow.encode(t, add_special_tokens=False) for t in kept]
        by_fast = [e.ids for e in fast._tokenizer.encode_batch(kept, add_special_tokens=False)]
        differences.report(f"{name}, ids, T5Tokenizer", kept, ours, by_slow)
        differences.report(f"{name}, ids, T5TokenizerFast", kept, ours, by_fast,
                           counts=False)
        for limit in (200, 50):
            cut = apply(arguments.program, str(model), lines, "--max-tokens", str(limit), "--encode")
            there = [slow(t, truncation=True, max_length=limit)["input_ids"] for t in kept]
            differences.report(f"{name}, ids and </s> cut to {limit}", kept,
                               [line["ids"] for line in cut], there)
        back = apply(arguments.program, str(model), [{"ids": ids} for ids in ours], "--decode")
        differences.report(
            f"{name}, text of ids, T5Tokenizer", kept, [line["text"] for line in back],
            [slow.decode([i for i in ids if i > 2], clean_up_tokenization_spaces=False).rstrip(" ")
             for ids in ours], ids=False)
    print(f"{differences.total} differences")
    return 0 if differences.total == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
