"""The nightly workflow's jobs: one of each SoC of the matrix, made and never copied by hand.

Enters: the SoCs of the matrix, and the workflow's text. Leaves: the text with their jobs between
its marks. Touches: ``write`` writes the workflow. A workflow can make its jobs from a list, but
not name a secret of each; so every SoC has a job of its own, which gets one secret and no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from steps.core.errors import UsageError
from steps.core.plan import clusters
from steps.core.record.rundir import write_text

WORKFLOW = Path(".github/workflows/nightly.yaml")
_BEGIN, _END = "# made of ci/nightly.yaml", "# end of what is made"
_OUTPUTS = """\
      @: ${{ steps.matrix.outputs.@ }}
      @-count: ${{ steps.matrix.outputs.@-count }}
      @-parallel: ${{ steps.matrix.outputs.@-parallel }}
"""
_JOB = """\
  @:
    needs: plan
    if: needs.plan.outputs.@-count != '0'
    strategy:
      fail-fast: false
      max-parallel: ${{ fromJSON(needs.plan.outputs.@-parallel) }}
      matrix: ${{ fromJSON(needs.plan.outputs.@) }}
    name: ${{ matrix.name }}
    uses: ./.github/workflows/_multinode.yaml # zizmor: ignore[self-repository] older runners
    with:
      name: ${{ matrix.name }}
      case: ${{ matrix.case }}
      profile: ${{ matrix.profile }}
      runner: ${{ toJSON(matrix.runner) }}
      minutes: ${{ matrix.minutes }}
      ref: ${{ inputs.ref }}
      pull: ${{ inputs.pull || inputs.ref }} # a commit given by hand may be one of a pull request
    secrets:
      kubeconfig-b64: ${{ secrets.KUBECONFIG_%_B64 }}
"""


def name(soc: str) -> str:
    """Name of a SoC's job and outputs; one that begins with a digit is none to GitHub."""
    return f"soc-{soc}"


def made(text: str, socs: Iterable[str]) -> str:
    """The workflow's text with the jobs of ``socs``, a pure function.

    Raises:
        UsageError: its two marked places are not there.
    """
    each = list(socs)
    for template, gap in ((_OUTPUTS, ""), (_JOB, "\n")):
        filled = [
            template.replace("@", name(soc)).replace("%", soc.upper().replace("-", "_"))
            for soc in each
        ]
        indent = " " * (len(template) - len(template.lstrip()))
        place = rf"(?m)^{indent}{_BEGIN}.*\n(?:.*\n)*?{indent}{_END}\n"
        head = f"{indent}{_BEGIN} by `nox -s matrix -- --write-jobs`\n"
        new = f"{head}{gap.join(filled)}{indent}{_END}\n"
        parts = re.split(place, text)
        if len(parts) != 2:
            raise UsageError(
                f"{WORKFLOW}: found {len(parts) - 1} places marked '{_BEGIN}' at column "
                f"{len(indent) + 1}, expected 1"
            )
        text = new.join(parts)
    return text


def write(socs: Iterable[str]) -> None:
    """Write the workflow with the jobs of ``socs``."""
    path = clusters.ROOT / WORKFLOW
    write_text(path, made(path.read_text(encoding="utf-8"), socs))
