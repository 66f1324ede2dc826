"""A headless Chromium that opens a page, runs expressions in it and takes pictures.

It is driven by the DevTools protocol over a pair of pipes: JSON messages that end in a zero byte.
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Seconds in which a browser must come to its end, and a page be ready.
_TIMEOUT, _PATIENCE = 300.0, 30.0


def executable() -> str | None:
    """The path of a Chromium; None if there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Page:
    """One page of a running browser.

    Attributes:
        requests: the addresses of all that was fetched.
        problems: what the page wrote to its console, and exceptions that nobody caught.
    """

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = os.fdopen(to, "wb", buffering=0), os.fdopen(back, "rb")
        self._session: str | None = None
        self._id = 0
        self._unread = b""
        self.requests: list[str] = []
        self.problems: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def open(self, file, width=1400, height=1000, *, dark=False):
        """Opens a file and waits until its script has run."""
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Page.navigate", url=file.as_uri())
        deadline = time.monotonic() + _PATIENCE
        while not self.run("document.documentElement?.dataset.ready"):
            if self.problems or time.monotonic() > deadline:
                raise AssertionError(f"the page did not become ready: {self.problems}")
            time.sleep(0.02)

    def resize(self, width: int, height: int) -> None:
        """Gives the window another size, in CSS pixels."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def run(self, expression: str) -> Any:
        """The value of an expression in the page; of a promise what it comes to."""
        answer = self._call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def move(self, x: float, y: float) -> None:
        """Moves the mouse to a point of the window."""
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def drag(self, x: float, y: float, to: float) -> None:
        """Presses the mouse, moves it along a line to another x, and lets go."""
        press = {"button": "left", "clickCount": 1, "y": y}
        self._call("Input.dispatchMouseEvent", type="mousePressed", x=x, **press)
        self._call("Input.dispatchMouseEvent", type="mouseMoved", x=to, buttons=1, **press)
        self._call("Input.dispatchMouseEvent", type="mouseReleased", x=to, **press)

    def key(self, key: str) -> None:
        """Presses a key where the focus is."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def picture(self, *, whole: bool = False) -> bytes:
        """A PNG of the window, or of the whole page."""
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=whole)
        return base64.b64decode(answer["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._id += 1
        message = {"id": self._id, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._to.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._id:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._note(answer)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            piece = self._back.read1(1 << 16)
            if not piece:
                raise AssertionError("the browser has gone")
            self._unread += piece
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        details = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(details["exceptionDetails"]["exception"]["description"])
        elif event.get("method") == "Log.entryAdded":
            self.problems.append(details["entry"]["text"])


@contextlib.contextmanager
def page(profile: Path) -> Iterator[Page]:
    """Runs a browser for as long as it is used.

    Args:
        profile: an empty folder for its settings.
    """
    command = [
        *(str(executable()), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars"),
        *("--remote-debugging-pipe", f"--user-data-dir={profile}"),
    ]
    (read_in, to), (back, write_out) = os.pipe(), os.pipe()
    # The browser listens on 3 and answers on 4.
    shell = ["bash", "-c", f'exec "$0" "$@" 3<&{read_in} 4>&{write_out} 2>/dev/null', *command]
    process = subprocess.Popen(shell, pass_fds=(read_in, write_out), start_new_session=True)
    os.close(read_in)
    os.close(write_out)
    watchdog = threading.Timer(_TIMEOUT, process.kill)
    watchdog.start()
    try:
        opened = Page(to, back)
        yield opened
        opened._to.close()
        process.wait(timeout=10)
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        opened._back.close()
