"""The command line: ``python -m slmlib data``, ``run``, ``status``, ``verdicts``, ``best``, ``try``, …"""

import importlib
import json
import os
import shlex
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from enum import StrEnum
from functools import partial
from itertools import chain, count
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Annotated

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from . import corpora, models, paper, recipes, studies, tryout, verdicts
from .checkpoints import NotWritten, write_whole
from .cluster import Cluster, ClusterBroken
from .corpora import UNKNOWN, CorpusDamaged, CorpusUnavailable, known_ids, load_corpus, read_corpus
from .experiments import BENCHMARKS, RESULTS, Experiment, Record, RecordDamaged, Store, process_pool, run_all, trained
from .models import Transformer
from .screen import markdown, put_between
from .speed import compiling
from .training import Diverged, token_nll
from .windows import random_stream

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Small language models under compute constraints: corpora, runs, records, verdicts, models for a text.",
)
PLAIN = {"markup": False, "emoji": False}  # what is in brackets or between colons is text: a file's name, say
_LOST = "A worker was lost, killed by the system perhaps, for want of memory"
out, err = Console(**PLAIN), Console(stderr=True, **PLAIN)

Suite = StrEnum("Suite", {name: name for name in ("paper", *studies.SUITES)})
Group = StrEnum("Group", {r.group: r.group for r in paper.RUNS})
Unit = StrEnum("Unit", ["character", "word"])
Device = StrEnum("Device", ["auto", "cpu", "cuda"])


