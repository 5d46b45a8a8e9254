"""Explorers: frames say what the records and the models say, and the two lives of each show the same."""

import base64
import gzip
import json
import re
from collections import Counter
from dataclasses import replace

import ipywidgets
import packing
import pytest
import safetensors.torch
import torch

from slmlib import chapters, explore, load_corpus, recipes, studies, tryout
from slmlib.experiments import RESULTS, Store
from slmlib.flops import flops_per_window
from slmlib.models import LinearConfig, MLPConfig, TransformerConfig, build, n_parameters
from slmlib.ngrams import KneserNey
from slmlib.recipes import best_under
from slmlib.training import TrainingConfig


@pytest.fixture(scope="module")
def corpus():
    return load_corpus("python-docs").head(train=60_000)


def parts(widget):
    """All widgets inside one, by class."""
    inside = [widget, *(part for child in getattr(widget, "children", ()) for part in parts(child))]
    return inside


def only(widget, kind):
    (found,) = [part for part in parts(widget) if type(part) is kind]
    return found


def two():
    return explore.Explorer(
        "two",
        "A caption, <of> two.",
        [explore.Control("One", ["a", "b"]), explore.Control("Other", ["x", "y", "<z>"], 1, "list")],
        lambda i, j, own=None: f"<p>{i} {j} {own}</p>",
        own="Yours",
    )


def test_a_page_holds_every_frame_and_shows_the_first():
    page = two().page()
    assert 'data-explorer="two"' in page and "<of>" not in page and "<z>" not in page
    shown, *rest = page.split("<template")
    assert "<p>0 1 None</p>" in shown
    assert sorted(re.findall(r'data-at="(.*?)"><p>(.*?) None', "".join(rest))) == [
        (f"{i},{j}", f"{i} {j}") for i in range(2) for j in range(3)
    ]


def test_a_widget_follows_its_controls_and_what_is_typed():
    widget = two().widget()
    frame = parts(widget)[-2]
    only(widget, ipywidgets.SelectionSlider).value = 1
    only(widget, ipywidgets.Dropdown).value = 2
    assert "<p>1 2 None</p>" in frame.value
    only(widget, ipywidgets.Text).value = "mine"
    assert "<p>1 2 mine</p>" in frame.value


def test_one_output_has_both_lives():
    bundle = two()._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"}
    assert bundle["text/html"] == two().page()


def test_a_button_draws_on_and_play_goes_with_its_slider():
    controls = [explore.Control("Draw", ["0", "1", "2"], 0, "draw"), explore.Control("Step", ["a", "b"], 0, "play")]
    explorer = explore.Explorer("x", "x", controls, lambda i, j: f"<p>{i} {j}</p>")
    widget = explorer.widget()
    for expected in (1, 2, 0):
        only(widget, ipywidgets.Button).click()
        assert f"<p>{expected} 0</p>" in parts(widget)[-2].value
    assert only(widget, ipywidgets.Play).max == 1
    last = explore.Explorer("x", "x", [explore.Control("Step", ["a", "b"], 1, "play")], str).widget()
    assert only(last, ipywidgets.Play).value == 1  # which the slider follows
    assert "data-play" in explorer.page() and 'data-last="2"' in explorer.page()


def test_counting_shows_what_kneser_ney_expects(corpus):
    explorer = explore.counting(corpus)
    frame = explorer.frame(4, 0, "the class ")
    model = KneserNey(5, len(corpus.vocabulary)).fit(corpus.train)
    p = model.next_token(corpus.vocabulary.encode("the class "))
    best = corpus.vocabulary.tokens[int(p.argmax())]
    assert f'<th scope="row">{best}</th>' in frame and f"{p.max():.0%}" in frame
    assert "<mark>ass␣</mark>" in frame  # the four characters that order 5 may use, all of them seen
    never = "".join(c for c in "☃QXZ" if c in corpus.vocabulary.tokens) or "QXZ"
    assert "<mark></mark>" not in frame and "<code>" in explorer.frame(6, 0, never)


def test_attention_shows_the_rows_of_the_model(corpus):
    model = build(TransformerConfig(16, 16, heads=2, layers=2, ff_width=16), len(corpus.vocabulary), seed=0)
    explorer = explore.attention(model, corpus, start=50)
    maps = model.attention_maps(corpus.test[50:66][None])[:, 0]
    percent = torch.tensor(explorer.data["percent"])
    assert (percent / 100 - maps).abs().max() < 0.006
    assert percent.shape == (2, 2, 16, 16) and percent.triu(1).sum() == 0
    assert explorer.frame(1, 0, 3).count("<span") == 16
    assert f"with {percent[1, 0, 3].max().item()} % of its weight" in explorer.frame(1, 0, 3)


@pytest.mark.parametrize("characters", [300, 20, 14])
def test_a_short_text_is_counted_and_looked_at_to_its_end(characters, corpus):
    short = replace(corpus, test=corpus.test[:characters])
    assert len(explore.counting(short).controls[1].options) == 12
    model = build(TransformerConfig(16, 16, heads=2, layers=1, ff_width=16), len(corpus.vocabulary), seed=0)
    maps = model.attention_maps(short.test[-16:][None])[0, 0]
    assert torch.equal(torch.tensor(explore.attention(model, short).data["percent"])[0], (100 * maps).round().int())


def test_cost_is_what_flops_says():
    frame = explore.cost().frame(2, 1, 2, 0, 1, 1)
    config = explore.costed(32, 32, 3)
    total = flops_per_window(config, 65, "written", scored="every")
    assert f"{total:,} FLOPs a window" in frame and f"{total // 32:,} a prediction" in frame
    assert f"{n_parameters(build(config, 65)).total:,} parameters" in frame


