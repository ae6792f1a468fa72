# SPDX-License-Identifier: Apache-2.0
"""An iteration of PPO, 32 contexts of 200 tokens and responses of 30 with the start token: as
published (float32, mini-batches of 8, everything of TRL 0.9.6 that takes time), and as one writes
it for speed (16 bits, one pass of 32, sampling by a CUDA graph of the step; then compiled; then
what follows the sampling a CUDA graph too). Rewards by three identifiers, which read the
generator's tokens: the way through text is left out on all sides."""

import gc

from t5_shapes import Setting

s = Setting(__doc__)
bench, torch = s.bench, s.torch
F = torch.nn.functional
BF16 = torch.bfloat16
tokens = 5 if s.small else 29  # after the start token
epochs = 2 if s.small else 4
mini = s.rows // 2 if s.small else 8
shape = "%d x %d/%d, %d epochs of mini-batches of %d" % (
    s.rows, s.context, tokens + 1, epochs, mini)
contexts = s.tokens(s.rows, s.context)
levels = torch.tensor([[i % 3, i // 3 % 3, i // 9 % 3] for i in range(s.rows)], device=bench.device)


def moments(x):
    return x.mean(), x.var()


class Rollout:
    """Rewards and advantages of a batch, as METHOD 7 has them (all responses of one length)."""

    def __init__(self, responses, scores, logp, values, reference):
        self.responses, self.logp, self.values = responses, logp, values
        scores = (scores - scores.mean()) / (scores.std() + 1.2e-7)
        rewards = -0.2 * (logp - reference)
        rewards[:, -1] += scores
        mean, variance = moments(rewards)
        rewards = (rewards - mean) * torch.rsqrt(variance + 1e-8) + mean
        last, advantages = 0, []
        for t in reversed(range(rewards.shape[1])):
            after = values[:, t + 1] if t + 1 < values.shape[1] else 0
            last = rewards[:, t] + after - values[:, t] + 0.95 * last
            advantages.append(last)
        advantages = torch.stack(advantages[::-1], 1)
        self.returns = advantages + values
        mean, variance = moments(advantages)
        self.advantages = (advantages - mean) * torch.rsqrt(variance + 1e-8)

    def loss(self, rows, logp, values):
        ratio = torch.exp(logp - self.logp[rows])
        a, returns, old = self.advantages[rows], self.returns[rows], self.values[rows]
        policy = torch.max(-a * ratio, -a * ratio.clamp(0.8, 1.2)).mean()
        clipped = torch.max(torch.min(values, old + 0.2), old - 0.2)
        value = 0.5 * torch.max((values - returns) ** 2, (clipped - returns) ** 2).mean()
        return policy + 0.1 * value


def inputs_of(responses):
    return F.pad(responses[:, :-1], (1, 0))


def logprobs(logits, responses):
    return F.log_softmax(logits.float(), -1).gather(2, responses[..., None])[..., 0]


def reward(logits, rows):
    """exp of the negative sum of cross-entropies to the target's levels."""
    p = [F.log_softmax(x.float(), -1).gather(1, levels[rows, k:k + 1])[:, 0]
         for k, x in enumerate(logits)]
    return torch.exp(sum(p))


class Published:
    """The structure of TRL 0.9.6 with the published settings. The model is in eval mode, each
    mini-batch has its full logits in float32 and their entropy as a statistic, and the memory is
    swept after each forward, each mini-batch and the step."""

    def __init__(self):
        self.sweeps = False
        self.policy, self.frozen = s.published().eval(), s.published().eval()
        with torch.device(bench.device):
            self.head = torch.nn.Linear(s.shape.width, 1)
            self.identifiers = [
                s.t5.Identifier(s.shape, tuple(States(s.published("T5EncoderModel")) for _ in "cr"))
                .eval() for _ in range(3)]
        self.optimizer = torch.optim.Adam(
            list(self.policy.parameters()) + list(self.head.parameters()), lr=1e-5)

    def sweep(self):
        if self.sweeps:
            gc.collect()
            if bench.device == "cuda":
                torch.cuda.empty_cache()
            gc.collect()

    def forward(self, model, rows, responses):
        out = model(input_ids=contexts[rows], attention_mask=torch.ones_like(contexts[rows]),
                    decoder_input_ids=inputs_of(responses), output_hidden_states=True)
        values = self.head(out.decoder_hidden_states[-1]).squeeze(-1)
        return out.logits.float(), values

    @torch.no_grad()
    def evaluate(self, model, responses):
        parts = []
        for begin in range(0, s.rows, mini):
            rows = slice(begin, begin + mini)
            logits, values = self.forward(model, rows, responses[rows])
            parts.append((logprobs(logits, responses[rows]), values))
        self.sweep()
        return (torch.cat(x) for x in zip(*parts))

    @torch.no_grad()
    def sample(self):
        responses, scores = [], []
        for begin in range(0, s.rows, mini):
            part = contexts[begin:begin + mini]
            out = self.policy.generate(
                input_ids=part, attention_mask=torch.ones_like(part), do_sample=True, top_k=20,
                temperature=0.9, min_new_tokens=tokens, max_new_tokens=tokens)[:, 1:]
            rows = slice(begin, begin + mini)
            scores.append(reward([f(part, out) for f in self.identifiers], rows))
            responses.append(out)
        return torch.cat(responses), torch.cat(scores)

    def __call__(self):
        responses, scores = self.sample()
        logp, values = self.evaluate(self.policy, responses)
        reference, _ = self.evaluate(self.frozen, responses)
        rollout = Rollout(responses, scores, logp, values, reference)
        statistics = []
        for _ in range(epochs):
            order = torch.randperm(s.rows, device=bench.device)
            for begin in range(0, s.rows, mini):
                rows = order[begin:begin + mini]
                logits, values = self.forward(self.policy, rows, responses[rows])
                self.sweep()
                loss = rollout.loss(rows, logprobs(logits, responses[rows]), values)
                p = torch.softmax(logits, -1)
                entropy = torch.logsumexp(logits, -1) - (p * logits).sum(-1)
                (loss * mini / s.rows).backward()
                statistics.append((loss.detach().item(), entropy.mean().item()))
                self.sweep()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.sweep()
        return statistics


class States(torch.nn.Module):
    """transformers' encoder as a function of ids."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, ids):
        return self.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state


class Tuned:
    """One pass of all rows, frozen models and sampling in 16 bits, a fused optimiser of float32
    weights. `learning` may be captured: then the host starts two graphs and has no part in it."""

    def __init__(self, compile):
        model = s.tuned().eval()
        self.sampler_model = s.tuned(BF16).eval()
        self.frozen = s.tuned(BF16).eval()
        with torch.device(bench.device):
            self.identifiers = [s.t5.Identifier(s.shape).to(BF16).eval() for _ in range(3)]
        model.stream = BF16
        if compile:
            model = s.compiled(model)
            self.sampler_model, self.frozen = (s.compiled(self.sampler_model),
                                               s.compiled(self.frozen))
            self.identifiers = [s.compiled(f) for f in self.identifiers]
        self.policy = model
        self.decoding = s.t5.Decoding(self.sampler_model, s.rows, s.context, tokens)
        self.responses = s.tokens(s.rows, tokens)
        self.optimizer = s.adamw(model)
        self.learning = self.learn

    def forward(self, model):
        with torch.autocast(bench.device, dtype=BF16, enabled=model is self.policy):
            logits, values = model(contexts, inputs_of(self.responses))
        return logprobs(logits, self.responses), values.float()

    def __call__(self):
        with torch.no_grad():
            torch._foreach_copy_(list(self.sampler_model.parameters()),
                                 list(self.policy.parameters()))
            self.responses.copy_(self.decoding.generate(contexts))
        self.learning()

    def learn(self):
        """What follows the sampling."""
        everything, responses = slice(None), self.responses
        with torch.no_grad():
            scores = reward([f(contexts, responses) for f in self.identifiers], everything)
            reference, _ = self.forward(self.frozen)
        rollout = None
        for _ in range(epochs):
            logp, values = self.forward(self.policy)
            if rollout is None:
                # Weights have not moved: the first epoch's forward is the old policy's.
                rollout = Rollout(responses, scores, logp.detach(), values.detach(), reference)
            rollout.loss(everything, logp, values).backward()
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)


def time(implementation, iteration, format="Bf16", **how):
    bench.time("ppo_iteration", format, shape, implementation, iteration, **how)


one_pass = "PyTorch: SDPA, one pass of %d" % s.rows
time(one_pass, Tuned(False))
gc.collect()
if s.transformers:
    published = Published()
    name = "transformers as published"
    time(name + ", without sweeps", published, "float", warm_up=1, least=1)
    published.sweeps = True
    time(name, published, "float", warm_up=0, least=1)  # nothing of it is new
    del published
    gc.collect()
tuned = Tuned(True)
time(one_pass + ", compiled", tuned)
if bench.device == "cuda":
    tuned.learning = s.t5.Captured(tuned.learn)
    time(one_pass + ", compiled" + s.graph(), tuned)
bench.save()
