"""Checks the gradients of the loss by every parameter against central differences, in float64.

Prints a table of relative errors, |a - n| / max(1e-6, |a| + |n|) in the Euclidean norm; each figure is the largest of
all variables of a model. There are five kinds of texts:

whole: a training batch;
learned: a batch of at least 16, from a learned initial state, with dropout;
dropout: such a batch with every kind of dropout, locked, and dropped weights;
padded: texts of several lengths, from a carried state, whose gradient is checked as well;
skipped: texts from a carried state, with a mask that skips steps anywhere (custom only).
"""

from __future__ import annotations

import math

from tfcharrnn import cell_registry, cli
from tfcharrnn.config import GradcheckConfig
from tfcharrnn.errors import UserError


def main() -> None:
    """Reads the flags and prints the table."""
    settings = cli.parse_config(GradcheckConfig)
    cli.load_tensorflow()
    check_gradients(settings)


def check_gradients(settings: GradcheckConfig) -> None:
    """Prints the table, row by row as they are computed.

    Raises:
        UserError: a relative error is above the tolerance, or not a number; names the largest.
    """
    from tfcharrnn.verification import gradient_check

    cells = cell_registry.list_cells() if settings.cell == "all" else (settings.cell,)
    implementations = ("custom", "keras") if settings.implementation == "all" else (settings.implementation,)
    columns = [(cell, implementation) for cell in cells for implementation in implementations]
    print("layers embedding texts  ", *(f"{cell + ' ' + implementation:>11}" for cell, implementation in columns))
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
        print(f"{case.num_layers:<6} {case.embedding_size:<9} {case.kind:<8}", end="")
        print("", *(f"{text:>11}" for text in row), flush=True)
    failed = {name: error for name, error in all_errors.items() if not error <= settings.tolerance}
    if failed:
        worst = _find_worst(failed)
        raise UserError(
            f"{len(failed)} of {len(all_errors)} gradients have a relative error above "
            f"--tolerance={settings.tolerance:g}; the largest, {failed[worst]:.1e}, is that of {worst}"
        )


def _find_worst(errors: dict[str, float]) -> str:
    """Returns the name of the largest error; NaN counts as infinite."""
    return max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name])


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_config_flags(GradcheckConfig)


if __name__ == "__main__":
    cli.run_command(define_flags, main)
