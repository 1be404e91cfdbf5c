"""The abilities of a server, and the capabilities that they give to a run."""

from typing import Literal, NamedTuple

from tsi.errors import CapabilityError
from tsi.serving.step import Controls

Meaning = Literal["raw", "processed", "none", "unknown"]
"""The distribution that log-probabilities belong to: the model's own at temperature 1
("raw"), or the one from which tokens are drawn ("processed"). "none": the server gives
no log-probabilities. "unknown": it could not be measured."""


CONTROL_WORDS = {
    "top_k": "top-k",
    "min_p": "min-p",
    "repetition_penalty": "repetition penalty",
}


class Abilities(NamedTuple):
    """What a server can do, as measured by :func:`tsi.serving.probe.measure`.

    Attributes:
        server: kind and version.
        model: name of the model that is used.
        models: names of all models.
        context: positions of a prompt and its solution; None if not known.
        takes_ids: whether prefixes are sent and returned as token ids.
        log_probs: which distribution the log-probabilities of drawn tokens belong to.
        reads_prompts: whether the server gives log-probabilities of given tokens.
        seeds: whether the same seed gives the same tokens, at least if no other request
            shares the batch, and another seed gives other tokens.
        copies: maximum number of steps of one prefix per request. Each has its own
            random numbers, which the request's seed determines. 1 for no copies.
        reuses_prompts: whether a repeated prompt is read from a cache.
        draws_all: whether unlikely tokens are drawn as often as their probability
            requires, so that the server applies no truncation by default; None if not
            measured.
        num_weights: number of weights of the model, for FLOPs; None if not known.
        slots: number of sequences that the server works on at once and whose prefixes
            it caches; None if not known.
        unknown_controls: controls whose fields the server does not know, by their names
            in :class:`tsi.serving.step.Controls`; all take a temperature and top-p.
        bos_from_server: whether the server itself adds a token at the beginning.
    """

    server: str
    model: str | None
    models: tuple[str, ...] = ()
    context: int | None = None
    takes_ids: bool = True
    log_probs: Meaning = "none"
    reads_prompts: bool = False
    seeds: bool = False
    copies: int = 1
    reuses_prompts: bool = False
    draws_all: bool | None = None
    num_weights: float | None = None
    slots: int | None = None
    unknown_controls: tuple[str, ...] = ()
    bos_from_server: bool = False

    def check_controls(self, controls: Controls) -> None:
        """Refuse controls that the server does not take.

        Raises:
            CapabilityError: see above.
        """
        if any(getattr(controls, name) is not None for name in self.unknown_controls):
            raise CapabilityError(
                f"{self.server} refuses fields for {self.unknown_control_words}. Leave "
                "these out, or use a server that knows them."
            )

    @property
    def unknown_control_words(self) -> str:
        """The unknown controls in words."""
        return ", ".join(CONTROL_WORDS[name] for name in self.unknown_controls)

    def knows_log_prob(self, controls: Controls) -> bool:
        """Whether log p of drawn steps is exact under these controls.

        p is the policy as the controls define it. Raw log-probabilities are those of p
        only where the controls change nothing.
        """
        if self.log_probs == "raw":
            return controls.is_plain
        return self.log_probs == "processed"

    def knows_replay(self, controls: Controls) -> bool:
        """Whether log p of a given step is exact under these controls."""
        is_known = self.knows_log_prob(controls)
        return self.reads_prompts and controls.is_plain and is_known

    def store(self, controls: Controls) -> "ServedStore":
        """A target with the capabilities that explorers may use over this server."""
        return ServedStore(self, controls)


class ServedStore:
    """The object that :func:`tsi.explore.check_needs` checks: methods by capability."""

    def __init__(self, abilities: Abilities, controls: Controls) -> None:
        self._abilities, self._controls = abilities, controls

    def truncate(self) -> None:
        """Do nothing: prefixes are texts or ids, which can always be cut."""

    def __getattr__(self, name: str) -> object:
        abilities, controls = self._abilities, self._controls
        if name == "log_prob" and not abilities.knows_log_prob(controls):
            raise CapabilityError(
                "This method needs log p of the steps that the policy draws, and "
                f"{abilities.server} {_describe_log_probs(abilities, controls)}. "
                "Choose a method that needs only rewards, such as smc, or a server "
                "that gives them."
            )
        if name == "replay" and not abilities.knows_replay(controls):
            raise CapabilityError(
                "This method repeats steps after other prefixes and needs their log p, "
                f"for which a server must read given tokens; {abilities.server} "
                + (
                    "gives it for temperature 1 without other controls only"
                    if abilities.reads_prompts
                    else "does not give log-probabilities of a prompt"
                )
                + ". Choose a method without ancestor sampling, or vLLM or SGLang."
            )
        if name in ("log_prob", "replay"):
            return lambda: None
        raise AttributeError(name)


def _describe_log_probs(abilities: Abilities, controls: Controls) -> str:
    """Why log p is missing, as the end of a sentence about the server."""
    if abilities.log_probs == "raw" and not controls.is_plain:
        return (
            "gives them before temperature and truncation, which this run changes "
            "(vLLM: start it with --logprobs-mode processed_logprobs)"
        )
    return "does not give them"
