"""An inference server for tests: a model that can be enumerated, and faults on demand.

It speaks the dialects of real servers.
"""

import asyncio
import itertools
import json
import math
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
from aiohttp import web
from scripted_chain import (
    BOS,
    Draw,
    Drawn,
    next_of_chain,
    text_of,
    tokens_of,
)
from scripted_choices import (
    llama_choice,
    llama_list,
    prompt_entries,
    vllm_choice,
)
from scripted_sglang import sglang_choice, sglang_step

Fault = Callable[[web.Request], Any]
"""Given a request, a response in place of the right one, or None."""


class ScriptedServer:
    """A server in a thread; use as a context.

    Attributes:
        requests: bodies of all requests for completions so far, with their path.
        faults: called in turn, one for each request for a completion; an exhausted
            iterator means no fault.
        next_of: probabilities of the next token after a prompt and a completion; of
            the chain, unless it is replaced. Log-probabilities of prompts are the
            chain's.
        top_k: truncation that applies unasked.
        ignores_seeds: whether every request is drawn anew.
        drawn: tokens that were drawn so far.
        reports_cache: whether vLLM's dialect reports tokens from its cache.
        hidden: ids after which llama.cpp's dialect has an incomplete character.
        num_named: likeliest tokens that vLLM's dialect names; None for those asked for.
        scores: of vLLM's reward models: ids and whether an activation is applied, to
            a row of numbers per token.

    Args:
        dialect: "llama.cpp", "vLLM", "SGLang" or "text".
        log_probs: "raw", "processed" or "none".
        key: bearer token that requests need, or None.
    """

    def __init__(
        self, dialect: str = "llama.cpp", log_probs: str = "raw", key: str | None = None
    ) -> None:
        self.dialect, self.log_probs, self.key = dialect, log_probs, key
        self.requests: list[tuple[str, Any]] = []
        self.faults: Iterator[Fault | None] = iter(())
        self.top_k, self.ignores_seeds = 0, False
        self.hidden: Collection[int] = ()
        self.drawn, self.reports_cache = 0, True
        self.context = 4096
        self.num_named: int | None = None
        self.scores: Callable[[list[int], bool], list[list[float]]] | None = None
        self.next_of: Callable[[tuple[int, ...]], np.ndarray] = next_of_chain
        self._asked: Counter[str] = Counter()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "ScriptedServer":
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def restart(self, pause: float = 0.0) -> None:
        """Drop all connections, and serve again at the same port after a pause."""
        self.__exit__()
        time.sleep(pause)
        self.__enter__()

    def answer(self, path: str, body: Any) -> Any:
        """The right answer to a request."""
        handlers = {
            "llama.cpp": self._llama,
            "vLLM": self._vllm,
            "SGLang": self._sglang,
            "text": self._text,
        }
        return handlers[self.dialect](path, body)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.05)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
        self._loop.run_until_complete(site.start())
        self.port = runner.addresses[0][1]
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        ended = asyncio.gather(*left, return_exceptions=True)
        self._loop.run_until_complete(ended)
        self._loop.close()

    async def _answer(self, request: web.Request) -> Any:
        path = request.path
        given = request.headers.get("Authorization")
        if self.key is not None and given != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "wrong key"}}, status=401)
        body = await request.json() if request.can_read_body else None
        if path in ("/completion", "/v1/completions", "/generate"):
            self.requests.append((path, body))
            fault = next(self.faults, None)
            if fault is not None:
                found = fault(request)
                if asyncio.iscoroutine(found):
                    found = await found
                if found is not None:
                    return found
        answer = self.answer(path, body)
        if isinstance(answer, list) and answer and answer[0] == "stream":
            return await self.stream(request, answer[1:])
        if answer is None:
            return web.json_response({"error": "no such path"}, status=404)
        return web.json_response(answer)

    async def stream(self, request: web.Request, events: list[Any]) -> Any:
        """Answer with events; texts are sent as they are."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            data = event if isinstance(event, str) else json.dumps(event)
            await response.write(f"data: {data}\n\n".encode())
        await response.write_eof()
        return response

    def _draws(
        self, body: Any, prompts: list[list[int]], n: int, most: int, names: Any
    ) -> list[Drawn]:
        seed, stops = body.get(names["seed"]), body.get("stop") or []
        seed = None if seed in (None, -1) or self.ignores_seeds else seed
        # Requests without a seed differ, and so do equal ones; a run of tests repeats.
        content = json.dumps(body, sort_keys=True)
        self._asked[content] += 1
        anew = zlib.crc32(f"{self._asked[content]}{content}".encode()) << 8
        controls = {
            "temperature": body.get("temperature", 0.8),
            "top_k": body.get("top_k", 2) or self.top_k,
            "top_p": body.get("top_p", 0.9),
            "min_p": body.get("min_p", 0.1),
        }
        if self.top_k:
            controls["top_k"] = self.top_k
        copies = itertools.product(prompts, range(n))
        found = [
            Drawn(
                prompt,
                most,
                stops,
                Draw(
                    anew + place if seed is None else seed + copy,
                    controls,
                    self.next_of,
                ),
            )
            for place, (prompt, copy) in enumerate(copies)
        ]
        self.drawn += sum(len(drawn.tokens) for drawn in found)
        return found

    def _llama(self, path: str, body: Any) -> Any:
        if path == "/props":
            return {
                "default_generation_settings": {"n_ctx": self.context},
                "total_slots": 4,
                "chat_template": "",
                "build_info": "b1-test",
                "eos_token": "</s>",
            }
        if path == "/v1/models":
            meta = {"n_params": 1000, "n_ctx_train": self.context}
            return {"data": [{"id": "tiny", "meta": meta}]}
        if path == "/tokenize":
            bos = [BOS] if body.get("add_special") else []
            return {"tokens": bos + tokens_of(body["content"])}
        if path == "/detokenize":
            return {"content": text_of(body["tokens"])}
        if path != "/completion":
            return None
        prompts = body["prompt"]
        prompts = prompts if prompts and isinstance(prompts[0], list) else [prompts]
        if body.get("logit_bias"):
            kind = llama_choice if body["post_sampling_probs"] else llama_list
            return kind(prompts[0], body, self.hidden)
        draws = self._draws(
            body, prompts, body.get("n", 1), body["n_predict"], {"seed": "seed"}
        )
        copies = body.get("n", 1)
        if body.get("stream"):
            events: list[Any] = ["stream"]
            for index, drawn in enumerate(draws):
                post = body["post_sampling_probs"]
                numbers = drawn.processed if post else drawn.raw
                for place, (token, x) in enumerate(
                    zip(drawn.tokens, numbers, strict=True), 1
                ):
                    entry = {
                        "id": token,
                        **({"prob": math.exp(x)} if post else {"logprob": x}),
                    }
                    if token not in self.hidden:
                        events.append(
                            {
                                "index": index,
                                "stop": False,
                                "tokens": [token],
                                "tokens_predicted": place,
                                "completion_probabilities": [entry],
                            }
                        )
                last = self._llama_last(index, drawn, prompts[index // copies])
                events.append(last)
            return events
        found = [
            self._llama_last(i, drawn, prompts[i // copies])
            | {"tokens": drawn.tokens, "content": drawn.text_before_stop}
            for i, drawn in enumerate(draws)
        ]
        return found if len(found) > 1 else found[0]

    def _llama_last(self, index: int, drawn: Drawn, prompt: list[int]) -> Any:
        return {
            "index": index,
            "stop": True,
            "stop_type": drawn.reason,
            "stopping_word": drawn.word,
            "tokens": [],
            "tokens_predicted": len(drawn.tokens),
            "tokens_evaluated": len(prompt),
            "truncated": False,
            "timings": {"cache_n": max(len(prompt) - 1, 0)},
        }

    def _numbers(self, drawn: Drawn) -> list[float]:
        return drawn.raw if self.log_probs == "raw" else drawn.processed

    def _vllm(self, path: str, body: Any) -> Any:
        if path == "/version":
            return {"version": "0.15.0"}
        if path == "/v1/models":
            return {"data": [{"id": "tiny", "max_model_len": self.context}]}
        if path == "/tokenize":
            if "messages" in body:
                return {"tokens": [BOS, *tokens_of(body["messages"][-1]["content"])]}
            bos = [BOS] if body.get("add_special_tokens", True) else []
            return {"tokens": bos + tokens_of(body["prompt"])}
        if path == "/detokenize":
            return {"prompt": text_of(body["tokens"])}
        if path in ("/pooling", "/classify") and self.scores is not None:
            ids = body["input"]
            rows = self.scores(ids, body["use_activation"])
            item = {"data": rows} if path == "/pooling" else {"probs": rows[-1]}
            return {"data": [item], "usage": {"prompt_tokens": len(ids)}}
        if path != "/v1/completions":
            return None
        prompts = body["prompt"]
        prompts = prompts if isinstance(prompts[0], list) else [prompts]
        if "allowed_token_ids" in body:
            return vllm_choice(prompts[0], body, self.num_named)
        draws = self._draws(
            body, prompts, body.get("n", 1), body["max_tokens"], {"seed": "seed"}
        )
        choices = []
        for index, drawn in enumerate(draws):
            kinds = {"limit": "length", "eos": "stop", "word": "stop"}
            choice: dict[str, Any] = {
                "index": index,
                "text": text_of(drawn.tokens),
                "token_ids": drawn.tokens,
                "finish_reason": kinds[drawn.reason],
                "stop_reason": drawn.word or None,
                "logprobs": None,
            }
            if body.get("logprobs") is not None and self.log_probs != "none":
                choice["logprobs"] = {"token_logprobs": self._numbers(drawn)}
            if "prompt_logprobs" in body:
                (prompt,) = prompts
                choice["prompt_logprobs"] = prompt_entries(prompt)
            choices.append(choice)
        return {
            "choices": choices,
            "usage": {
                "prompt_tokens": sum(map(len, prompts)),
                "prompt_tokens_details": {"cached_tokens": int(self.reports_cache)},
            },
        }

    def _sglang(self, path: str, body: Any) -> Any:
        if path == "/get_model_info":
            return {"model_path": "tiny"}
        if path == "/server_info":
            return {"version": "0.6.0", "max_total_num_tokens": self.context}
        if path == "/v1/models":
            return {"data": [{"id": "tiny", "max_model_len": self.context}]}
        if path != "/generate":
            return None
        prompts = body["input_ids"]
        prompts = prompts if isinstance(prompts[0], list) else [prompts]
        if "token_ids_logprob" in body:
            return sglang_choice(prompts[0], body)
        settings = body["sampling_params"]
        draws = self._draws(
            settings,
            prompts,
            settings.get("n", 1),
            settings["max_new_tokens"],
            {"seed": "sampling_seed"},
        )
        found = []
        for index, drawn in enumerate(draws):
            prompt = prompts[index // settings.get("n", 1)]
            found.append(sglang_step(drawn, prompt, body, self._numbers(drawn)))
        return found if len(found) > 1 else found[0]

    def _text(self, path: str, body: Any) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "tiny"}]}
        if path != "/v1/completions" or not isinstance(body["prompt"], str):
            return None
        prompt = [BOS, *tokens_of(body["prompt"])]
        (drawn,) = self._draws(
            {**body, "stop": []}, [prompt], 1, body["max_tokens"], {"seed": "seed"}
        )
        reason = "stop" if drawn.reason == "eos" else "length"

        def event(text: str, reason: str | None) -> Any:
            return {"choices": [{"index": 0, "text": text, "finish_reason": reason}]}

        if body.get("stream"):
            pieces = [event(text_of([token]), None) for token in drawn.tokens]
            return ["stream", *pieces, event("", reason), "[DONE]"]
        usage = {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(drawn.tokens),
        }
        return event(text_of(drawn.tokens), reason) | {"usage": usage}
