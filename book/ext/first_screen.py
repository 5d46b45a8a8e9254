"""The first screen, of README and intro alike: what was found, in numbers from records."""

import re
from pathlib import Path
from statistics import fmean, median, quantiles

import torch
from slmlib import chapters, explore, figures, frontier, mixing, paper, reading, recipes, screen, studies, verdicts
from slmlib.corpora import Corpus, load_corpus
from slmlib.experiments import RESULTS, Store
from slmlib.flops import as_text
from slmlib.ngrams import of_orders
from slmlib.stats import corrected, growth, unpaired
from slmlib.training import TrainingConfig
from slmlib.verdicts import TEST, VALID, WHOLE, Evidence
from slmlib.windows import Evaluation
from torch import Tensor

MARKS = "<!-- first screen: written by python -m slmlib scoreboard --readme -->\n", "<!-- end of first screen -->"


def headline(evidence: Evidence) -> dict[str, float]:
    """The numbers of the first screen: what was found, what each line of advice rests on. Losses on the whole test."""
    cells = evidence.cells
    agree = paper.agreement(evidence.paper)
    characters = [r for r in paper.RUNS if r.group != "words"]
    runs = {r.label: fmean(x.test_nll_whole for x in evidence.paper[r.label].values()) for r in characters}
    best = min(characters, key=lambda r: runs[r.label])
    costs = {r.label: next(iter(evidence.paper[r.label].values())).flops["counted"] for r in characters}
    mlps = [c for c in cells.values() if c.family.architecture == "MLP"]
    chosen = [frontier.best_within(mlps, budget) for budget in frontier.BUDGETS]
    best_losses = [r.test_nll_whole for r in evidence.paper[best.label].values()]
    short = next(c for c in chosen if unpaired(best_losses, c.losses).low > 0)  # beyond chance
    at = {c.flops: c for c in frontier.mlp_against_attention(cells)}
    dear = 1e13
    every, single = (
        frontier.best_within((c for c in cells.values() if c.family.architecture in of), dear)
        for of in (("Every position",), ("MLP", *frontier.ATTENTION))
    )
    longer = [r.flops["counted"] for e, r in evidence.studies.items() if e.corpus == "tiny_shakespeare"]
    capped, whole = (
        fmean(r.test_nll for r in runs.values())
        for runs in (evidence.paper["Penn Treebank"], evidence.runs("Penn Treebank, whole text"))
    )
    cost = fmean(r.flops["counted"] for r in evidence.paper["Transformer"].values())
    saved = {b: e.effect for b, e in verdicts.convolutions(evidence).items()}
    chain = verdicts.gains(evidence.gain, "chain")
    rotary = studies.gained(evidence.gain, "chain")["rotary positions"]
    small, large = 3e11, 3e12
    heavier = {}  # how many times the weights, which go as the square of the width, by what is read
    for name, read in (("", VALID.of), ("_whole", WHOLE.of), ("_windows", TEST.of)):
        vertices = verdicts.minima(evidence.shapes, read)
        power = growth({budget: vertices["width", budget] for budget in (small, large)}, dear).power
        heavier |= {f"heavier{name}{end}": 10 ** (2 * p) for end, p in zip(("", "_low", "_high"), power, strict=True)}
    muon = {
        kind: fmean(recipes.with_optimiser(r) / r.flops["counted"] for r in evidence.today[kind, dear])
        for kind in ("mlp", "blocks")
    }
    return {
        "agree": agree["0.03 nats"],
        "agree_sd": agree["3 s.d."],
        "lowest": min(c.loss for c in cells.values()),
        "paper_best": runs[best.label],
        "short_context": short.family.context,
        "short_loss": short.loss,
        "short_budget": short.budget,
        "short_share": short.budget / costs[best.label],
        "dearest": max(*costs.values(), *longer),
        "lead_first": -at[1e11].estimate.effect,
        "lead_last": -at[dear].estimate.effect,
        "mlp_first": -verdicts.mlp_against_blocks(evidence.today)[1e10].estimate.effect,
        "long_loss": cells["MLP T=128", short.budget].loss,
        "every": every.loss,
        "single": single.loss,
        "alone": -verdicts.gains(evidence.gain, "undone")["last position scored"].effect,
        "rotary": fmean(evidence.gain[run].test_nll_whole for run in rotary),
        "scoring": chain["every position scored"].effect,
        "small_batches": chain["batches of 512 characters"].effect,
        "short_windows": chain["windows of 32"].effect,
        **heavier,
        "uncapped": capped - whole,
        "largest": fmean(r.test_nll_whole for r in recipes.best(max(recipes.BUDGETS))),
        "convolved": fmean(r.test_nll_whole for r in evidence.convolved["blocks", dear]),
        "convolved_third": fmean(r.test_nll_whole for r in evidence.convolved["blocks", large]),
        "convolved_lead": verdicts.convolved_against_mlp(evidence)[dear].effect,
        "convolved_least": min(saved.values()),
        "convolved_most": max(saved.values()),
        "early": fmean(r.test_nll for r in evidence.adamw["mlp", 3e10]),
        "early_times": float(f"{cost / 3e10:.2g}"),
        "spared": fmean(r.test_nll_whole for r in evidence.adamw["mlp", recipes.CHARGED]),
        "today": fmean(r.test_nll_whole for r in evidence.today["blocks", dear]),
        "tuned": fmean(r.test_nll for r in cells["MLP T=4", 3e11].records),
        "tuned_times": float(f"{cost / 3e11:.2g}"),
        "muon_mlp": muon["mlp"],
        "muon_blocks": muon["blocks"],
        "chance": verdicts.chance(evidence),
    }


