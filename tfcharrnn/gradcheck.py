"""Checks the gradients of the loss by every parameter against central differences, in float64.

Prints a table of relative errors, |a - n| / max(1e-6, |a| + |n|) in the Euclidean norm; each figure is the largest of
all variables of a model. There are six kinds of texts and models:

whole: a training batch;
learned: a batch of at least 16, from a learned initial state, with dropout;
dropout: such a batch with every kind of dropout, locked, and dropped weights;
residual: a model with residual connections and layer normalisation;
padded: texts of several lengths, from a carried state, whose gradient is checked as well;
skipped: texts from a carried state, with a mask that skips steps anywhere (custom only).
"""

from __future__ import annotations

import math

from absl import flags

from tfcharrnn import cell_registry, cli
from tfcharrnn.config import GradcheckConfig
from tfcharrnn.errors import UserError

_FLAGS = flags.FLAGS


def main() -> None:
    """Reads the flags and prints the table."""
    own_cells = cli.load_cells(_FLAGS.cell)
    settings = cli.parse_config(GradcheckConfig)
    cli.load_tensorflow()
    check_gradients(settings, own_cells)


def check_gradients(settings: GradcheckConfig, own_cells: tuple[str, ...] = ()) -> None:
    """Prints the table, row by row as they are computed.

    Args:
        settings: the cells, sizes and tolerance.
        own_cells: what `all` means instead of the built-in cells.

    Raises:
        UserError: a relative error is above the tolerance, or not a number; names the largest.
    """
    from tfcharrnn.verification import gradient_check

    columns = list_columns(settings, own_cells)
    cells, implementations = zip(*columns, strict=True)
    widths = [max(7, len(cell)) for cell in cells]
    for start, texts in (("layers embedding texts", cells), ("", implementations)):
        print(f"{start:<25}", *(f"{text:>{width}}" for text, width in zip(texts, widths, strict=True)))
    all_errors: dict[str, float] = {}
    for case in gradient_check.list_cases(settings):
        row = []
        for cell, implementation in columns:
            if not gradient_check.is_supported(case, implementation):
                row.append("-")
                continue
            problem = gradient_check.build_problem(settings, case, cell, implementation)
            errors = gradient_check.compute_relative_errors(problem)
            row.append(f"{errors[_find_worst(errors)]:.1e}")
            model = f"{cell} {implementation}, layers {case.num_layers}, embedding {case.embedding_size}, {case.kind}"
            all_errors |= {f"{name} ({model})": error for name, error in errors.items()}
        start = f"{case.num_layers:<6} {case.embedding_size:<9} {case.kind}"
        print(f"{start:<25}", *(f"{text:>{width}}" for text, width in zip(row, widths, strict=True)), flush=True)
    failed = {name: error for name, error in all_errors.items() if not error <= settings.tolerance}
    if failed:
        worst = _find_worst(failed)
        raise UserError(
            f"{len(failed)} of {len(all_errors)} gradients have a relative error above "
            f"--tolerance={settings.tolerance:g}; the largest, {failed[worst]:.1e}, is that of {worst}"
        )


def list_columns(settings: GradcheckConfig, own_cells: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Lists the columns of the table: a cell and an implementation each."""
    from tfcharrnn.model.backends import LIBRARY_CELLS
    from tfcharrnn.verification import gradient_check

    cells: tuple[str, ...] = (settings.cell,)
    if settings.cell == "all":
        all_cells = LIBRARY_CELLS if settings.implementation == "keras" else cell_registry.BUILT_IN
        cells = own_cells or all_cells
    return [(cell, name) for cell in cells for name in gradient_check.list_implementations(settings, cell)]


def _find_worst(errors: dict[str, float]) -> str:
    """Returns the name of the largest error; NaN counts as infinite."""
    return max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_config_flags(GradcheckConfig)
    cli.define_cell_module_flag()
    cli.define_device_flag()


if __name__ == "__main__":
    cli.run_command(define_flags, main)
