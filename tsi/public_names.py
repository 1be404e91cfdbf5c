"""Public names of a package, imported when they are first used (PEP 562).

``import tsi`` and ``tsi --help`` are fast, since JAX is imported only with the first
name that needs it. Two packages have such names: `tsi`, and `tsi.experiments`, which
contains the command line. All other packages import the names that they export.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any


def lazy_names(
    package: str, exports: Mapping[str, Sequence[str]], modules: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions ``__getattr__`` and ``__dir__`` of a package.

    A public name may equal the name of the module that defines it, such as `tsi.run`.
    After loading a module, the import system binds the module to this name, which would
    hide the function. Here it binds the function instead.

    Args:
        package: the package's ``__name__``.
        exports: public names, by the module that defines them.
        modules: modules and packages inside the package that are public as well.
    """
    definer = {name: module for module, names in exports.items() for name in names}
    inside = frozenset(modules)

    class Package(ModuleType):
        def __setattr__(self, name: str, value: Any) -> None:
            if isinstance(value, ModuleType) and value.__name__ == definer.get(name):
                value = getattr(value, name)
            super().__setattr__(name, value)

    this = sys.modules[package]
    this.__class__ = Package

    def resolve(name: str) -> Any:
        if name in inside:
            return import_module(f"{package}.{name}")
        if name not in definer:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}", name=name, obj=this
            )
        value = getattr(import_module(definer[name]), name)
        setattr(this, name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(this), *definer, *inside})

    return resolve, names
