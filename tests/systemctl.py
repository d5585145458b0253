"""What a host without systemd has in its place: starts units, and starts them again.

    systemctl enable --now UNIT...   a service of /etc/systemd/system, as its user
    systemctl restart nginx          Debian's own

Of a unit it reads User, StateDirectory, WorkingDirectory, Environment, EnvironmentFile,
ExecStart and RestartSec; output goes to /var/log/UNIT.log.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path


def parse(
    name: str, folder: Path = Path("/etc/systemd/system")
) -> dict[str, list[str]]:
    """Return a unit's settings, each with all its values, %i filled in."""
    stem, _, instance = name.removesuffix(".service").partition("@")
    path = folder / f"{stem}{'@' if instance else ''}.service"
    text = re.sub(r"\\\n\s*", "", path.read_text()).replace("%i", instance)
    settings: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            settings.setdefault(key, []).append(value)
    return settings


def environment(settings: dict[str, list[str]]) -> dict[str, str]:
    """Return the variables of a unit, those of its files among them."""
    lines = list(settings.get("Environment", []))
    for path in settings.get("EnvironmentFile", []):
        lines += Path(path).read_text().splitlines()
    return dict(shlex.split(line)[0].partition("=")[::2] for line in lines if line)


def command(settings: dict[str, list[str]], variables: dict[str, str]) -> list[str]:
    """Return a unit's command; `${NAME}` is one word, whatever its value."""
    words = settings["ExecStart"][0].split()
    return [re.sub(r"\$\{(\w+)\}", lambda m: variables[m[1]], word) for word in words]


def keep_running(name: str) -> None:
    settings = parse(name)
    variables = environment(settings)
    user = settings["User"][0]
    for folder in settings.get("StateDirectory", []):
        path = Path("/var/lib") / folder
        path.mkdir(exist_ok=True, mode=0o700)
        shutil.chown(path, user)
    with open(f"/var/log/{name}.log", "ab") as log:
        while True:
            subprocess.run(
                [
                    "setpriv",
                    f"--reuid={user}",
                    "--clear-groups",
                    *command(settings, variables),
                ],
                env={"PATH": "/usr/bin:/bin", **variables},
                cwd=settings["WorkingDirectory"][0],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
            time.sleep(float(settings["RestartSec"][0]))


def main() -> None:
    verb, *units = [word for word in sys.argv[1:] if not word.startswith("-")]
    if (verb, units) == ("restart", ["nginx"]):
        subprocess.run(["nginx", "-t", "-q"], check=True)
        subprocess.run(["nginx"], check=True, stderr=subprocess.DEVNULL)
        return
    assert verb == "enable", verb
    for unit in units:
        if os.fork() == 0:
            os.setsid()
            quiet = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(quiet, stream)
            keep_running(unit)


if __name__ == "__main__":
    main()
