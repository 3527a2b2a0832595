"""What a student's notebook imports: a check that says in words whether their lines are right."""

import ast
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

HELP = "The comment above the gap says what to write, and the text above the cell has the formula."


class NotYetError(Exception):
    """The student's lines do not do yet what the lecture's lines do."""

    def _render_traceback_(self) -> list[str]:
        """The lines that a notebook shows: the sentences alone, without a traceback."""
        return str(self).splitlines()


@contextmanager
def checked() -> Iterator[None]:
    """A context that says that the checks inside of it hold, or which one fails and by how much.

    Raises:
        NotYetError: a check fails, or the student's lines raise an error.
    """
    try:
        yield
    except AssertionError as error:
        reason = failed(error)
    except Exception as error:
        reason = raised(error)
    else:
        print("Right: your lines pass every check of the lecture.")
        return
    raise NotYetError(f"Not yet. {reason}\n{HELP}") from None


def failed(error: AssertionError) -> str:
    """Which check fails, and how far its two sides are apart where it compares numbers."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    sides = compared(line, frame)
    apart = f", its sides differ by {(sides[0] - sides[1]).abs().max():.2g}" if sides else ""
    return f"This check fails{apart}:\n    {line}"


def compared(line: str, frame: FrameType) -> list[torch.Tensor]:
    """The two arrays that a line `assert torch.allclose(a, b)` compares; nothing for others."""
    try:
        tree = ast.parse(line)
    except SyntaxError:  # the first line of several
        return []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("allclose", "isclose")):
            texts = [ast.unparse(side) for side in node.args[:2]]
            values = [eval(text, frame.f_globals, frame.f_locals) for text in texts]
            return [torch.as_tensor(value).detach() for value in values]
    return []


def raised(error: Exception) -> str:
    """Which error has come, and from which line of the notebook."""
    frames = list(traceback.walk_tb(error.__traceback__))[1:]  # the first is that of `checked`
    steps = traceback.extract_tb(error.__traceback__)[1:]
    notebook = frames[0][0].f_globals
    lines = [
        step.line
        for (frame, _), step in zip(frames, steps, strict=True)
        if frame.f_globals is notebook
    ]
    name = type(error).__name__
    return f"There is an error, {name}: {error}. It comes from the line\n    {lines[-1]}"
