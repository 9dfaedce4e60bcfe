"""The scene generator: a seed names a picture, masks are exact, and held-out pairs stay out of training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.recipe.clips import (
    CATEGORIES,
    encode,
    evaluation_clip,
    evaluation_set,
    shuffled_clip,
    training_clip,
    visible,
)
from models.recipe.net import Shape, build_tokenizer
from models.recipe.scenes import MIN_PIXELS, Scene, absent_queries, draw, sample_queries, sample_scene, sample_thing
from models.recipe.staged import staged_scene
from models.recipe.train_detector import compose
from models.recipe.vocabulary import ANY, COLOURS, HELD_OUT, SHAPES, Query, phrase


def scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng) for _ in range(count)]


def test_a_seed_names_a_picture() -> None:
    a, b, other = scenes(4, 3), scenes(4, 3), scenes(4, 4)
    assert all((x.image == y.image).all() and (x.ids == y.ids).all() for x, y in zip(a, b, strict=True))
    assert any((x.image != y.image).any() for x, y in zip(a, other, strict=True))


def test_masks_and_boxes_belong_to_visible_things() -> None:
    for scene in scenes(40):
        assert scene.ids.max() == len(scene.things) == len(scene.boxes)
        for i, (x0, y0, x1, y1) in enumerate(scene.boxes * scene.ids.shape[0]):
            ys, xs = np.nonzero(scene.ids == i + 1)
            assert len(ys) >= MIN_PIXELS
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == pytest.approx((x0, y0, x1, y1), abs=1e-3)


def test_training_never_shows_or_names_a_held_out_pair() -> None:
    rng = np.random.default_rng(1)
    for scene in scenes(150):
        assert not {(t.colour, t.shape) for t in scene.things} & HELD_OUT
        assert not any(q.held_out for q in sample_queries(rng, scene))


def test_every_colour_and_shape_is_seen() -> None:
    things = [t for s in scenes(150) for t in s.things]
    assert {t.colour for t in things} == set(range(len(COLOURS)))
    assert {t.shape for t in things} == set(range(len(SHAPES)))


def test_rivals_share_the_colour_and_the_shape_of_the_first_thing() -> None:
    for seed in range(20):
        held_out = bool(seed % 2)
        first, same_colour, same_shape = sample_scene(
            np.random.default_rng(seed), held_out=held_out, rivals=True
        ).things[:3]
        assert same_colour.colour == first.colour and same_colour.shape != first.shape
        assert same_shape.shape == first.shape and same_shape.colour != first.colour
        assert ((first.colour, first.shape) in HELD_OUT) == held_out


def test_absent_queries_match_nothing() -> None:
    for scene in scenes(30):
        assert not any(
            scene.find(q) for held in (False, True) for qs in absent_queries(scene, held).values() for q in qs
        )


@pytest.mark.parametrize(
    ("query", "colour", "shape", "extent", "expected"),
    [
        (Query(0, 0), 0, 0, 0.2, True),
        (Query(0, 0), 0, 1, 0.2, False),
        (Query(ANY, 1), 5, 1, 0.2, True),
        (Query(0, 0, size=-1), 0, 0, 0.1, True),
        (Query(0, 0, size=-1), 0, 0, 0.2, False),
        (Query(0, 0, size=1), 0, 0, 0.3, True),
        (Query(0, unknown=True), 0, 0, 0.2, False),
    ],
)
def test_query(query: Query, colour: int, shape: int, extent: float, expected: bool) -> None:
    assert query.matches(colour, shape, extent) is expected


def test_the_tokenizer_knows_every_word_of_a_known_phrase_and_no_other() -> None:
    tokenizer, rng = build_tokenizer(), np.random.default_rng(0)
    for _ in range(300):
        query = Query(int(rng.integers(-1, 8)), int(rng.integers(-1, 8)), int(rng.integers(-1, 2)))
        assert tokenizer.unk_token_id not in tokenizer(phrase(rng, query)).input_ids
        assert tokenizer.unk_token_id in tokenizer(phrase(rng, Query(query.colour, unknown=True))).input_ids
    assert tokenizer("RED Circles").input_ids == tokenizer("red circles").input_ids
    assert tokenizer.eos_token_id == len(tokenizer) - 1


def test_a_batch_of_the_same_seed_is_the_same() -> None:
    a, b = (compose(np.random.default_rng(5), 2, Shape(), 0.5) for _ in range(2))
    assert a.texts == b.texts and bool((a.images == b.images).all()) and bool((a.exemplars[1] == b.exemplars[1]).all())


def test_training_clips_repeat_by_seed() -> None:
    (a, ids_a), (b, ids_b) = (training_clip(np.random.default_rng(2), 4) for _ in range(2))
    assert (a == b).all() and (ids_a == ids_b).all()


@pytest.mark.parametrize("category", CATEGORIES)
def test_evaluation_clips_do_what_their_category_says(category: str) -> None:
    seed = next(s for s, c in evaluation_set(3) if c == category)
    clip = evaluation_clip(seed, category)
    assert clip.images.shape == (60, 270, 480, 3)
    seen = [visible(clip.ids, i) for i in range(len(clip.targets))]
    if category == "occlusion":
        assert seen[0].all() and 9 <= int((seen[1] == 0).sum()) <= 14
    else:
        assert all(s.sum() >= 45 for s in seen)
    same = len({(t.colour, t.shape) for t in clip.targets}) == 1
    assert same == (category == "look-alike")


def test_staged_scenes_keep_the_rules_of_all_others() -> None:
    """Only visible things are asked about, nothing held out is shown, and line-ups are of one kind."""
    rng = np.random.default_rng(11)
    staged = [staged_scene(rng) for _ in range(40)]
    for scene in staged:
        assert scene.ids.max() == len(scene.things) == len(scene.boxes)
        assert all((scene.ids == i + 1).sum() >= MIN_PIXELS for i in range(len(scene.things)))
        assert not {(t.colour, t.shape) for t in scene.things} & HELD_OUT
    alike = [max(len(s.like(i)) for i in range(len(s.things))) for s in staged if s.things]
    assert np.mean([n >= 2 for n in alike]) > 0.6


def test_a_smeared_thing_is_wider_along_its_motion_only() -> None:
    thing = replace(
        sample_thing(np.random.default_rng(3), 0, 0, (1.0, 1.0)), x=112.0, y=112.0, radius=30.0, look="flat"
    )
    boxes = []
    for smear in ((0.0, 0.0), (24.0, 0.0)):
        image, ids = np.full((224, 224, 3), 90, np.float32), np.zeros((224, 224), np.uint8)
        draw(image, ids, replace(thing, smear=smear), 1)
        changed = np.abs(image - 90).sum(2) > 8
        boxes.append((np.ptp(np.flatnonzero(changed.any(0))), np.ptp(np.flatnonzero(changed.any(1))), int(ids.sum())))
    (width, height, area), (smeared, same, smeared_area) = boxes
    assert 18 <= smeared - width <= 26 and abs(same - height) <= 2
    assert smeared_area == pytest.approx(area, rel=0.25)


def test_in_a_shuffle_two_of_a_kind_change_places() -> None:
    moved = []
    for seed in range(4):
        images, ids = shuffled_clip(np.random.default_rng(seed), 24)
        assert images.shape == (24, 224, 224, 3)
        count = int(ids.max())
        centres = [
            [np.mean(np.nonzero(ids[t] == i + 1)[1]) if (ids[t] == i + 1).any() else np.nan for t in (0, -1)]
            for i in range(count)
        ]
        moved.append(sum(abs(b - a) > 8 for a, b in centres))
    assert max(moved) == 2
    assert np.mean(moved) > 1


def test_a_clip_is_encoded_alike_every_time(tmp_path: Path) -> None:
    """Figures of two runs, or of two trackers, are about the same frames."""
    clip = evaluation_clip(*evaluation_set(2)[1])
    files = []
    for k in range(4):
        encode(clip, tmp_path / f"{k}.mp4")
        files.append((tmp_path / f"{k}.mp4").read_bytes())
    assert len(set(files)) == 1
