"""The data sets and request styles AISBench knows, as far as cases name them.

Enters: a ``dataset_conf`` or ``request_conf``. Leaves: what AISBench's own
Python configuration of that name says, as JSON. Touches nothing.

Classes, prompts and evaluators are those of the installed AISBench, or, where its files are not
found, of ``ais-bench-benchmark`` 3.1.20260630: a score is comparable only when the question is put
in the same words. An entry here says besides which files a data set has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from steps.bench_drivers.aisbench import package
from steps.bench_drivers.aisbench.package import Packaged

_ICL = "ais_bench.benchmark.openicl"
_DATA = "ais_bench.benchmark.datasets"
_MODELS = "ais_bench.benchmark.models"
_NO_REASONING = (
    "ais_bench.benchmark.utils.postprocess.model_postprocessors.extract_non_reasoning_content"
)


@dataclass(frozen=True)
class Request:
    """A ``request_conf``: how a question becomes an HTTP request."""

    name: str
    type: str
    stream: bool
    chat: bool

    @property
    def abbr(self) -> str:
        """The name of its directory in the results."""
        return self.name.replace("_", "-")

    def to_json(self, raw: bool = False) -> dict[str, Any]:
        """The fixed part of AISBench's model entry; ``raw``: thinking is not taken out."""
        entry: dict[str, Any] = {
            "attr": "service",
            "type": f"{_MODELS}.{self.type}",
            "abbr": self.abbr,
            "stream": self.stream,
        }
        if self.chat and not raw:
            entry["pred_postprocessor"] = {"type": _NO_REASONING}
        return entry


REQUESTS = {
    request.name: request
    for request in (
        Request("vllm_api_stream_chat", "VLLMCustomAPIChat", stream=True, chat=True),
        Request("vllm_api_general_chat", "VLLMCustomAPIChat", stream=False, chat=True),
        Request("vllm_api_general_stream", "VLLMCustomAPI", stream=True, chat=False),
        Request("vllm_api_general", "VLLMCustomAPI", stream=False, chat=False),
    )
}


@dataclass(frozen=True)
class DataSet:
    """A ``dataset_conf``.

    Attributes:
        family: the part before the slash.
        files: what must be in the data set's directory; alternatives are tuples, the first wins.
        path: what AISBench is given: a name in ``files``, or empty for the directory.
        counted: the file whose entries are the questions.
        images: the data set names pictures by path.
        own: what the installed AISBench itself says, where it was found.
    """

    name: str
    family: str
    abbr: str
    type: str
    columns: tuple[str, ...]
    prompt: Any
    evaluator: Mapping[str, Any]
    files: tuple[tuple[str, ...], ...]
    counted: int = 0
    path: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    inferencer: Mapping[str, Any] = field(default_factory=dict)
    template: str = f"{_ICL}.icl_prompt_template.PromptTemplate"
    images: bool = False
    own: tuple[Mapping[str, Any], ...] = ()

    @property
    def abbrs(self) -> tuple[str, ...]:
        """The names of its data sets in the results."""
        return tuple(str(entry["abbr"]) for entry in self.own) or (self.abbr,)

    def entries(self, path: str) -> list[dict[str, Any]]:
        """AISBench's data set entries, reading from ``path``."""
        return [{**entry, "path": path} for entry in self.own] or [self.to_json(path)]

    def to_json(self, path: str) -> dict[str, Any]:
        """AISBench's data set entry, reading from ``path``."""
        return {
            "abbr": self.abbr,
            "type": f"{_DATA}.{self.type}",
            "path": path,
            **self.extra,
            "reader_cfg": {"input_columns": list(self.columns), "output_column": "answer"},
            "infer_cfg": {
                "prompt_template": {"type": self.template, "template": self.prompt},
                "retriever": {"type": f"{_ICL}.icl_retriever.ZeroRetriever"},
                "inferencer": {
                    "type": f"{_ICL}.icl_inferencer.GenInferencer",
                    **self.inferencer,
                },
            },
            "eval_cfg": dict(self.evaluator),
        }


def _human(text: str) -> dict[str, Any]:
    return {"round": [{"role": "HUMAN", "prompt": text}]}


def _evaluator(name: str, **more: Any) -> dict[str, Any]:
    return {"evaluator": {"type": f"{_DATA}.{name}"}, **more}


_GSM8K_FILES = (("test.jsonl",), ("train.jsonl",))
_GSM8K_ANSWER = (
    "Answer the following question.The last line of the response should follow this format: "
    '"answer:$ANSWER" (without quotes), where ANSWER is a number.'
)


