# SPDX-License-Identifier: Apache-2.0
"""How the rivals are timed: as benchmarks/kernels/measure.cuh times the kernels, by CUDA's events,
after a warm-up, with an L2 cache that was read full of something else. Results have the names of
bench_kernels, so that benchmarks/gpu.sh can put them beside each other."""

import argparse
import json
import os
import sys


def skip(options, sentence):
    """Says why there is nothing to measure; that is no failure."""
    print("Skipped: " + sentence)
    if options.json:
        write(options.json, json.dumps({"skipped": sentence}))
    sys.exit(0)


def write(path, text):
    """A file is whole or not there."""
    with open(path + ".part", "w") as file:
        file.write(text)
    os.replace(path + ".part", path)


class Bench:
    """A rival's program: its options, PyTorch if there is one, and the results so far."""

    def __init__(self, what):
        parser = argparse.ArgumentParser(description=what)
        parser.add_argument("--repetitions", type=int, default=51, help="measurements of a line")
        parser.add_argument("--seconds", type=float, default=0.5, help="that a line may take")
        parser.add_argument("--json", help="write everything to this file too")
        parser.add_argument("--tsv", help="write the results as lines of fields too")
        parser.add_argument("--small", action="store_true",
                            help="small shapes, and the processor where there is no GPU: a test")
        self.options = parser.parse_args()
        self.results = []
        self.skipped = []
        try:
            import torch
        except ImportError as error:
            skip(self.options, "PyTorch cannot be imported (%s)." % error)
        self.torch = torch
        if torch.cuda.is_available():
            self.device = "cuda"
            l2 = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 64 << 20)
            self.cold = torch.zeros(l2, device="cuda")  # floats: four times the cache
        elif self.options.small:
            self.device = "cpu"
            torch.set_num_threads(1)  # what is small waits for threads only
        else:
            skip(self.options, "PyTorch sees no GPU.")
        # What the kernels do in float is exact.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.manual_seed(1)

    def formats(self):
        return [("Bf16", self.torch.bfloat16), ("float", self.torch.float32)]

    def random(self, *shape, dtype, scale=1.0, grad=False):
        x = (2 * self.torch.rand(*shape, device=self.device) - 1) * scale
        return x.to(dtype).requires_grad_(grad)

    def once(self, work):
        """Microseconds of one repetition."""
        if self.device == "cpu":
            import time

            begin = time.perf_counter()
            work()
            return 1e6 * (time.perf_counter() - begin)
        begin = self.torch.cuda.Event(enable_timing=True)
        end = self.torch.cuda.Event(enable_timing=True)
        # PyTorch needs longer than the GPU to start small kernels. Reading the cold memory several
        # times gives it a lead.
        for _ in range(4):
            self.cold.sum()
        begin.record()
        work()
        end.record()
        end.synchronize()
        return 1e3 * begin.elapsed_time(end)

    def measure(self, kernel, format, shape, implementation, work, warm_up=3, least=5):
        """The sorted times of work(); None, and a sentence in the report, if it fails."""
        try:
            for _ in range(warm_up):
                slowest = self.once(work)
            affordable = int(1e6 * self.options.seconds / slowest)
            count = max(least, min(self.options.repetitions, affordable))
            return sorted(self.once(work) for _ in range(count))
        except Exception as error:
            sentence = "%s, %s, %s by %s: %s" % (kernel, format, shape, implementation,
                                                str(error).strip().split("\n")[0])
            print("Skipped: " + sentence, flush=True)
            self.skipped.append(sentence)
            self.save()
            return None

    def keep(self, kernel, format, shape, implementation, times):
        """A result: sorted times."""
        self.results.append({"kernel": kernel, "format": format, "shape": shape,
                             "implementation": implementation, "repetitions": len(times),
                             "microseconds": {"median": quantile(times, 0.5),
                                              "lower_quartile": quantile(times, 0.25),
                                              "upper_quartile": quantile(times, 0.75)}})
        print("%-24s %-6s %-44s %-32s %10.1f us" % (kernel, format, shape, implementation,
                                                    quantile(times, 0.5)), flush=True)
        self.save()

    def time(self, kernel, format, shape, implementation, work, **how):
        """Times work() and keeps the result, if there is one."""
        times = self.measure(kernel, format, shape, implementation, work, **how)
        if times:
            self.keep(kernel, format, shape, implementation, times)

    def save(self):
        """After each result, so that a run cut short leaves what it has."""
        if self.options.json:
            write(self.options.json, json.dumps({
                "torch": self.torch.__version__, "device": self.device,
                "skipped": self.skipped, "results": self.results}, indent=1))
        if self.options.tsv:
            lines = []
            for r in self.results:
                t = r["microseconds"]
                lines.append("\t".join([r["kernel"], r["format"], r["shape"], r["implementation"],
                                        "%.2f" % t["median"], "%.2f" % t["lower_quartile"],
                                        "%.2f" % t["upper_quartile"], "0", "0", "0"]) + "\n")
            write(self.options.tsv, "".join(lines))


def quantile(sorted_numbers, q):
    at = q * (len(sorted_numbers) - 1)
    below = int(at)
    above = min(below + 1, len(sorted_numbers) - 1)
    return (sorted_numbers[below]
            + (at - below) * (sorted_numbers[above] - sorted_numbers[below]))
