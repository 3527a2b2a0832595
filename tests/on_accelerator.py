"""The code of one page of the book, run in smoke: arguments are its name, and a device.

The device is the pretend accelerator by default.

It runs as a reader's code does: in a process of its own, in single precision, without the checks of
shapes that the tests add, and its cells one after another in one namespace.
"""

import sys
import warnings
from contextlib import nullcontext

import matplotlib
from accelerator import NAME, Counts, enabled

from machinery import chapters


def main(name: str, device: str = NAME) -> None:
    matplotlib.use("Agg")
    warnings.filterwarnings("ignore", "FigureCanvasAgg is non-interactive")
    page = chapters.Chapter(name)
    space = {"__name__": "__main__"}
    with enabled() if device == NAME else nullcontext(Counts(1)) as counts:
        for number, cell in enumerate(chapters.read_text(page).cells):
            if cell.cell_type != "code":
                continue
            exec(compile(cell.source, f"{name}, cell {number}", "exec"), space)
            if "parameters" in cell.metadata.get("tags", []):
                space |= {"run": "smoke", "device": device}
    assert counts.to_device, f"{name} leaves the device alone"


main(*sys.argv[1:])
