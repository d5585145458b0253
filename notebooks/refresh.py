"""Executes walkthrough.ipynb and writes it back with its outputs, pictures made small.

python notebooks/refresh.py
"""

import base64
import io
from pathlib import Path
from typing import Any

import nbclient
import nbformat
from PIL import Image

NOTEBOOK = Path(__file__).with_name("walkthrough.ipynb")
_COLOURS = 48  # of a picture: flat charts need no more


def execute(timeout: int = 300) -> Any:
    """Return the notebook as executed; raises what a cell raises."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=timeout, resources=place).execute()
    return notebook


def shrink(notebook: Any) -> None:
    """Reduce the pictures' colours, join texts, drop times and names of objects."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        outputs: list[Any] = []
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            data.pop("text/plain", None)
            if "image/png" in data:
                data["image/png"] = _fewer_colours(data["image/png"])
            if (
                outputs
                and output.get("name")
                and output.name == outputs[-1].get("name")
            ):
                outputs[-1]["text"] += output["text"]
            else:
                outputs.append(output)
        if "outputs" in cell:
            cell["outputs"] = outputs


def _fewer_colours(encoded: str) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    file = io.BytesIO()
    image.quantize(_COLOURS).save(file, format="png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    executed = execute()
    shrink(executed)
    nbformat.write(executed, NOTEBOOK)  # type: ignore[no-untyped-call]
