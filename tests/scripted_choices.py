"""How servers write the probabilities of the chain's next tokens."""

import itertools
import math
from collections.abc import Collection
from typing import Any

import numpy as np
from scripted_chain import PROBABILITIES


def llama_list(prompt: list[int], body: Any, hidden: Collection[int]) -> Any:
    """The likeliest next tokens before biases, as llama.cpp writes them."""
    p = PROBABILITIES[prompt[-1]]
    best = np.argsort(-p, kind="stable")[: body["n_probs"]]
    with np.errstate(divide="ignore"):
        numbers = np.maximum(np.log(p), -3.4e38)
    top = [{"id": int(id), "logprob": float(numbers[id])} for id in best]
    drawn = max(body["logit_bias"], key=lambda pair: pair[1])[0]
    entry = {"id": drawn, "logprob": float(numbers[drawn]), "top_logprobs": top}
    return {"completion_probabilities": [] if drawn in hidden else [entry]}


def llama_choice(prompt: list[int], body: Any, hidden: Collection[int]) -> Any:
    """The likeliest next tokens after biases, as llama.cpp writes them."""
    p = PROBABILITIES[prompt[-1]].copy()
    for id, bias in body["logit_bias"]:
        p[id] *= math.exp(bias)
    p /= p.sum()
    best = np.argsort(-p, kind="stable")[: body["n_probs"]]
    top = [{"id": int(id), "prob": float(p[id])} for id in best if p[id] > 0]
    entry = {"id": top[0]["id"], "top_probs": top}
    return {
        "tokens_evaluated": len(prompt),
        "timings": {"cache_n": len(prompt) - 2},
        "completion_probabilities": [] if entry["id"] in hidden else [entry],
    }


def vllm_choice(prompt: list[int], body: Any, num_named: int | None) -> Any:
    """The log-probabilities of next tokens as vLLM writes them."""
    p = PROBABILITIES[prompt[-1]]
    allowed = body["allowed_token_ids"]
    drawn = allowed[int(np.argmax(p[allowed]))]
    likely = np.argsort(-p, kind="stable")[:num_named].tolist()
    named = body["logprob_token_ids"] if num_named is None else likely
    with np.errstate(divide="ignore"):
        top = {
            f"token_id:{id}": max(float(np.log(p[id])), -9999.0)
            for id in {drawn, *named}
        }
    return {
        "choices": [{"index": 0, "logprobs": {"top_logprobs": [top]}}],
        "usage": {"prompt_tokens": len(prompt), "prompt_tokens_details": None},
    }


def prompt_entries(prompt: list[int]) -> list[Any]:
    """Log-probabilities of a prompt as vLLM writes them."""
    return [
        None,
        *(
            {str(b): {"logprob": float(np.log(PROBABILITIES[a][b])), "rank": 1}}
            for a, b in itertools.pairwise(prompt)
        ),
    ]
