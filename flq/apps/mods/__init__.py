"""Mods: functions around the handlers of a ClientApp."""

from flq.apps.mods.chain import ClientAppCallable, Mod, make_mod_chain
from flq.apps.mods.clipping import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flq.apps.mods.sizes import arrays_size_mod, message_size_mod

__all__ = [
    "ClientAppCallable",
    "LocalDpMod",
    "Mod",
    "adaptiveclipping_mod",
    "arrays_size_mod",
    "fixedclipping_mod",
    "make_mod_chain",
    "message_size_mod",
]
