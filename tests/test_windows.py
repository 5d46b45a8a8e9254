import pytest
import torch

from slmlib.windows import Evaluation, Windows, random_stream

IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5])


@pytest.mark.parametrize("context", [1, 4, len(IDS) - 1])
def test_windows_equal_a_naive_loop_and_reach_the_last_token(context):
    windows = Windows(IDS, context)
    ids = IDS.tolist()
    naive = [(ids[i : i + context], ids[i + context]) for i in range(len(ids) - context)]
    assert len(windows) == len(naive) == len(IDS) - context
    chosen = torch.tensor([len(naive) - 1, 0, len(naive) // 2, 0])
    for starts in (chosen, slice(None), slice(0, 2)):
        inputs, targets = windows[starts]
        expected = naive[starts] if isinstance(starts, slice) else [naive[i] for i in starts]
        assert inputs.shape == (len(expected), context)
        assert inputs.tolist() == [x for x, _ in expected]
        assert targets.tolist() == [y for _, y in expected]
        assert inputs.dtype == targets.dtype == torch.int64


def test_windows_are_a_view_of_the_ids():
    ids = IDS.clone()
    windows = Windows(ids, 3)
    storage = ids.untyped_storage()
    assert windows.view.untyped_storage().data_ptr() == storage.data_ptr()
    assert len(windows.view.untyped_storage()) == len(storage)
    ids[3] = 7
    assert windows[:1][1].tolist() == [7]
    gathered, _ = windows[torch.tensor([1])]
    gathered.zero_()  # a gathered batch is a copy: the corpus stays as it is
    assert ids[3] == 7


@pytest.mark.parametrize(
    ("ids", "context", "named"),
    [
        *((IDS, n, f"context {n} does not fit {len(IDS)} tokens") for n in (0, -1, len(IDS), len(IDS) + 1)),
        *((ids, 2, r"1-D, got shape \(") for ids in (IDS[None], torch.tensor(3))),
    ],
)
def test_ids_that_hold_no_window_are_refused(ids, context, named):
    with pytest.raises(ValueError, match=named):
        Windows(ids, context)


def test_draw_is_uniform_over_all_starts_with_replacement():
    windows = Windows(IDS, 3)
    starts = windows.draw(8000, random_stream(0, "windows"))
    counts = starts.bincount(minlength=len(windows))
    assert starts.shape == (8000,)
    assert starts.dtype == torch.int64
    assert len(counts) == len(windows)  # no start beyond the last window, and more draws than windows: replacement
    expected = 8000 / len(windows)
    assert ((counts - expected) ** 2 / expected).sum() < 24.3  # chi-square with 7 degrees of freedom, p = 0.001


def test_draws_are_reproducible_and_differ_by_seed_purpose_and_call(generator_left):
    windows = Windows(torch.arange(1000), 3)

    def draw(seed=0, purpose="windows", call=0):
        g = random_stream(seed, purpose)
        return [windows.draw(20, g).tolist() for _ in range(call + 1)][call]

    assert draw() == draw()
    others = [draw(), draw(seed=1), draw(seed=-1), draw(purpose="dropout"), draw(call=1)]
    assert len(set(map(tuple, others))) == len(others)


# Evaluation

NLL = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # of a counting model


@pytest.mark.parametrize("context", [0, 1, 20])
@pytest.mark.parametrize(("windows", "stride", "first"), [(None, 1, None), (7, 1, None), (None, 3, 20), (50, 8, 30)])
def test_an_evaluation_scores_a_stride_of_the_tokens_from_the_first_on(windows, stride, first, context):
    evaluation, start = Evaluation(windows, stride, first), first or context
    tokens = list(range(start, 100))[:windows][::stride]
    assert list(evaluation.scored(100, context)) == tokens
    assert evaluation.mean(NLL, context) == pytest.approx(sum(NLL[i].item() for i in tokens) / len(tokens))


@pytest.mark.parametrize(
    ("evaluation", "context", "named"),
    [
        (Evaluation(None, first=5), 6, "first token scored is 5, but a context of 6 "),
        (Evaluation(None, first=100), 6, "first token scored is 100, but there are 100, numbered from 0"),
        (Evaluation(None), 100, "first token scored is 100"),
        (Evaluation(95), 6, "95 windows .*eval_windows.* it holds 94"),
        (Evaluation(90, first=11), 6, "90 windows .* it holds 89"),
    ],
)
def test_a_split_that_does_not_hold_what_is_asked_for_is_named(evaluation, context, named):
    with pytest.raises(ValueError, match=f"the test split: .*{named}"):
        evaluation.scored(100, context, "test split")
    with pytest.raises(ValueError, match=named):
        evaluation.mean(NLL, context)
