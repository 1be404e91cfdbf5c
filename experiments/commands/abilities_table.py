"""A table of what a server can do, and the methods that it cannot run."""

from tsi.errors import CapabilityError
from tsi.experiments.plans.methods import METHODS, sampler_of
from tsi.explore import check_needs
from tsi.explorer import Explorer
from tsi.serving.policy import ServedPolicy
from tsi.serving.step import Controls

MAX_STEPS = 8
"""Steps of a problem, for methods whose plan depends on it."""


def abilities_table(policy: ServedPolicy) -> str:
    """What a server can do, line by line."""
    abilities = policy.abilities
    others = [name for name in abilities.models if name != abilities.model]
    draws = {
        True: "yes, as the frequencies of drawn tokens show",
        False: "no: it truncates or changes the model's probabilities by default",
        None: "not measured",
    }
    meaning = {
        "raw": "of the model at temperature 1, before truncation",
        "processed": "of the distribution that tokens are drawn from",
        "none": "none",
        "unknown": "given, but their meaning could not be measured",
    }
    unknown = abilities.unknown_control_words
    controls = f"all but {unknown}" if unknown else "all"
    lines = {
        "server": abilities.server,
        "model": abilities.model or "unnamed",
        "other models": ", ".join(others) or "none",
        "context": f"{abilities.context:,}" if abilities.context else "not known",
        "prefixes": "token ids" if abilities.takes_ids else "text",
        "log-probabilities": meaning[abilities.log_probs],
        "of given tokens": yes_or_no(abilities.reads_prompts),
        "seeds": "repeat a step" if abilities.seeds else "do not repeat a step",
        "cache of prefixes": yes_or_no(abilities.reuses_prompts),
        "draws all tokens": draws[abilities.draws_all],
        "controls": controls,
        "weights": f"{abilities.num_weights:.3g}"
        if abilities.num_weights
        else "not known",
    }
    width = max(map(len, lines))
    text = [f"{name:{width}}  {value}" for name, value in lines.items()]
    names = ", ".join(refused_methods(policy)) or "none"
    text.append(f"{'refused methods':{width}}  {names}")
    return "\n".join(text)


def refused_methods(policy: ServedPolicy) -> list[str]:
    """Methods that the server cannot run at temperature 1."""
    refused = []
    store = policy.abilities.store(Controls())
    for name, method in METHODS.items():
        sampler = sampler_of(name, MAX_STEPS)
        try:
            if isinstance(sampler, Explorer):
                check_needs(sampler, store)
        except CapabilityError:
            refused.append(name)
            continue
        if method.fixes_proposal:
            refused.append(name)
    return refused


def yes_or_no(value: bool) -> str:
    """A truth value in words."""
    return "yes" if value else "no"
