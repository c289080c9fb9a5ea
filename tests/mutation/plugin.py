"""A pytest plugin: puts the mutant whose number stands in `FLQ_MUTANT` in place of its statement."""

from __future__ import annotations

import os
from importlib import import_module

from tests.mutation.mutants import mutants

chosen = list(mutants())[int(os.environ["FLQ_MUTANT"])]
import_module(f"flq.link.{chosen.aggregate}").SQL[chosen.name] = chosen.body
