"""Local fan-out: from one announcement to the sockets of this process.

The law: what is published within one turn of the event loop is encoded once per wire and written
once per connection when the turn ends. All members of a channel that get the same run share one
chunk; only a connection that also gets something of its own in that turn, or is left out of
something, has a run put together for it. Each connection sees everything in the order in which it
was handed to the hub.

A kept publication is checked against the one before it: the next one is delivered, an older one is
a duplicate, anything else is a hole that `heal` must close before the channel goes on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence, Set
from functools import partial

from ..events import Position, Publication
from .group import Group, Receiver
from .limiter import SharedBucket
from .outbox import Chunk, Framed, Outbox, Wire
from .recovery import Gap, merge
from .turns import Soon
from .writing import WriteAll, write_each

MAX_BUFFERED = 4096
"""Publications kept for a session that is joining, or a channel that heals."""
KNOWN_NONCES = 256
CROWD = 50
"""Members of a channel on this process from which on arrivals and departures are told together."""
STORM = 0.1
"""Seconds for which those of a crowd are gathered once there are several."""
_MOVES = frozenset(["user-joined", "user-left"])
_INTERRUPTED = Publication("$interrupted", b"null")


_NO_GROUPS: dict[Wire, Group] = {}
"""Of a channel that has not needed any yet."""


class Channel:
    """A channel with members in this process."""

    __slots__ = (
        "_nonces",
        "ahead",
        "bucket",
        "calm",
        "epoch",
        "groups",
        "healing",
        "held",
        "joining",
        "key",
        "members",
        "name",
        "nonce",
        "ns",
        "offset",
        "only",
        "pending",
        "room",
        "subscribed",
    )

    def __init__(self, name: str, ns: str, room: str | None) -> None:
        self.name = name
        self.ns = ns
        self.room = room
        # The members, by what they share. Most channels are one session's or one user's, and
        # silent: the only member of one is no more than that, until there is another one or
        # something to deliver.
        self.groups: dict[Wire, Group] = _NO_GROUPS
        self.only: Receiver | None = None
        self.members = 0
        # Sessions between "add" and "go live", and what has been announced meanwhile.
        self.joining: dict[Receiver, list[Publication] | None] | None = None
        # Receivers whose history reached further than what was announced here so far.
        self.ahead: dict[Receiver, int] | None = None
        self.healing: list[Publication] | None = None
        # Arrivals and departures that are gathered, and when none was yet (seconds).
        self.held: list[Publication] | None = None
        self.calm = 0.0
        # What this turn has published.
        self.pending: list[Publication] | None = None
        self.epoch: str | None = None
        self.offset = 0
        self.nonce = ""
        self.subscribed = False
        self.bucket: SharedBucket | None = None
        self._nonces: deque[str] | None = None

    @property
    def position(self) -> Position | None:
        """The last kept publication announced here; None before anything is known."""
        return None if self.epoch is None else Position(self.epoch, self.offset, self.nonce)

    @property
    def idle(self) -> bool:
        return not self.members and not self.joining

    def move_to(self, position: Position) -> None:
        self.epoch = position.epoch
        self.offset = position.offset
        self.nonce = position.nonce
        if position.nonce:
            if self._nonces is None:
                self._nonces = deque(maxlen=KNOWN_NONCES)
            self._nonces.append(position.nonce)

    def knows(self, publication: Publication) -> bool:
        """Whether an older publication is one of those that were seen, not one of a fork."""
        if not publication.nonce or self._nonces is None:
            return True
        return publication.nonce in self._nonces or self.offset - publication.offset >= KNOWN_NONCES

    def add(self, receiver: Receiver) -> None:
        """Make `receiver` a member, if it is none."""
        if not self.members and self.groups is _NO_GROUPS:
            self.only = receiver
            self.members = 1
        elif self.only is not receiver:
            if self.groups is _NO_GROUPS:
                self.gather()
            group = self.groups.get(receiver.outbox.wire)
            if group is None:
                group = self.groups[receiver.outbox.wire] = Group()
            if receiver.outbox not in group:
                self.members += 1
                group.add(receiver.outbox, receiver)

    def gather(self) -> None:
        """Let the only member be one of a group, as something is to be delivered."""
        self.groups = {}
        only, self.only = self.only, None
        if only is not None:
            self.members = 0
            self.add(only)

    def remove(self, receiver: Receiver) -> None:
        """End a membership, if it is one."""
        if self.only is receiver:
            self.only = None
            self.members = 0
            return
        group = self.groups.get(receiver.outbox.wire)
        if group is not None and group.remove(receiver.outbox):
            self.members -= 1
            if not group:
                del self.groups[receiver.outbox.wire]

    def receivers(self) -> list[Receiver]:
        if self.only is not None:
            return [self.only]
        return [receiver for group in self.groups.values() for receiver in group.values()]

    def everyone(self) -> list[Receiver]:
        """The members, and those that are about to be."""
        return [*self.receivers(), *(self.joining or ())]


class _Own:
    """What one connection gets otherwise than the rest in this turn: messages of its own, each
    with the number of shared publications before it, and the numbers of those it does not get."""

    __slots__ = ("messages", "skips")

    def __init__(self) -> None:
        self.messages: list[tuple[int, bytes | Framed]] = []
        self.skips: set[int] = set()


class Hub:
    """The channels of this process, and what this turn has published into them.

    Args:
        soon: how to be called when the turn is over.
        heal: called with a channel that has a hole; it must end in `healed` or `reset`.
        control: called with what is published for the servers, not the clients: events whose name
            starts with "$".
        later: calls a function after a delay (seconds). Without it, nothing is gathered.
    """

    def __init__(
        self,
        soon: Soon,
        heal: Callable[[Channel], object],
        control: Callable[[Channel, Publication], object],
        later: Callable[[float, Callable[[], object]], object] | None = None,
    ) -> None:
        self.channels: dict[str, Channel] = {}
        self.sessions: dict[str, Receiver] = {}
        # Counted for tests, metrics and the performance guard.
        self.encoded = 0
        self.writes = 0
        self.flushes = 0
        self.delivered = 0
        # How one chunk is written to the sockets of many.
        self.write_all: WriteAll = write_each
        self._soon = soon
        self._heal = heal
        self._control = control
        self._later = later
        self._scheduled = False
        self._log: list[tuple[Channel, Publication]] = []
        self._own: dict[Outbox, _Own] = {}
        self._dirty: list[Channel] = []

    # Membership

    def channel(self, name: str, ns: str, room: str | None) -> Channel:
        found = self.channels.get(name)
        if found is None:
            found = self.channels[name] = Channel(name, ns, room)
        return found

    def begin(self, channel: Channel, receiver: Receiver) -> None:
        """Let `receiver` collect what is announced until it goes live."""
        if channel.joining is None:
            channel.joining = {}
        channel.joining[receiver] = []

    def rewind(self, channel: Channel, receiver: Receiver) -> None:
        """Forget what `receiver` has collected: its history is about to be read again."""
        if channel.joining is not None and receiver in channel.joining:
            channel.joining[receiver] = []

    def collected(self, channel: Channel, receiver: Receiver) -> list[Publication] | None:
        """What has been announced since `begin`; None when it was too much to keep."""
        return channel.joining.get(receiver) if channel.joining else None

    def go_live(self, channel: Channel, receiver: Receiver, position: Position | None) -> None:
        """Make `receiver`, which has everything up to `position`, a member."""
        if channel.pending:
            # What this turn has published so far is part of what the receiver has been given.
            self.flush()
        self._stop_joining(channel, receiver)
        channel.add(receiver)
        if position is None:
            return
        if channel.epoch is None:
            channel.move_to(position)
        elif position.epoch == channel.epoch and position.offset > channel.offset:
            if channel.ahead is None:
                channel.ahead = {}
            channel.ahead[receiver] = position.offset

    def _stop_joining(self, channel: Channel, receiver: Receiver) -> None:
        if channel.joining is not None:
            channel.joining.pop(receiver, None)
            if not channel.joining:
                channel.joining = None

    def remove(self, channel: Channel, receiver: Receiver) -> None:
        """End a membership, or a joining that failed."""
        self._stop_joining(channel, receiver)
        if channel.ahead is not None:
            channel.ahead.pop(receiver, None)
        channel.remove(receiver)
        if not channel.members:
            # Who comes next reads of them.
            channel.held = None

    def forget(self, channel: Channel) -> None:
        """Drop a channel without members."""
        if self.channels.get(channel.name) is channel:
            del self.channels[channel.name]

    # Listener

    def received(self, channel: str, publication: Publication) -> None:
        """Take an announcement from the broker."""
        found = self.channels.get(channel)
        if found is None or (
            (publication.event in _MOVES or found.held is not None)
            and self._hold(found, publication)
        ):
            return
        self._received(found, publication)

    def _hold(self, channel: Channel, publication: Publication) -> bool:
        """Whether `publication` is gathered with others, to be told a moment later: the first
        arrival in a crowd is told at once, those that follow it within `STORM` seconds together. A
        thousand who join in a few seconds would else be a thousand writes to each of a thousand.
        """
        held = channel.held
        if (
            publication.event in _MOVES
            and channel.members >= CROWD
            and self._later is not None
            and channel.healing is None
        ):
            if held is not None:
                held.append(publication)
                if len(held) >= MAX_BUFFERED:
                    self._release(channel)
                return True
            now = time.monotonic()
            if now - channel.calm < STORM:
                channel.held = held = [publication]
                self._later(STORM, partial(self._storm_is_over, channel, held))
                return True
            channel.calm = now
        elif held is not None:
            # In their order, as if they had been announced late.
            self._release(channel)
        return False

    def _storm_is_over(self, channel: Channel, held: list[Publication]) -> None:
        if channel.held is held:
            self._release(channel)

    def _release(self, channel: Channel) -> None:
        held, channel.held = channel.held or [], None
        channel.calm = time.monotonic()
        for publication in held:
            self._received(channel, publication)

    def _received(self, channel: Channel, publication: Publication) -> None:
        offset = publication.offset
        if not offset:
            if publication.event[:1] == "$":
                self._control(channel, publication)
            else:
                self._deliver(channel, publication)
            return
        if channel.joining is not None:
            for receiver, collected in channel.joining.items():
                if collected is not None:
                    collected.append(publication)
                    if len(collected) > MAX_BUFFERED:
                        channel.joining[receiver] = None
        if channel.healing is not None:
            if len(channel.healing) < MAX_BUFFERED:
                channel.healing.append(publication)
            else:
                # With a hole before its end it joins on to no history: that is read again.
                channel.healing[-1] = publication
            return
        if publication.epoch == channel.epoch:
            if offset == channel.offset + 1 and publication.previous == channel.nonce:
                if publication.nonce:
                    channel.move_to(publication.position)
                else:
                    channel.offset = offset
                self._deliver(channel, publication)
                return
            if offset <= channel.offset and channel.knows(publication):
                return
        elif channel.epoch is None:
            # The first one to join is still reading where the stream stands.
            return
        channel.healing = [publication]
        self._heal(channel)

    def interrupted(self, channels: Iterable[str]) -> None:
        """Announcements may have been missed: compare with history. Where there is none, the
        servers are told."""
        for name in channels:
            channel = self.channels.get(name)
            if channel is None:
                continue
            if channel.room is None:
                self._control(channel, Publication("$interrupted", b"null"))
                continue
            # They are in the history that is read now.
            channel.held = None
            for receiver in channel.joining or ():
                # Its history may have been read already: it has to be read again.
                channel.joining[receiver] = None  # type: ignore[index]
            if channel.healing is not None:
                # So may the one that closes this hole. What fits nowhere makes it read again.
                channel.healing.append(_INTERRUPTED)
            elif channel.epoch is not None:
                channel.healing = []
                self._heal(channel)

    def healed(self, channel: Channel, missed: Sequence[Publication], position: Position) -> bool:
        """Deliver what was missed and go on; return False when history must be read again."""
        merged = merge(missed, position, channel.healing or [])
        if isinstance(merged, Gap):
            channel.healing = []
            return False
        channel.healing = None
        for publication in merged[0]:
            self._deliver(channel, publication)
        channel.move_to(merged[1])
        return True

    def reset(self, channel: Channel, position: Position) -> None:
        """Go on from `position`; the members are told by the caller that something is lost."""
        self.flush()
        channel.healing = None
        channel.ahead = None
        channel.move_to(position)

    # Delivery

    def _deliver(self, channel: Channel, publication: Publication) -> None:
        if not channel.members:
            return
        if channel.pending is None:
            if channel.groups is _NO_GROUPS:
                channel.gather()
            self._dirty.append(channel)
            channel.pending = []
        channel.pending.append(publication)
        if publication.exclude:
            receiver = self.sessions.get(publication.exclude)
            if receiver is not None:
                self._own_of(receiver.outbox).skips.add(len(self._log))
        if channel.ahead is not None:
            self._skip_those_ahead(channel, channel.ahead, publication.offset)
        self._log.append((channel, publication))
        if not self._scheduled:
            self._schedule()

    def _skip_those_ahead(self, channel: Channel, ahead: dict[Receiver, int], offset: int) -> None:
        for receiver, reached in list(ahead.items()):
            if offset and offset <= reached:
                self._own_of(receiver.outbox).skips.add(len(self._log))
            if channel.offset >= reached:
                del ahead[receiver]
        if not ahead:
            channel.ahead = None

    def push(self, receiver: Receiver, *messages: bytes | Framed) -> None:
        """Send messages to one session, after all that it was sent before."""
        own = self._own_of(receiver.outbox)
        for message in messages:
            own.messages.append((len(self._log), message))
        if not self._scheduled:
            self._schedule()

    def _own_of(self, outbox: Outbox) -> _Own:
        own = self._own.get(outbox)
        if own is None:
            own = self._own[outbox] = _Own()
        return own

    def _schedule(self) -> None:
        self._scheduled = True
        self._soon(self.flush)

    def flush(self) -> None:
        """Write what this turn has gathered. Called when it ends, or earlier."""
        self._scheduled = False
        if not self._dirty and not self._own:
            return
        self.flushes += 1
        log, self._log = self._log, []
        own, self._own = self._own, {}
        dirty, self._dirty = self._dirty, []
        if not dirty:
            for outbox, theirs in own.items():
                self._write(outbox, _frames(outbox.wire, [each[1] for each in theirs.messages]))
        elif len(dirty) == 1:
            self._flush_one(dirty[0], own)
        else:
            self._flush_many(dirty, log, own)

    def _encode(self, channel: Channel, wire: Wire, run: list[Publication]) -> list[bytes]:
        self.encoded += len(run)
        return wire.events(channel.ns, channel.room, run)

    def _flush_one(self, channel: Channel, own: dict[Outbox, _Own]) -> None:
        run, channel.pending = channel.pending or [], None
        for wire, group in channel.groups.items():
            messages = self._encode(channel, wire, run)
            chunks = wire.run(messages, run)
            self.delivered += len(run) * len(group)
            done = own.keys() & group.keys()
            for outbox in done:
                self._write_own(outbox, own.pop(outbox), messages, run)
            self._write_group(group, chunks, done, messages, run)
        # Those that are left are not members.
        for outbox, theirs in own.items():
            self._write_own(outbox, theirs, [], [])

    def _flush_many(
        self,
        dirty: list[Channel],
        log: list[tuple[Channel, Publication]],
        own: dict[Outbox, _Own],
    ) -> None:
        several = _in_several(dirty)
        if not _one_after_the_other(log):
            # Who is in several of these rooms must not get them room by room.
            for outbox in several:
                own.setdefault(outbox, _Own())
        apart = several | own.keys()
        encoded: dict[tuple[Channel, Wire], list[bytes]] = {}
        runs: dict[Outbox, list[Chunk]] = {}
        for channel in dirty:
            run, channel.pending = channel.pending or [], None
            for wire, group in channel.groups.items():
                messages = encoded[channel, wire] = self._encode(channel, wire, run)
                chunks = wire.run(messages, run)
                self.delivered += len(run) * len(group)
                done = apart & group.keys()
                self._write_group(group, chunks, done, messages, run)
                for outbox in done:
                    if outbox in own:
                        continue
                    if outbox.congested:
                        self._write_slowly(outbox, messages, run)
                    else:
                        runs.setdefault(outbox, []).extend(chunks)
        for outbox, parts in runs.items():
            self._write(outbox, parts)
        for outbox, theirs in own.items():
            wire = outbox.wire
            taken: dict[Channel, int] = {}
            messages = []
            publications = []
            skips = set()
            shift = [0] * (len(log) + 1)
            for number, (channel, publication) in enumerate(log):
                shift[number] = len(messages)
                if (channel, wire) not in encoded:
                    continue
                index = taken.get(channel, 0)
                taken[channel] = index + 1
                if outbox in channel.groups[wire]:
                    if number in theirs.skips:
                        skips.add(len(messages))
                    messages.append(encoded[channel, wire][index])
                    publications.append(publication)
            shift[len(log)] = len(messages)
            moved = _Own()
            moved.skips = skips
            moved.messages = [(shift[number], message) for number, message in theirs.messages]
            self._write_own(outbox, moved, messages, publications)

    def _write_group(
        self,
        group: Group,
        chunks: Sequence[Chunk],
        done: Set[Outbox],
        messages: list[bytes],
        run: list[Publication],
    ) -> None:
        """Write a channel's run to the members of a group, but for those in `done`."""
        if len(chunks) == 1:
            rest = group.write(chunks[0], done, self.write_all)
            self.writes += len(group) - len(rest) - len(done)
        else:
            rest = [outbox for outbox in group if outbox not in done]
        for outbox in rest:
            if outbox.congested:
                self._write_slowly(outbox, messages, run)
            else:
                self._write(outbox, chunks)

    def _write_own(
        self, outbox: Outbox, own: _Own, messages: list[bytes], run: list[Publication]
    ) -> None:
        mixed: list[bytes | Framed] = []
        done = 0
        for before, message in own.messages:
            mixed.extend(_without(messages, done, before, own.skips))
            mixed.append(message)
            done = before
        mixed.extend(_without(messages, done, len(messages), own.skips))
        self.delivered -= sum(1 for number in own.skips if number < len(messages))
        if not mixed:
            return
        if outbox.congested and len(own.messages) < len(mixed):
            self._write_mixed_slowly(outbox, own, messages, run)
        else:
            self._write(outbox, _frames(outbox.wire, mixed))

    def _write_mixed_slowly(
        self, outbox: Outbox, own: _Own, messages: list[bytes], run: list[Publication]
    ) -> None:
        """What is volatile or conflated must reach a slow connection's outbox on its own."""
        done = 0
        for before, message in [*own.messages, (len(messages), b"")]:
            for number in range(done, min(before, len(messages))):
                if number not in own.skips:
                    self._write_slowly(outbox, messages[number : number + 1], [run[number]])
            if message:
                self._write(outbox, _frames(outbox.wire, [message]))
            done = before

    def _write(self, outbox: Outbox, chunks: Sequence[Chunk]) -> None:
        if len(chunks) > 1:
            joined = outbox.wire.join(chunks)
            if joined is not None:
                chunks = (joined,)
        for chunk in chunks:
            self.writes += 1
            outbox.push(chunk)

    def _write_slowly(self, outbox: Outbox, messages: list[bytes], run: list[Publication]) -> None:
        for message, publication in zip(messages, run, strict=True):
            for chunk in outbox.wire.frames((message,)):
                self.writes += 1
                outbox.push(chunk, publication.volatile, publication.key)


