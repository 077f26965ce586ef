"""Ranks by counting, against a plain sort of every row."""

import pytest
import torch

from alip.eval import ranking
from alip.eval.ranking import ranks_from_features, ranks_from_scores
from alip.eval.retrieval import recall_from_scores


def plain_ranks(scores, owner):
    """The definition, one query at a time: a wrong answer that is level with the right one stands before it."""
    images, captions = scores.shape

    def place(values, right):
        # Sort by score, best first; of equals the wrong ones first.
        order = sorted(range(len(values)), key=lambda i: (-values[i], i in right))
        return min(order.index(i) for i in right)

    image_to_text = []
    for image in range(images):
        right = {j for j in range(captions) if owner[j] == image}
        image_to_text.append(place(scores[image].tolist(), right) if right else -1)
    text_to_image = [place(scores[:, j].tolist(), {int(owner[j])}) for j in range(captions)]
    return image_to_text, text_to_image


def plain_recall(ranks, k):
    queries = [rank for rank in ranks if rank >= 0]
    return 100 * sum(rank < k for rank in queries) / len(queries)


@pytest.mark.parametrize("levels", [3, 17, None])  # few levels: nearly everything is tied
@pytest.mark.parametrize("images, captions", [(1, 1), (7, 31), (20, 20), (31, 7)])
def test_same_as_a_sort(images, captions, levels):
    generator = torch.Generator().manual_seed(images + captions)
    scores = torch.rand(images, captions, generator=generator)
    if levels:
        scores = (scores * levels).floor()
    owner = torch.randint(images, (captions,), generator=generator)
    image_to_text, text_to_image = plain_ranks(scores, owner)
    found = ranks_from_scores(scores, owner)
    assert found.image_to_text.tolist() == image_to_text
    assert found.text_to_image.tolist() == text_to_image
    numbers = recall_from_scores(scores, owner.tolist(), ks=(1, 5))
    for k in (1, 5):
        assert numbers[f"image_to_text_R@{k}"] == pytest.approx(plain_recall(image_to_text, k))
        assert numbers[f"text_to_image_R@{k}"] == pytest.approx(plain_recall(text_to_image, k))
    assert numbers["text_to_image_mean_rank"] == pytest.approx(1 + sum(text_to_image) / captions)


