# SPDX-License-Identifier: Apache-2.0
"""T5 as one writes it for speed in plain PyTorch: products of one input in one, attention by
scaled_dot_product_attention, a cache of fixed size that a CUDA graph can be captured over, blocks
that can be compiled one by one. It needs no transformers, and computes what transformers computes
(Setting.check says so)."""

import gc
import math

import torch
from torch import nn
from torch.nn import functional as F

from measure import aligned, aligned_rows


class Shape:
    """T5-base, or one that the processor computes at once."""

    def __init__(self, small):
        self.vocabulary = 131 if small else 32128
        self.width = 64 if small else 768
        self.heads = 2 if small else 12
        self.head = 32 if small else 64
        self.inner = self.heads * self.head
        self.hidden = 96 if small else 3072
        self.layers = 2 if small else 12
        self.dropout = 0.1


def buckets(queries, keys, both_sides, device, number=32, furthest=128):
    """T5's bucket of each key's distance from each query."""
    distance = (torch.arange(keys, device=device)[None, :]
                - torch.arange(queries, device=device)[:, None])
    bucket = torch.zeros_like(distance)
    if both_sides:
        number //= 2
        bucket = (distance > 0).long() * number
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = number // 2
    far = exact + (torch.log(distance.clamp(min=1).float() / exact) / math.log(furthest / exact)
                   * (number - exact)).long()
    return bucket + torch.where(distance < exact, distance, far.clamp(max=number - 1))


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (y * self.weight.float()).to(x.dtype)


class Attention(nn.Module):
    """`first` makes queries, keys and values of one input, or the queries alone where `others`
    makes keys and values of another."""

    def __init__(self, shape, cross):
        super().__init__()
        self.heads, self.dropout = shape.heads, shape.dropout
        self.first = nn.Linear(shape.width, (1 if cross else 3) * shape.inner, bias=False)
        self.others = nn.Linear(shape.width, 2 * shape.inner, bias=False) if cross else None
        self.o = nn.Linear(shape.inner, shape.width, bias=False)
        for linear in (self.first, self.others, self.o):
            if linear is not None:
                nn.init.normal_(linear.weight, std=linear.in_features ** -0.5)
        with torch.no_grad():
            self.first.weight[:shape.inner] *= shape.head ** -0.5

    def split(self, x, parts):
        x = x.view(x.shape[0], x.shape[1], parts, self.heads, -1)
        return [part.transpose(1, 2) for part in x.unbind(2)]

    def queries_keys_values(self, x):
        return self.split(self.first(x), 3)

    def queries(self, x):
        return self.split(self.first(x), 1)[0]

    def keys_values(self, x):
        return self.split(self.others(x), 2)

    def forward(self, q, k, v, bias):
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0,
                                           dropout_p=self.dropout if self.training else 0.0)
        return self.o(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """One layer of the encoder, or of the decoder."""

    def __init__(self, shape, decoder):
        super().__init__()
        self.norm, self.attention = Norm(shape.width), Attention(shape, False)
        self.cross_norm = Norm(shape.width) if decoder else None
        self.cross = Attention(shape, True) if decoder else None
        self.last_norm = Norm(shape.width)
        self.wi = nn.Linear(shape.width, shape.hidden, bias=False)
        self.wo = nn.Linear(shape.hidden, shape.width, bias=False)
        nn.init.normal_(self.wi.weight, std=shape.width ** -0.5)
        nn.init.normal_(self.wo.weight, std=shape.hidden ** -0.5)
        self.dropout = nn.Dropout(shape.dropout)

    def after_attention(self, x, cross):
        if self.cross is not None:
            q = self.cross.queries(self.cross_norm(x))
            x = x + self.dropout(self.cross(q, *cross, None))
        return x + self.dropout(self.wo(self.dropout(F.relu(self.wi(self.last_norm(x))))))

    def forward(self, x, bias, memory=None):
        q, k, v = self.attention.queries_keys_values(self.norm(x))
        x = x + self.dropout(self.attention(q, k, v, bias))
        return self.after_attention(x, None if memory is None else self.cross.keys_values(memory))

    def step(self, x, bias, keys, values, position, cross_keys, cross_values):
        """One token a row; its key and value go into the caches, at `position`."""
        q, k, v = self.attention.queries_keys_values(self.norm(x))
        keys.index_copy_(2, position, k)
        values.index_copy_(2, position, v)
        x = x + self.attention(q, keys, values, bias)
        return self.after_attention(x, (cross_keys, cross_values))


class Stack(nn.Module):
    def __init__(self, shape, decoder):
        super().__init__()
        self.decoder = decoder
        self.blocks = nn.ModuleList(Block(shape, decoder) for _ in range(shape.layers))
        self.bias = nn.Embedding(32, shape.heads)
        nn.init.normal_(self.bias.weight, std=shape.width ** -0.5)
        self.norm = Norm(shape.width)
        self.dropout = nn.Dropout(shape.dropout)

    def biases(self, n, dtype):
        """(1, heads, n, n), its rows aligned; the decoder's hides later keys."""
        bias = self.bias(buckets(n, n, not self.decoder, self.bias.weight.device))
        bias = bias.permute(2, 0, 1)[None]
        if self.decoder:
            later = torch.ones(n, n, dtype=torch.bool, device=bias.device).triu(1)
            bias = bias.masked_fill(later, float("-inf"))
        return aligned_rows(bias.to(dtype))

    def forward(self, x, memory=None):
        bias = self.biases(x.shape[1], x.dtype)
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, bias, memory)
        return self.dropout(self.norm(x))


