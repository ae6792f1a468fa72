# SPDX-License-Identifier: Apache-2.0
"""Generation by transformers, as published and with a static cache, and by a T5 in plain PyTorch
that is written for speed: 32 contexts of 200 tokens, 30 tokens each, top-k 20, temperature 0.9."""

from measure import first_line
from t5_shapes import Setting

s = Setting(__doc__)
bench, torch = s.bench, s.torch
tokens, few = (6, 2) if s.small else (30, 6)
contexts = s.tokens(s.rows, s.context)
shape = "%d x %d" % (s.rows, s.context)
BF16 = torch.bfloat16


def time(format, implementation, generate, encode=None, **how):
    """Whole generations, and by a shorter one what a token more costs; then the encoder."""
    whole = bench.measure("t5_generate", format, "%s -> %d" % (shape, tokens), implementation,
                          lambda: generate(tokens), **how)
    part = whole and bench.measure("t5_decode_step", format, shape, implementation,
                                   lambda: generate(few), **how)
    if part:
        less = part[len(part) // 2]
        bench.keep("t5_decode_step", format, shape, implementation,
                   [(t - less) / (tokens - few) for t in whole])
        bench.keep("t5_generate", format, "%s -> %d" % (shape, tokens), implementation, whole)
    if encode:
        bench.time("t5_encode", format, shape + ", with the decoder's keys and values",
                   implementation, encode, **how)


def plain(model, implementation):
    decoding = s.t5.Decoding(model, s.rows, s.context, tokens)
    time("Bf16", implementation, lambda n: decoding.generate(contexts, n),
         lambda: decoding.prefill(contexts))


tuned = s.tuned(BF16).eval()
plain(tuned, "PyTorch: SDPA, static cache" + s.graph())

if s.transformers:
    model = s.published().eval()

    @torch.no_grad()
    def generate(model, n, rows, **more):
        for begin in range(0, s.rows, rows):
            part = contexts[begin:begin + rows]
            model.generate(input_ids=part, attention_mask=torch.ones_like(part), do_sample=True,
                           top_k=20, temperature=0.9, min_new_tokens=n, max_new_tokens=n, **more)

    slow = {"warm_up": 1, "least": 2}
    time("float", "transformers as published, 4 x %d rows" % s.mini,
         lambda n: generate(model, n, s.mini), **slow)
    model = model.to(BF16)
    time("Bf16", "transformers, %d rows" % s.rows, lambda n: generate(model, n, s.rows), **slow)

plain(s.compiled(tuned), "PyTorch: SDPA, static cache, compiled" + s.graph())

if s.transformers:
    # Versions differ in what they have of this; what they say where they have not is kept.
    try:
        model.set_attn_implementation("sdpa")
        attention = "SDPA"
    except (AttributeError, ValueError, ImportError) as error:
        attention = "eager"
        bench.leave_out("transformers with SDPA: %s" % first_line(error))
    # generate() compiles the step itself where the cache is static and the device a GPU: the whole
    # decoder, which takes longest of all, and again for another number of tokens. Last, and once.
    bench.time("t5_generate", "Bf16", "%s -> %d" % (shape, tokens),
               "transformers: %s, static cache" % attention,
               lambda: generate(model, tokens, s.rows, cache_implementation="static"), **slow)
bench.save()
