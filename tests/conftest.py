"""Under pytest every shape annotation of tsi is checked, at no cost elsewhere."""

from jaxtyping import install_import_hook

install_import_hook("tsi", "beartype.beartype")