def _refuse(error: object) -> typer.Exit:
    """Say in red what is wrong; what to raise, from None."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        error = f"{error.filename}: {error.strerror}"
    err.print(error, style="red", soft_wrap=True, highlight=False)
    return typer.Exit(1)


@contextmanager
def _refusing(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:  # a reader who has seen enough: see main
        raise
    except kinds as error:
        raise _refuse(error) from None


@app.command()
@_refusing(CorpusUnavailable, CorpusDamaged)
def data():
    """Fetch and verify every corpus file."""
    print(f"in {corpora.data_folder()}:")
    for file in corpora.FILES:
        print(f"  {file}  {corpora.fetch(file).stat().st_size:>12,} bytes, SHA-256 as expected")


@app.command()
@_refusing(RecordDamaged, ClusterBroken)
def run(
    suite: Annotated[Suite, typer.Argument(help="Which experiments.")],
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=paper.MOST_SEEDS, help="Of each run, at most; default: as published."),
    ] = None,
    group: Annotated[list[Group] | None, typer.Option(help="Of paper: only this group; may be repeated.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with one thread.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Of a Dask cluster, whose workers train: tcp://host:8786.")
    ] = None,
    device: Annotated[Device, typer.Option(help="auto: a GPU if one is here; on a cluster, the CPU.")] = Device.auto,
    keep_checkpoints: Annotated[
        bool, typer.Option("--keep-checkpoints", help="For the same runs with more epochs to go on from.")
    ] = False,
    store: Annotated[Path | None, typer.Option(file_okay=False, help="For the records; default: the suite's.")] = None,
):
    """Run what has no record yet. Stop it at any time: what is done is kept, and it goes on where it was."""
    if suite != "paper" and group:
        raise typer.BadParameter(f"only the suite paper has groups, not {suite.value}", param_hint="--group")
    if scheduler is not None and workers > 1:
        raise typer.BadParameter(f"a cluster has its own, not {workers}: leave it out", param_hint="--workers")
    gpu = scheduler is None and torch.cuda.is_available()
    if device == Device.cuda and scheduler is None and not gpu:
        raise typer.BadParameter("PyTorch finds no GPU here; use auto or cpu", param_hint="--device")
    where = device.value if device != Device.auto else "cuda" if gpu else "cpu"
    with _refusing(ValueError):
        compiling()
    records = Store(store or RESULTS / suite.value, suite.value in studies.KEEP_LOSSES)
    keep_checkpoints |= suite == "frontier"  # whose budgets go on from each other

    def look() -> tuple[list[Experiment], set[Experiment]]:
        """What is asked for, given the records that there are, and what of it is done."""
        found = records.found()
        if suite == "paper":
            wanted = paper.experiments(seeds, group)
        else:
            wanted = studies.SUITES[suite](seeds or studies.SEEDS, found)
        asked, count = [], Counter()
        for e in dict.fromkeys(wanted):  # of each run the first seeds that it has
            count[of := replace(e, seed=0)] += 1
            asked += [e] * (seeds is None or count[of] <= seeds)
        return asked, {e for e in asked if e in found and e in records}  # with its losses, where these are kept

    executor = process_pool(workers) if scheduler is None else Cluster(scheduler)
    asked, done = look()
    columns = BarColumn(), TextColumn("{task.fields[done]}"), TimeElapsedColumn(), TimeRemainingColumn()
    try:
        # In FLOPs, as runs differ in length; their speed is the mean since the start.
        with Progress(*columns, console=err, speed_estimate_period=1e9) as progress, executor as pool:
            task = progress.add_task("", done="")

            def tell():
                flops = {"completed": sum(e.flops() for e in done), "total": sum(e.flops() for e in asked)}
                progress.update(task, done=f"{len(done)}/{len(asked)}", **flops)

            def show(record: Record):
                name, seconds = record.experiment.name, record.seconds["training"]
                out.print(f"{name}  test NLL {record.test_nll:.4f}  {seconds:.0f} s", highlight=False)
                done.add(record.experiment)
                tell()

            tell()
            while left := [e for e in asked if e not in done]:
                run_all(left, pool, records, where, keep_checkpoints, show)
                asked, done = look()  # what the frontier asks next depends on what was found
                tell()
    except KeyboardInterrupt:
        err.print(
            f"Stopped with {len(done)} of {len(asked)} done. The same command goes on from here; a run under way goes "
            "on from its last finished epoch."
        )
        raise typer.Exit(130) from None
    except ExceptionGroup as failed:
        for error in failed.exceptions:
            err.print(f"{' '.join(error.__notes__)}: {error}", style="red", soft_wrap=True, highlight=False)
        raise typer.Exit(1) from None
    except ClusterBroken:  # a BrokenExecutor, too
        raise
    except (BrokenExecutor, NotWritten) as error:
        what = error if isinstance(error, NotWritten) else f"{_LOST}: free some, or ask for fewer workers ({error})"
        notes = "; ".join(getattr(error, "__notes__", ()))
        raise _refuse(f"{what}; {notes}. The same command goes on from here.") from None


@app.command()
@_refusing(RecordDamaged)
def status(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, one object a configuration.")] = False,
    store: Annotated[Path, typer.Option(exists=True, file_okay=False, help="The paper's records.")] = RESULTS / "paper",
):
    """The paper's 20 runs: records found and missing, our mean and spread, the paper's figure."""
    lines = paper.status(paper.records(Store(store), seeds=100))
    if as_json:
        return print(json.dumps([asdict(line) for line in lines], indent=1))
    rules = list(next((line.agrees() for line in lines if line.agrees()), {}))
    rows = [
        {
            "run": s.label,
            "done": f"{s.seeds}/{s.wanted}",
            "mean ± s.d.": ("" if s.mean is None else f"{s.mean:.4f}") + ("" if s.sd is None else f" ± {s.sd:.4f}"),
            "whole": "" if s.whole is None else f"{s.whole:.4f}",
            "paper": f"{s.paper:.4f}",
            "difference": "" if s.mean is None else f"{s.difference:+.4f}",
            **{rule: {True: "yes", False: "no"}.get(s.agrees().get(rule), "") for rule in rules},
        }
        for s in lines
    ]
    _table(rows)
    out.print(
        "Test NLL in nats per token, mean over seeds on the paper's test windows and on the whole test split."
        + "\nThe last columns: is the paper's figure within so much of our mean?" * bool(rules)
    )


_WORDS = ("reading", "verdict", "test")  # headings of columns that are no numbers


def _table(rows: list[dict[str, str]]) -> None:
    """As wide as it needs to be: a narrow terminal wraps its lines, which is better than losing figures."""
    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for i, heading in enumerate(rows[0]):
        table.add_column(heading, no_wrap=True, justify="right" if i and heading not in _WORDS else "left")
    for row in rows:
        table.add_row(*row.values())
    Console(width=1_000, **PLAIN).print(table)


@app.command(name="verdicts")
@_refusing(RecordDamaged)
def verdicts_(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, one object a claim and reading.")] = False,
    results: Annotated[Path, typer.Option(exists=True, file_okay=False, help="Has the suites' folders.")] = RESULTS,
):
    """The verdicts on the paper's claims, as it ran them, at equal compute, and trained otherwise."""
    judged = verdicts.judge(verdicts.Evidence.read(results))
    if as_json:
        return print(json.dumps([v.to_dict() for v in judged], indent=1))
    rows = [
        {
            "claim": v.claim,
            "reading": v.reading + ("" if v.flops is None else f", {v.flops:.0e} FLOPs"),
            "verdict": v.verdict,
            "test": f"{m.says}{', ' if m.note else ''}{m.note}",
            "nats": f"{m.estimate.effect:+.3f}",
            "95 % interval": f"{m.estimate.low:+.3f} to {m.estimate.high:+.3f}",
            "p": f"{m.estimate.p:.2g}",
        }
        for v in judged
        for m in v.contrasts
    ]
    if not rows:
        raise _refuse(f"{results} holds too few records for any verdict")
    _table(rows)
    out.print(
        "Effects are in nats per token, above zero where the claim is true. A verdict is of all tests of a reading "
        "together (C2 at equal compute: of each budget); p is corrected over them, the intervals are not. Optimised: "
        "trained otherwise than the paper trains."
    )