def mixtures(corpus: Corpus) -> dict[str, float]:
    """What the first screen says of counting and networks together, on the whole test split: means over seeds."""
    found = recipes.published()
    kept = recipes.losses(found, Store(RESULTS / "together", keeps_losses=True))
    training = recipes.runs(found)["mlp", 1e10][0].experiment.training
    counting = mixing.counted(corpus, training, recipes.FIRST_SCORED)
    counts = mixing.together([], counting)["whole"]
    nine = of_orders(range(1, 10), len(corpus.vocabulary), corpus.train)
    nine = mixing.counted(corpus, training, recipes.FIRST_SCORED, [*nine.values()])
    all_nine = mixing.together([], nine)["whole"].mean().item()
    nine_and = [mixing.together([of], nine)["whole"].mean().item() for of in kept["mlp", 1e10]]
    new = _in_the_new_play(corpus, training)
    third, most = (fmean(of["whole"][new].mean().item() for of in kept["blocks", b]) for b in (3e12, 3e13))
    mlps, blocks = (
        {b: fmean(mixing.together([of], counting)["whole"].mean().item() for of in kept[kind, b]) for b in budgets}
        for kind, budgets in (("mlp", (1e10, 3e10, 1e11, 3e11, 1e12)), ("blocks", (1e13, 3e13)))
    )
    return {
        **reading_on(corpus, training, counts),
        "orders": counts.mean().item(),
        "nine": all_nine,
        "nine_tiny": all_nine - fmean(nine_and),
        "tenfold": third - most,
        "mixed_tiny": mlps[1e10],
        "mixed_more": max(mlps[b] for b in (3e10, 1e11, 3e11)),
        "mixed_tenth": mlps[1e12],
        "mixed_dear": blocks[1e13],
        "mixed_large": blocks[3e13],
    }


def _in_the_new_play(corpus: Corpus, training: TrainingConfig) -> Tensor:
    return torch.tensor(training.whole_test.scored(len(corpus.test), recipes.FIRST_SCORED)) >= recipes.LAST_PLAY


def reading_on(corpus: Corpus, training: TrainingConfig, counts: Tensor) -> dict[str, float]:
    """Of models that go on learning: the counts, whose losses frozen are given, the largest transformer, and both.

    What either gains in the play that is new, and counts in the other; and what a tiny network adds to counts.
    """
    store, runs = Store(RESULTS / "reading", keeps_losses=True), studies.reading()
    counting = reading.counted(corpus, training, recipes.FIRST_SCORED)
    keys = ("blocks", 3e13), ("mlp", 1e10)
    large, tiny = ([store.losses(run)[0] for run in runs[key] if run in store] for key in keys)
    counts_on = mixing.together([], counting)["whole"]
    both, small = (
        fmean(mixing.together([reading.read(of)], counting)["whole"].mean().item() for of in some)
        for some in (large, tiny[:1])
    )
    frozen, read = (torch.stack([of["whole"] for of in some]).mean(0) for some in (large, map(reading.read, large)))
    new = _in_the_new_play(corpus, training)
    means = {"orders_on": counts_on, "frozen_on": frozen, "read_on": read, "new_counts": (counts - counts_on)[new],
             "old_counts": (counts - counts_on)[~new], "new_blocks": (frozen - read)[new]}  # fmt: skip
    found = {name: of.mean().item() for name, of in means.items()}
    return {**found, "both_on": both, "tiny_on": found["orders_on"] - small}


