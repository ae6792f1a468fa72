#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A reward for emprl in plain Python: one JSON request a line in, one JSON answer a line out.

In C++:  train::PipeReward reward{{.command = "python3 examples/pipe_reward/reward.py"}};
By hand: echo '{"id": 1, "response": "How are you?"}' | python3 examples/pipe_reward/reward.py

A request has "id", "episode", "context", "response" and "reference". An answer has the same "id", a
"score" (larger is better) and, if you like, "components": the same names in every answer. Standard
output is for answers alone; print anything else to sys.stderr.
"""
import json
import sys

# With a Hugging Face model, load it here, once:
#   classify = transformers.pipeline("text-classification", model="path/to/model")


def score(context, response):
    """Parts of the score of one response; replace this by what you want to reward."""
    # With the model above:  return {"model": classify(context + " " + response)[0]["score"]}
    words = response.split()
    asks = 1.0 if response.rstrip().endswith("?") else 0.0
    variety = len(set(words)) / len(words) if words else 0.0
    return {"asks": asks, "variety": variety}


for line in sys.stdin.buffer:  # bytes: json reads them as UTF-8 whatever the locale says
    request = json.loads(line)
    parts = score(request.get("context", ""), request.get("response", ""))
    answer = {"id": request["id"], "score": sum(parts.values()), "components": parts}
    print(json.dumps(answer), flush=True)  # without flush the trainer would wait for ever
