"""its_hub over a llama.cpp server, with the same limits as :mod:`.served`.

Run by an interpreter with its_hub (``pip install its-hub==1.2.0``), with a request on
standard input; prints one line of JSON. its_hub's own client is used. llama.cpp's chat
endpoint repeats the assistant's turn that is continued, and the adapter here takes that
away, as otherwise the text of a solution would double with each step. The endpoint does
not tell an end token from a delimiter, so that its_hub continues every solution to the
last step. It sends no truncation controls: the server's defaults apply.
"""

import asyncio
import json
import re
import sys
import time
import warnings
from importlib.metadata import version
from typing import Any


async def run(request: dict[str, Any]) -> dict[str, Any]:
    """The method on all problems at once, or one after the other."""
    import aiohttp
    from its_hub.api import AbstractOutcomeRewardModel, AbstractProcessRewardModel
    from its_hub.core.algorithms.bon import BestOfN
    from its_hub.core.algorithms.particle_gibbs import ParticleFiltering
    from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel
    from its_hub.core.lms.step_generation import StepGeneration

    counts = {"requests": 0, "turns": 0, "reward_tokens": 0}
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64))

    def without_echo(messages: Any, reply: dict[str, Any]) -> dict[str, Any]:
        last = messages[-1]
        if last.role == "assistant":
            reply["content"] = reply["content"].removeprefix(last.content)
        return reply

    class Writer(OpenAICompatibleLanguageModel):
        async def agenerate(self, messages: Any, *args: Any, **options: Any) -> Any:
            counts["requests"] += len(messages)
            counts["turns"] += 1
            replies = await super().agenerate(messages, *args, **options)
            return list(map(without_echo, messages, replies))

        async def agenerate_single(self, *args: Any, **options: Any) -> Any:
            counts["requests"] += 1
            return await super().agenerate_single(*args, **options)

    async def judge(prompt: str, text: str) -> float:
        """Probability of Yes, relative to Yes and No, by llama.cpp's own endpoint."""
        question_data = request["judge"]
        full_prompt = (
            question_data["prompts"][prompt] + text + question_data["question"]
        )
        body = question_data["body"] | {"prompt": full_prompt}
        async with session.post(
            request["url"] + question_data["path"], json=body
        ) as reply:
            content = await reply.json()
        counts["requests"] += 1
        counts["reward_tokens"] += content["timings"]["prompt_n"]
        named = content["completion_probabilities"][0]["top_probs"]
        probabilities = {item["id"]: item["prob"] for item in named}
        yes, no = (
            probabilities.get(question_data[answer], 0.0) for answer in ("yes", "no")
        )
        return yes / (yes + no)

    async def reward(prompt: str, text: str) -> float:
        if request["judge"] is not None:
            return await judge(prompt, text)
        return 0.7 if re.search(r"\d", text) else 0.3

    class Process(AbstractProcessRewardModel):
        async def ascore(self, prompt: Any, texts: Any) -> Any:
            return await asyncio.gather(*(reward(prompt, text) for text in texts))

        score: Any = None

    class Outcome(AbstractOutcomeRewardModel):
        async def ascore(self, messages: Any, orchestrator: Any = None) -> Any:
            return await asyncio.gather(
                *(reward(turns[0].content, turns[-1].content) for turns in messages)
            )

        score: Any = None

    filtering = request["method"] == "particle filter"
    max_tokens = request["max_step_tokens"] if filtering else request["max_tokens"]
    writer = Writer(
        request["url"] + "/v1",
        "none",
        "model",
        max_completion_tokens=max_tokens,
        temperature=request["temperature"],
    )
    steps = StepGeneration(
        max_steps=request["max_steps"] - 1,
        step_token=request["delimiter"],
        temperature=request["temperature"],
        include_stop_str_in_output=False,
    )
    method: Any = (
        ParticleFiltering(steps, Process()) if filtering else BestOfN(Outcome())
    )
    start_time, cpu_start_time = time.perf_counter(), time.process_time()
    works = [
        method.ainfer(writer, prompt, request["particles"])
        for prompt in request["prompts"]
    ]
    if request["at_once"]:
        await asyncio.gather(*works)
    else:
        for work in works:
            await work
    seconds = time.perf_counter() - start_time
    cpu_seconds = time.process_time() - cpu_start_time
    await writer.close()
    await session.close()
    counts["turns"] = counts["turns"] or len(works)
    return {
        "seconds": seconds,
        "client_seconds": cpu_seconds,
        **counts,
        "version": version("its_hub"),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    print(json.dumps(asyncio.run(run(json.load(sys.stdin)))))
