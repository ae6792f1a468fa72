# SPDX-License-Identifier: Apache-2.0
"""The shapes of benchmarks/kernels/attention.cu, as PyTorch's attention takes them."""


class Problem:
    """q, k, v and the gradient of o as (rows, heads, tokens, 64), which is what PyTorch's kernels
    like best: transposing from the model's layout is not counted against them."""

    def __init__(self, bench, dtype, name, rows, queries, keys, heads, causal, bias):
        torch = bench.torch
        self.queries, self.keys, self.causal, self.bias = queries, keys, causal, bias
        self.q = bench.random(rows, heads, queries, 64, dtype=dtype, grad=True)
        self.k = bench.random(rows, heads, keys, 64, dtype=dtype, grad=True)
        self.v = bench.random(rows, heads, keys, 64, dtype=dtype, grad=True)
        self.do = bench.random(rows, heads, queries, 64, dtype=dtype)
        distances = queries if causal else queries + keys - 1
        self.table = bench.random(heads, distances, dtype=torch.float32, grad=True)
        self.text = "%s%s, %d x %d%s, %d heads" % (
            name, " with bias" if bias else "", rows, queries,
            "" if causal or queries == keys else " to %d" % keys, heads)

    def inputs(self):
        return [self.q, self.k, self.v]


def problems(bench, dtype):
    if bench.options.small:
        shapes = [("encoder", 2, 70, 70, 2, False, True), ("decoder", 2, 70, 70, 1, True, True),
                  ("cross", 2, 31, 97, 1, False, False)]
    else:
        shapes = [("encoder", 32, 200, 200, 12, False, True),
                  ("encoder", 32, 200, 200, 12, False, False),
                  ("decoder", 32, 200, 200, 12, True, True),
                  ("decoder", 32, 200, 200, 12, True, False),
                  ("cross", 32, 30, 200, 12, False, False)]
    for shape in shapes:
        yield Problem(bench, dtype, *shape)


def time_both(bench, problem, format, implementation, forward, extra):
    """Times forward(), and the gradients of q, k, v and `extra` behind it."""
    torch = bench.torch

    def inference():
        with torch.no_grad():
            forward()

    bench.time("attention_forward", format, problem.text, implementation, inference)
    try:
        o = forward()
    except Exception:
        return
    wanted = problem.inputs() + extra
    bench.time("attention_backward", format, problem.text, implementation,
               lambda: torch.autograd.grad(o, wanted, problem.do, retain_graph=True))
