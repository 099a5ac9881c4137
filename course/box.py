"""Where students' processes come from with `course.grade --apart`: one process, in bubblewrap where
that is installed, that forks another for each task (course/student.py).
"""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from course.export import ROOT, ExportError
from course.wire import Garbled, Peer


SENTENCES = {
    "bubblewrap": "students' code ran in bubblewrap: no network, a read-only system without the "
    "course and the submissions, an empty home, namespaces of its own for every task, limits",
    "limits": "students' code ran in processes of its own with limits, but as this user, who can "
    "read the course and the submissions: install bubblewrap before you trust the grades",
}


STARTS = 120  # seconds that the first process may take
NO_PROCESS = (
    "--apart started no process for students' code; bubblewrap may need user namespaces that this "
    "system forbids: grade without --apart, in a container"
)


BELOW_TMP = (
    "--apart gives students' code a /tmp of its own: move the checkout, with .venv, elsewhere"
)


class Box:
    """The process from which students' processes are forked, and what confines it."""

    def __init__(self, memory: int = 4 << 30, seconds: int = 600):
        if sys.platform != "linux":
            raise ExportError("--apart needs Linux: grade without it, in a container")
        if shutil.which("bwrap") and Path(sys.prefix).resolve().is_relative_to("/tmp"):
            raise ExportError(BELOW_TMP)
        self.folder = Path(tempfile.mkdtemp(prefix="box-"))
        self.folder.chmod(0o700)
        self.path = str(self.folder / "door")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        listener.listen(64)
        fd = listener.fileno()
        self.how, alone, command = confinement()
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": "/tmp",
            "TMPDIR": "/tmp",
            "PYTHONPATH": "/box" if self.how == "bubblewrap" else str(ROOT),
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "Agg",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        for name in ("MINILLAMA_DEBUG",):
            if name in os.environ:
                environment[name] = os.environ[name]
        if self.how == "bubblewrap" and os.getuid() == 0:
            environment["MINILLAMA_NOBODY"] = "1"
        where = "/box" if self.how == "bubblewrap" else str(ROOT)
        arguments = [f"{where}/course/student.py", str(fd), str(memory), str(seconds), str(alone)]
        python = os.path.join(os.path.realpath(sys.prefix), "bin", "python")
        self.process = subprocess.Popen(
            [*command, python, "-s", *arguments],
            pass_fds=[fd],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=None if "MINILLAMA_DEBUG" in os.environ else subprocess.DEVNULL,
            start_new_session=True,
        )
        listener.close()

    def __enter__(self):
        """ExportError if no process comes from it."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(STARTS)
                connection.connect(self.path)
                Peer(connection, 0).ask("take", [])
        except (Garbled, OSError) as error:
            self.close()
            raise ExportError(NO_PROCESS) from error
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def sentence(self) -> str:
        """For the report: what kept students' code apart."""
        return SENTENCES[self.how]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def confinement() -> tuple[str, int, list[str]]:  # noqa: C901
    """How a student's process is confined here, whether each gets namespaces of its own, and the
    command before its own.
    """
    program = shutil.which("bwrap")
    if program is None:
        return "limits", 0, []
    command = [program, "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--die-with-parent", "--new-session", "--proc", "/proc", "--dev", "/dev"]
    if os.getuid() == 0:
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user"]
    seen = set()
    places = ["/usr", "/lib", "/lib64", "/lib32", "/bin", "/etc/ld.so.cache", "/etc/alternatives"]
    places += ["/etc/localtime", "/sys/devices/system/cpu"]
    places += [os.path.realpath(sys.base_prefix), os.path.realpath(sys.prefix)]
    for place in places:
        if not os.path.exists(place) or place in seen:
            continue
        seen.add(place)
        if os.path.islink(place) and place in ("/lib", "/lib64", "/lib32", "/bin"):
            command += ["--symlink", os.readlink(place), place]
        else:
            for above in reversed(Path(place).parents[:-1]):
                if str(above) not in seen:  # open to nobody, too
                    seen.add(str(above))
                    command += ["--perms", "0755", "--dir", str(above)]
            command += ["--ro-bind", place, place]
    for name in ("purelib", "platlib"):
        package = os.path.join(os.path.realpath(sysconfig.get_paths()[name]), "minillama")
        if os.path.isdir(package) and package not in seen:
            seen.add(package)
            command += ["--tmpfs", package]
    command += ["--tmpfs", "/tmp", "--chmod", "1777", "/tmp"]
    command += ["--perms", "0755", "--dir", "/box", "--perms", "0755", "--dir", "/box/course"]
    for name in ("__init__.py", "wire.py", "student.py", "cuda_on_cpu.h"):
        command += ["--ro-bind", str(ROOT / "course" / name), f"/box/course/{name}"]
    command += ["--ro-bind", str(ROOT / "notebooks" / "figures"), "/box/figures"]
    command += ["--remount-ro", "/", "--chdir", "/tmp", "--"]
    return "bubblewrap", 1, command
