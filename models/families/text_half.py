"""The text half of multimodal models, the only part that is loaded and saved.

Gemma 3 from 4B upward and Mistral Small 3.1 put the configuration of their text model
under ``text_config`` and its tensors under a prefix. They also have a vision tower and
a projector. Without a picture the logits are those of the text model, so the vision
tower and the projector are not read.

Source: transformers' Gemma3Config and Mistral3Config, and conversion_mapping.py for the
tensor names of releases before the fifth.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tsi.errors import CheckpointError
from tsi.models.tensors.safetensors import StoredTensor

# Architecture of the multimodal model, and that of its text half.
TEXT_ARCHITECTURES: dict[str, str] = {
    "Gemma3ForConditionalGeneration": "Gemma3ForCausalLM",
    "Gemma3ForSequenceClassification": "Gemma3TextForSequenceClassification",
    "Mistral3ForConditionalGeneration": "MistralForCausalLM",
}
TEXT_TYPES: dict[str, str] = {"Gemma3": "gemma3_text", "Mistral": "mistral"}
"""By the prefix of an architecture: the ``model_type`` of its ``text_config``."""

# Fields outside ``text_config`` that are read; the others are about pictures.
OUTER_FIELDS = (
    "eos_token_id",
    "tie_word_embeddings",
    "quantization_config",
    "id2label",
    "num_labels",
)
# Prefixes of tensors in releases on the hub, and as transformers 5 writes them.
TEXT_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}
VISION_PREFIXES = tuple(
    prefix + part
    for prefix in ("", "model.")
    for part in ("vision_tower.", "multi_modal_projector.")
)


def text_fields(path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` of the text half; that of a text model unchanged.

    Args:
        path: the checkpoint, for messages.
        fields: of its config.json. ``eos_token_id``, ``tie_word_embeddings`` and the
            other ``OUTER_FIELDS`` outside ``text_config`` override those in it.

    Raises:
        CheckpointError: ``text_config`` is not a table, or is that of another family.
    """
    names = fields.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else None
    inner = fields.get("text_config")
    if not isinstance(name, str) or name not in TEXT_ARCHITECTURES:
        return dict(fields)
    if name == "Gemma3ForSequenceClassification" and inner is None:
        return dict(fields)  # a text model, under the name of earlier releases
    if not isinstance(inner, dict):
        raise CheckpointError(
            f"{path}: the configuration of a {name} must describe its text model under "
            f"text_config, which is {inner!r}. Choose another checkpoint."
        )
    text = TEXT_ARCHITECTURES[name]
    required = next(t for prefix, t in TEXT_TYPES.items() if text.startswith(prefix))
    model_type = inner.get("model_type", required)
    if model_type != required:
        raise CheckpointError(
            f"{path}: the text model of this {name} is a {model_type!r}; only "
            f"{required!r} is supported. Choose another checkpoint."
        )
    outer = {k: fields[k] for k in OUTER_FIELDS if fields.get(k) is not None}
    return {**inner, **outer, "architectures": [text]}


def text_tensors(
    fields: Mapping[str, Any], tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The tensors of the text half, under the names of a text model.

    Args:
        fields: of the config.json on disk.
        tensors: of the checkpoint. Those of the vision tower and the projector are
            dropped; unknown names are kept, and the loader reports them.
    """
    if not isinstance(fields.get("text_config"), dict):
        return dict(tensors)
    text_model: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if name.startswith(VISION_PREFIXES):
            continue
        prefix = next((p for p in TEXT_PREFIXES if name.startswith(p)), None)
        text_name = name
        if prefix is not None:
            text_name = TEXT_PREFIXES[prefix] + name.removeprefix(prefix)
        text_model[name if text_name in text_model else text_name] = tensor
    return text_model
