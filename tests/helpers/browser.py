"""A headless Chromium that a test drives by the DevTools protocol over a pipe; needs no driver and no port."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
MISSING = "this test needs Chromium: apt-get install chromium, or put a link called chromium on PATH"
SECONDS = 60  # for an answer of the browser


def find() -> str:
    """The path of the browser. Raises AssertionError, with what to install, if there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    assert found, MISSING
    return found


class Navigated(Exception):
    """Raised for a call to a page that was left before it answered."""


class Page:
    """A tab: `js` evaluates an expression in it; `press`, `click` and `tap` send real input."""

    def __init__(self, browser, session):
        self._browser, self._session = browser, session

    def call(self, method, **params):
        return self._browser.call(method, self._session, **params)

    def js(self, expression):
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression, seconds=20):
        """Waits until an expression is true in the page."""
        end = time.monotonic() + seconds
        while not self._holds(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.02)

    def _holds(self, expression):
        try:
            return self.js(expression)
        except Navigated:  # the page that was asked is gone; the next one is asked again
            return False

    def open(self, address):
        self.call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def reload(self):
        self.js("window.old = true")
        self.call("Page.reload")
        self.wait("!window.old && document.readyState === 'complete'")

    def press(self, key):
        code = {"Backspace": 8, "ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9, "Enter": 13}[key]
        extra = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            more = extra if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def click(self, selector):
        """Clicks the middle of an element with the mouse."""
        self.js(f"document.querySelector({selector!r}).scrollIntoView({{block: 'nearest'}})")
        box = f"document.querySelector({selector!r}).getBoundingClientRect()"
        x, y = self.js(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def resize(self, width, height, mobile=False):
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)

    def screenshot(self, path: Path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


class Browser:
    def __init__(self, folder: Path):
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        self.requests, self.errors = [], []
        self._number, self._buffer, self._answers = 0, b"", {}
        options = (
            f"--headless=new --no-sandbox --disable-gpu --remote-debugging-pipe --user-data-dir={folder / 'profile'}"
        )
        options += " --no-first-run --disable-background-networking --disable-component-update --disable-dev-shm-usage"

        # The protocol's pipes are the descriptors 3 and 4. A shell sets them: Python would have to fork its threads.
        script = f'exec "$@" 3</dev/fd/{to_browser} 4>/dev/fd/{from_browser}'
        self._process = subprocess.Popen(
            ["sh", "-c", script, "sh", find(), *options.split(), "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.downloads = folder / "downloads"
        self.downloads.mkdir()
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))

    def call(self, method, session=None, **params):
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + SECONDS
        while number not in self._answers:
            assert time.monotonic() < end, f"Chromium does not answer {method}"
            self._receive()
        answer = self._answers.pop(number)
        if "navigated" in answer.get("error", {}).get("message", ""):
            raise Navigated(method)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _receive(self):
        if not select.select([self._read], [], [], 1)[0]:
            assert self._process.poll() is None, "Chromium has ended"
            return
        content = os.read(self._read, 1 << 20)
        assert content, "Chromium has ended"
        self._buffer += content
        *messages, self._buffer = self._buffer.split(b"\0")
        for text in messages:
            message = json.loads(text)
            if "id" in message:
                self._answers[message["id"]] = message
            elif message["method"] == "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            elif message["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(message["params"])

    def tab(self, context=None):
        """A new tab; tabs of one context share their storage."""
        more = {"browserContextId": context} if context else {}
        target = self.call("Target.createTarget", url="about:blank", **more)["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        return page

    def close(self):
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
