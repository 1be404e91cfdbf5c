"""A method has one name: constructor, file, command line, tables, claims and docs."""

from pathlib import Path

import pytest

from tsi import samplers
from tsi.experiments.plans.methods import METHODS, sampler_of
from tsi.experiments.proofs.claims import CLAIMS
from tsi.explorer import Explorer
from tsi.sampler import Sampler

DOCS = (Path(__file__).parents[1] / "docs" / "samplers.md").read_text()
OF_ANOTHER_FILE = {"weighted_best_of_n": "best_of_n"}
"""Constructors that share the file of a method of which they are a setting."""


def constructor(sampler: Sampler | Explorer) -> str:
    return sampler.recipe.constructor.__name__


def begins_with(name: str, base: str) -> bool:
    return name == base or name.startswith((f"{base}_", f"{base},"))


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_has_the_name_of_its_constructor(name):
    make = CLAIMS[name].make()
    assert begins_with(name, constructor(make))


@pytest.mark.parametrize("name", [n for n in METHODS if not n.startswith("adaptive_")])
def test_the_command_line_has_the_name_of_the_constructor(name):
    assert begins_with(name, constructor(sampler_of(name, 4)))


@pytest.mark.parametrize("name", sorted({name.split(",")[0] for name in CLAIMS}))
def test_a_constructor_has_the_name_of_its_file_and_an_entry_in_the_docs(name):
    make = CLAIMS[name].make().recipe.constructor
    base = make.__name__
    assert make.__module__.split(".")[-1] == OF_ANOTHER_FILE.get(base, base)
    assert getattr(samplers, base) is make
    assert f"`{base}(" in DOCS


def test_labels_of_tables_are_as_many_as_methods():
    assert len({method.label for method in METHODS.values()}) == len(METHODS)
