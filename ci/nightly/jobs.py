"""The jobs of the workflows that run the matrix: one of each SoC, made and never copied by hand.

Enters: the SoCs of the matrix, and a workflow's text. Leaves: the text with their jobs between its
marks. Touches: ``write`` writes the workflows. A workflow can make its jobs from a list, but not
name a secret of each; so every SoC has a job of its own, which gets one secret and no other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from steps.core.errors import UsageError
from steps.core.plan import clusters
from steps.core.record.rundir import write_text

FOLDER = Path(".github/workflows")
_PLACE = re.compile(
    r"(?m)^(?P<indent> *)# made of ci/nightly.yaml.*\n(?:.*\n)*?(?P=indent)# end of what is made\n"
)
_SECRET = """\
      KUBECONFIG_%_B64:
        required: false
"""
_OUTPUTS = """\
      @: ${{ steps.matrix.outputs.@ }}
      @-count: ${{ steps.matrix.outputs.@-count }}
      @-parallel: ${{ steps.matrix.outputs.@-parallel }}
"""
#: The job of a SoC; ``&`` is the job that says which cases it has.
_JOB = """\
  @:
    needs: &
    if: needs.&.outputs.@-count != '0'
    strategy:
      fail-fast: false
      max-parallel: ${{ fromJSON(needs.&.outputs.@-parallel) }}
      matrix: ${{ fromJSON(needs.&.outputs.@) }}
    name: ${{ matrix.name }}
"""
_CASE = """\
    with:
      name: ${{ matrix.name }}
      case: ${{ matrix.case }}
      profile: ${{ matrix.profile }}
      runner: ${{ toJSON(matrix.runner) }}
      minutes: ${{ matrix.minutes }}
"""
_SECRETS = """\
    secrets:
      kubeconfig-b64: ${{ secrets.KUBECONFIG_%_B64 }}
"""
_NIGHTLY = f"""\
{_JOB.replace("&", "plan")}\
    uses: ./.github/workflows/_case.yaml # zizmor: ignore[self-repository] older runners
{_CASE}\
      cadence: ${{{{ matrix.cadence }}}}
      ref: ${{{{ inputs.ref }}}} # a commit given by hand may be one of a pull request
{_SECRETS}"""
_COMMAND = f"""\
{_JOB.replace("&", "ask")}\
    # A newer comment on the same request takes the machines over from an older one.
    concurrency:
      group: command-${{{{ github.event.issue.number }}}}-${{{{ matrix.name }}}}
      cancel-in-progress: true
    permissions:
      contents: read # the harness
    uses: ./.github/workflows/_multinode.yaml # zizmor: ignore[self-repository] older runners
{_CASE}\
      session: ${{{{ needs.ask.outputs.session }}}}
      words: ${{{{ needs.ask.outputs.words }}}}
      repository: ${{{{ needs.ask.outputs.repository }}}}
      ref: ${{{{ needs.ask.outputs.ref }}}}
      pull: ${{{{ needs.ask.outputs.pull }}}}
{_SECRETS}"""
_NEED = """\
      - @
"""
#: Workflow -> what stands at its marked places, one after another.
WORKFLOWS = {
    "nightly.yaml": (_OUTPUTS, _NIGHTLY, _NEED),
    "command.yaml": (_SECRET, _OUTPUTS, _COMMAND, _NEED),
}


def name(soc: str) -> str:
    """Name of a SoC's job and outputs; one that begins with a digit is none to GitHub."""
    return f"soc-{soc}"


def made(workflow: str, text: str, socs: Iterable[str]) -> str:
    """The text of a workflow with the jobs of ``socs``, a pure function.

    Raises:
        UsageError: its marked places are not there.
    """
    each = list(socs)
    templates = iter(WORKFLOWS[workflow])
    found, expected = len(_PLACE.findall(text)), len(WORKFLOWS[workflow])
    if found != expected:
        raise UsageError(
            f"{FOLDER / workflow}: found {found} places marked '# made of ci/nightly.yaml' with "
            f"their end, expected {expected}"
        )
    return _PLACE.sub(lambda place: _filled(next(templates), place["indent"], each), text)


def _filled(template: str, indent: str, socs: Sequence[str]) -> str:
    filled = [
        template.replace("@", name(soc)).replace("%", soc.upper().replace("-", "_")) for soc in socs
    ]
    gap = "\n" if template in (_NIGHTLY, _COMMAND) else ""
    head = f"{indent}# made of ci/nightly.yaml by `nox -s matrix -- --write-jobs`\n"
    return f"{head}{gap.join(filled)}{indent}# end of what is made\n"


def write(socs: Iterable[str]) -> None:
    """Write the workflows with the jobs of ``socs``."""
    each = list(socs)
    for workflow in WORKFLOWS:
        path = clusters.ROOT / FOLDER / workflow
        write_text(path, made(workflow, path.read_text(encoding="utf-8"), each))
