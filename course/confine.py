"""The process in which one student's work runs: what it may open and start, how much it may use.

No sandbox: for code that you do not trust, run the grader in a container. See course/screen.py for
what is read before.
"""

import builtins
import contextlib
import os
import sys
import sysconfig
import tempfile
from pathlib import Path

from course.export import ROOT


CHANGING = {
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.chmod",
    "os.chown",
    "os.link",
    "os.symlink",
}
CHANGING |= {
    "os.truncate",
    "os.utime",
    "shutil.rmtree",
    "shutil.move",
    "shutil.copyfile",
    "shutil.copytree",
}
STARTING = {
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
    "pty.spawn",
}
REACHING = {
    "os.kill",
    "os.killpg",
    "signal.pthread_kill",
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
}
REACHING |= {
    "socket.sendto",
    "socket.__new__",
    "urllib.Request",
    "ftplib.connect",
    "smtplib.connect",
}
DEVICES = (
    "/dev/null",
    "/dev/urandom",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/self/",
    "/sys/devices/",
    "/sys/fs/cgroup/",
)


class Limits:
    """Bytes of memory beyond those in use now, seconds of processor time, bytes of a file; where
    the system can.
    """

    def __init__(self, memory: int = 4 << 30, seconds: int = 600, file: int = 200 << 20):
        self.memory, self.seconds, self.file = memory, seconds, file

    def set(self) -> None:
        try:
            import resource
        except ImportError:  # Windows: only the parent's clock
            return
        used = 0
        with contextlib.suppress(OSError, ValueError):
            used = (
                int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
                * resource.getpagesize()
            )
        wanted = {"AS": used + self.memory, "CPU": self.seconds, "FSIZE": self.file, "CORE": 0}
        for name, value in wanted.items():
            kind = getattr(resource, f"RLIMIT_{name}")
            hard = resource.getrlimit(kind)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(kind, (value, value))


def confine(limits: Limits, scratch: Path) -> None:
    """From now on, for good: limits, and an audit hook; only `scratch` may be written."""
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    sys.dont_write_bytecode = True
    limits.set()
    sys.addaudithook(hook(scratch))


def hook(scratch: Path):
    """An audit hook that refuses, by PermissionError, files elsewhere, processes, sockets and
    signals.

    subtle: all that it needs is bound here, since names of modules may be changed by the code that
    it watches.
    """
    installed = {
        sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
    installed |= {
        sys.prefix,
        sys.base_prefix,
        *(place for place in sys.path if "-packages" in place),
    }
    places = (*installed, scratch, ROOT / "data", ROOT / "course", ROOT / "notebooks" / "figures")
    may_read = (*(os.path.realpath(place) + os.sep for place in places), *DEVICES)
    solutions = tuple({os.path.realpath(Path(file).parent) + os.sep for file in reference_files()})
    may_write, compiler = (
        (os.path.realpath(scratch) + os.sep, os.devnull),
        os.environ.get("CXX", "g++"),
    )
    real, string, integer, decode = os.path.realpath, str, int, os.fsdecode
    changing, starting, reaching, wrong = CHANGING, STARTING, REACHING, PermissionError
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    is_a, length = isinstance, len

    def inside(path, places) -> bool:
        if is_a(path, integer):  # a descriptor that is open already
            return True
        path = real(decode(path))
        return (path.startswith(places) or path + "/" in places) and not path.startswith(solutions)

    def audit(event, args):
        if event == "open":
            path, mode, flags = args
            writes = (
                (mode and not mode.startswith("r"))
                or (mode and "+" in mode)
                or (flags or 0) & writing
            )
            if not inside(path, may_write if writes else may_read):
                raise wrong(
                    f"no solution {'writes' if writes else 'reads'} files: {string(path)[-60:]}"
                )
        elif event == "ctypes.dlopen":
            if not (args[0] and inside(args[0], may_read)):
                raise wrong(f"no solution loads a library: {string(args[0])[-60:]}")
        elif event in changing:
            if not inside(args[0], may_write):
                raise wrong(f"no solution changes files: {event}")
        elif event in starting or event in reaching:
            raise wrong(f"no solution needs {event}")
        elif event == "subprocess.Popen":
            command = args[1] if length(args) > 1 else ()
            if not (
                command
                and string(args[0]).rsplit("/", 1)[-1] in (compiler, "c++")
                and "-shared" in command
            ):
                raise wrong("no solution starts a process")

    return audit


def reference_files() -> list[str]:
    """Where the reference's package lies, installed or not."""
    return [module.__file__ for name, module in list(sys.modules.items()) if name == "minillama"]


def shared() -> list:
    """The modules and classes that checks rely on."""
    import numpy
    import torch

    import course.check
    import course.run_tasks
    import course.slices

    found = [
        builtins,
        torch,
        torch.Tensor,
        torch.nn.functional,
        torch.nn.Module,
        torch.linalg,
        torch.testing,
    ]
    found += [numpy, numpy.testing, numpy.linalg, course.check, course.run_tasks, course.slices]
    return [
        *found,
        *(value for value in vars(course.run_tasks).values() if isinstance(value, type)),
    ]


class Snapshot:
    """What those modules hold, and what has been changed in them since."""

    def __init__(self):
        self.kept = [(owner, dict(vars(owner))) for owner in shared()]

    def changed(self) -> list[str]:
        """Names that hold something else now; they are put back."""
        found = []
        for owner, kept in self.kept:
            now = vars(owner)
            for name in [
                name
                for name, value in kept.items()
                if now.get(name, self) is not value and name[:2] != "__"
            ]:
                found.append(f"{owner.__name__}.{name}")
                setattr(owner, name, kept[name])
            if owner is builtins:
                for name in [name for name in now if name not in kept and name != "_"]:
                    found.append(f"builtins.{name}")
                    delattr(owner, name)
        return found
