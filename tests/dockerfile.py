"""Carries out a Dockerfile's instructions in a folder that holds a bare Debian.

For machines without a container engine. What an engine adds (layers, limits, the base
image's own Python) is not tested by this.
"""

import json
import os
import shlex
import shutil
import string
import subprocess
from collections.abc import Mapping
from pathlib import Path

_MACHINES_OWN = ("/etc/resolv.conf", "/etc/pip.conf", "/etc/ssl/certs")
"""What a root without an engine needs of this machine to reach a package index."""
_PASSED = ("PIP_CERT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "SSL_CERT_FILE")


def bare(root: Path) -> None:
    """Make a bare Debian with Python, as this machine's release, in a new folder."""
    release = Path("/etc/os-release").read_text()
    (suite,) = [
        line.partition("=")[2]
        for line in release.splitlines()
        if line.startswith("VERSION_CODENAME=")
    ]
    needed = "--include=python3,python3-venv,ca-certificates"
    made = ["debootstrap", "--variant=minbase", needed, suite, str(root)]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    for name in _MACHINES_OWN:
        source, target = Path(name), root / name.lstrip("/")
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore_dangling_symlinks=True)
        elif source.exists():
            shutil.copyfile(source, target)


class Image:
    """A root folder, and what the instructions say of it beside its files."""

    def __init__(self, root: Path, arguments: Mapping[str, str]) -> None:
        self.root = root
        self.command: list[str] = []
        self.health: list[str] = []
        self._arguments = dict(arguments)
        self._args: dict[str, str] = {}
        self._workdir = "/"
        self.user = "root"
        system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self._env = {"PATH": system, "LANG": "C.UTF-8"}
        self._env |= {k: os.environ[k] for k in _PASSED if k in os.environ}

    def build(self, dockerfile: Path) -> None:
        """Carry out all instructions; one that is not known is an error."""
        known = {
            "FROM": self._from,
            "ARG": self._arg,
            "ENV": self._set_env,
            "WORKDIR": self._set_workdir,
            "RUN": self._run,
            "COPY": self._copy,
            "USER": self._user,
            "VOLUME": self._volume,
            "EXPOSE": self._expose,
            "HEALTHCHECK": self._healthcheck,
            "CMD": self._cmd,
        }
        text = dockerfile.read_text()
        lines = [x for x in text.splitlines() if not x.lstrip().startswith("#")]
        for line in "\n".join(lines).replace("\\\n", " ").splitlines():
            if line.strip():
                name, _, rest = line.strip().partition(" ")
                known[name](rest.strip(), dockerfile.parent)

    def run(
        self, command: list[str], user: str = "", timeout: float = 60
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in the container, as the user the image has by then."""
        return subprocess.run(
            self.entering(command, user or self.user),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def entering(self, command: list[str], user: str) -> list[str]:
        """Return what runs a command with the image's root, user and variables."""
        switch = (
            []
            if user == "root"
            else ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
        )
        variables = [f"{k}={v}" for k, v in {"HOME": "/root", **self._env}.items()]
        there = f'cd {shlex.quote(self._workdir)}; exec "$@"'
        enter = (
            f"mount -t proc proc {self.root}/proc && "
            f'mount --rbind /dev {self.root}/dev && exec chroot {self.root} "$@"'
        )
        return [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
            *("sh", "-c", enter, "sh"),
            *("env", "-i", *variables, *switch, "sh", "-c", there, "sh", *command),
        ]

    def _words(self, text: str) -> list[str]:
        known = self._env | self._args
        return shlex.split(string.Template(text).safe_substitute(known))

    def _from(self, rest: str, _: Path) -> None:
        assert rest.startswith("python:3"), rest  # which `bare` stands for

    def _arg(self, rest: str, _: Path) -> None:
        name, _, default = rest.partition("=")
        self._args[name] = self._arguments.get(name, default)

    def _set_env(self, rest: str, _: Path) -> None:
        for pair in self._words(rest):
            name, _, value = pair.partition("=")
            self._env[name] = value

    def _set_workdir(self, rest: str, _: Path) -> None:
        self._workdir = rest
        (self.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def _run(self, rest: str, _: Path) -> None:
        lines = [f"{k}={shlex.quote(v)}" for k, v in self._args.items()]
        script = "; ".join([*lines, rest])
        done = self.run(["sh", "-c", script], timeout=1500)
        assert done.returncode == 0, f"RUN {rest}\n{done.stdout}\n{done.stderr}"

    def _copy(self, rest: str, context: Path) -> None:
        *sources, target = self._words(rest)
        place = self.root / self._workdir.lstrip("/") / target
        for name in sources:
            source = context / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(source, place, ignore=ignored, dirs_exist_ok=True)
            else:
                into = place / source.name if target.endswith("/") else place
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, into)

    def _user(self, rest: str, _: Path) -> None:
        self.user = rest

    def _volume(self, rest: str, _: Path) -> None:
        for name in json.loads(rest):
            assert (self.root / name.lstrip("/")).is_dir(), name

    def _expose(self, rest: str, _: Path) -> None:
        assert rest.isdigit()

    def _healthcheck(self, rest: str, _: Path) -> None:
        self.health = json.loads(rest.partition("CMD ")[2])

    def _cmd(self, rest: str, _: Path) -> None:
        self.command = json.loads(rest)
