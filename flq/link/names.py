"""Memorable names for runs: `brave-otter`, and `brave-otter-7f3a` when short ones are taken."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

ADJECTIVES = """
able amber ample apt bold brave brief bright brisk calm candid clear clever cosy crisp deft eager early fair fast fine
firm fleet fond frank fresh gentle glad golden good grand green happy hardy honest humble ideal jolly just keen kind
lively loyal lucid lucky mellow merry mild modest neat nimble noble open patient plain prime proud pure quick quiet
rapid ready rich robust royal sage sharp silent silver simple sleek smart solid sound spry stable steady still strong
sunny sure swift tidy true upbeat vivid warm wise witty young zesty
"""

NOUNS = """
acorn alder ant aspen badger bay beaver birch bison brook canyon cedar cloud comet cove crane creek dale deer delta dove
dune eagle elk elm falcon fern finch fir fjord fox garden glade grove hare harbor hawk hazel heron hill island ivy jay
juniper kestrel lake lark laurel leaf lily linden lion lynx maple marten meadow moon moose moss oak orchid otter owl
panda pebble pine planet pond poplar puffin quail rain raven reef ridge river robin rose seal shore sky snow sparrow
spring spruce star stone stream summit sun swan thrush tiger tulip valley violet walnut wave willow wren
"""


def candidates() -> Iterator[str]:
    """Names to try, without end: short ones first."""
    for _ in range(3):
        yield _pair()
    while True:
        yield f"{_pair()}-{secrets.token_hex(2)}"


def _pair() -> str:
    return f"{secrets.choice(ADJECTIVES.split())}-{secrets.choice(NOUNS.split())}"
