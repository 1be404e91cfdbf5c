"""How SGLang writes the steps and the next tokens of the chain."""

import itertools
from typing import Any

import numpy as np
from scripted_chain import EOS, PROBABILITIES, Drawn, text_of


def sglang_step(
    drawn: Drawn, prompt: list[int], body: Any, numbers: list[float]
) -> dict[str, Any]:
    """One step.

    Args:
        drawn: its tokens.
        prompt: the ids before it.
        body: of the request.
        numbers: log-probabilities of its tokens.
    """
    reason = {
        "limit": {"type": "length", "length": len(drawn.tokens)},
        "eos": {"type": "stop", "matched": EOS},
        "word": {"type": "stop", "matched": drawn.word},
    }[drawn.reason]
    meta: dict[str, Any] = {
        "finish_reason": reason,
        "prompt_tokens": len(prompt),
        "completion_tokens": len(drawn.tokens),
        "cached_tokens": 0,
    }
    if body.get("return_logprob"):
        pairs = zip(numbers, drawn.tokens, strict=True)
        meta["output_token_logprobs"] = [[x, t, None] for x, t in pairs]
        if body["logprob_start_len"] == 0:
            meta["input_token_logprobs"] = [
                [None, prompt[0], None],
                *(
                    [float(np.log(PROBABILITIES[a][b])), b, None]
                    for a, b in itertools.pairwise(prompt)
                ),
            ]
    return {
        "text": text_of(drawn.tokens),
        "output_ids": drawn.tokens,
        "meta_info": meta,
    }


def sglang_choice(prompt: list[int], body: Any) -> Any:
    """The log-probabilities of given next tokens as SGLang writes them."""
    p = PROBABILITIES[prompt[-1]]
    entries = [[float(np.log(p[id])), id, None] for id in body["token_ids_logprob"]]
    return {
        "meta_info": {
            "prompt_tokens": len(prompt),
            "cached_tokens": 1,
            "output_token_ids_logprobs": [entries],
        }
    }
