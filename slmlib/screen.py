"""What the first screen, of README and intro, shares with chapters: the verdicts in a table, the paper's frontier."""

from itertools import groupby
from pathlib import Path
from statistics import fmean

from . import frontier, paper, verdicts
from .checkpoints import write_whole
from .verdicts import Evidence, Verdict

#: Where each claim is taken up.
CHAPTERS = {"C1": "3, 4", "C2": "5, 11, 13", "C3": "8", "C4": "3, 8", "C5": "7", "C6": "4", "C7": "9"}
_SIGNS = {
    "holds": "✓",
    "does not hold": "✗",
    "no effect of that size": "✗",
    "depends on the count": "⇄",
    "too few records": "–",
}


def table(judged: list[Verdict]) -> str:
    """The verdicts as a Markdown table, a row a claim: a sign, and the effect of the weakest test in nats."""
    lines = [
        "| | the paper's claim | as the paper ran it | at equal compute | trained otherwise | chapter |",
        "|---|---|---|---|---|---|",
    ]
    for claim, name in verdicts.CLAIMS.items():
        cells = []
        for reading in ("paper", "equal compute", "optimised"):
            asked = [v for v in judged if (v.claim, v.reading) == (claim, reading) and v.weakest]
            cells.append(_cell(asked) if asked else "–")
        lines.append(f"| {claim} | {name} | {' | '.join(cells)} | {CHAPTERS[claim]} |")
    return "\n".join(lines)


def _cell(asked: list[Verdict]) -> str:
    """The sign and the weakest effect of a claim's verdicts by one reading; at equal compute as budgets grow."""
    found = [(_SIGNS.get(v.verdict, "≈"), v.weakest.effect) for v in sorted(asked, key=lambda v: v.flops or 0)]
    if asked[0].reading == "equal compute" and len(asked) == 1:
        found = [("≈✓✗"[m.estimate.sign], m.estimate.effect) for m in asked[0].contrasts]
    least = min(effect for _, effect in found)
    number = " 0.00" if abs(least) < 0.005 else f" {least:+.2f}".replace("-", "−")
    alike = [(sign, [effect for _, effect in some]) for sign, some in groupby(found, key=lambda pair: pair[0])]
    return " → ".join(sign + number * (least in effects) for sign, effects in alike)


def every_position(evidence: Evidence) -> list[frontier.Comparison]:
    """Loss of the best MLP minus that of the transformer trained on every position, for equal needed FLOPs."""
    return frontier.at_once(frontier.compare(evidence.cells, frontier.of("MLP"), frontier.of("Every position")))


def as_the_paper_trains(evidence: Evidence) -> tuple[dict, dict]:
    """The frontier with the paper's training, whole test split against needed FLOPs.

    Returns:
        For each architecture, budget by budget, the losses of what validation chose; and the paper's character runs by
        label, (FLOPs, mean loss).
    """
    lines = {}
    for architecture in frontier.ARCHITECTURES:
        families = frontier.of(architecture)
        mine = [c for c in evidence.cells.values() if c.family in families]
        budgets = frontier.budgets_of(evidence.cells, families)
        lines[architecture] = {b: frontier.best_within(mine, b).losses for b in budgets}
    points = {}
    for run in paper.RUNS:
        if run.group != "words":
            records = evidence.paper[run.label].values()
            points[run.label] = fmean(r.flops["counted"] for r in records), fmean(r.test_nll_whole for r in records)
    return lines, points


def markdown(rows: list[dict[str, str]]) -> str:
    """A table, a row a dictionary, its keys as the header."""
    lines = [list(rows[0]), ["---"] + ["---:"] * (len(rows[0]) - 1), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def put_between(path: Path, marks: tuple[str, str], text: str) -> None:
    """Replace what stands in a file between two marks.

    Raises:
        ValueError: if the file has not each of them once, in their order; names them.
    """
    there = path.read_text(encoding="utf-8")
    before, _, rest = there.partition(marks[0])
    if any(there.count(mark) != 1 for mark in marks) or marks[1] not in rest:
        raise ValueError(f"{path} must hold each of these once, in this order: {marks[0]!r} and {marks[1]!r}")
    write_whole(path, (before + marks[0] + text + marks[1] + rest.partition(marks[1])[2]).encode())
