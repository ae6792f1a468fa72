# SPDX-License-Identifier: Apache-2.0
"""Attention with a learned bias by PyTorch: scaled_dot_product_attention with the bias as a tensor
and its gradient, by each of its backends that takes it, and the plain products of transformers'
T5. The (queries, keys) bias is given: spreading the table over it and collecting its gradient,
which the kernels here do along the way, is not counted against them."""

from attention_shapes import problems, time_both
from measure import Bench, aligned_rows

bench = Bench(__doc__)
torch = bench.torch
F = torch.nn.functional


def backends():
    try:
        from torch.nn.attention import SDPBackend, sdpa_kernel
    except ImportError as error:
        bench.leave_out("PyTorch's backends cannot be chosen (%s)." % error)
        return []
    return [(name, lambda b=getattr(SDPBackend, tag): sdpa_kernel(b))
            for name, tag in [("SDPA flash", "FLASH_ATTENTION"),
                              ("SDPA efficient", "EFFICIENT_ATTENTION"),
                              ("SDPA cuDNN", "CUDNN_ATTENTION")] if hasattr(SDPBackend, tag)]


def spread(problem, dtype):
    """The bias of every pair, and -inf where a query may not look."""
    i = torch.arange(problem.queries, device=bench.device)[:, None]
    j = torch.arange(problem.keys, device=bench.device)[None, :]
    column = (j - i + problem.queries - 1).clamp(0, problem.table.shape[1] - 1)
    bias = problem.table[:, column][None].detach().to(dtype)
    if problem.causal:
        bias = bias.masked_fill(j > i, float("-inf"))
    return aligned_rows(bias).requires_grad_(True)


choices = backends()
for format, dtype in bench.formats():
    for p in problems(bench, dtype):
        bias = spread(p, dtype) if p.bias else None
        extra = [bias] if p.bias else []

        def sdpa():
            return F.scaled_dot_product_attention(p.q, p.k, p.v, attn_mask=bias, scale=1.0,
                                                  is_causal=p.causal and not p.bias)

        for name, chosen in choices:
            if p.bias and name == "SDPA flash":
                continue  # It takes no bias.

            def forward():
                with chosen():
                    return sdpa()

            time_both(bench, p, format, name, forward, extra)

        def eager():
            scores = torch.matmul(p.q, p.k.transpose(2, 3))
            if p.bias:
                scores = scores + bias
            elif p.causal:
                scores = scores + mask
            weights = F.softmax(scores.float(), dim=-1).type_as(scores)
            return torch.matmul(weights, p.v)

        mask = torch.full((p.queries, p.keys), float("-inf"), device=bench.device,
                          dtype=dtype).triu(1)
        time_both(bench, p, format, "T5 as in transformers", eager, extra)