@app.command()
@_refusing(RecordDamaged, CorpusUnavailable, CorpusDamaged, ValueError)
def scoreboard(readme: Annotated[bool, typer.Option(help="Write README.md, book/intro.md and assets.")] = False):
    """The first screen of README and book: what was found, in numbers from the records."""
    if not Path("book/assets/first-screen.md").is_file():
        raise _refuse(f"{Path.cwd()} is not the book's repository: it needs a book/assets/first-screen.md")
    evidence = verdicts.Evidence.read()
    if not all(evidence.paper.values()):
        raise _refuse(f"{RESULTS} holds too few records for the first screen")
    sys.path.insert(0, "book/ext")
    said = importlib.import_module("first_screen").text(evidence, readme)
    if not readme:
        print(said, end="")


@app.command()
@_refusing(CorpusUnavailable, CorpusDamaged)
def weights(folder: Annotated[Path, typer.Option(file_okay=False, help="Where they go.")] = RESULTS / "weights"):
    """Train the networks whose weights the book shows, where there are none yet (half an hour): float16 safetensors."""
    corpus = load_corpus("tiny_shakespeare")
    for name, experiment in studies.published().items():
        path = folder / studies.file_of(name)
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)  # before, lest it be trained in vain
            model, _, record = trained(experiment, corpus)
            tryout.keep(path, model.half(), experiment, corpus.vocabulary)
            out.print(f"{path}  test NLL {record.test_nll:.4f}", highlight=False, soft_wrap=True)


BENCH_MARKS = (
    "<!-- benchmark: written by python -m slmlib bench --save benchmarks/results.json -->\n",
    "<!-- end of benchmark -->",
)


