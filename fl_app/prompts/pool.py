"""A pool of prompts: capped, without duplicates, kept on disk.

Which member goes first when the pool is full: those whose loss nobody here has measured before
those it was measured of, then the larger measured loss, then the older, then the larger content
hash. What an origin claims about its own prompt does not count. If that is the newcomer itself,
it is refused.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from fl_app.errors import WireError
from fl_app.prompts.errors import PromptError
from fl_app.prompts.fit import Fit
from fl_app.prompts.member import Member
from fl_app.prompts.packing import pack, unpack

MODEL_FILE = "model.frozen"
"""Beside the members: what their model has and its checkpoint lacks, see ``fl_app.fomo.frozen``."""
_INDEX = "pool.json"
_SUFFIX = ".safetensors"
_MAX_FILE_BYTES = 2**30


@dataclass(frozen=True, eq=False)
class Entry:
    """A member and its loss in nats as measured by the pool's owner, None if it was not."""

    member: Member
    measured_loss: float | None = None

    def standing(self) -> tuple[bool, float, int, str]:
        """Sorts members from the best kept to the first to go."""
        loss, member = self.measured_loss, self.member
        return loss is None, loss or 0.0, -member.card.round, member.content_hash


class Pool:
    """Members that fit one model, in the order in which they came.

    Args:
        fit: what the model takes.
        capacity: most members, >= 1.
        max_age: a prompt older than this many rounds is refused, and removed by ``forget_stale``.
    """

    def __init__(self, fit: Fit, *, capacity: int, max_age: int = 10) -> None:
        if capacity < 1:
            raise PromptError("bad-capacity", f"capacity={capacity} must be >= 1")
        self.fit, self.capacity, self.max_age = fit, capacity, max_age
        self._entries: dict[str, Entry] = {}
        self._not_ours: dict[str, float | None] = {}
        """What ``load`` found and could not take in; ``save`` leaves it where it is."""

    def __len__(self) -> int:
        """Number of members."""
        return len(self._entries)

    def __contains__(self, content_hash: str) -> bool:
        """Tells whether a member with this content is here."""
        return content_hash in self._entries

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, in the order in which they came."""
        return tuple(self._entries.values())

    @property
    def members(self) -> tuple[Member, ...]:
        """All members, in the order in which they came."""
        return tuple(entry.member for entry in self._entries.values())

    def require(self, member: Member, *, now_round: int) -> None:
        """Checks whether a member may come in, but for its quality.

        Raises:
            PromptError: those of ``Fit.require``, ``stale`` or ``duplicate``.
        """
        self.fit.require(member)
        if member.content_hash in self._entries:
            raise PromptError("duplicate", f"prompt {member.content_hash[:12]} is here already")
        if (age := member.card.age(now_round)) > self.max_age:
            raise PromptError(
                "stale", f"the prompt is {age} rounds old, at most {self.max_age} are allowed"
            )

    def admit(
        self, member: Member, *, now_round: int = 0, measured_loss: float | None = None
    ) -> Member | None:
        """Takes a member in.

        Args:
            member: the newcomer.
            now_round: the present round, for its age.
            measured_loss: its loss in nats as measured here, finite and >= 0.

        Returns:
            The member that had to go, None where there was room.

        Raises:
            PromptError: those of ``require``, ``bad-loss``, or ``pool-full``: the newcomer would be
                the first to go.
        """
        self.require(member, now_round=now_round)
        if measured_loss is not None and not 0.0 <= measured_loss < float("inf"):
            raise PromptError("bad-loss", f"measured_loss={measured_loss} must be finite and >= 0")
        leaver = self.leaver(member, measured_loss)
        if leaver is member:
            raise PromptError(
                "pool-full", f"all {self.capacity} members stand better than the newcomer"
            )
        if leaver is not None:
            del self._entries[leaver.content_hash]
        self._entries[member.content_hash] = Entry(member, measured_loss)
        return leaver

    def leaver(self, member: Member, measured_loss: float | None) -> Member | None:
        """Returns who would have to go for a newcomer, maybe itself; None where there is room."""
        if len(self._entries) < self.capacity:
            return None
        entry = Entry(member, measured_loss)
        return max((*self._entries.values(), entry), key=Entry.standing).member

    def forget(self, content_hash: str) -> Member:
        """Removes and returns a member.

        Raises:
            PromptError: ``unknown-prompt``.
        """
        if content_hash not in self._entries:
            raise PromptError("unknown-prompt", f"no prompt {content_hash[:12]} in the pool")
        return self._entries.pop(content_hash).member

    def forget_stale(self, now_round: int) -> list[Member]:
        """Removes and returns the members that have grown too old."""
        return [
            self.forget(member.content_hash)
            for member in self.members
            if member.card.age(now_round) > self.max_age
        ]

    def save(self, folder: Path) -> None:
        """Writes one safetensors file for each member, and an index; files of leavers go.

        What ``load`` could not take in (made for another model, say) stays, with its place in the
        index: whoever loads it with the right model finds it again. A crash on the way leaves the
        old index, or the new one, never a half.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for content_hash, entry in self._entries.items():
            _write(folder / f"{content_hash}{_SUFFIX}", pack(entry.member))
        others = {name: x for name, x in self._not_ours.items() if name not in self._entries}
        rows = [[name, entry.measured_loss] for name, entry in self._entries.items()]
        rows += [[n, loss] for n, loss in others.items() if (folder / f"{n}{_SUFFIX}").exists()]
        _write(folder / _INDEX, json.dumps({"members": rows}, indent=2).encode())
        for path in folder.glob(f"*{_SUFFIX}"):
            if path.stem not in self._entries and path.stem not in others:
                path.unlink()

    def load(self, folder: Path, *, now_round: int = 0) -> dict[str, str]:
        """Takes in what ``save`` wrote, in the same order; what it refuses, ``save`` will keep.

        Args:
            folder: where it was saved.
            now_round: the present round.

        Returns:
            Content hashes of the members that were refused, with the reason; a file that is
            missing or damaged is such a reason and no error.

        Raises:
            PromptError: ``damaged``, there is no index or it cannot be read.
        """
        refused: dict[str, str] = {}
        rows = _read_index(folder / _INDEX)
        for name, loss in rows:
            try:
                member = unpack(_read(folder / f"{name}{_SUFFIX}"), max_bytes=_MAX_FILE_BYTES)
                if member.content_hash != name:
                    raise PromptError("damaged", f"the file of {name[:12]} holds another prompt")
                leaver = self.admit(member, now_round=now_round, measured_loss=loss)
                if leaver is not None:
                    refused[leaver.content_hash] = "pool-full"
            except WireError as error:
                refused[name] = error.reason
        self._not_ours |= {name: loss for name, loss in rows if name in refused}
        return refused


def _read_index(path: Path) -> list[tuple[str, float | None]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["members"]
        return [
            (str(name), None if loss is None else float(loss))
            for name, loss in rows
            if str(name).isalnum()
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PromptError("damaged", f"the pool's index {path} cannot be read: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PromptError("missing", f"{path} cannot be read: {error}") from error


def _write(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".part")
    beside.write_bytes(content)
    os.replace(beside, path)
