"""The channel between the server and a worker process: whole messages, with their descriptors, in both directions.

Invariants:

- One thread at a time uses each end. Any thread may end the process at the other end, and the user of this one notices.
- Large buffers are sent from the object that holds them, and received into the one that they become: see `messages`.
- What is received ahead of its message waits in the buffer. Descriptors come with the first byte of their message.
- A wait in the kernel ends when the other end is closed. A process that the worker has forked may keep that open, so a
  wait without progress is interrupted every `CHECK_INTERVAL` seconds, or earlier as `hasten` says, to look whether the
  worker has ended, or its time is up; and so is a long transfer with progress.
"""
from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Any

from .pipe_channel import PipeChannel
from .wire import HEADER, Disconnected, Incoming, Whole, close_descriptors, wait

CHECK_INTERVAL = 1.0
"""Seconds without progress after which a transfer looks whether the other process is there, and its time left."""

MOST_DESCRIPTORS = 253
"""As many as Linux sends at once."""

HAS_SOCKETS = hasattr(socket, "send_fds")
"""Whether processes are connected by Unix sockets, which take descriptors along; elsewhere, on Windows, by pipes."""

_AHEAD = 65536  # bytes that are received ahead
_MOST_BUFFERS = 512  # that one system call sends; most systems allow 1,024
_PIECE = 262_144  # bytes that it sends, if somebody looks in between whether to go on
_ANCILLARY = socket.CMSG_SPACE(MOST_DESCRIPTORS * array.array("i").itemsize) if HAS_SOCKETS else 0
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)


class SocketChannel:
    """One end of a channel: a Unix socket, and the end of a pipe that has a byte for each call that has begun."""

    def __init__(self, connection: socket.socket, begun: Connection, is_over: Callable[[], bool] | None = None) -> None:
        """Take over both. ``is_over`` tells whether to give the other process up; ``None``: if the socket ends."""
        self._socket, self._begun, self._is_over = connection, begun, is_over
        self._interval: float | None = None  # seconds for which a wait goes on
        if is_over is not None:
            self.hasten(None)
        os.set_blocking(begun.fileno(), begun.writable)
        self._ahead = memoryview(bytearray(_AHEAD))
        self._start = self._end = 0  # of what has been received ahead
        self._descriptors: list[int] = []  # received ahead

    def fileno(self) -> int:
        """Return what `wait` takes; -1 after `close`."""
        return self._socket.fileno()

    def hasten(self, seconds: float | None) -> None:
        """Have waits without progress interrupted after so many seconds, if these are fewer than `CHECK_INTERVAL`."""
        interval = CHECK_INTERVAL if seconds is None else min(CHECK_INTERVAL, max(seconds, 0.001))
        if interval == self._interval:
            return
        self._interval = interval
        packed = struct.pack("ll", int(interval), int(interval % 1 * 1_000_000))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            with suppress(OSError):  # a platform with other times: then a transfer ends only with the other end
                self._socket.setsockopt(socket.SOL_SOCKET, option, packed)

    def is_ahead(self) -> bool:
        """Return whether something of the next message has been received already, which `wait` does not know of."""
        return self._start < self._end

    def has_data(self) -> bool:
        """Return whether the next message has begun to come."""
        return self.is_ahead() or bool(wait([self._socket], 0))

    def tell_begun(self) -> None:
        """Tell the other process, which does not wait for it, that a call has begun."""
        os.write(self._begun.fileno(), b"\0")

    def was_begun(self) -> bool:
        """Return whether a call has begun since this was last asked."""
        try:
            return bool(os.read(self._begun.fileno(), _AHEAD))
        except BlockingIOError:
            return False

    def send(self, kind: int, name: bytes = b"", buffers: Sequence[Any] = (), descriptors: Sequence[int] = ()) -> None:
        """Send a message: its buffers, of bytes, and copies of the descriptors. Raises Disconnected."""
        rest = [HEADER.pack(kind, len(descriptors), len(name), sum(map(len, buffers))) + name, *buffers]
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        first = 0
        while first < len(rest):
            try:
                sent = self._socket.sendmsg(self._next_piece(rest[first:first + _MOST_BUFFERS]), ancillary, _NO_SIGNAL)
            except OSError as error:
                self._go_on_after(error)
                continue
            ancillary = []
            while first < len(rest) and sent >= len(rest[first]):
                sent -= len(rest[first])
                first += 1
            if sent:
                rest[first] = memoryview(rest[first])[sent:]
            if first < len(rest):
                self._go_on()

    def _next_piece(self, buffers: list[Any]) -> list[Any]:
        """Return what to send at once: a receiver that reads slowly keeps a system call going, however long it takes.
        """
        if self._is_over is None:
            return buffers
        piece, room = [], _PIECE
        for each in buffers:
            piece.append(each if len(each) <= room else memoryview(each)[:room])
            room -= len(each)
            if room <= 0:
                break
        return piece

    def receive(self) -> Incoming:
        """Wait for a message, and receive so much of it as there is. Raises Disconnected."""
        while self._end - self._start < HEADER.size:
            self._receive_ahead()
        kind, count, length, size = HEADER.unpack_from(self._ahead, self._start)
        self._start += HEADER.size
        name = self.take(length) if length else b""
        descriptors, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        if len(descriptors) < count:  # this process has no place for more
            close_descriptors(descriptors)
            raise Disconnected
        is_there = size <= self._end - self._start
        return Incoming(kind, name, Whole(self.take(size)) if is_there else Stream(self, size), descriptors)

    def take(self, size: int) -> bytes:
        """Receive so many bytes."""
        if size <= _AHEAD:
            while self._end - self._start < size:
                self._receive_ahead()
            self._start += size
            return bytes(self._ahead[self._start - size:self._start])
        pieces = [bytes(self._ahead[self._start:self._end])]
        size -= self._end - self._start
        self._start = self._end = 0
        while size:
            try:
                piece = self._socket.recv(size, socket.MSG_WAITALL)
            except OSError as error:
                self._go_on_after(error)
                continue
            if not piece:
                raise Disconnected
            pieces.append(piece)
            size -= len(piece)
            if size:
                self._go_on()
        return b"".join(pieces)

    def take_into(self, target: memoryview) -> None:
        """Receive so many bytes as ``target`` has place for."""
        done = min(len(target), self._end - self._start)
        target[:done] = self._ahead[self._start:self._start + done]
        self._start += done
        while done < len(target):
            with target[done:] as rest:  # the memory may be freed after an error, whose traceback would keep a view
                try:
                    count = self._socket.recv_into(rest, 0, socket.MSG_WAITALL)
                except OSError as error:
                    self._go_on_after(error)
                    continue
            if not count:
                raise Disconnected
            done += count
            if done < len(target):
                self._go_on()

    def close(self) -> None:
        """Close this end. May be called again."""
        self._socket.close()
        self._begun.close()
        close_descriptors(self._descriptors)

    def _receive_ahead(self) -> None:
        """Receive what there is, or wait for some."""
        if self._start:
            rest = self._end - self._start
            self._ahead[:rest] = self._ahead[self._start:self._end]
            self._start, self._end = 0, rest
        try:
            count, ancillary, _, _ = self._socket.recvmsg_into([self._ahead[self._end:]], _ANCILLARY, _CLOSE_ON_EXEC)
        except OSError as error:
            self._go_on_after(error)
            return
        for _, _, data in ancillary:
            self._descriptors.extend(array.array("i", data[:len(data) - len(data) % 4]))
        if not count:
            raise Disconnected
        self._end += count

    def _go_on_after(self, error: OSError) -> None:
        """Return if a wait was only interrupted to look whether to go on, and it shall; else raise Disconnected."""
        if not isinstance(error, BlockingIOError) or self._is_over is None:
            raise Disconnected from error
        self._go_on()

    def _go_on(self) -> None:
        """Look whether to go on, after a piece of a message, or a wait that was interrupted. Raises Disconnected."""
        if self._is_over is not None and self._is_over():
            raise Disconnected