@app.command()
def bench(
    quick: Annotated[bool, typer.Option(help="The main models' training steps alone: under a minute.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="All that was measured, as a JSON object.")] = False,
    save: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Also keep it there, and in benchmarks/ what README.md shows.")
    ] = None,
):
    """How fast it is here, beside a textbook's code: ten minutes of one core, for a machine that does nothing else."""
    if not (BENCHMARKS / "measure.py").is_file():
        raise _refuse(f"no benchmark in {BENCHMARKS}: clone the book's repository, which holds it")
    sys.path.insert(0, str(BENCHMARKS))
    measure = importlib.import_module("measure")
    if save:
        _see_to(save.parent, "--save")
    found = measure.measure(quick, lambda what: err.print(what, style="dim", highlight=False))
    rows = measure.rows(found)
    print(json.dumps(found, indent=1)) if as_json else _table(rows)
    if save:
        with _refusing(NotWritten):
            write_whole(save, f"{json.dumps(found, indent=1)}\n".encode())
        if not quick and save == Path("benchmarks/results.json"):  # what is published
            put_between(Path("README.md"), BENCH_MARKS, markdown(rows))


def _see_to(folder: Path, option: str) -> None:
    """Before minutes of work: is there a folder to write its result to?"""
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        raise typer.BadParameter(f"there is no folder {folder} that may be written to", param_hint=option)


@app.command()
@_refusing(RecordDamaged, ValueError)
def best(
    flops: Annotated[float, typer.Option(min=0, help="Training FLOPs that it may cost, 1e12 say.")],
    corpus: Annotated[str, typer.Option(help="The text; the records are of Tiny Shakespeare.")] = "tiny_shakespeare",
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON object.")] = False,
):
    """The best model on record that so many FLOPs buy: chosen by validation, tested over seeds."""
    if corpus != "tiny_shakespeare":
        raise typer.BadParameter(f"there are records of tiny_shakespeare alone, not of {corpus}", param_hint="--corpus")
    records = recipes.best(flops)
    kind, layers = records[0].experiment.kind, getattr(records[0].experiment.model, "layers", 0)
    row = {
        "architecture": kind if not layers else "blocks" if layers > 1 else "one block",
        "flops": max(record.flops["counted"] for record in records),
        "seeds": len(records),
        "test_nll": fmean(record.test_nll for record in records),
        "test_nll_whole": fmean(record.test_nll_whole for record in records),
        "parameters": records[0].parameters,
        "seconds": fmean(record.seconds["training"] for record in records),
        "experiment": records[0].experiment.spec(),
    }
    if as_json:
        return print(json.dumps(row))
    spec = row.pop("experiment")
    _table([{name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in row.items()}])
    out.print("Mean test NLL, nats a character: on the paper's windows, and on every eighth character of the split.")
    print(json.dumps({part: spec[part] for part in ("model", "training")}, indent=1))
    if flops > 1.001 * recipes.BUDGETS[-1]:
        err.print(f"Of more than {recipes.BUDGETS[-1]:.0e} FLOPs no choice is on record.", highlight=False)


@app.command("try")
def try_(
    file: Annotated[Path, typer.Argument(dir_okay=False, help="A text file, UTF-8, of some 6,000 characters or more.")],
    minutes: Annotated[float | None, typer.Option(min=0.2, help="For all of it, about; 2 if nothing is said.")] = None,
    flops: Annotated[
        float | None, typer.Option(min=0, help="Instead: for each network, from 1e10 to 3e13 (MLP: 1e13 at most).")
    ] = None,
    unit: Annotated[Unit, typer.Option(help="What is predicted.")] = Unit.character,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with one thread.")] = min(2, os.cpu_count() or 1),
    seed: Annotated[int, typer.Option(min=0, help="Of the networks.")] = 0,
    keep: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Where the mixture goes; default: here, named after FILE, numbered if taken."
        ),
    ] = None,
    read_on: Annotated[
        bool, typer.Option("--read-on", help="Test them once more, learning what they have read; takes longer.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The table as a list of JSON objects.")] = False,
):
    """Your own text: count it, train an MLP and a transformer within a budget, and mix the better one with the counts.

    The mixture is kept, and in the same file your text, of which the counts are made anew.
    """
    if minutes is not None and flops is not None:
        raise typer.BadParameter("give one of the two, minutes or FLOPs", param_hint="--flops")
    _see_to(keep.parent if keep else Path(), "--keep")
    if keep and keep.exists():  # perhaps the text itself
        try:
            tryout.load(keep)
        except ValueError:
            raise typer.BadParameter(f"{keep} is there and is no model: name another", param_hint="--keep") from None
    try:
        corpus = read_corpus(file, unit.value)
        for split, lacking in corpus.unknown.items():
            if lacking:
                share = f"{lacking / len(getattr(corpus, split)):.2%}"
                err.print(f"unknown {unit.value}s of {split}: {lacking:,} ({share})", highlight=False)
        seconds = None if flops is not None else 60 * (2 if minutes is None else minutes)
        say = partial(err.print, style="dim")
        found = tryout.attempt(corpus, seconds, flops, workers, seed, say)
    except (OSError, ValueError, Diverged, MemoryError) as error:
        raise _refuse(error) from None
    except BrokenExecutor as error:
        raise _refuse(f"{_LOST} ({error}): free some, or try with --workers 1") from None
    names = chain([file.stem], (f"{file.stem}-{n}" for n in count(2)))
    keep = keep or next(path for name in names if not (path := Path(f"{name}.safetensors")).exists())
    refused = None
    try:  # before the rows, since whoever reads them may have seen enough
        tryout.keep(keep, found.mixture, found.experiment, corpus.vocabulary)
    except NotWritten as error:
        refused = error
    try:
        rows = [asdict(row) for row in found.rows + (tryout.reading_on(found, corpus, say) if read_on else [])]
    except (ValueError, MemoryError) as error:
        raise _refuse(error) from None
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        _table([_tried(row, unit.value) for row in rows])
        look, tokens = found.experiment.training.test, len(corpus.test)
        every = "every" if look.stride == 1 else f"one in {look.stride}"
        print(f"Scored: {every} of the last {tokens:,} {unit.value}s of the text, from number {look.first} of them on.")
        print(f"What they write after the first {recipes.FIRST_SCORED} {unit.value}s of the test split:\n")
        for row in rows:
            if row["sample"]:
                print(f"--- {row['model']}\n{_harmless(row['sample'])}\n")
    if refused is not None:
        raise _refuse(refused)
    kept = shlex.quote(f"./{keep}" if str(keep).startswith("-") else str(keep))  # no option
    command = "python -m slmlib"
    say = (
        f"{found.rows[-1].model} are in {keep}, together with the text that was counted. Let them write:\n"
        f"  {command} generate {kept} -n 200\nand score another text:\n  {command} score {kept} TEXT"
    )
    print(say, file=sys.stderr if as_json else sys.stdout)


