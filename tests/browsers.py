"""A real browser without a window: Debian's Chromium, driven by Selenium."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

_T = TypeVar("_T")
# Without these Chromium asks its maker's servers for all sorts of things.
_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


def find_programs() -> tuple[str, str] | None:
    """Return Chromium and its driver, None where one is missing."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    return (chromium, driver) if chromium and driver else None


class Browser:
    """One window; `driver` is Selenium's."""

    def __init__(self, programs: tuple[str, str]) -> None:
        self.folder = tempfile.mkdtemp(prefix="mlmeta-browser-")
        options = webdriver.ChromeOptions()
        options.binary_location = programs[0]
        for option in (*_OPTIONS, f"--user-data-dir={self.folder}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(programs[1]))

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Set the size of the window, and whether its user likes it dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def read(self, script: str) -> Any:
        """Return what a JavaScript expression gives."""
        return self.driver.execute_script(f"return {script}")

    def text(self, selector: str) -> str:
        """Return the text of an element, empty where there is none, in one step: pages change by themselves."""
        return str(self.read(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def wait(self, what: str, look: Callable[[], _T]) -> _T:
        """Wait until something is true, and return it."""
        ends = time.monotonic() + 180
        while not (seen := look()):
            assert time.monotonic() < ends, (
                f"{what} did not come: {self.driver.current_url}\n{self.text('body')[:2000]}"
            )
            time.sleep(0.05)
        return seen

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def press_tab(self) -> None:
        self.press(Keys.TAB)

    def take_errors(self) -> list[str]:
        """Return what the console has shown since the last time, other than remarks."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def save_picture(self, file: Path, *, height: int) -> None:
        """Save the upper part of the page as PNG."""
        area = {
            "x": 0,
            "y": 0,
            "width": self.read("document.documentElement.clientWidth"),
            "height": height,
            "scale": 1,
        }
        options = {"format": "png", "captureBeyondViewport": True, "clip": area}
        file.write_bytes(base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]))

    def quit(self) -> None:
        self.driver.quit()
        shutil.rmtree(self.folder, ignore_errors=True)
