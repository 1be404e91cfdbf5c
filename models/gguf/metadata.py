"""The fields of a GGUF file that describe its model; none is ignored by accident.

A GGUF does not state which of its fields a reader must support. So the fields that are
read are recorded, and every other field that is not off is refused by name.
"""

from typing import Any

from tsi.errors import CheckpointError
from tsi.models.gguf.file import Header

# GGUF architectures, and the prefixes of their names in config.json.
ARCHITECTURES = {
    "llama": "Llama",
    "mistral3": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma3": "Gemma3",
    "phi3": "Phi3",
}
# Fields without effect on the logits of a dense model.
IGNORED_FIELDS = {
    "vocab_size",
    "tensor_data_layout",
    "rope.scaling.finetuned",
    "expert_used_count",
    "attention.layer_norm_epsilon",
}


class Metadata:
    """The fields under an architecture's name, and a record of those that were read."""

    def __init__(self, header: Header, architecture: str):
        self.header, self.architecture = header, architecture
        self._read: set[str] = set()

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """A field of one type.

        Raises:
            CheckpointError: it is absent without a default, or of another type.
        """
        value = self.value(name, default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(
                f"{self.header.path}: the metadata field {self.architecture}.{name} is "
                f"{value!r}; the {ARCHITECTURES[self.architecture]} port needs one "
                f"{kind.__name__}."
            )
        return value

    def value(self, name: str, default: Any = None) -> Any:
        """A field of any type."""
        self._read.add(name)
        return self.header.metadata.get(f"{self.architecture}.{name}", default)

    def require(self, name: str, required: Any) -> None:
        """Refuse a field that is present and differs from a value.

        Raises:
            CheckpointError: it differs.
        """
        value = self.value(name, required)
        if value != required:
            self.refuse(name, value, f" (supported: {required!r})")

    def refuse(self, name: str, value: Any, remark: str = "") -> None:
        """Raise the error for a field that asks for an unsupported feature."""
        raise CheckpointError(
            f"{self.header.path}: the model has {self.architecture}.{name} = "
            f"{str(value)[:100]}, which the {ARCHITECTURES[self.architecture]} port "
            f"does not support{remark}. Choose another model."
        )

    def refuse_unread(self) -> None:
        """Refuse a field that was not read and is not off.

        Raises:
            CheckpointError: there is such a field.
        """
        prefix = f"{self.architecture}."
        for key, value in self.header.metadata.items():
            name = key.removeprefix(prefix)
            off = value in (0, False, "", "none") or value == []
            if (
                key.startswith(prefix)
                and name not in self._read | IGNORED_FIELDS
                and not off
            ):
                self.refuse(name, value)
