# SPDX-License-Identifier: Apache-2.0
"""Attention of one new token a row by PyTorch: over a context, and over a cache that grows by it."""

from measure import Bench, aligned_rows

bench = Bench(__doc__)
torch = bench.torch
F = torch.nn.functional
rows, keys, heads = (3, 97, 2) if bench.options.small else (32, 200, 12)

for format, dtype in bench.formats():
    q = bench.random(rows, heads, 1, 64, dtype=dtype)
    k = bench.random(rows, heads, keys, 64, dtype=dtype)
    v = bench.random(rows, heads, keys, 64, dtype=dtype)
    new_k = bench.random(rows, heads, 1, 64, dtype=dtype)
    new_v = bench.random(rows, heads, 1, 64, dtype=dtype)
    bias = aligned_rows(bench.random(1, heads, 1, keys, dtype=dtype))
    shape = "%d x %d, %d heads" % (rows, keys, heads)

    def eager(bias):
        scores = torch.matmul(q, k.transpose(2, 3))
        if bias is not None:
            scores = scores + bias
        return torch.matmul(F.softmax(scores.float(), dim=-1).type_as(scores), v)

    def append():
        k[:, :, -1:] = new_k
        v[:, :, -1:] = new_v

    def self_sdpa():
        append()
        F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)

    def self_eager():
        append()
        eager(bias)

    cross = "cross, " + shape
    own = "self with bias, append, " + shape
    bench.time("attention_decode", format, cross, "SDPA",
               lambda: F.scaled_dot_product_attention(q, k, v, scale=1.0))
    bench.time("attention_decode", format, cross, "T5 as in transformers", lambda: eager(None))
    bench.time("attention_decode", format, own, "SDPA, a static cache", self_sdpa)
    bench.time("attention_decode", format, own, "T5 as in transformers, a static cache",
               self_eager)
