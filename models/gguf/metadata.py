"""The fields of a GGUF file that describe its model, read once and none passed over.

A GGUF has no list of what its reader must know, so the record of what was read is the
list: whatever is left and is not off is refused by name.
"""

from typing import Any

from tsi.errors import CheckpointError
from tsi.models.gguf.file import Header

# GGUF architecture, and the prefix of its class in Hugging Face's names.
SUPPORTED = {
    "llama": "Llama",
    "mistral3": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "gemma3": "Gemma3",
    "phi3": "Phi3",
}
# Fields that say nothing about the numbers of a dense model.
INERT = {
    "vocab_size",
    "tensor_data_layout",
    "rope.scaling.finetuned",
    "expert_used_count",
    "attention.layer_norm_epsilon",
}


class Metadata:
    """The fields under an architecture's name, with a record of which were read."""

    def __init__(self, header: Header, architecture: str):
        self.header, self.architecture = header, architecture
        self._read: set[str] = set()

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """A field of one type.

        Raises:
            CheckpointError: it is absent and has no default, or is of another type.
        """
        value = self.value(name, default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(
                f"{self.header.path}: the metadata field {self.architecture}.{name} is "
                f"{value!r}; the {SUPPORTED[self.architecture]} port needs one "
                f"{kind.__name__}."
            )
        return value

    def value(self, name: str, default: Any = None) -> Any:
        """A field of whatever type."""
        self._read.add(name)
        return self.header.metadata.get(f"{self.architecture}.{name}", default)

    def must_be(self, name: str, needed: Any) -> None:
        """Refuse by name a field that is there and differs.

        Raises:
            CheckpointError: it does.
        """
        value = self.value(name, needed)
        if value != needed:
            self.refuse(name, value, f" (it does {needed!r})")

    def refuse(self, name: str, value: Any, but: str = "") -> None:
        """Raise the error for a field that asks for what the port does not do."""
        raise CheckpointError(
            f"{self.header.path}: the model has {self.architecture}.{name} = "
            f"{str(value)[:100]}, which the {SUPPORTED[self.architecture]} port does "
            f"not do{but}; choose another model."
        )

    def refuse_unread(self) -> None:
        """Refuse by name a field that nobody asked for and that is not off.

        Raises:
            CheckpointError: there is one.
        """
        prefix = f"{self.architecture}."
        for key, value in self.header.metadata.items():
            name = key.removeprefix(prefix)
            off = value in (0, False, "", "none") or value == []
            if key.startswith(prefix) and name not in self._read | INERT and not off:
                self.refuse(name, value)
