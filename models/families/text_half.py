"""The text half of models that see pictures too.

Gemma 3 from 4B upward and Mistral Small 3.1 put the configuration of their text model
under ``text_config`` and its tensors under a prefix, beside a vision tower and a
projector. Those two are left unread: where there is no picture, the logits are those of
the text model, which is what is loaded, and saved, here.

Source: transformers' Gemma3Config and Mistral3Config, and its table of names that
releases before the fifth gave to tensors (conversion_mapping.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsi.errors import CheckpointError
from tsi.models.tensors.safetensors import StoredTensor

# Architecture of the whole model, and that of its text half.
WHOLE: dict[str, str] = {
    "Gemma3ForConditionalGeneration": "Gemma3ForCausalLM",
    "Gemma3ForSequenceClassification": "Gemma3TextForSequenceClassification",
    "Mistral3ForConditionalGeneration": "MistralForCausalLM",
}
TEXT_TYPES: dict[str, str] = {"Gemma3": "gemma3_text", "Mistral": "mistral"}
"""By the prefix of an architecture, the ``model_type`` that its ``text_config`` has."""

# Of a whole model's config.json; the rest of it is about pictures.
BESIDE = (
    "eos_token_id",
    "tie_word_embeddings",
    "quantization_config",
    "id2label",
    "num_labels",
)
# As releases on the hub have them, and as transformers 5 writes them.
PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
UNREAD = tuple(
    prefix + part
    for prefix in ("", "model.")
    for part in ("vision_tower.", "multi_modal_projector.")
)


def text_fields(path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of the text half; that of a text model as it is.

    Args:
        path: the checkpoint, for messages.
        fields: of its config.json. What stands beside ``text_config`` goes before what
            stands in it: the ends of a turn, whether the head is the embedding.

    Raises:
        CheckpointError: no text model is described, or one of another family.
    """
    names = fields.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    inner = fields.get("text_config")
    if not isinstance(name, str) or name not in WHOLE:
        return dict(fields)
    if name == "Gemma3ForSequenceClassification" and inner is None:
        return dict(fields)  # a text model, under the name of the earlier releases
    if not isinstance(inner, dict):
        raise CheckpointError(
            f"{path}: the configuration of a {name} describes its text model under "
            f"text_config, which is {inner!r} here."
        )
    text = WHOLE[name]
    needed = next(t for prefix, t in TEXT_TYPES.items() if text.startswith(prefix))
    found = inner.get("model_type", needed)
    if found != needed:
        raise CheckpointError(
            f"{path}: the text model of this {name} is a {found!r}, and the port reads "
            f"{needed!r} there; choose another checkpoint."
        )
    beside = {k: fields[k] for k in BESIDE if fields.get(k) is not None}
    return {**inner, **beside, "architectures": [text]}


def text_tensors(
    fields: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The tensors of the text half, under the names that a text model's have.

    Args:
        fields: of config.json, as it is on disk.
        tensors: of the checkpoint. Those of the vision tower and the projector are left
            out; a name that nobody knows goes on as it is, to be reported.
    """
    if not isinstance(fields.get("text_config"), dict):
        return dict(tensors)
    kept: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(UNREAD):
            continue
        prefix = next((p for p in PREFIXES if name.startswith(p)), None)
        renamed = name if prefix is None else PREFIXES[prefix] + name[len(prefix) :]
        kept[name if renamed in kept else renamed] = tensor
    return kept
