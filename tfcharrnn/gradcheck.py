"""Checks the gradients of the language model's loss by every parameter against central differences, in float64.

Prints a table of relative errors, |a - n| / max(1e-6, |a| + |n|) in the Euclidean norm, each the largest of a model's
variables. A model reads four kinds of text:

whole: a training batch;
learned: a batch of at least 16, from a learned initial state, with dropout;
padded: texts of several lengths, from a carried state; the gradient by that state is checked too;
skipped: from a carried state too, with a mask that skips steps anywhere (custom only).
"""

from __future__ import annotations

import math

from tfcharrnn import cli, config
from tfcharrnn.config import GradcheckConfig
from tfcharrnn.errors import UserError


def main() -> None:
    """Reads the flags and prints the table."""
    settings = GradcheckConfig(**cli.settings(GradcheckConfig))
    cli.load_tensorflow()
    check(settings)


def check(settings: GradcheckConfig) -> None:
    """Prints the table, a row as soon as it is known.

    Raises:
        UserError: a relative error is above the tolerance, or not a number; names the largest.
    """
    from tfcharrnn.verification import gradient_check

    cells = config.CELLS if settings.cell == "all" else (settings.cell,)
    codes = ("custom", "keras") if settings.implementation == "all" else (settings.implementation,)
    columns = [(cell, code) for cell in cells for code in codes]
    print("layers embedding texts  ", *(f"{cell + ' ' + code:>11}" for cell, code in columns))
    errors: dict[str, float] = {}
    for case in gradient_check.cases(settings):
        row = []
        for cell, code in columns:
            if not gradient_check.applies(case, code):
                row.append("-")
                continue
            found = gradient_check.relative_errors(gradient_check.build(settings, case, cell, code))
            worst = max(found, key=lambda name: _rank(found[name]))
            row.append(f"{found[worst]:.1e}")
            where = f"{cell} {code}, layers {case.num_layers}, embedding {case.embedding_size}, {case.kind}"
            errors |= {f"{name} ({where})": error for name, error in found.items()}
        print(f"{case.num_layers:<6} {case.embedding_size:<9} {case.kind:<8}", end="")
        print("", *(f"{text:>11}" for text in row), flush=True)
    wrong = [name for name, error in errors.items() if not error <= settings.tolerance]
    if wrong:
        worst = max(wrong, key=lambda name: _rank(errors[name]))
        raise UserError(
            f"{len(wrong)} of {len(errors)} gradients have a relative error above --tolerance={settings.tolerance:g}; "
            f"the largest, {errors[worst]:.1e}, is that of {worst}"
        )


def _rank(error: float) -> float:
    """Orders errors; what is not a number is worse than any."""
    return math.inf if math.isnan(error) else error


if __name__ == "__main__":
    cli.define(GradcheckConfig)
    cli.run(main)
