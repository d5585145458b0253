"""Where `make` places the environment; tried with a Python that installs nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import PROJECT

PYTHON = """#!/bin/sh
mkdir -p "$3/bin"
printf '#!/bin/sh\\n' > "$3/bin/pip"
chmod +x "$3/bin/pip"
"""


class Checkout:
    """A folder with the project's Makefile, and a home."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.variables = {"PATH": os.environ["PATH"], "HOME": str(home)}
        self.environment = folder / ".venv"

    def make(self, *arguments: str, **variables: str) -> str:
        """Returns what it said on standard error if it failed, else nothing."""
        python = self.folder.parent / "python"
        ran = subprocess.run(
            ["make", f'PYTHON="{python}"', *arguments],
            cwd=self.folder,
            env=self.variables | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        return ran.stderr if ran.returncode else ""


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder = tmp_path / "a project"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(PROJECT / name, folder)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return Checkout(folder, tmp_path / "home")


def installed(environment: Path) -> bool:
    return (environment / "bin" / "pip").exists()


@pytest.mark.parametrize(
    ("variable", "below"),
    [("", "home/.cache/fl-app"), ("XDG_CACHE_HOME", "fl-app"), ("FL_APP_CACHE", "")],
)
def test_it_lies_in_the_cache_and_goes_with_make_clean(
    variable: str, below: str, checkout: Checkout, tmp_path: Path
) -> None:
    given = {variable: str(tmp_path)} if variable else {}
    assert checkout.make("install", **given) == ""
    assert checkout.environment.is_symlink()
    (place,) = (tmp_path / below / "venvs").iterdir()
    assert checkout.environment.resolve() == place.resolve()
    assert installed(place)
    assert checkout.make("clean") == ""  # whatever the variables are by then
    assert not place.exists()
    assert not checkout.environment.is_symlink()
    assert (tmp_path / below / "venvs").exists()


@pytest.mark.parametrize("place", [".venv", "./.venv", ".venv/"])
def test_it_can_be_inside(place: str, checkout: Checkout) -> None:
    assert checkout.make("install", f"VENV={place}") == ""
    assert not checkout.environment.is_symlink()
    assert installed(checkout.environment)
    assert sorted(p.name for p in checkout.environment.iterdir())[1:] == ["bin"]
    assert checkout.make("install", f"VENV={place}") == ""
    assert checkout.make("install") == ""  # it stays where it is
    assert not checkout.environment.is_symlink()
    assert checkout.make("clean") == ""
    assert not checkout.environment.exists()


def test_without_a_home_it_is_inside(checkout: Checkout) -> None:
    del checkout.variables["HOME"]
    assert checkout.make("install") == ""
    assert not checkout.environment.is_symlink()
    assert installed(checkout.environment)


def test_a_place_of_ones_own_stays(checkout: Checkout, tmp_path: Path) -> None:
    own = tmp_path / "my environment"
    assert checkout.make("install", f"VENV={own}") == ""
    assert checkout.environment.resolve() == own
    (checkout.folder / "pyproject.toml").touch()
    assert checkout.make("install") == ""
    assert checkout.environment.resolve() == own
    assert checkout.make("clean") == ""
    assert not checkout.environment.is_symlink()
    assert installed(own)


@pytest.mark.parametrize("asked", [".venv", "elsewhere"])
def test_another_place_than_it_has_is_an_error(asked: str, checkout: Checkout) -> None:
    assert checkout.make("install") == ""
    place = checkout.environment.resolve()
    assert "make clean first" in checkout.make("install", f"VENV={asked}")
    assert checkout.environment.resolve() == place


def test_a_copy_gets_one_of_its_own(checkout: Checkout, tmp_path: Path) -> None:
    checkout.make("install")
    shutil.copytree(checkout.folder, tmp_path / "copy", symlinks=True)
    copy = Checkout(tmp_path / "copy", tmp_path / "home")
    assert copy.environment.resolve() == checkout.environment.resolve()
    assert copy.make("install") == ""
    assert installed(copy.environment)
    assert copy.environment.resolve() != checkout.environment.resolve()


def test_one_that_is_gone_is_made_anew(checkout: Checkout) -> None:
    checkout.make("install")
    shutil.rmtree(checkout.environment.resolve())
    assert checkout.make("install") == ""
    assert installed(checkout.environment)
    shutil.rmtree(checkout.environment.resolve())
    assert checkout.make("install", "VENV=.venv") == ""
    assert not checkout.environment.is_symlink()