def _harmless(text: str) -> str:
    """A text as a terminal may show it: what would steer it, or turn its direction, is written out."""
    steers = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    kept = "\n\t\u200c\u200d"  # the last two join letters, or keep them apart
    return "".join(c if c in kept or unicodedata.category(c) not in steers else repr(c)[1:-1] for c in text)


def _usual(nll: float, unit: str) -> dict[str, str]:
    """An NLL, and what it is in the measure that is usual for the unit."""
    name, value = ("bits/char.", nll / log(2)) if unit == "character" else ("perplexity", exp(nll))
    return {"NLL": f"{nll:.3f}", name: f"{value:.2f}"}


def _tried(row: dict[str, object], unit: str) -> dict[str, str]:
    return {
        "model": row["model"],
        **_usual(row["test_nll"], unit),
        "seconds": f"{row['seconds']:.0f}",
        "FLOPs": f"{row['flops']:.1e}" if row["flops"] else "–",
        "parameters": f"{row['parameters']:,}",
    }


@app.command()
@_refusing(OSError, ValueError)
def generate(
    model: Annotated[Path, typer.Argument(dir_okay=False, help="A file that try has kept.")],
    prompt: Annotated[str | None, typer.Option(help="What comes before; default: a line's end, if known.")] = None,
    n: Annotated[int, typer.Option("-n", min=0, help="How many tokens to add.")] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    alone: Annotated[bool, typer.Option("--network", help="The network by itself, without the counts.")] = False,
):
    """Let a kept model go on from a prompt."""
    network, vocabulary, mixture = tryout.load(model)
    if prompt is None:
        prompt = "\n" if "\n" in vocabulary.tokens else ""
    ids, unknown = known_ids(prompt, vocabulary, "--prompt")
    if unknown.any():
        err.print(f"unknown {vocabulary.unit}s of the prompt: {unknown.sum()}", highlight=False)
    pad = vocabulary.tokens.index("\n") if "\n" in vocabulary.tokens else 0
    cache, draws = isinstance(network, Transformer), random_stream(seed, "text")
    writes = network if alone or mixture is None else mixture
    text = vocabulary.decode(models.generate(writes, ids, n, temperature, draws, pad, cache))
    print(_harmless(text) if sys.stdout.isatty() else text)


