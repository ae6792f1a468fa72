# SPDX-License-Identifier: Apache-2.0
"""Attention with a learned bias by PyTorch's FlexAttention: the bias is looked up in its table by a
function that is compiled into the kernel, and the table's gradient comes with it. Compiling takes
most of the time, so that this is a program of its own."""

import importlib

from attention_shapes import problems, time_both
from measure import Bench, skip

bench = Bench(__doc__)
torch = bench.torch
try:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
except ImportError as error:
    skip(bench.options, "this PyTorch has no FlexAttention (%s)." % error)
flex = flex_attention
if bench.device == "cuda":
    # The gradient is asked for again and again: the kernel may not write over what was kept for it.
    config = importlib.import_module("torch._functorch.config")
    if hasattr(config, "donated_buffer"):
        config.donated_buffer = False
    flex = bench.compiling(lambda: torch.compile(flex_attention, dynamic=False))

for format, dtype in bench.formats():
    if format == "float":
        continue  # Its products are TF32 or slow: nothing to compare with.
    for p in problems(bench, dtype):
        table, queries = p.table, p.queries

        def biased(score, b, h, i, j):
            return score + table[h, (j - i + queries - 1).clamp(0, table.shape[1] - 1)]

        block_mask = None
        if p.causal:
            block_mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, p.queries,
                                           p.keys, device=bench.device)

        def forward():
            return flex(p.q, p.k, p.v, score_mod=biased if p.bias else None, block_mask=block_mask,
                        scale=1.0)

        time_both(bench, p, format, "FlexAttention", forward, [table] if p.bias else [])
