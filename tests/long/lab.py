"""A JupyterLab of the tests' own, driven in Chromium: its port, its token, its process, its folders."""

from __future__ import annotations

import io
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
from jupyter_client import BlockingKernelClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
_KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


class Lab:
    """The server. ``folder`` holds the notebooks; ``stop`` ends it and all its kernels."""

    def __init__(self, folder: Path):
        self.folder, self.token = folder / "notebooks", secrets.token_hex(16)
        self.runtime, self.settings = folder / "runtime", folder / "settings"
        for made in (self.folder, self.runtime, self.settings):
            made.mkdir(parents=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "JUPYTER_CONFIG_DIR": str(folder / "config"), "JUPYTER_DATA_DIR": str(folder / "share"),
            "JUPYTER_RUNTIME_DIR": str(self.runtime), "JUPYTERLAB_SETTINGS_DIR": str(self.settings),
            "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"), "JUPYTER_PREFER_ENV_PATH": "1",
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self._log = (folder / "lab.log").open("wb")
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={self.port}", "--port-retries=0",
                   f"--ServerApp.root_dir={self.folder}", f"--IdentityProvider.token={self.token}",
                   "--ServerApp.ip=127.0.0.1", "--LabApp.news_url=", "--LabApp.check_for_updates_class="
                   "jupyterlab.NeverCheckForUpdate", *(["--allow-root"] if os.geteuid() == 0 else [])]
        self.process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=self._log,
                                        stderr=subprocess.STDOUT, start_new_session=True)
        self._wait()

    def _wait(self, seconds: float = 90) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with urllib.request.urlopen(self.url("api"), timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        said = Path(self._log.name).read_text(errors="replace")[-3000:]
        self.stop()
        raise RuntimeError(f"JupyterLab did not start:\n{said}")

    def url(self, path: str) -> str:
        """Where something is, with the token."""
        return f"http://127.0.0.1:{self.port}/{path}?token={self.token}"

    def theme(self, name: str) -> None:
        """'JupyterLab Light' or 'JupyterLab Dark', for pages opened from now on."""
        for plugin, text in (("themes", f'{{"theme": "{name}"}}'), ("notification", '{"fetchNews": "false"}')):
            path = self.settings / "@jupyterlab" / "apputils-extension" / f"{plugin}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        path = self.settings / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"windowingMode": "none"}')  # cells out of sight stay on the page, for a test to find

    def write(self, name: str, *code: str) -> str:
        """A notebook of these cells."""
        cells = [nbformat.v4.new_code_cell(source) for source in code]
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": _KERNEL}), self.folder / name)
        return name

    def stop(self) -> None:
        """End the server and what it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self._log.close()


class LabPage:
    """One notebook open in the browser, and its kernel."""

    def __init__(self, lab: Lab, page, name: str):
        self.lab, self.page = lab, page
        known = set(lab.runtime.glob("kernel-*.json"))
        page.goto(lab.url(f"doc/tree/{name}"))
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
        until = time.monotonic() + 60
        while not (new := set(lab.runtime.glob("kernel-*.json")) - known):
            assert time.monotonic() < until, "no kernel"
            time.sleep(0.2)
        self.client = BlockingKernelClient(connection_file=str(new.pop()))
        self.client.load_connection_file()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def run_all(self, seconds: float = 300) -> None:
        """By the menu, as a reader does; waits until the last cell has its number."""
        self.page.locator(".jp-Notebook .jp-Cell").first.click()
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        self.page.wait_for_function(
            """() => { const cells = [...document.querySelectorAll(".jp-Notebook .jp-CodeCell")]
                         .filter(cell => cell.querySelector(".cm-content")?.textContent.trim());
                       const prompt = cells.at(-1)?.querySelector(".jp-InputPrompt").textContent ?? "";
                       return /\\[\\d+\\]/.test(prompt); }
            """, timeout=1000 * seconds)

    def ask(self, expression: str, seconds: float = 60) -> str:
        """Value of an expression in the notebook's kernel, as its repr; an error there is raised here."""
        reply = self.client.execute("None", user_expressions={"asked": expression}, reply=True, timeout=seconds,
                                    store_history=False)["content"]
        found = reply["user_expressions"]["asked"]
        if found["status"] != "ok":
            raise RuntimeError(f"{expression}: {found['ename']}: {found['evalue']}")
        return found["data"]["text/plain"]

    def tell(self, code: str, seconds: float = 60) -> None:
        """Run statements in the notebook's kernel."""
        reply = self.client.execute(code, reply=True, timeout=seconds, store_history=False)["content"]
        assert reply["status"] == "ok", reply

    def canvas(self, index: int = 0):
        """The picture of the view on the page."""
        found = self.page.locator(".msfilm-live").nth(index).locator(".jupyter-matplotlib canvas").first
        found.wait_for(timeout=60_000)
        found.scroll_into_view_if_needed()
        return found

    def pixels(self, index: int = 0) -> np.ndarray:
        """What the browser shows of it."""
        shot = self.canvas(index).screenshot(animations="disabled")
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)

    def settled(self, seconds: float = 20, index: int = 0) -> np.ndarray:
        """The picture once it has not changed for half a second."""
        until, before = time.monotonic() + seconds, self.pixels(index)
        while time.monotonic() < until:
            self.page.wait_for_timeout(500)
            now = self.pixels(index)
            if now.shape == before.shape and (now == before).all():
                return now
            before = now
        raise AssertionError("the picture does not come to rest")

    def close(self) -> None:
        """Close the page and end its kernel."""
        self.client.shutdown()
        self.client.stop_channels()
        self.page.close()