@app.command()
@_refusing(OSError, ValueError)
def score(
    model: Annotated[Path, typer.Argument(dir_okay=False, help="A file that try has kept.")],
    file: Annotated[Path, typer.Argument(dir_okay=False, help="The text, UTF-8.")],
    as_json: Annotated[bool, typer.Option("--json", help="As a list of JSON objects.")] = False,
):
    """How well a kept model predicts a text, over every token that has as many before it as the network sees.

    No test is a text that holds what the model was trained on: the first nine tenths of the one that was tried.
    """
    network, vocabulary, mixture = tryout.load(model)
    called = {models.MLP: "MLP", Transformer: "transformer"}.get(type(network), "linear model")
    ids, unknown = known_ids(file, vocabulary)
    unit, context = vocabulary.unit, network.config.context
    if len(ids) <= context:
        raise ValueError(f"{file} holds {len(ids)} {unit}s, and the network sees {context}: give a longer text")
    parts = [token_nll(network, ids)] if mixture is None else mixture.nll(ids)
    unknown = unknown[context:]
    lacking, tokens = int(unknown.sum()), len(unknown)
    rows = [
        {
            "model": name,
            "nll": nll.mean().item(),
            "nll_known": nll[~unknown].mean().item() if lacking < tokens else None,
            "tokens": tokens,
            "unknown": lacking,
        }
        for name, nll in zip((called, f"{called} and counting"), parts, strict=False)
    ]
    if as_json:
        return print(json.dumps(rows, indent=1))
    _table([{"model": row["model"], **_usual(row["nll"], unit)} for row in rows])
    out.print(f"Over {tokens:,} {unit}s.", highlight=False)
    if lacking:
        known = " and ".join(f"{row['nll_known']:.3f}" for row in rows) if lacking < tokens else "none"
        out.print(
            f"Unknown of these, and scored as {UNKNOWN[unit]}: {lacking:,} ({lacking / tokens:.1%}). NLL of the rest: "
            f"{known}. Where many are unknown, another text's figure is not to be compared with this.",
            highlight=False,
        )


def main(command: Callable[[], object] = app) -> None:
    """Run the command line so that it does not fail on where its output goes.

    What is redirected is UTF-8, whatever the locale says; a terminal shows a question mark for what it has no sign for.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            stream.reconfigure(errors="replace")
        else:
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # a file's name may be no Unicode
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        if not isinstance(error, BrokenPipeError):  # that is a reader who has seen enough
            print(f"slmlib: {error}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