def test_learning_looks_on_the_way_at_what_it_trains(corpus):
    training = TrainingConfig(epochs=1, windows_per_epoch=35 * 16, batch=16, eval_windows=200, learning_rate=0.01)
    with pytest.raises(ValueError, match="config and training"):
        explore.learning(LinearConfig(4, 8), None, corpus)
    explorer = explore.learning(LinearConfig(4, 8), training, corpus)
    assert list(explorer.controls[0].options) == ["0", "10", "30", "35"]
    losses = [float(re.search(r"([\d.]+) nats", explorer.frame(i)).group(1)) for i in range(4)]
    assert losses[0] > losses[3]
    assert len({explorer.frame(i) for i in range(4)}) == 4


def test_the_lottery_draws_every_pair_and_counts_them():
    explorer = explore.lottery(chapters.evidence())
    asked = [one for v in chapters.judged() if v.reading == "paper" for one in v.contrasts]
    assert len(explorer.controls[0].options) == len(asked)
    a, b = asked[0].values
    wins = sum(x > y for x in a for y in b)
    drawn = {explorer.frame(0, draw) for draw in range(24)}
    assert len(drawn) > 12 and all(f"Over all {len(a) * len(b)} pairs of runs {wins} speak for it" in d for d in drawn)


def test_a_budget_names_what_validation_chose(monkeypatch):
    monkeypatch.setattr(explore, "_counting_loss", lambda: None)
    found = {e: r for e, r in Store(RESULTS / "today").found().items() if e.flops() < 2e11}
    explorer = explore.budget(found)
    best = min(recipes.runs(found).values(), key=recipes.validation)[0].experiment
    assert explorer.controls[0].options[:3] == ["10¹⁰", "3\xa0·\xa010¹⁰", "10¹¹"]
    assert f"{best.model.context} characters, {best.model.hidden} hidden units" in explorer.frame(2, 0)
    assert "Muon’s products among them" in explorer.frame(2, 1)


@pytest.mark.parametrize(
    ("typed", "says"), [("2e10", "on one core of this machine"), ("much", "much"), ("1e20", "must")]
)
def test_a_budget_of_the_reader_s_own_is_tried_here(monkeypatch, corpus, typed, says):
    monkeypatch.setattr(explore, "load_corpus", lambda name: corpus)
    assert says in explore._own_budget(typed, Store(RESULTS / "today").found())


@pytest.fixture(scope="module")
def published(corpus, tmp_path_factory):
    """A folder of three small networks, untrained, as the published ones are kept."""
    folder, V = tmp_path_factory.mktemp("weights"), len(corpus.vocabulary)
    configs = MLPConfig(4, 4, 8), TransformerConfig(16, 16, heads=1, layers=1), TransformerConfig(16, 16, layers=2)
    for name, config in zip(studies.PUBLISHED, configs, strict=True):
        experiment = replace(best_under(1e10, corpus), model=config)
        path = folder / f"{name.replace(' ', '-')}.safetensors"
        tryout.keep(path, build(config, V, seed=1).half(), experiment, corpus.vocabulary)
    return folder


def test_models_expect_and_go_on_from_what_is_typed(published, corpus, monkeypatch):
    monkeypatch.setattr(explore, "load_corpus", lambda name: corpus)
    explorer = explore.models(published)
    frame = explorer.frame(0, 1, "The ")
    p = KneserNey(5, len(corpus.vocabulary)).fit(corpus.train).next_token(corpus.vocabulary.encode("The "))
    assert f"{p.max():.0%}" in frame and frame.count("<table") == 4 and "<pre>The " in frame
    texts = [explorer.frame(i, 1, "The ").split("<pre>")[1] for i in range(4)]
    assert len(set(texts)) == 4 and all(len(text) >= 200 for text in texts)
    assert explorer.frame(3, 0, "\0") == explorer.frame(3, 0)  # of what is not in the vocabulary nothing is left
    assert "Load the models" in explorer.page()


def test_what_is_packed_for_the_page_is_what_there_is(published, corpus, monkeypatch):
    for module in (explore, packing):
        monkeypatch.setattr(module, "load_corpus", lambda name: corpus)
    script = packing.packed(published)
    data = gzip.decompress(base64.b64decode(re.fullmatch(r'window.slmModels = "(.*)";\n', script).group(1)))
    tensors, length = safetensors.torch.load(data), int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["about"])
    assert tuple(about["vocabulary"]) == corpus.vocabulary.tokens
    _, *networks = about["models"]
    assert [n["name"] for n in networks] == list(studies.PUBLISHED)
    for name in studies.PUBLISHED:
        for key, w in tryout.load(published / studies.file_of(name)).network.state_dict().items():
            assert torch.equal(tensors[f"{name}.{key}"].float(), w)
    counted, grams, gram = iter(tensors["counts"].tolist()), {}, []
    for same in counted:
        gram = gram[:same] + [next(counted) for _ in range(5 - same)]
        count, scale, byte = 0, 1, 128
        while byte > 127:
            byte = next(counted)
            count, scale = count + byte % 128 * scale, scale * 128
        grams[tuple(gram)] = count
    assert grams == Counter(map(tuple, corpus.train.unfold(0, 5, 1).tolist()))


def test_what_the_page_draws_from_cannot_end_its_script(corpus):
    explorer = explore.Explorer("x", "x", [], lambda: "", data={"text": "</script><b>"})
    data = re.search(r"<script type=.*?>(.*?)</script>", explorer.page()).group(1)
    assert json.loads(data) == {"text": "</script><b>"}