def numbers(evidence: Evidence, counting: float, mixed: dict[str, float]) -> dict[str, float]:
    """``headline`` and ``mixtures``, held to what the first screen says of them in words.

    Raises:
        AssertionError: where a sentence of the first screen is no longer so.
    """
    found, judged = headline(evidence) | mixed | {"counting": counting}, verdicts.judge(evidence)
    assert min(found["new_counts"], found["new_blocks"]) > 1.5 * found["tenfold"] > 0.1, found
    assert 0 < found["nine_tiny"] < found["orders"] - found["mixed_tiny"] - 0.01, found
    assert 0 <= found["nine"] - found["largest"] < 0.03 and found["nine"] < found["orders"] - 0.015, found
    assert found["both_on"] < found["read_on"] - 0.04 < found["orders_on"] - 0.08, found
    assert 0 < found["tiny_on"] < 0.015 and found["old_counts"] > found["new_counts"], found
    words = {v.claim: v.verdict for v in judged if v.reading == "paper"}
    c2 = {v.flops: v.verdict for v in judged if v.flops}
    assert sorted(c for c, word in words.items() if word == "holds") == ["C1", "C4", "C5", "C7"], words
    assert words["C2"] == "depends on the count", words
    pair = next(v.contrasts for v in judged if (v.claim, v.reading) == ("C2", "paper"))
    assert [m.estimate.sign for m in pair[:2]] == [1, -1], pair  # one block, needed and as written
    assert {words["C3"], words["C6"]} == {"no effect of that size", "does not hold"}, words
    assert c2[1e11] == "does not hold" and c2[1e13] == "not significant", c2
    assert "holds" not in c2.values() and abs(found["lead_last"]) < 0.01, c2
    longer = [r.test_nll_whole for e, r in evidence.studies.items() if e.corpus == "tiny_shakespeare"]
    assert found["counting"] < min(found["lowest"], found["paper_best"], *longer) - 0.1, found
    preferred = min(evidence.cells.values(), key=lambda cell: cell.valid)
    assert preferred.family.architecture == "MLP" and preferred.loss == found["single"], preferred
    first = [frontier.best_within(evidence.cells.values(), b).family for b in frontier.BUDGETS]
    assert {family.architecture for family in first} == {"MLP"}, first
    tenth = [frontier.best_within((c for c in evidence.cells.values() if c.family.architecture in of), 1e12).loss
             for of in (("Every position",), frontier.ATTENTION)]  # fmt: skip
    assert tenth[0] > tenth[1] + 0.02, tenth
    assert found["lowest"] == found["every"] < found["single"] - 0.05, found
    assert found["short_loss"] < found["paper_best"] and found["short_share"] < 0.05
    assert found["long_loss"] > found["short_loss"] + 0.3, found
    rates = {name: evidence.cells[name, 1e13].rate for name in frontier.FAMILIES}
    least, most = min(rates, key=rates.get), max(rates, key=rates.get)
    assert rates[least] == 3e-5 and evidence.cells[least, 1e13].family.architecture == "Linear", rates
    assert rates[most] == 3e-3 and evidence.cells[most, 1e13].family.architecture == "Every position", rates
    for others in (("MLP T=128", "Self-attention T=128"), ("Transformer T=32", "Every position T=32")):
        ahead = frontier.compare(evidence.cells, *([frontier.FAMILIES[name]] for name in others))
        assert len(ahead) >= 5 and all(c.estimate.sign > 0 for c in ahead), ahead
    for other, ledger in (
        ("Transformer T=128", "needed"),
        ("Self-attention T=128", "written"),
        ("Transformer T=128", "written"),
    ):
        sides = [frontier.FAMILIES["MLP T=128"]], [frontier.FAMILIES[other]]
        behind = frontier.compare(evidence.cells, *sides, ledger=ledger)
        assert behind and all(c.estimate.effect < 0 or c.estimate.sign == 0 for c in behind), behind
        assert ledger == "needed" or all(c.estimate.effect < 0 for c in behind), behind
    assert found["short_budget"] == 3e12 and found["rotary"] < found["short_loss"], found
    assert recipes.best(3e12) == evidence.convolved["blocks", 3e12]
    against = screen.every_position(evidence)
    assert [(c.estimate.sign, c.worse.family.context) for c in against] == [(-1, 4)] * 4 + [(1, 8)], against
    linear = [evidence.cells[f"Linear T={T}", 3e13].losses for T in (8, 32, 128)]
    assert unpaired(linear[1], linear[0]).sign == 0 < unpaired(linear[2], linear[0]).sign, linear
    today = {b: m.estimate for b, m in verdicts.mlp_against_blocks(evidence.today).items()}
    assert [e.sign for e in corrected(today).values()] == [-1, 0, 0, 0, 0, 0, 0], today
    ahead = verdicts.convolved_against_mlp(evidence)
    assert [e.sign for e in ahead.values()] == [0, 0, 0, 0, 0, 1, 1] and abs(ahead[1e10].effect) < 0.02, ahead
    saved = verdicts.convolutions(evidence)
    assert list(saved) == [*today, 3e13] and [e.sign for e in saved.values()].count(1) == 5, saved
    elsewhere = verdicts.convolutions_elsewhere()
    assert {text for text, _ in elsewhere} == {"Penn Treebank", "python-docs"}, elsewhere
    assert [e.sign for e in elsewhere.values()].count(1) == 1 and len(elsewhere) == 4, elsewhere
    docs = Store(RESULTS / "convolutions").found()
    sides = [studies.on_documentation(architecture, docs) for architecture in ("mlp", "blocks")]
    assert unpaired(*([docs[run].test_nll for run in of] for of in sides)).sign > 0, sides
    took = [r.seconds["training"] / 60 for r in evidence.convolved["blocks", 1e13]]
    assert min(took) > 6.5 and max(took) < 8.5, took
    assert found["convolved"] < found["counting"] - 0.02, found
    assert found["tuned"] < found["early"] < paper.run("Transformer").test_nll - 0.02, found
    three = evidence.adamw["mlp", recipes.CHARGED], evidence.today["blocks", 1e13], evidence.convolved["blocks", 1e13]
    spared, dear, conv = ([r.test_nll_whole for r in of] for of in three)
    assert unpaired(spared, dear).sign == 0 < unpaired(spared, conv).low, found
    assert found["tuned_times"] > 100 and found["early_times"] > 1000, found
    cheaper = evidence.cells["MLP T=4", 1e11].records, evidence.adamw["mlp", 1e10]
    assert min(fmean(r.test_nll for r in of) for of in cheaper) > paper.run("Transformer").test_nll, cheaper
    took = [r.seconds["training"] / 60 for r in evidence.today["mlp", 1e13]]
    assert min(took) > 25.5 and max(took) < 58.5, took
    then = [r for (_, b), c in evidence.cells.items() if b == 1e13 for r in c.records]
    now = {**evidence.gain, **evidence.shapes} | {r.experiment: r for of in evidence.today.values() for r in of}
    now = [r for r in now.values() if abs(r.flops["counted"] / 1e13 - 1) < 0.01 and "compiled" not in r.machine]
    for records, least, most in ((then, 3, 5), (now, 6, 22)):
        took = quantiles((r.seconds["training"] / 60 for r in records), n=6)
        assert (round(took[0]), round(took[-1])) == (least, most), took
    assert found["largest"] < min(found["convolved"], found["orders"]) - 0.015, found
    long, short = (evidence.cells[f"Every position T={T}", 1e13].losses for T in (128, 32))
    assert unpaired(long, short).sign == 0, (long, short)
    assert found["mixed_large"] < found["mixed_tiny"] < found["orders"] - 0.03, found
    assert abs(found["largest"] - found["mixed_tiny"]) < 0.005, found
    assert recipes.best(max(recipes.BUDGETS)) == [evidence.gain[e] for e in studies.decayed(evidence.today)[0.3]]
    assert found["convolved_third"] < found["every"] - 0.05, found
    assert abs(found["mixed_tenth"] - found["mixed_tiny"]) < 0.005 < found["mixed_tiny"] - found["mixed_dear"], found
    assert found["mixed_tiny"] < found["mixed_more"], found
    for budget, minutes in ((1e12, 6), (3e12, 2)):
        took = [r.seconds["training"] / 60 for r in evidence.convolved["blocks", budget]]
        assert abs(median(took) - minutes) < 0.5, took
    cheap = [of for at in (evidence.today, evidence.convolved) for (_, b), of in at.items() if b <= 3e12]
    assert min(fmean(r.test_nll_whole for r in of) for of in cheap) > found["counting"] + 0.01, cheap
    chain = {name: e.effect for name, e in verdicts.gains(evidence.gain, "chain").items()}
    assert len(chain) == 15 and 2 * sorted(chain.values())[-2] < chain["batches of 512 characters"], chain
    assert abs(chain["a learning rate of its own"] - found["short_windows"]) < 0.005, chain
    assert sorted(chain, key=chain.get)[-3] in ("a learning rate of its own", "windows of 32"), chain
    assert verdicts.gains(evidence.gain, "undone")["last position scored"].high < -0.2, found
    attention = [c for c in evidence.cells.values() if c.family.architecture in frontier.ATTENTION]
    assert abs(frontier.best_within(attention, 1e13).loss - found["single"]) < 0.005, found
    assert 2.5 < found["heavier"] < found["heavier_whole"] < 3.5, found
    assert found["heavier_windows_low"] > found["heavier"], found
    assert len(evidence.runs("RoPE, every position scored")) == 3
    asked = [next(iter(runs.values())).experiment.training for runs in
             (evidence.paper["Penn Treebank"], evidence.runs("Penn Treebank, whole text"))]  # fmt: skip
    assert len({(t.epochs, t.windows_per_epoch) for t in asked}) == 1, asked
    assert found["uncapped"] > 0.3 and 0.02 < found["chance"] < 0.1
    return found


