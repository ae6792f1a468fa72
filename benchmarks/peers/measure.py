# SPDX-License-Identifier: Apache-2.0
"""How the rivals are timed: as benchmarks/kernels/measure.cuh times the kernels, by CUDA's events,
after a warm-up, with an L2 cache that was read full of something else. Results have the names of
bench_kernels, so that benchmarks/gpu.sh can put them beside each other."""

import argparse
import importlib
import json
import math
import os
import sys


def skip(options, sentence):
    """Says why there is nothing to measure; that is no failure."""
    print("Skipped: " + sentence)
    if options.json:
        write(options.json, json.dumps({"skipped": sentence}))
    sys.exit(0)


def first_line(error):
    """What an error says, without its explanations; its kind where it says nothing."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def aligned(n):
    """Where the next row of a bias of n keys begins: at multiples of 16 numbers, without which
    scaled_dot_product_attention copies the bias in every call."""
    return -(-n // 16) * 16


def aligned_rows(bias):
    """The same numbers, with rows that begin so."""
    from torch.nn.functional import pad

    n = bias.shape[-1]
    return pad(bias.contiguous(), (0, aligned(n) - n))[..., :n]


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
        except (ImportError, OSError) as error:  # OSError: a library of CUDA that it wants
            skip(self.options, "PyTorch cannot be imported (%s)." % first_line(error))
        self.torch = torch
        self.versions = {"torch": torch.__version__}
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

    def leave_out(self, sentence):
        """Something is not measured: the report says why."""
        print("Skipped: " + sentence, flush=True)
        self.skipped.append(sentence)
        self.save()

    def compiling(self, compile):
        """compile(), with torch.compile as it has to be here, in versions that are not so by
        themselves: one function is compiled for many shapes, rather than given up after some;
        modules of one kind share what was compiled; and what one program has compiled the next one
        finds on the disk. Where PyTorch cannot compile at all the program ends, with what it has.
        """
        try:
            self.prepare_compiler()
            return compile()
        except Exception as error:
            self.leave_out("nothing can be compiled: %s" % first_line(error))
            sys.exit(0)

    @staticmethod
    def prepare_compiler():
        for module, settings in (
                ("torch._dynamo.config", {"cache_size_limit": 64, "recompile_limit": 64,
                                          "fail_on_recompile_limit_hit": True,
                                          "inline_inbuilt_nn_modules": True}),
                ("torch._inductor.config", {"fx_graph_cache": True})):
            config = importlib.import_module(module)
            for name, value in settings.items():
                if hasattr(config, name) and getattr(config, name) != value:
                    setattr(config, name, value)

    def measure(self, kernel, format, shape, implementation, work, warm_up=3, least=5):
        """The sorted times of work(); None, and a sentence in the report, if it fails."""
        what = "%s, %s, %s by %s" % (kernel, format, shape, implementation)
        print("Measuring " + what, flush=True)  # the last of these is what a limit has cut short
        try:
            for _ in range(warm_up):
                self.once(work)
            times = [self.once(work)]
            affordable = int(1e6 * self.options.seconds / max(times[0], 1.0))
            while len(times) < max(least, min(self.options.repetitions, affordable)):
                times.append(self.once(work))
            return sorted(times)
        except Exception as error:
            self.leave_out("%s: %s" % (what, first_line(error)))
            return None

    def keep(self, kernel, format, shape, implementation, times):
        """A result: sorted times. A difference of times may be none."""
        if not (quantile(times, 0.5) > 0 and all(map(math.isfinite, times))):
            self.leave_out("%s, %s, %s by %s: %g us is no time" % (
                kernel, format, shape, implementation, quantile(times, 0.5)))
            return
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
                **self.versions, "device": self.device,
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