class Stream:
    """What the unpickler reads a message from that comes meanwhile."""

    def __init__(self, channel: SocketChannel, size: int) -> None:
        self._channel = channel
        self._left = size
        self._is_reading = False

    def read(self, size: int) -> bytes:
        """Read so many bytes, or fewer at the end."""
        size = min(size, self._left)
        self._is_reading = True
        data = self._channel.take(size)
        self._left -= size
        self._is_reading = False
        return data

    def readinto(self, target: memoryview) -> int:
        """Read into memory that the unpickler provides for an object; return the number of bytes."""
        with memoryview(target)[:self._left] as part:
            self._is_reading = True
            self._channel.take_into(part)
            self._left -= len(part)
            self._is_reading = False
            return len(part)

    def readline(self) -> bytes:
        """Be required by the unpickler. The protocol has no lines."""
        raise EOFError

    def skip(self) -> None:
        """Receive what nobody has read, so that the next message can be received. Raises Disconnected if it cannot."""
        if self._is_reading:  # a signal handler has interrupted that, and nobody knows how far it has come
            raise Disconnected
        while self._left:
            self.read(_AHEAD)


Channel = SocketChannel | PipeChannel


def make_ends(context: SpawnContext) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Make what the two ends of a channel are opened with: this process's, and the worker's, to be closed here."""
    ours, theirs = socket.socketpair() if HAS_SOCKETS else context.Pipe()
    try:
        reader, writer = context.Pipe(duplex=False)
    except OSError:  # no descriptor is available
        ours.close()
        theirs.close()
        raise
    return (ours, reader), (theirs, writer)


def open_end(end: tuple[Any, Any], is_over: Callable[[], bool] | None = None) -> Channel:
    """Open an end. ``is_over``: as for `SocketChannel`."""
    return SocketChannel(*end, is_over) if isinstance(end[0], socket.socket) else PipeChannel(*end)
