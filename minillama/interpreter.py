"""Chat: a conversation as ids.

Written by notebooks/10_chat.ipynb: edit it there.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path


class PythonInterpreter:
    """A tool that runs Python code in a process of its own and returns what it printed.

    This is no sandbox: the code can read, change and send away whatever you can. What is limited is
    time, output and, where the system can (not on Windows), memory, so that an endless loop does no
    harm. Use it on code you would run.
    """

    def __init__(self, seconds=5.0, characters=4_000, megabytes=512):
        self.seconds, self.characters, self.megabytes = seconds, characters, megabytes

    def __call__(self, code: str) -> str:
        """Run the code; its output, cut at the limit, and a last line that says how it ended unless
        it ended well.
        """
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
            open(f"{folder}/out", "w+b") as out,
        ):
            Path(folder, "code.py").write_text(code, encoding="utf-8", errors="replace")
            command = [
                sys.executable,
                "-I",
                "-u",
                "-X",
                "utf8",
                "-c",
                LIMITED,
                str(self.megabytes * 1_000_000),
            ]
            # no secrets
            env = {
                name: value for name in ("PATH", "SYSTEMROOT") if (value := os.environ.get(name))
            }
            streams = dict(stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
            process = subprocess.Popen(
                command, cwd=folder, env=env, start_new_session=True, **streams
            )
            try:
                note = self.wait(process, out)
            finally:
                # end it and, but for Windows, whatever it has started
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL) if hasattr(
                        os, "killpg"
                    ) else process.kill()
                process.wait()
            out.seek(0)
            text = out.read(4 * self.characters + 1).decode("utf-8", "replace")
        if len(text) > self.characters:
            text, note = text[: self.characters], note or "[the rest of the output was cut]"
        return "\n".join(part for part in (text.rstrip("\n"), note) if part)

    def wait(self, process, out) -> str:
        """Wait until the process ends or reaches a limit; a note on the end, "" if it ended
        well.
        """
        deadline = time.monotonic() + self.seconds
        while process.poll() is None:
            if time.monotonic() > deadline:
                return f"[stopped after {self.seconds:g} s]"
            if os.fstat(out.fileno()).st_size > 4 * self.characters:
                return "[stopped: too much output]"
            time.sleep(0.01)
        return f"[exit status {process.returncode}]" if process.returncode else ""


LIMITED = """import sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
except (ImportError, ValueError, OSError):
    pass
exec(compile(open("code.py", encoding="utf-8").read(), "code.py", "exec"), {"__name__": "__main__"})
"""