@pytest.mark.parametrize("threads", [1, 3])
def test_over_the_edges_of_tiles(threads, monkeypatch):
    """Sizes that fill tiles, words and bytes to the brim, with every score equal: the largest counts there can be."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for images, captions in [(255, 2040), (256, 2041), (1021, 4087)]:
        owner = torch.arange(captions) % images
        found = ranks_from_scores(torch.zeros(images, captions), owner)
        own = torch.bincount(owner, minlength=images)
        assert torch.equal(found.image_to_text, captions - own)
        assert torch.equal(found.text_to_image, torch.full((captions,), images - 1))


def test_features_and_their_scores_rank_alike(monkeypatch):
    monkeypatch.setattr(ranking, "_CPU_BLOCK", (64, 96))  # many blocks, and edges in both directions
    generator = torch.Generator().manual_seed(5)
    image_features = torch.nn.functional.normalize(torch.randn(333, 24, generator=generator), dim=1)
    owner = torch.randint(333, (1000,), generator=generator)
    noise = torch.randn(1000, 24, generator=generator)
    caption_features = torch.nn.functional.normalize(image_features[owner] + 0.5 * noise, dim=1)
    by_features = ranks_from_features(image_features, caption_features, owner)
    scores = image_features.double() @ caption_features.double().T
    by_scores = ranks_from_scores(scores, owner)
    # In double precision no two scores are nearer than float32 can tell, but for a handful.
    assert (by_features.image_to_text != by_scores.image_to_text).sum() <= 2
    assert (by_features.text_to_image != by_scores.text_to_image).sum() <= 2


def test_equal_features_tie_wherever_they_stand(monkeypatch):
    """Copies of one image, spread over blocks: each copy counts against the right one, to the last."""
    monkeypatch.setattr(ranking, "_CPU_BLOCK", (16, 40))
    features = torch.nn.functional.normalize(torch.randn(1, 64, generator=torch.Generator().manual_seed(1)), dim=1)
    found = ranks_from_features(features.repeat(101, 1), features.repeat(101, 1), torch.arange(101))
    assert found.image_to_text.tolist() == [100] * 101
    assert found.text_to_image.tolist() == [100] * 101
    images = torch.nn.functional.normalize(torch.randn(10, 64, generator=torch.Generator().manual_seed(2)), dim=1)
    few = ranks_from_features(images, features.repeat(10, 1), torch.arange(10))  # ten images of the same caption
    assert few.image_to_text.tolist() == [9] * 10


def test_a_model_that_gives_the_same_for_all_finds_nothing():
    numbers = recall_from_scores(torch.ones(50, 250), torch.arange(250) // 5)
    assert numbers["image_to_text_R@10"] == numbers["text_to_image_R@10"] == 0


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_type(kind):
    scores = torch.tensor([[3, 1, 2], [1, 2, 3]], dtype=kind)
    found = ranks_from_scores(scores, torch.tensor([0, 1, 0]))
    assert found.image_to_text.tolist() == [0, 1] and found.text_to_image.tolist() == [0, 0, 1]


def test_what_makes_no_sense_is_refused():
    scores = torch.rand(3, 4)
    with pytest.raises(ValueError, match="shape"):
        recall_from_scores(scores, [0, 1, 2])
    with pytest.raises(ValueError, match="must lie in 0 … 2"):
        recall_from_scores(scores, [0, 1, 2, 3])
    for place in ((1, 1), (0, 3)):  # of a right answer, of a wrong one
        wrong = scores.index_put((torch.tensor(place[0]), torch.tensor(place[1])), torch.tensor(float("nan")))
        with pytest.raises(ValueError, match="NaN"):
            recall_from_scores(wrong, [0, 1, 2, 2])
    with pytest.raises(ValueError, match="NaN"):
        ranks_from_features(torch.full((2, 3), float("nan")), torch.zeros(2, 3), torch.tensor([0, 1]))


def test_never_the_whole_matrix(monkeypatch):
    """Every score is counted once, and no more than one block of them exists at a time."""
    sizes, count_block = [], ranking._count_block
    monkeypatch.setattr(
        ranking, "_count_block", lambda scores, *rest: sizes.append(scores.numel()) or count_block(scores, *rest)
    )
    image_features = torch.randn(1500, 4, generator=torch.Generator().manual_seed(0))
    ranks_from_features(image_features, image_features.repeat_interleave(6, 0), torch.arange(9000) // 6)
    assert sum(sizes) == 1500 * 9000
    assert max(sizes) <= ranking._CPU_BLOCK[0] * ranking._CPU_BLOCK[1] < 1500 * 9000 / 6


def test_rough_products_of_a_training_run_do_not_reach_the_ranks():
    features = torch.nn.functional.normalize(torch.randn(300, 64, generator=torch.Generator().manual_seed(3)), dim=1)
    captions = torch.nn.functional.normalize(features + 0.3 * features.roll(1, 0), dim=1)
    exact = ranks_from_features(features, captions, torch.arange(300))
    allowed = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        seen = []
        real = ranking._count_block
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                ranking,
                "_count_block",
                lambda *rest: seen.append(torch.get_float32_matmul_precision()) or real(*rest),
            )
            rough = ranks_from_features(features, captions, torch.arange(300))
        assert set(seen) == {"highest"}
        assert torch.get_float32_matmul_precision() == "medium"  # left as it was found
    finally:
        torch.set_float32_matmul_precision(allowed)
    assert torch.equal(exact.text_to_image, rough.text_to_image)
