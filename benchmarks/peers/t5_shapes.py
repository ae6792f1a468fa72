# SPDX-License-Identifier: Apache-2.0
"""What the rivals at T5-base's shape have in common: sizes, batches, models with random weights."""

import copy

from measure import Bench, first_line


class Setting:
    """Sizes and tokens; names of shapes are bench_kernels' (benchmarks/kernels/model.cu)."""

    def __init__(self, what):
        self.bench = Bench(what)
        self.small = self.bench.options.small
        self.torch = self.bench.torch
        import t5_torch

        self.t5 = t5_torch
        self.shape = t5_torch.Shape(self.small)
        self.rows, self.context, self.response = (4, 9, 5) if self.small else (32, 200, 50)
        self.mini = self.rows // 4
        try:
            import transformers

            transformers.logging.set_verbosity_error()
            # They are imported when they are first asked for.
            for name in ("T5Config", "T5ForConditionalGeneration", "T5EncoderModel"):
                getattr(transformers, name)
            self.transformers = transformers
            self.bench.versions["transformers"] = transformers.__version__
        except Exception as error:  # of its many imports any may fail, in many ways
            self.transformers = None
            self.bench.leave_out("transformers cannot be imported (%s)" % first_line(error))
        if self.transformers:
            self.check()

    def tokens(self, rows, length):
        return self.torch.randint(3, self.shape.vocabulary, (rows, length),
                                  device=self.bench.device)

    def config(self):
        s = self.shape
        return self.transformers.T5Config(
            vocab_size=s.vocabulary, d_model=s.width, d_kv=s.head, d_ff=s.hidden,
            num_layers=s.layers, num_decoder_layers=s.layers, num_heads=s.heads,
            dropout_rate=s.dropout, feed_forward_proj="relu", tie_word_embeddings=True,
            decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)

    def published(self, kind="T5ForConditionalGeneration"):
        """transformers' model with random weights, attention as it was published."""
        config = self.config()
        config._attn_implementation = "eager"
        with self.torch.device(self.bench.device):
            return getattr(self.transformers, kind)(config)

    def tuned(self, dtype=None):
        with self.torch.device(self.bench.device):
            model = self.t5.T5(self.shape)
        return model.to(dtype) if dtype else model

    def check(self):
        """The tuned model computes what transformers computes. A disagreement is an error: a rival
        that does other work is none."""
        torch = self.torch
        device, self.bench.device = self.bench.device, "cpu"
        shape, self.shape = self.shape, self.t5.Shape(True)
        try:
            theirs, ours = self.published().eval(), self.tuned().eval()
            self.t5.take_weights(ours, theirs.state_dict())
            contexts, inputs = self.tokens(3, 150), self.tokens(3, 7)
            with torch.no_grad():
                expected = theirs(input_ids=contexts, decoder_input_ids=inputs,
                                  use_cache=False).logits
                logits = ours(contexts, inputs)[0]
                decoding = self.t5.Decoding(ours, 3, 150, 7)
                decoding.start(contexts)
                steps = []
                for t in range(7):
                    decoding.token.copy_(inputs[:, t:t + 1])
                    steps.append(decoding.logits())
                    decoding.position.add_(1)
            scale = float(expected.abs().max())
            for name, actual in (("forward", logits), ("by steps", torch.stack(steps, 1))):
                error = float((actual - expected).abs().max()) / scale
                # Sums of some hundred terms in float, in another order.
                if not error <= 1e-4:
                    raise SystemExit("t5_torch %s differs from transformers by %g" % (name, error))
        finally:
            self.bench.device, self.shape = device, shape

    def compiled(self, model):
        """A copy whose blocks are compiled when they first run. On the processor they are traced
        only: what there is to compile for is a GPU."""
        model = copy.deepcopy(model)
        backend = "inductor" if self.bench.device == "cuda" else "eager"
        self.bench.compiling(lambda: self.t5.compile_blocks(model, backend))
        return model

    def adamw(self, model, fused=True):
        """With what the fused one needs to be captured: its numbers are on the GPU anyway."""
        fused = fused and self.bench.device == "cuda"
        return self.torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0,
                                      **({"fused": True, "capturable": True} if fused else {}))

    def graph(self):
        """What an implementation that captures a step is called."""
        return ", CUDA graph" if self.bench.device == "cuda" else ""
