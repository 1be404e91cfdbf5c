"""The spelling of the scripted server's tokens, without a request to it."""

from typing import Any

from scripted_chain import EOS, text_of, tokens_of


class LocalSpelling:
    """Texts of the tokens without a request to the server."""

    name, chat_template, eos_ids, add_bos, bos_id = "tiny", None, (EOS,), False, None

    def encode(self, text: str) -> list[int]:
        return tokens_of(text)

    def encode_chat(self, messages: Any) -> list[int]:
        return self.encode_prompt(messages[-1]["content"])

    def encode_prompt(self, prompt: str) -> list[int]:
        return [0, *tokens_of(prompt)]

    def decode(self, ids: Any) -> str:
        return text_of(ids)
