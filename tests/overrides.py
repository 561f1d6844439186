"""Programs' own overrides of socketserver's hooks, as they are found in the wild; each counts that it was called."""
from __future__ import annotations

import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any


class Told:
    """Counts which hooks were called."""

    _telling = threading.Lock()  # guards the counts
    told: Counter[str] = Counter()

    def tell(self, hook: str) -> None:
        """Count a call."""
        with self._telling:
            self.told = vars(self).get("told", Counter())
            self.told[hook] += 1


class InPool(Told):
    """Serves in an executor of its own, which it shuts down when it closes."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Submit socketserver's own method."""
        self.tell("process_request")
        if not hasattr(self, "pool"):
            self.pool = ThreadPoolExecutor(4)
        self.pool.submit(self.process_request_thread, request, client_address)

    def server_close(self) -> None:
        """Close, and wait for the executor."""
        super().server_close()
        if hasattr(self, "pool"):
            self.pool.shutdown()


class InPoolByFinishRequest(InPool):
    """Does in the executor what socketserver's thread would do, without its method."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Submit a method of its own."""
        self.tell("process_request")
        if not hasattr(self, "pool"):
            self.pool = ThreadPoolExecutor(4)
        self.pool.submit(self.work, request, client_address)

    def work(self, request: Any, client_address: Any) -> None:
        """Serve and close."""
        try:
            self.finish_request(request, client_address)
        finally:
            self.shutdown_request(request)


class InOwnThread(Told):
    """Starts threads as socketserver's own method does, keeping them in its list."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread."""
        self.tell("process_request")
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self._threads.append(thread)
        thread.start()


class OwnThreadBody(Told):
    """Replaces what a handler thread does."""

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve and close."""
        self.tell("process_request_thread")
        try:
            self.finish_request(request, client_address)
        finally:
            self.shutdown_request(request)


class OwnThreadBodyThatClosesByItself(Told):
    """Replaces what a handler thread does, and calls none of the other hooks."""

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve and close the socket itself."""
        self.tell("process_request_thread")
        with request:
            self.RequestHandlerClass(request, client_address, self)
            request.shutdown(socket.SHUT_WR)


class OwnFinish(Told):
    """Makes the handler itself."""

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Make the handler."""
        self.tell("finish_request")
        self.RequestHandlerClass(request, client_address, self)


class OwnShutdown(Told):
    """Ends connections itself."""

    def shutdown_request(self, request: Any) -> None:
        """End one, then close it by the other hook."""
        self.tell("shutdown_request")
        request.shutdown(socket.SHUT_WR)
        self.close_request(request)


class OwnClose(Told):
    """Closes connections itself."""

    def close_request(self, request: Any) -> None:
        """Close one."""
        self.tell("close_request")
        request.close()


class OwnAccept(Told):
    """Accepts by itself."""

    def get_request(self) -> tuple[Any, Any]:
        """Accept, as tests of xmlrpc do."""
        self.tell("get_request")
        request, client_address = self.socket.accept()
        request.setblocking(True)
        return request, client_address


class OwnBind(Told):
    """Binds by itself."""

    def server_bind(self) -> None:
        """Bind, and note the name."""
        self.tell("server_bind")
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()


class OwnActivate(Told):
    """Listens on another socket than the one that was made for it."""

    def server_activate(self) -> None:
        """Replace the socket, and listen."""
        self.tell("server_activate")
        self.socket.close()
        self.socket = socket.create_server(self.server_address[:1] + (0,))
        self.server_address = self.socket.getsockname()


class OwnVerify(Told):
    """Looks at who comes."""

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Take everybody."""
        self.tell("verify_request")
        return True


class OwnActions(Told):
    """Has something to do again and again."""

    def service_actions(self) -> None:
        """Count."""
        self.tell("service_actions")


ABOVE_ONLY = [InPool, InPoolByFinishRequest, InOwnThread]
EITHER_SIDE = [OwnThreadBody, OwnThreadBodyThatClosesByItself, OwnFinish, OwnShutdown, OwnClose, OwnAccept, OwnBind,
               OwnActivate, OwnVerify, OwnActions]
