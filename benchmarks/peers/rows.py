# SPDX-License-Identifier: Apache-2.0
"""Log-probabilities, RMS normalisation, the embedding and sampling by PyTorch, at the shapes of
bench_kernels."""

from measure import Bench

bench = Bench(__doc__)
torch = bench.torch
F = torch.nn.functional
small = bench.options.small


def ids(n, rows):
    u = torch.rand(n, device=bench.device)
    return (rows * u * u * u).long()


n, vocabulary = (3, 1031) if small else (960, 32128)
for format, dtype in bench.formats():
    logits = bench.random(n, vocabulary, dtype=dtype, scale=8.0, grad=True)
    targets = ids(n, vocabulary)[:, None]
    dlogp = bench.random(n, 1, dtype=torch.float32)
    shape = "%d x %d" % (n, vocabulary)

    def logp():
        return F.log_softmax(logits.float(), dim=-1).gather(1, targets)

    def inference():
        with torch.no_grad():
            logp()

    def entropyless():
        with torch.no_grad():
            x = logits.float()
            x.gather(1, targets) - torch.logsumexp(x, dim=-1, keepdim=True)

    bench.time("token_logprob_forward", format, shape, "log_softmax, gather", inference)
    bench.time("token_logprob_forward", format, shape, "gather, logsumexp", entropyless)
    y = logp()
    bench.time("token_logprob_backward", format, shape, "log_softmax, gather",
               lambda: torch.autograd.grad(y, [logits], dlogp, retain_graph=True))
    del logits, y

rows, columns = (33, 256) if small else (6400, 768)
for format, dtype in bench.formats():
    if not hasattr(F, "rms_norm"):
        bench.leave_out("this PyTorch has no rms_norm")
        break
    a = bench.random(rows, columns, dtype=dtype, grad=True)
    b = bench.random(rows, columns, dtype=dtype)
    w = bench.random(columns, dtype=dtype, grad=True)
    dy = bench.random(rows, columns, dtype=dtype)
    shape = "%d x %d" % (rows, columns)

    def add_and_norm():
        s = a.detach() + b
        F.rms_norm(s, (columns,), w.detach(), 1e-6)

    bench.time("rms_norm_forward", format, shape, "rms_norm",
               lambda: F.rms_norm(a.detach(), (columns,), w.detach(), 1e-6))
    bench.time("add_rms_norm_forward", format, shape, "add, rms_norm", add_and_norm)
    y = F.rms_norm(a, (columns,), w, 1e-6)
    bench.time("rms_norm_backward", format, shape, "rms_norm",
               lambda: torch.autograd.grad(y, [a, w], dy, retain_graph=True))

tokens, table_rows, width = (97, 50, 128) if small else (6400, 32128, 768)
for format, dtype in bench.formats():
    table = bench.random(table_rows, width, dtype=dtype, grad=True)
    where = ids(tokens, table_rows)
    dy = bench.random(tokens, width, dtype=dtype)
    shape = "%d x %d of %d" % (tokens, width, table_rows)
    bench.time("embedding_forward", format, shape, "embedding",
               lambda: F.embedding(where, table.detach()))
    y = F.embedding(where, table)
    bench.time("embedding_backward", format, shape, "embedding, a table in its format",
               lambda: torch.autograd.grad(y, [table], dy, retain_graph=True))

batch, vocabulary = (8, 1031) if small else (32, 32128)
shape = "%d x %d" % (batch, vocabulary)


def top_p(logits, p):
    """As in transformers' TopPLogitsWarper: sort, cumulate, scatter the mask back."""
    values, order = torch.sort(logits, descending=False)
    removed = values.softmax(dim=-1).cumsum(dim=-1) <= 1 - p
    removed[..., -1:] = False
    logits = logits.masked_fill(removed.scatter(1, order, removed), float("-inf"))
    return torch.multinomial(logits.softmax(dim=-1), 1)


def top_k(logits, k):
    least = torch.topk(logits, k)[0][..., -1, None]
    return torch.multinomial(logits.masked_fill(logits < least, float("-inf")).softmax(dim=-1), 1)


peaked = bench.random(batch, vocabulary, dtype=torch.float32, scale=400.0)
flat = bench.random(batch, vocabulary, dtype=torch.float32, scale=8.0)
bench.time("sample_tokens", "float", "greedy, " + shape, "argmax", lambda: peaked.argmax(dim=-1))
bench.time("sample_tokens", "float", "all tokens, " + shape, "softmax, multinomial",
           lambda: torch.multinomial(flat.softmax(dim=-1), 1))
bench.time("sample_tokens", "float", "top-k 50, " + shape, "as in transformers",
           lambda: top_k(peaked, 50))
bench.time("sample_tokens", "float", "top-p 0.9, a hundred tokens, " + shape, "as in transformers",
           lambda: top_p(peaked, 0.9))
bench.time("sample_tokens", "float", "top-p 0.9, thousands, " + shape, "as in transformers",
           lambda: top_p(flat, 0.9))
