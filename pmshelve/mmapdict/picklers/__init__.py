"""Picklers turn a value into opcodes and buffers, and back.

A program that stores objects in a form of its own derives from `BasePickler`; a store finds the
subclass by itself, or is given it in its `picklers` argument.  The other three are what every store
has.  Nothing here imports NumPy before the program has, or an array is read.
"""

from __future__ import annotations

from pmshelve.mmapdict.picklers.base import BasePickler
from pmshelve.mmapdict.picklers.builtin import ArrayPickler, GenericPickler, MaskedArrayPickler

__all__ = ["ArrayPickler", "BasePickler", "GenericPickler", "MaskedArrayPickler"]
