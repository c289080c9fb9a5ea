"""Mods: functions around the handlers of a ClientApp."""

from flq.apps.mods.chain import ClientAppCallable, Mod, make_mod_chain

__all__ = ["ClientAppCallable", "Mod", "make_mod_chain"]
