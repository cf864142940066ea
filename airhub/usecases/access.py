"""Who asks, and what they may: scopes and ownership, checked by every use case."""

from __future__ import annotations

from dataclasses import dataclass


from airhub.errors import Forbidden, NotFound
from airhub.store import Store

READ, WRITE, PREDICT, ADMIN = "read", "write", "predict", "admin"

INCLUDES = {ADMIN: {ADMIN, WRITE, READ, PREDICT}, WRITE: {WRITE, READ, PREDICT}, READ: {READ}, PREDICT: {PREDICT}}



@dataclass(frozen=True)
class Actor:
    """The user on whose behalf a request acts, with the powers of its token."""

    name: str
    powers: frozenset[str]
    groups: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, granted: set[str], groups: tuple[str, ...] = ()) -> Actor:
        """Make an actor from granted powers, each with what it includes."""
        powers = set().union(*(INCLUDES[power] for power in granted)) if granted else set()
        return cls(name, frozenset(powers), groups)

    @property
    def is_admin(self) -> bool:
        return ADMIN in self.powers

    def require(self, power: str) -> None:
        """Raise ``Forbidden`` when the token does not carry the scope ``custom:airhub:<power>``."""
        if power not in self.powers:
            raise Forbidden(
                f"This token lacks the scope custom:airhub:{power}. Make one that has it on the Hub's token page."
            )

    def list_owner(self, owner: str | None) -> str | None:
        """Return whose things a list shows: one's own, or, for admins, ``owner``'s (everybody's when null)."""
        if owner is not None and not self.is_admin:
            raise Forbidden("Only admins may ask for somebody else's: leave out `owner`.")
        return owner if self.is_admin else self.name


def owned(store: Store, actor: Actor, record_type: type, record_id: int):  # type: ignore[no-untyped-def]
    """Return a record that the actor may see; ``NotFound``, the same words for a foreign one and for none."""
    record = store.get(record_type, record_id) if 0 < record_id < 2**63 else None
    if record is None or not (actor.is_admin or record.owner == actor.name):
        raise not_found()
    return record


def not_found() -> NotFound:
    return NotFound("There is no such thing, or it is not yours.")