def _gsm8k(name: str, prompt: Any, chat: bool) -> DataSet:
    """Of GSM8K's configurations only the prompt differs."""
    more = {} if chat else {"pred_role": "BOT"}
    return DataSet(
        name=f"gsm8k/{name}",
        family="gsm8k",
        abbr="gsm8k",
        type="GSM8KDataset",
        columns=("question",),
        prompt=prompt,
        evaluator=_evaluator(
            "Gsm8kEvaluator",
            pred_postprocessor={"type": f"{_DATA}.gsm8k_postprocess"},
            dataset_postprocessor={"type": f"{_DATA}.gsm8k_dataset_postprocess"},
            **more,
        ),
        files=_GSM8K_FILES,
        inferencer={"stopping_criteria": ["Question"]} if chat else {},
    )


def _textvqa(name: str, url: str) -> DataSet:
    pieces = {
        "text": {
            "type": "text",
            "text": "{question} Answer the question using a single word or phrase.",
        },
        "image": {"type": "image_url", "image_url": {"url": url}},
    }
    return DataSet(
        name=f"textvqa/{name}",
        family="textvqa",
        abbr="textvqa",
        type="TEXTVQADataset",
        columns=("question", "image"),
        prompt={"round": [{"role": "HUMAN", "prompt_mm": pieces}]},
        evaluator=_evaluator("TEXTEvaluator"),
        files=(
            ("textvqa_val.jsonl", "textvqa_json/textvqa_val.jsonl"),
            ("textvqa_val_annotations.json", "textvqa_json/textvqa_val_annotations.json"),
        ),
        path=0,
        extra={"image_type": "image_base64" if "base64" in url else "image_path"},
        template=f"{_ICL}.icl_prompt_template.icl_prompt_template_mm.MMPromptTemplate",
        images=True,
    )


DATA_SETS = {
    data.name: data
    for data in (
        _gsm8k("gsm8k_gen_0_shot_cot_str_perf", "{question}", chat=False),
        _gsm8k(
            "gsm8k_gen_0_shot_cot_str",
            "Question: {question}\nLet's think step by step\nAnswer:",
            chat=False,
        ),
        _gsm8k(
            "gsm8k_gen_0_shot_cot_chat_prompt",
            _human(f"{_GSM8K_ANSWER} Let's think step by step.\n\nQuestion: {{question}}"),
            chat=True,
        ),
        _gsm8k(
            "gsm8k_gen_0_shot_noncot_chat_prompt",
            _human(f"{_GSM8K_ANSWER}\n\nQuestion: {{question}}"),
            chat=True,
        ),
        DataSet(
            name="aime2025/aime2025_gen_0_shot_chat_prompt",
            family="aime2025",
            abbr="aime2025",
            type="Aime2025Dataset",
            columns=("question",),
            prompt=_human("{question}\nRemember to put your final answer within \\boxed{}."),
            evaluator={
                "evaluator": {"type": f"{_DATA}.MATHEvaluator", "version": "v2"},
                "pred_postprocessor": {"type": f"{_DATA}.math_postprocess_v2"},
            },
            files=(("aime2025.jsonl",),),
            path=0,
        ),
        DataSet(
            name="gpqa/gpqa_gen_0_shot_cot_chat_prompt",
            family="gpqa",
            abbr="GPQA_diamond",
            type="GPQADataset",
            columns=("question", "A", "B", "C", "D"),
            prompt=_human(
                "Answer the following multiple choice question. The last line of your response "
                "should be of the following format: 'Answer: $LETTER' (without quotes) where "
                "LETTER is one of ABCD. Think step by step before answering.\n\n{question}\n\n"
                "A) {A}\nB) {B}\nC) {C}\nD) {D}"
            ),
            evaluator=_evaluator(
                "GPQAEvaluator",
                pred_postprocessor={"type": f"{_DATA}.GPQA_Simple_Eval_postprocess"},
            ),
            files=(("gpqa_diamond.csv",),),
            extra={"name": "gpqa_diamond.csv"},
        ),
        _textvqa("textvqa_gen_base64", "data:image/jpeg;base64,{image}"),
        _textvqa("textvqa_gen", "file://{image}"),
    )
}


def request(name: str) -> Request:
    """The request style of that name.

    Raises:
        KeyError: there is none; the text lists all.
    """
    if name not in REQUESTS:
        raise KeyError(f"request_conf: found '{name}', expected one of {', '.join(REQUESTS)}")
    return REQUESTS[name]


def found(name: str, places: list[Path]) -> DataSet | Packaged:
    """The data set of that name, in the words of the installed AISBench where that is found.

    The folder before the slash may be another, or left out.

    Raises:
        KeyError: neither it nor this module knows one; the text says where was looked.
    """
    last = name.rsplit("/", 1)[-1]
    known = next((data for key, data in DATA_SETS.items() if key.endswith(f"/{last}")), None)
    try:
        own = package.read(places, name)
    except KeyError as error:
        if known is None:
            listed = ", ".join(DATA_SETS)
            raise KeyError(f"{error.args[0]}; expected one of {listed}") from None
        return known
    return own if known is None else replace(known, own=own.found)
