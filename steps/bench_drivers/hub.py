"""Where weights and data sets named by a hub id are on this machine.

Enters: a hub id or a path, and the places where caches are. Leaves: a
directory, or a :class:`NotHere` that says where was looked. Touches: looks at
directories; downloads nothing itself, but says the command that does.

Layouts: ModelScope's cache has ``models/org/name`` and ``datasets/org/name``,
of older versions ``org/name``, with ``___`` for a dot in a name; Hugging
Face's ``models--org--name/snapshots/<commit>``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from steps.core.case.numbers import dumps
from steps.core.settings import Settings

MODEL, DATASET = "model", "dataset"
#: What of a model's repository is its tokenizer; weights are hundreds of GB.
TOKENIZER_FILES = (
    "*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken", "tokenization*.py", "configuration*.py",
)  # fmt: skip
_DOWNLOAD = (
    "import json, sys; from modelscope import snapshot_download; "
    "print(snapshot_download(**json.loads(sys.argv[1])))"
)


class NotHere(LookupError):
    """A model or data set is in none of the places; the text says which, and what to do."""


@dataclass(frozen=True)
class Hub:
    """The caches of this machine.

    Attributes:
        modelscope: roots of ModelScope's cache.
        huggingface: roots of Hugging Face's cache of repositories.
        download: whether what is absent may be fetched.
    """

    modelscope: tuple[Path, ...] = ()
    huggingface: tuple[Path, ...] = ()
    download: bool = False

    @staticmethod
    def of(settings: Settings) -> Hub:
        """The caches the environment names."""
        root = settings.modelscope_cache
        roots = (root,) if root.name == "hub" else (root, root / "hub")
        return Hub(roots, (settings.huggingface_cache,), settings.hub_download)

    def find(self, kind: str, name: str, bases: Sequence[Path] = ()) -> Path:
        """The directory or file of a model or data set.

        Args:
            kind: ``model`` or ``dataset``.
            name: a path, absolute or relative to one of ``bases``, or a hub id.

        Raises:
            NotHere: it is nowhere.
        """
        looked: list[Path] = []
        for place in self._places(kind, name, bases):
            if place not in looked:
                looked.append(place)
                if place.exists():
                    return place
        where = ", ".join(map(str, looked))
        path = name.startswith(("/", ".", "~"))
        todo = "correct the path" if path else f"get it with `{_by_hand(kind, name)}`"
        raise NotHere(f"the {_noun(kind)} {name} is not here; looked at {where}; {todo}")

    def _places(self, kind: str, name: str, bases: Sequence[Path]) -> Iterator[Path]:
        own = Path(name).expanduser()
        if own.is_absolute():
            yield own
            return
        for base in bases:
            yield base / own
        if name.startswith("."):
            return
        for root in self.modelscope:
            for spelled in dict.fromkeys((name, name.replace(".", "___"))):
                yield root / f"{kind}s" / spelled
                yield root / spelled
        if kind == MODEL:
            for root in self.huggingface:
                yield from _snapshots(root / f"models--{name.replace('/', '--')}")


def download_command(python: str, kind: str, name: str) -> tuple[str, ...]:
    """The command that fetches a data set, or the tokenizer of a model, into ModelScope's cache."""

    wanted: dict[str, object] = {"model_id": name, "repo_type": kind}
    if kind == MODEL:
        wanted["allow_patterns"] = list(TOKENIZER_FILES)
    return (python, "-c", _DOWNLOAD, dumps(wanted))


def _snapshots(repository: Path) -> Iterator[Path]:
    """The commit ``main`` points at, else every one that is there."""
    main = repository / "refs" / "main"
    if main.is_file():
        yield repository / "snapshots" / main.read_text(encoding="utf-8").strip()
    found = sorted((repository / "snapshots").glob("*"))
    yield from found or [repository]


def _by_hand(kind: str, name: str) -> str:
    return f"modelscope download --{kind} {name}"


def _noun(kind: str) -> str:
    return "data set" if kind == DATASET else "model"
