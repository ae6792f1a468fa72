# SPDX-License-Identifier: Apache-2.0
"""A supervised training step (loss, gradients, clipping, AdamW, dropout 0.1) by transformers, as
published and under autocast, and by a T5 in plain PyTorch that is written for speed."""

from t5_shapes import Setting

s = Setting(__doc__)
bench, torch = s.bench, s.torch
F = torch.nn.functional
BF16 = torch.bfloat16


def step_of(model, optimizer, loss_of, dtype):
    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(bench.device, dtype=BF16, enabled=dtype == BF16):
            loss = loss_of(model)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return step


def run(implementation, model, optimizer, loss_of, dtype, sizes, made=lambda step: step, **how):
    model.train()
    for rows in sizes:
        contexts, labels = s.tokens(rows, s.context), s.tokens(rows, s.response)
        step = made(step_of(model, optimizer, lambda m: loss_of(m, contexts, labels), dtype))
        bench.time("t5_training_step", "Bf16" if dtype == BF16 else "float",
                   "%d x %d -> %d, dropout" % (rows, s.context, s.response), implementation, step,
                   **how)


def plain_loss(model, contexts, labels):
    logits, _ = model(contexts, F.pad(labels[:, :-1], (1, 0)))
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


sizes = [s.rows] if s.small else [32, 8, 128]
model = s.tuned()
# The value head has no gradient here.
model.value.requires_grad_(False)
model.stream = BF16
run("PyTorch: SDPA, autocast, fused AdamW", model, s.adamw(model), plain_loss, BF16, sizes)
if s.transformers:
    def published_loss(model, contexts, labels):
        return model(input_ids=contexts, labels=labels).loss

    theirs = s.published()
    slow = {"warm_up": 2, "least": 3}
    optimizer = s.adamw(theirs, fused=False)
    run("transformers as published", theirs, optimizer, published_loss, torch.float32, sizes[:2],
        **slow)
    run("transformers, autocast", theirs, optimizer, published_loss, BF16, sizes[:1], **slow)
    del theirs, optimizer
compiled = s.compiled(model)
optimizer = s.adamw(compiled)
name = "PyTorch: SDPA, autocast, fused AdamW, compiled"
run(name, compiled, optimizer, plain_loss, BF16, sizes[:1])
if bench.device == "cuda":
    run(name + s.graph(), compiled, optimizer, plain_loss, BF16, sizes[:1], s.t5.Captured)
bench.save()