def fill(template: str, evidence: Evidence, counting: float, mixed: dict[str, float]) -> str:
    """The first screen's text with its numbers and its table."""
    found, claims = numbers(evidence, counting, mixed), screen.table(verdicts.judge(evidence))
    texts = {f"{name}_text": as_text(found[name]) for name in ("short_budget", "dearest")}
    said = template.format(**found, **texts, table=claims)
    return said.replace(" · 10", "\N{NO-BREAK SPACE}·\N{NO-BREAK SPACE}10")


def from_above(said: str) -> str:
    """The intro's text for a page in the folder above the book's."""
    return re.sub(r"\]\((?!https:)", "](book/", said)


def emblem(evidence: Evidence, mixed: dict[str, float]) -> tuple[dict, dict, dict]:
    """What the book's first figure shows: the frontier with today's training, and the best of all with the paper's.

    Returns:
        Two as in ``as_the_paper_trains``, and of ``mixtures`` the smallest and the best, (FLOPs, mean loss) by label.
    """
    names, lines = {"linear": "Linear", "mlp": "MLP", "blocks": "Transformer"}, {}
    for (architecture, budget), records in evidence.today.items():
        if architecture in names:
            lines.setdefault(names[architecture], {})[budget] = [r.test_nll_whole for r in records]
    for (_, budget), records in evidence.convolved.items():
        lines.setdefault("with convolutions", {})[budget] = [r.test_nll_whole for r in records]
    budgets = frontier.budgets_of(evidence.cells, frontier.of("MLP"))
    lines["paper's training"] = {b: frontier.best_within(evidence.cells.values(), b).losses for b in budgets}
    together = {"MLP and counts": (1e10, mixed["mixed_tiny"]), "transformer and counts": (3e13, mixed["mixed_large"])}
    return lines, screen.as_the_paper_trains(evidence)[1], together


def text(evidence: Evidence, into_pages: bool) -> str:
    """The first screen as it stands in README.md here; if so asked, put into that and the intro, with its figures."""
    corpus = load_corpus("tiny_shakespeare")
    counting = Evaluation(None, first=chapters.CONTEXT).mean(chapters.counted(corpus))
    mixed = mixtures(corpus)
    said = fill(Path("book/assets/first-screen.md").read_text(encoding="utf-8"), evidence, counting, mixed)
    if into_pages:
        screen.put_between(Path("README.md"), MARKS, from_above(said))
        screen.put_between(Path("book/intro.md"), MARKS, said)
        figures.use_style()
        lines, points, together = emblem(evidence, mixed)
        figures.emblem(lines, points, counting, together).savefig("book/assets/emblem.svg", metadata={"Date": None})
        Path("book/assets/budget.html").write_text(explore.budget().page(), encoding="utf-8")
    return from_above(said)