class Encoder(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shared = nn.Embedding(shape.vocabulary, shape.width)
        self.stack = Stack(shape, False)

    def forward(self, ids):
        return self.stack(self.shared(ids))


class T5(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.shared = nn.Embedding(shape.vocabulary, shape.width)
        self.encoder, self.decoder = Stack(shape, False), Stack(shape, True)
        self.value = nn.Linear(shape.width, 1)
        # What the blocks read and write, if not the weights' format: under autocast every product
        # would write 16 bits and every sum read and write 32.
        self.stream = None

    def embedded(self, ids):
        x = self.shared(ids)
        return x if self.stream is None else x.to(self.stream)

    def hidden(self, contexts, inputs):
        memory = self.encoder(self.embedded(contexts))
        return self.decoder(self.embedded(inputs), memory)

    def logits(self, hidden):
        return F.linear(hidden * self.shape.width ** -0.5, self.shared.weight.to(hidden.dtype))

    def forward(self, contexts, inputs):
        hidden = self.hidden(contexts, inputs)
        return self.logits(hidden), self.value(hidden).squeeze(-1)


def compile_blocks(model, backend):
    """Each block by itself: one compilation serves all of a stack."""
    for stack in model.modules():
        for block in stack.blocks if isinstance(stack, Stack) else []:
            block.forward = torch.compile(block.forward, dynamic=False, backend=backend)
            block.step = torch.compile(block.step, dynamic=False, backend=backend)


class Captured:
    """work() as one CUDA graph, captured when it is first called."""

    def __init__(self, work):
        self.work, self.graph = work, None

    def __call__(self):
        if self.graph is None:
            # What is compiled or chosen on the way must not be captured.
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.work()
                self.work()
            torch.cuda.current_stream().wait_stream(side)
            gc.collect()  # No graph of before may be freed meanwhile.
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.work()
            self.graph = graph
        self.graph.replay()


class Decoding:
    """Sampling with a cache for `tokens` tokens a row; on a GPU the step is one CUDA graph."""

    def __init__(self, model, rows, context, tokens):
        shape, weight = model.shape, model.shared.weight
        self.model, self.tokens = model, tokens

        def cache(length):
            return [torch.zeros(rows, shape.heads, length, shape.head, dtype=weight.dtype,
                                device=weight.device) for _ in range(2 * shape.layers)]

        # What lies beyond the tokens is later than all of them, which the bias hides.
        length = aligned(tokens)
        self.own, self.cross = cache(length), cache(context)
        self.token = torch.zeros(rows, 1, dtype=torch.long, device=weight.device)
        self.position = torch.zeros(1, dtype=torch.long, device=weight.device)
        self.drawn = torch.zeros(rows, tokens, dtype=torch.long, device=weight.device)
        self.bias = torch.zeros(1, shape.heads, length, length, dtype=weight.dtype,
                                device=weight.device)
        self.next = Captured(self.step) if weight.is_cuda else self.step

    @torch.no_grad()
    def prefill(self, contexts):
        memory = self.model.encoder(self.model.shared(contexts))
        for i, block in enumerate(self.model.decoder.blocks):
            k, v = block.cross.keys_values(memory)
            self.cross[2 * i].copy_(k)
            self.cross[2 * i + 1].copy_(v)

    @torch.no_grad()
    def start(self, contexts):
        self.prefill(contexts)
        self.bias.copy_(self.model.decoder.biases(self.bias.shape[-1], self.bias.dtype))
        self.restart()

    def restart(self):
        self.token.zero_()
        self.position.zero_()

    def logits(self):
        x = self.model.shared(self.token)
        bias = self.bias.index_select(2, self.position)
        for i, block in enumerate(self.model.decoder.blocks):
            x = block.step(x, bias, self.own[2 * i], self.own[2 * i + 1], self.position,
                           self.cross[2 * i], self.cross[2 * i + 1])
        return self.model.logits(self.model.decoder.norm(x))[:, 0].float()

    def step(self):
        logits = self.logits()
        logits[:, 1] = float("-inf")  # </s>: no row ends
        values, ids = torch.topk(logits / 0.9, 20)
        weights = torch.softmax(values, -1)
        # The largest of weight / exponential is a draw by the weights for which no host waits.
        choice = (weights / torch.empty_like(weights).exponential_()).argmax(-1, keepdim=True)
        self.token.copy_(ids.gather(1, choice))
        self.drawn.index_copy_(1, self.position, self.token)
        self.position.add_(1)

    @torch.no_grad()
    def generate(self, contexts, tokens=None):
        self.start(contexts)
        if isinstance(self.next, Captured) and self.next.graph is None:
            self.next()  # captures: some steps more
            self.restart()
        for _ in range(tokens or self.tokens):
            self.next()
        return self.drawn[:, : tokens or self.tokens].clone()


class Identifier(nn.Module):
    """The empathy identifier: two encoders and attention of one wide head from response to
    context."""

    def __init__(self, shape, encoders=None):
        super().__init__()
        self.context, self.response = encoders or (Encoder(shape), Encoder(shape))
        self.q, self.k, self.v, self.o = (nn.Linear(shape.width, shape.width) for _ in range(4))
        self.last = nn.Sequential(nn.Linear(shape.width, shape.width // 2), nn.Tanh(),
                                  nn.Linear(shape.width // 2, 3))

    def forward(self, contexts, responses):
        memory, states = self.context(contexts), self.response(responses)
        scores = self.q(states) @ self.k(memory).transpose(1, 2) * memory.shape[-1] ** -0.5
        attended = self.o(torch.softmax(scores.float(), -1).to(states.dtype) @ self.v(memory))
        return self.last((states + attended).mean(1))


def take_weights(model, state):
    """Gives a T5 the weights of transformers' state_dict."""
    def set(parameter, *names):
        parameter.data.copy_(torch.cat([state[name] for name in names]))

    set(model.shared.weight, "shared.weight")
    for stack, name in ((model.encoder, "encoder"), (model.decoder, "decoder")):
        set(stack.bias.weight,
            name + ".block.0.layer.0.SelfAttention.relative_attention_bias.weight")
        set(stack.norm.weight, name + ".final_layer_norm.weight")
        for i, block in enumerate(stack.blocks):
            layer = "%s.block.%d.layer." % (name, i)
            last = layer + ("2" if stack.decoder else "1")
            own, cross = layer + "0.SelfAttention.", layer + "1.EncDecAttention."
            set(block.attention.first.weight, *(own + x + ".weight" for x in "qkv"))
            set(block.attention.o.weight, own + "o.weight")
            if stack.decoder:
                set(block.cross.first.weight, cross + "q.weight")
                set(block.cross.others.weight, *(cross + x + ".weight" for x in "kv"))
                set(block.cross.o.weight, cross + "o.weight")
            set(block.norm.weight, layer + "0.layer_norm.weight")
            if stack.decoder:
                set(block.cross_norm.weight, layer + "1.layer_norm.weight")
            set(block.last_norm.weight, last + ".layer_norm.weight")
            set(block.wi.weight, last + ".DenseReluDense.wi.weight")
            set(block.wo.weight, last + ".DenseReluDense.wo.weight")
