# SPDX-License-Identifier: Apache-2.0
"""A step of AdamW over the parameters of T5-base by PyTorch's fused optimiser, with the clipping of
the global norm, as one tensor: what it does best."""

from measure import Bench

bench = Bench(__doc__)
torch = bench.torch
n = 1031 if bench.options.small else 222903552

parameters = torch.nn.Parameter(bench.random(n, dtype=torch.float32))
parameters.grad = bench.random(n, dtype=torch.float32)
copy = torch.empty(n, dtype=torch.bfloat16, device=bench.device)
for fused in (True, False):
    try:
        optimiser = torch.optim.AdamW([parameters], lr=1e-3, weight_decay=0.01, fused=fused,
                                      foreach=not fused)
    except Exception as error:
        bench.leave_out("AdamW, fused %s: %s" % (fused, error))
        continue
    name = "AdamW fused, clip_grad_norm_" if fused else "AdamW foreach, clip_grad_norm_"

    def step():
        torch.nn.utils.clip_grad_norm_([parameters], 1.0, foreach=True)
        optimiser.step()

    def step_and_copy():
        step()
        copy.copy_(parameters.detach())

    bench.time("adamw_step", "float", "%d" % n, name, step)
    bench.time("adamw_step", "float", "%d and a copy in Bf16" % n, name, step_and_copy)
    del optimiser
bench.save()
