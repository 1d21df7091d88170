r"""Grade-school word problems (Cobbe et al. 2021): a paragraph of arithmetic whose answer is one number.

Invariant: an answer counts only in the declared format, the last `#### …` line or `\boxed{…}`, and only as a number: an
expression left for the verifier to calculate (`17 + 1`) or a choice (`5 or 6`) is not one. Refuses to know how long a
completion may be or how it was sampled.
"""

from __future__ import annotations

import importlib
import json
import random
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import math_verify
import sympy

from broker.errors import Refused
from producer.tasks.base import FixedTask, Part, Problem, Scoring, Verdict
from producer.tasks.settings import Gsm8kSettings

SCORING = Scoring("producer.tasks.gsm8k:score", components=("correct", "formatted"))
HUB_NAME = "openai/gsm8k"
SPLIT_SEED = "headrace gsm8k 1"
INSTRUCTION = "Reason step by step. Then write the final answer, a number alone, on the last line after ####."

_NUMERAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]+)?"
# -$1,234.50 % of something: sign, currency, number, percent, unit. What GSM8K asks for is the number alone.
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:US)?[$€£]?\s*(?P<minus>-?)(?P<number>(?=[0-9.]){_NUMERAL})\s*[%€£]?"
    r"(?P<unit>[\s-]*[A-Za-z°]+(?:[\s/-]+[A-Za-z]+)*(?:\^?\{?[23]\}?|[²³])?)?"
)
# Words behind a number that make it another number, or more than one.
_NOT_UNITS = re.compile(
    r"\b(and|or|to|not|point|half|third|quarter|dozens?|score|hundred|thousand|[mbtr]+illion|plus|minus|times|over)\b",
    re.I,
)
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\[,;:!]|\\quad|~")


def make(settings: Gsm8kSettings) -> FixedTask:
    """The train split, and `held_out` problems of the test split. Raises `Refused`."""
    path, held_out = settings.path, settings.held_out
    train, test = (_from_folder(path, split) if path else _from_hub(split) for split in ("train", "test"))
    if held_out > len(test):
        raise Refused(f"task.held_out = {held_out}, but gsm8k's test split has {len(test)} problems")
    rng = random.Random(SPLIT_SEED)
    chosen = sorted(test, key=lambda _: rng.random())[:held_out]
    return FixedTask("gsm8k", tuple(train), tuple(chosen), (Part("gsm8k", SCORING),))


def score(completion: str, problem: Problem) -> Verdict:
    """1.0 if the final answer equals the gold one; `formatted`: whether there was one in the declared format."""
    answer = final_answer(completion)
    correct = float(answer is not None and _equal(answer, problem.gold))
    return Verdict(correct, {"correct": correct, "formatted": float(answer is not None)})


def final_answer(completion: str) -> str | None:
    r"""The last answer in the declared format: the rest of a line after `####`, or what a `\boxed{}` holds."""
    hashes, boxed = completion.rfind("####"), completion.rfind("\\boxed{")
    if boxed > hashes:
        return _braced(completion[boxed + len("\\boxed{") :])
    rest = completion[hashes + 4 :].lstrip().splitlines() if hashes >= 0 else []
    return rest[0].strip() if rest else None


def _braced(text: str) -> str | None:
    depth = 1
    for at, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[:at].strip()
    return None


def _equal(answer: str, gold: str) -> bool:
    answer = _plain(answer)
    match = _NUMBER.fullmatch(answer)
    if match and not _NOT_UNITS.search(match["unit"] or ""):
        negative = (match["sign"] + match["minus"]).count("-") == 1
        return Decimal("-" * negative + match["number"].replace(",", "")) == Decimal(gold)
    return match is None and _equal_latex(answer, gold)


def _plain(answer: str) -> str:
    answer = _SPACING.sub("", _TEXT.sub(r" \1 ", answer.replace("{,}", ",")))
    for mark, plain in (("\\$", "$"), ("\\%", "%"), ("^\\circ", ""), ("^{\\circ}", ""), ("\u2212", "-"), ("**", "")):
        answer = answer.replace(mark, plain)
    answer = answer.strip().removesuffix(".").strip()
    for left, right in (("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if answer.startswith(left) and answer.endswith(right) and len(answer) > len(left + right):
            answer = answer.removeprefix(left).removesuffix(right).strip()
    return answer


def _equal_latex(answer: str, gold: str) -> bool:
    """Fractions, equations and the like, read by math-verify; what it parses must already be a number."""
    if re.search(r"[0-9]\s+[0-9]+(?![0-9]*\s*/)", answer):
        return False  # "18 19" would be read as a mixed number and summed
    # The pool's clock limits the time: math-verify's own alarm works in a main thread only and would undo the worker's.
    config = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
    parsed = math_verify.parse(f"\\boxed{{{answer}}}", config, fallback_mode="no_fallback", parsing_timeout=None)
    values = [value.rhs if isinstance(value, sympy.Equality) else value for value in parsed]
    if len(values) != 1 or not isinstance(values[0], sympy.Number):
        return False
    return bool(math_verify.verify(sympy.Rational(gold), values[0], timeout_seconds=None))


def _from_folder(folder: Path, split: str) -> list[Problem]:
    file = folder / f"{split}.jsonl"
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # splitlines() also breaks at U+2028 inside a text
    except UnicodeDecodeError:
        raise Refused(f"{file} is not UTF-8 text") from None
    except OSError as error:
        raise Refused(f"cannot read {file}: {error.strerror}", "task.path holds train.jsonl and test.jsonl") from None
    return _problems(str(file), (_json(file, number, line) for number, line in enumerate(lines, 1) if line.strip()))


def _from_hub(split: str) -> list[Problem]:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise Refused(
            "gsm8k has no local data",
            "set task.path to a directory with train.jsonl and test.jsonl, or install `datasets`",
        ) from None
    try:
        rows = datasets.load_dataset(HUB_NAME, "main", split=split)
    except (OSError, ValueError, RuntimeError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Refused(f"cannot load {HUB_NAME} from the hub ({cause})", "set task.path to a local copy") from None
    return _problems(HUB_NAME, rows)


def _json(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise Refused(f"{file}, line {number}: not JSON ({error})") from None


def _problems(source: str, rows: Iterable[Any]) -> list[Problem]:
    problems = []
    for number, row in enumerate(rows, 1):
        question, answer = (row.get(k) if isinstance(row, dict) else None for k in ("question", "answer"))
        if not isinstance(question, str) or not isinstance(answer, str) or not question.strip():
            raise Refused(f"{source}, problem {number}: needs the text fields `question` and `answer`")
        steps, mark, gold = answer.rpartition("####")
        gold = gold.strip().replace(",", "")
        if not mark or not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", gold):
            raise Refused(f"{source}, problem {number}: no number after `####` in its answer")
        level = len([line for line in steps.splitlines() if line.strip()])
        plural = "s" if level != 1 else ""
        problems.append(Problem(f"{question.strip()}\n\n{INSTRUCTION}", gold, f"{level} step{plural}"))
    if not problems:
        raise Refused(f"{source} holds no problems")
    return problems
