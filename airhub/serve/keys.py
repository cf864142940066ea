"""Who may call: the service by its secret, others by an endpoint key whose hash the keys file holds."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import time

from .http11 import Head

log = logging.getLogger("airhub.serve")
_LOOK_SECONDS = 0.25


class KeyFile:
    """The endpoint's keys as SHA-256 hashes: ``{"keys": [{"id": 1, "sha256": "…"}]}``.

    The file is looked at again when it has changed, at most four times a second. A file that is missing holds no key;
    one that cannot be read (it may be half written) leaves the keys as they were until it can.
    """

    def __init__(self, path: str):
        self.path = path
        self._hashes: frozenset[str] = frozenset()
        self._stamp: tuple[int, int, int] | None = None
        self._looked = float("-inf")

    def holds(self, key: bytes) -> bool:
        """True when the key is one of the endpoint's."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self._look()
        return hashlib.sha256(key).hexdigest() in self._hashes

    def _look(self) -> None:
        try:
            found = os.stat(self.path)
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp == self._stamp:
                return
            with open(self.path, encoding="utf-8") as file:
                keys = json.load(file)["keys"]
            self._hashes = frozenset(key["sha256"].lower() for key in keys)
            self._stamp = stamp
        except FileNotFoundError:
            self._hashes, self._stamp = frozenset(), None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            log.warning("The keys file %s cannot be read, the keys stay as they were: %s", self.path, exc)


class Guard:
    """Decides whether a request may pass, by the service's secret or by an endpoint key."""

    def __init__(self, secret: str, keys_file: str | None):
        self._secret = secret.encode()
        self._keys = KeyFile(keys_file) if keys_file else None

    def trusts(self, head: Head) -> bool:
        """True when the request comes from the service."""
        return bool(self._secret) and hmac.compare_digest(head.fields.get(b"x-airhub-secret", b""), self._secret)

    def knows(self, head: Head) -> bool:
        """True when the request carries a key of this endpoint."""
        scheme, _, key = head.fields.get(b"authorization", b"").partition(b" ")
        return self._keys is not None and scheme.lower() == b"bearer" and self._keys.holds(key.strip())