def _frames(wire: Wire, messages: Sequence[bytes | Framed]) -> Sequence[Chunk]:
    """Frame messages, those together that stand together; what is framed already stays as it is."""
    chunks: list[Chunk] = []
    run: list[bytes] = []
    for message in messages:
        if isinstance(message, Framed):
            if run:
                chunks.extend(wire.frames(run))
                run = []
            chunks.extend(message.chunks)
        else:
            run.append(message)
    if not chunks:
        return wire.frames(run)
    if run:
        chunks.extend(wire.frames(run))
    return chunks


def _one_after_the_other(log: list[tuple[Channel, Publication]]) -> bool:
    """Whether all that was published to a channel stands together."""
    changes = sum(log[number][0] is not log[number - 1][0] for number in range(1, len(log)))
    return changes < len({channel for channel, _ in log})


def _in_several(channels: list[Channel]) -> set[Outbox]:
    once: set[Outbox] = set()
    several: set[Outbox] = set()
    for channel in channels:
        for group in channel.groups.values():
            several.update(once.intersection(group))
            once.update(group)
    return several


def _without(messages: list[bytes], start: int, end: int, skips: set[int]) -> Iterable[bytes]:
    if not skips:
        return messages[start:end]
    return [
        messages[number] for number in range(start, min(end, len(messages))) if number not in skips
    ]
