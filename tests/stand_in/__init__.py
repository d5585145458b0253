"""A stand-in for a GPU, see `device.cpp`; a plugin of pytest's that has it used."""

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

BUILT = "FL_APP_STAND_IN"
"""Variable with the library that `build` made: the plugin loads it."""

SOURCE = Path(__file__).with_name("device.cpp")
NAME = "standin"


def build(folder: Path) -> Path:
    """Compile the device; return its library."""
    from torch.utils import cpp_extension

    library = folder / f"{NAME}.so"
    included = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    libraries = str(Path(torch.__file__).parent / "lib")
    command = [
        *("c++", "-std=c++20", "-O1", "-fPIC", "-shared", "-w"),
        *(f"-DTORCH_EXTENSION_NAME={NAME}", str(SOURCE), "-o", str(library)),
        *(f"-I{folder}" for folder in included),
        *(f"-L{libraries}", f"-Wl,-rpath,{libraries}"),
        *("-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


def load(library: Path) -> None:
    """Make this process's device of it; for all of the process's life.

    What it counts is told by the functions of the module `NAME`.
    """
    description = importlib.util.spec_from_file_location(NAME, library)
    assert description is not None
    assert description.loader is not None
    loaded = importlib.util.module_from_spec(description)
    description.loader.exec_module(loaded)
    sys.modules[NAME] = loaded
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module())


def _module() -> ModuleType:
    """Return what PyTorch asks of a device in Python, as `torch.cuda` is."""
    made = ModuleType(f"torch.{NAME}")
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "manual_seed_all": lambda seed: None,
        "manual_seed": lambda seed: None,  # its numbers are the CPU's
        "get_rng_state": lambda device: torch.get_rng_state(),
        "set_rng_state": lambda state, device: None,
        "empty_cache": lambda: None,
        "mem_get_info": lambda device: (2**33, 2**34),
        "get_amp_supported_dtype": lambda: [torch.bfloat16],
        "device": lambda index: SimpleNamespace(),
    }
    vars(made).update(answers)
    return made


def pytest_configure() -> None:
    """Have models trained on it by all tests of this process."""
    from fl_app import task

    load(Path(os.environ[BUILT]))
    task.default_device = lambda: torch.device(NAME, 0)
