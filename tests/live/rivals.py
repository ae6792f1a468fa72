# SPDX-License-Identifier: Apache-2.0
"""The rivals of benchmarks/peers at the level of the model run to their end on small shapes: each
first checks that its T5 in plain PyTorch computes what transformers computes, and then times it and
transformers."""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

PLAIN, PUBLISHED = "PyTorch: SDPA", "transformers as published"
# What cannot be missing, whatever the versions.
EXPECTED = {
    "generation.py": {("t5_generate", "Bf16", PLAIN), ("t5_decode_step", "Bf16", PLAIN),
                      ("t5_encode", "Bf16", PLAIN), ("t5_generate", "float", PUBLISHED),
                      ("t5_decode_step", "float", PUBLISHED)},
    "training.py": {("t5_training_step", "Bf16", PLAIN), ("t5_training_step", "float", PUBLISHED)},
    "ppo.py": {("ppo_iteration", "Bf16", PLAIN), ("ppo_iteration", "float", PUBLISHED)},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", help="not needed here")
    parser.parse_args()
    peers = pathlib.Path(__file__).resolve().parents[2] / "benchmarks/peers"
    faults = []
    with tempfile.TemporaryDirectory(prefix="emprl-rivals-") as folder:
        for script, expected in EXPECTED.items():
            file = pathlib.Path(folder) / (script + ".json")
            done = subprocess.run([sys.executable, "-B", peers / script, "--small", "--repetitions",
                                   "5", "--seconds", "0.01", "--json", file, "--tsv",
                                   file.with_suffix(".tsv")], capture_output=True, text=True)
            print(done.stdout + done.stderr, end="")
            if done.returncode != 0:
                faults.append("%s ended with %d" % (script, done.returncode))
                continue
            report = json.loads(file.read_text())
            results = report["results"]
            for kernel, format, name in expected:
                if not any(r["kernel"] == kernel and r["format"] == format
                           and r["implementation"].startswith(name) for r in results):
                    # A decoding step is a difference of two times, which may be none.
                    if kernel == "t5_decode_step" and any(
                            x.startswith(kernel) and x.endswith("is no time")
                            for x in report["skipped"]):
                        continue
                    faults.append("%s has no %s in %s of %s" % (script, kernel, format, name))
            if any(not r["microseconds"]["median"] > 0 for r in results):
                faults.append(script + " has a time that is none")
            if "torch" not in report or "transformers" not in report:
                faults.append(script + " does not say by which versions")
    sys.exit("\n".join(faults) if faults else 0)


if __name__ == "__main__":
    main()
