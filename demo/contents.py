"""A fingerprint of a dict's content, by which two processes can tell that they read the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def fingerprint(content: Mapping[str, Any]) -> str:
    """Return a digest of keys, types and values, whatever their order."""
    digest = hashlib.sha256()
    for key in sorted(content):
        value = content[key]
        digest.update(key.encode())
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype.str}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()
