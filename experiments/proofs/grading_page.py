"""The page of :mod:`tsi.experiments.proofs.grading_agreement`, in Markdown."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

GRADERS = ("canonical", "math", "alone")
TITLES = ("canonical", "math", "math-verify alone")
KINDS = {
    "math right, canonical wrong": ("math", "canonical"),
    "canonical right, math wrong": ("canonical", "math"),
    "math right, math-verify alone wrong": ("math", "alone"),
    "math-verify alone right, math wrong": ("alone", "math"),
}
TEXT = """# Agreement of graders

Written by `python -m tsi.experiments.proofs.grading_agreement docs/results/grading`
(extras `tasks` and `champ`). CHAMP ([arXiv
2401.06961](https://arxiv.org/abs/2401.06961)) has 19,440 solutions of competition
problems by language models, each with a summary in one sentence; {summaries} are not
empty. A summary has no box and seldom says "the answer is", so that it also tests
where answers are found. Each was graded against the gold answer by

- **canonical**: the canonical form of the extracted answer equals that of the gold
  answer,
- **math**: the grader `math` on the extracted answer,
- **math-verify alone**: math-verify 0.9 reads the sentence and the gold answer by its
  own rules.

{agreement}

Could not be graded: {failures}.

## Labels by a reader

200 different disagreements, drawn evenly from the kinds below, were read one by one.
The label says whether the sentence gives the gold answer. {unclear} were unclear and
do not count below. The sample says which grader is to be trusted where they disagree;
it does not say how often each is right in all.

{quality}

## Gold answers against each other

Every ordered pair of different gold answers:

{golds}

Pairs about which the canonical form and the grader `math` disagree:

{differ}

## All labels

{labels}
"""


def page(
    rows: Sequence[dict[str, Any]],
    labels: Sequence[dict[str, Any]],
    golds: tuple[Counter[tuple[bool, bool]], list[tuple[str, str]]],
) -> str:
    """The page of results, in Markdown."""
    counts = Counter(tuple(row[name] for name in GRADERS) for row in rows)
    agreement = [
        {**dict(zip(TITLES, map(_verdict, key), strict=True)), "summaries": number}
        for key, number in counts.most_common()
    ]
    failures = Counter(row["failure"] for row in rows if row["failure"])
    judged = [label for label in labels if label["label"] in ("right", "wrong")]
    quality = [
        {
            "disagreement": name,
            "labelled": len(part),
            "right by a reader": sum(label["label"] == "right" for label in part),
            **{
                f"{title} agrees": sum(
                    label[grader] == (label["label"] == "right") for label in part
                )
                for grader, title in zip(GRADERS, TITLES, strict=True)
            },
        }
        for name, part in (
            *((name, [x for x in judged if _kind(x) == name]) for name in KINDS),
            ("all", judged),
        )
    ]
    gold_counts, differ = golds
    gold_rows = [
        {"canonical": _verdict(key[0]), "math": _verdict(key[1]), "pairs": number}
        for key, number in gold_counts.most_common()
    ]
    label_rows = [
        {
            "gold": " or ".join(label["gold"]),
            "summary": " ".join(label["summary"].split()),
            "extracted": label["answer"],
            **dict(
                zip(TITLES, (_verdict(label[name]) for name in GRADERS), strict=True)
            ),
            "reader": label["label"],
        }
        for label in labels
    ]
    pairs = "".join(f"- `{gold}` and `{other}`\n" for gold, other in differ)
    return TEXT.format(
        summaries=len(rows),
        agreement=_table(agreement),
        failures=", ".join(f"{n} {kind}" for kind, n in failures.most_common())
        or "none",
        unclear=len(labels) - len(judged),
        quality=_table(quality),
        golds=_table(gold_rows),
        differ=pairs.strip() or "None.",
        labels=_table(label_rows),
    )


def _kind(row: dict[str, Any]) -> str:
    """The first kind of disagreement that a row belongs to."""
    return next(
        name for name, (left, right) in KINDS.items() if row[left] and not row[right]
    )


def _verdict(correct: object) -> str:
    return "right" if correct else "wrong"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown; texts are formatted as code, since they contain LaTeX."""
    head = list(rows[0]) if rows else []
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(map(_cell, row.values())) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    text = "–" if value is None else str(value)
    is_plain = isinstance(value, int) or re.fullmatch(r"[a-z ,-]*", text) or text == "–"
    return text if is_plain else "`" + text.replace("`", "'").replace("|", "\\|") + "`"
