"""Facts and captions: what is said is true of the slice, and left is the patient's left."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from mri_synth.captions import (
    BOTH,
    DRAWS,
    FACTS,
    LEFT,
    LESION,
    PLACE,
    RIGHT,
    SIDE,
    SIZE,
    Terms,
    caption,
    fits,
    mirrored,
    prompts,
    sides,
    sizes,
    vocabulary,
    words,
)
from mri_synth.config import check
from mri_synth.data.captioned import Captioned
from mri_synth.data.phantom import Phantom
from mri_synth.data.volume import read, to_slices
from mri_synth.draws import uniform
from mri_synth.errors import ConfigError

TERMS = Terms(("T1", "T2"), "axial", ("none", "lesion"), ("Guys", "HH"))
#        contrast plane place class lesion side size age sex site
LEFTY = [1, 0, 2, -1, 1, LEFT, 0, 6, 0, 1]
HEALTHY = [0, 0, 0, -1, 0, -1, -1, 3, 1, -1]


def numbers(count, epoch=0):
    return uniform(1, epoch, torch.arange(count), DRAWS).tolist()


# -- facts -----------------------------------------------------------------------------------------------------------


def slices(columns):
    """(n, 1, 8, 40) of a head in columns 10 to 29, and a mask in each of these columns."""
    image, mask = torch.full((len(columns), 1, 8, 40), -1.0), torch.zeros(len(columns), 1, 8, 40)
    image[..., 10:30] = 0.5
    for row, chosen in zip(mask, columns, strict=True):
        row[0, 4, chosen] = 1
    return mask, image


def test_sides_by_hand():
    columns = [[11, 12], [28], [19, 20], [], [15, *range(21, 29)], [*range(10, 20), 25], [20, *range(21, 30), 19]]
    mask, image = slices(columns)
    # 8 of 9 right of the middle, which is 19.5: 11 % are left, and at least 10 % make it both
    assert sides(mask, image).tolist() == [LEFT, RIGHT, BOTH, -1, BOTH, LEFT, RIGHT]


def test_sides_are_those_of_the_head_and_not_of_the_frame():
    mask, image = slices([[22], [16]])
    moved = torch.full_like(image, -1.0)
    moved[..., 18:38] = 0.5  # its middle is 27.5
    assert sides(mask, image).tolist() == [RIGHT, LEFT]
    assert sides(mask, moved).tolist() == [LEFT, LEFT]
    black = torch.full_like(image, -1.0)  # no head: the frame's
    assert sides(mask, black).tolist() == [RIGHT, LEFT]


def test_sizes_by_hand():
    mask = torch.zeros(5, 1, 20, 20)
    for row, pixels in zip(mask, (78, 79, 314, 315, 0), strict=True):  # 10 mm across: 78.5 mm², 20 mm: 314.2 mm²
        row.view(-1)[:pixels] = 1
    assert sizes(mask, torch.ones(5)).tolist() == [0, 1, 1, 2, -1]
    assert sizes(mask, torch.full((5,), 4.0)).tolist() == [1, 2, 2, 2, -1]


def test_mirrored_swaps_left_and_right_and_nothing_else():
    facts = torch.tensor([LEFTY, HEALTHY])
    facts = torch.cat([facts, facts[:1], facts[:1]])
    facts[2, SIDE], facts[3, SIDE] = RIGHT, BOTH
    there = mirrored(facts)
    assert there[:, SIDE].tolist() == [RIGHT, -1, LEFT, BOTH]
    assert torch.equal(mirrored(there), facts)
    there[:, SIDE] = facts[:, SIDE]
    assert torch.equal(there, facts)


def test_fits_by_hand():
    facts, said = (
        torch.tensor([[0, 1, -1], [0, 2, 5]]),
        torch.tensor([[0, -1, -1], [-1, 2, -1], [0, 1, 5], [-1, -1, -1]]),
    )
    assert fits(facts, said).tolist() == [[True, False, False, True], [True, True, False, True]]


@pytest.mark.parametrize("signs", [(1, 1), (-1, 1), (1, -1), (-1, -1)])
@pytest.mark.parametrize(("plane", "axes"), [("axial", 1), ("coronal", 2)])
def test_left_is_the_patients_left_however_the_file_is_stored(tmp_path, signs, plane, axes):
    head, lesion = np.zeros((30, 24, 20), np.float32), np.zeros((30, 24, 20), np.float32)
    head[4:26, 4:20, 4:16] = 100
    lesion[6:9, 8:12, 8:12] = 1  # RAS: small x is the patient's left
    affine = np.diag([*(float(s) for s in (signs[0], signs[1], 1)), 1.0])
    flips = [axis for axis, sign in enumerate(signs) if sign < 0]
    made = []
    for name, array in (("head", head), ("lesion", lesion)):
        nib.save(nib.Nifti1Image(np.flip(array, flips), affine), tmp_path / f"{name}.nii")
        made.append(torch.from_numpy(to_slices(read(tmp_path / f"{name}.nii"), plane).images)[:, None])
    found = sides(made[1], made[0] / 50 - 1)
    assert set(found[found >= 0].tolist()) == {LEFT}


@pytest.fixture(scope="module")
def data():
    made = Phantom(preset="custom", subjects=[6, 2, 2], size=32, contrasts=["T1", "T2"], lesions="all", batch_size=4)
    made.view_class = Captioned
    made.prepare_data()
    made.setup()
    return made


def test_facts_of_phantoms_are_those_of_their_simulation(data):
    view = data.view("train")
    batch = view.__getitems__(list(range(len(view))))
    facts = dict(zip(FACTS, batch.facts.T, strict=True))
    assert len(view) == 6 * 10 * 2
    assert [data.spec.contrasts[c] for c in facts["contrast"]] == list(batch.contrast)
    assert torch.equal(facts["lesion"], batch.label)
    assert (facts["plane"] == 0).all()
    assert (facts["class"] == -1).all(), "the mask says it"
    first = facts["place"][(facts["contrast"] == 0)][:10]
    assert first.tolist() == [0] * 3 + [1] * 3 + [2] * 4  # z = -10 ... 44: thirds at 8 and 26 mm, which is the third
    assert [10 * a <= age < 10 * a + 10 for a, age in zip(facts["age"].tolist(), batch.age.tolist(), strict=True)]
    assert [("F", "M")[s] for s in facts["sex"]] == list(batch.sex)
    assert data.spec.sites == ("simulated",)
    assert (facts["site"] == 0).all()
    grid, checked = data.grid, Counter()
    for k, subject in enumerate(batch.subject):
        lesions = data.simulate(int(subject[-4:]), "T1").lesions
        if (
            len({x.side for x in lesions}) == 1
            and facts["side"][k] >= 0
            and min(abs(x.centre_mm[0]) - x.radii_mm[0] for x in lesions) > 4
        ):
            assert ("left", "right")[facts["side"][k]] == lesions[0].side
            checked[lesions[0].side] += 1
    assert grid.size == 32
    assert sum(checked.values()) > 4


def test_facts_do_not_depend_on_the_batch(data):
    view = data.view("val")
    whole = view.__getitems__(list(range(8))).facts
    assert torch.equal(torch.cat([view[k].facts for k in range(8)]), whole)


def test_flips_and_large_turns_are_refused_where_sides_are_said(compose):
    with pytest.raises(ConfigError, match=r"data.augment.flip=0.5 would put the left side on the right"):
        check(compose("model=mri_clip", "data.augment.flip=0.5"))
    with pytest.raises(ConfigError, match=r"data.augment.rotate_deg=90 .* allowed: at most 45"):
        check(compose("model=mri_clip", "data.augment.rotate_deg=90"))
    check(compose("model=mri_clip", "data.augment.rotate_deg=10"))
    check(compose("model=vqvae", "data.augment.flip=0.5"))


# -- captions --------------------------------------------------------------------------------------------------------


def test_what_is_said_is_true_in_words_and_in_numbers():
    known = set(vocabulary(TERMS))
    for facts in (LEFTY, HEALTHY):
        for u in numbers(400):
            text, said = caption(facts, TERMS, u)
            assert any(value >= 0 for value in said)
            assert all(s in (-1, f) for s, f in zip(said, facts, strict=True))
            spoken = words(text)
            assert set(spoken) <= known
            assert ("left" in spoken) == (said[SIDE] == LEFT)
            assert "right" not in spoken
            assert ("small" in spoken) == (said[SIZE] == 0)
            assert any(w.startswith("lesion") for w in spoken) == (said[LESION] >= 0)
            assert ("t2" in spoken) == (said[0] == 1)
            assert ("high" in spoken or "top" in spoken) == (said[PLACE] == 2)
            assert "coronal" not in spoken


def test_no_lesion_is_said_as_such():
    for text in prompts(LESION, 0, TERMS):
        assert set(words(text)) & {"no", "without", "free"}
    for fact, value in ((LESION, 1), (SIDE, 0), (SIZE, 2)):
        for text in prompts(fact, value, TERMS):
            assert not set(words(text)) & {"no", "without", "free"}


def test_short_captions_are_learned():
    texts = Counter(caption(LEFTY, TERMS, u)[0] for u in numbers(4000))
    assert texts["T2"] > 4
    assert texts["lesion on the left"] > 4
    lengths = Counter(sum(s >= 0 for s in caption(LEFTY, TERMS, u)[1]) for u in numbers(2000))
    assert 0.2 < lengths[1] / 2000 < 0.4
    assert sum(lengths[n] for n in range(6, 10)) > 200


def test_the_same_numbers_are_the_same_sentence_and_others_another():
    first, again, other = ([caption(LEFTY, TERMS, u)[0] for u in numbers(50, e)] for e in (0, 0, 1))
    assert first == again
    assert sum(a != b for a, b in zip(first, other, strict=True)) > 40


def test_a_whole_caption_says_all_that_is_known_and_fits_into_the_context():
    longest = 0
    for facts in (LEFTY, HEALTHY):
        for u in numbers(500):
            text, said = caption(facts, TERMS, u, whole=True)
            assert said == facts
            longest = max(longest, len(words(text)))
    assert 20 < longest < 48


def test_every_value_has_its_own_prompts():
    for fact, name in enumerate(FACTS):
        sets = [set(prompts(fact, value, TERMS)) for value in range(len(TERMS.values(name)))]
        assert all(sets)
        assert sum(map(len, sets)) == len(set().union(*sets))


def test_places_of_other_planes_and_pictures():
    assert "at the back of the head" in prompts(PLACE, 0, replace(TERMS, plane="coronal"))
    assert prompts(PLACE, 2, replace(TERMS, plane="sagittal")) == ["through the right side of the head"]
    assert replace(TERMS, plane=None).values("place") == ()
    assert "axial" not in vocabulary(replace(TERMS, plane="coronal"))
