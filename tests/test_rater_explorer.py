"""RaterExplorer: its numbers are those of fresh computations by the rooms that score; its slider moves the code."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from msfilm.errors import SettingError
from msfilm.evaluate.agreement import consensus, pairwise_dice
from msfilm.evaluate.metrics import dice
from msfilm.evaluate.predict import predict_images, predict_volumes
from msfilm.evaluate.staple import staple
from msfilm.evaluate.styles import MEAN, predict_style, score_styles
from msfilm.model.weights import Network, load_network
from msfilm.phantom.direct import make_slices
from msfilm.phantom.roster import CohortPlan
from msfilm.view.rater_explorer import RaterExplorer
from msfilm.view.rater_volume import StyleAxis, style_weights

STYLES = (-0.45, -0.15, 0.15, 0.45)
NAMES = [f"rater-{k:02d}" for k in range(1, 5)]
STYLE_MM = dict(zip(NAMES, STYLES, strict=True))


@pytest.fixture(scope="module")
def slices():
    plan = CohortPlan(1000, raters="crossed", stations=1, panel_every=1, styles_mm=STYLES)
    return make_slices(3, plan, workers=1, progress=False)   # of the third nobody has a lesion


@pytest.fixture(scope="module")
def network() -> Network:
    return load_network("film-rater-small")


@pytest.fixture(scope="module")
def made(slices, network) -> RaterExplorer:
    return RaterExplorer(slices, network, style_mm=STYLE_MM)


@pytest.fixture
def view(made) -> RaterExplorer:
    with made.hold():
        for name, value in (("volume", "sub-001_T2w"), ("combine", "share of raters"), ("threshold", 0.5),
                            ("leave out", False), ("style", -0.45), ("mean code", False), ("map", "network"),
                            ("close", True)):
            made.controls[name].value = value
    return made


def _masks(slices, volume: str, truth: bool = False) -> dict[str, np.ndarray]:
    """Whole masks on the scan's own grid, by the rater's name."""
    scan, names = slices.scans[volume], slices.volumes.loc[volume, "raters"].split(",")
    found = {name: scan.dense(f"rater-{k}") for k, name in enumerate(names, start=1)}
    return dict(sorted(found.items())) | ({"truth": scan.dense("truth")} if truth else {})


def test_agreement_is_that_of_the_whole_masks_under_their_raters_names(view, slices):
    for volume in slices.volumes.index:
        view.controls["volume"].value = volume
        masks = _masks(slices, volume, truth=True)
        expected = pairwise_dice(masks)
        pd.testing.assert_frame_equal(view.agreement.loc[list(masks), list(masks)], expected)
        size = slices.scans[volume].voxel_volume_mm3
        assert all(view.mm3[who] == pytest.approx(mask.sum() * size) for who, mask in masks.items())
        for (i, j), text in view.charts._numbers.items():
            if i < 4:   # rows rater-02 to truth, columns rater-01 to rater-04
                score = expected.iloc[i + 1, j]
                assert text.get_text() == ("-" if np.isnan(score) else f"{score:.2f}")
        pairs = expected.loc[NAMES, NAMES].to_numpy()[np.triu_indices(4, 1)]
        assert ("not defined, all are empty" in view.describe()) == np.isnan(pairs).all()
        assert np.isnan(pairs).all() or f"Dice of two of them {np.nanmean(pairs):.2f} on average" in view.describe()


def test_together_is_the_consensus_and_staple(view, slices):
    masks, truth = _masks(slices, "sub-001_T2w"), slices.scans["sub-001_T2w"].dense("truth")
    for kind, mask in (("share of raters", consensus(masks)), ("STAPLE", staple(masks).mask)):
        view.controls["combine"].value = kind
        assert view.mm3["together"] == pytest.approx(mask.sum() * view.volume.voxel_mm3)
        assert view.scored == pytest.approx({who: dice(one, mask) for who, one in (masks | {"truth": truth}).items()})
    view.controls["leave out"].value = True
    left = {who: dice(one, staple([masks[other] for other in masks if other != who]).mask)
            for who, one in masks.items()}
    assert {who: view.scored[who] for who in masks} == pytest.approx(left)
    view.controls["combine"].value = "share of raters"
    left = {who: dice(one, consensus(masks, who)) for who, one in masks.items()}
    assert {who: view.scored[who] for who in masks} == pytest.approx(left)
    assert view.charts._partner.get_text() == "with the others"
    sizes = []
    for threshold in (0.25, 0.3, 0.5, 0.75, 0.95):
        view.controls["threshold"].value = threshold
        expected = np.mean(list(masks.values()), axis=0) >= threshold
        assert view.mm3["together"] == pytest.approx(expected.sum() * view.volume.voxel_mm3), threshold
        sizes.append(view.mm3["together"])
    view.controls["threshold"].value = 0.75 + 1e-12   # as a browser counts its steps
    assert view.mm3["together"] == sizes[3]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]


def test_staple_runs_once_a_volume(view, monkeypatch):
    view.controls["combine"].value = "STAPLE"
    view.controls["leave out"].value = True
    monkeypatch.setattr("msfilm.view.rater_volume.staple", None)   # would be called if anything ran again
    for threshold in (0.2, 0.8, 0.5):
        view.controls["threshold"].value = threshold
    assert not view.errors


def test_a_style_is_the_network_told_that_rater(view, slices, network):
    scores = score_styles(network, slices).set_index(["volume", "style", "rater"]).sort_index()
    for volume in ("sub-001_T2w", "sub-002_T2star", "sub-003_T2w"):
        view.controls["volume"].value = volume
        for style, who in [*zip(STYLES, NAMES, strict=True), (None, MEAN)]:
            if style is None:
                view.controls["mean code"].value = True
            else:
                view.controls["style"].value = style
            expected = scores.loc[volume, who]
            assert view.dice == pytest.approx(expected["dice"].to_dict(), nan_ok=True)
            assert view.mm3["network"] == pytest.approx(expected["prediction_mm3"].iloc[0])
            assert view.nearest == (who if style is not None else "")
            at = np.flatnonzero(slices.table["volume"] == volume)
            probability = predict_style(network, slices.select(at), who)[view.controls["slice"].value, 0]
            shown = np.asarray(view.map.image.get_array())
            assert np.allclose(shown, probability[view._window], atol=1e-5)
    assert "told the mean code" in view.describe()


def test_between_two_raters_the_code_is_between_theirs_and_beyond_the_last_it_goes_on(view, slices, network):
    for style, expected in ((0.0, [0, 0.5, 0.5, 0]), (0.25, [0, 0, 2 / 3, 1 / 3]), (-0.6, [1.5, -0.5, 0, 0]),
                            (0.6, [0, 0, -0.5, 1.5])):
        view.controls["style"].value = style
        assert view.weights == pytest.approx(dict(zip(NAMES, expected, strict=True)), abs=1e-6)
        part = slices.select(np.flatnonzero(slices.table["volume"] == "sub-001_T2w"))
        z = torch.tensor(expected, dtype=torch.float32).expand(len(part), -1)
        marked = predict_images(network, part.images, z)[:, 0] >= 0.5
        assert view.volume.crops["rater-01"].shape == marked.shape
        told = Network(network.model, None)
        told.code = lambda _values, z=z: z
        [(_, volume)] = predict_volumes(told, part)
        assert view.mm3["network"] == pytest.approx((volume >= 0.5).sum() * view.volume.voxel_mm3)
    for style, who in ((-0.3, "rater-01"), (0.0, "rater-02"), (0.3, "rater-03"), (0.31, "rater-04")):
        view.controls["style"].value = style
        assert view.nearest == who   # exactly between: the smaller
    view.controls["mean code"].value = True
    assert view.weights == pytest.approx(dict.fromkeys(NAMES, 0.25))
    view.controls["style"].value = 0.1
    assert not view.controls["mean code"].value, "moving the slider leaves the mean code"
    for style in np.linspace(-1, 1, 21):
        weights = style_weights(style, STYLES)
        assert weights.sum() == pytest.approx(1) and weights @ STYLES == pytest.approx(style)


def test_other_weights_give_other_numbers_and_an_order_may_be_all_that_is_known(slices, network):
    torch.manual_seed(0)
    other = load_network("film-rater-small")
    with torch.no_grad():
        for parameter in other.model.parameters():
            parameter.copy_(0.1 * torch.randn_like(parameter))
    views = [RaterExplorer(slices, one, volume="sub-001_T2w") for one in (network, other)]
    assert views[0].dice != pytest.approx(views[1].dice, nan_ok=True)
    assert views[0].axis.unit == "" and views[0].axis.styles.tolist() == [1, 2, 3, 4]
    views[0].controls["style"].value = 3.0
    assert views[0].nearest == "rater-03" and "style +3.00, nearest" in views[0].describe()


def test_outlines_are_ticked_and_the_key_follows(view):
    def paths(name: str) -> int:
        return len(view.slice._outlines[name][1].get_segments())

    view.controls["close"].value = False
    for look, who in view._who.items():
        view.controls[f"show {look}"].value = True
        assert paths(look) > 0, who
        alpha = view._key.get_texts()[list(view._who).index(look)].get_alpha()
        view.controls[f"show {look}"].value = False
        assert paths(look) == 0
        assert view._key.get_texts()[list(view._who).index(look)].get_alpha() < alpha
    assert np.asarray(view.slice.image.get_array()).shape == (48, 48)
    view.controls["close"].value = True
    assert np.asarray(view.slice.image.get_array()).shape == (24, 24)
    view.controls["map"].value = "together"
    share = np.mean([mask[view.controls["slice"].value] for who, mask in view.volume.crops.items() if who != "truth"],
                    axis=0)
    assert np.allclose(np.asarray(view.map.image.get_array()), share[view._window])


def test_artists_stay_and_without_a_network_there_is_no_style(slices):
    view = RaterExplorer(slices)
    assert not {"style", "mean code", "map"} & set(view.controls) and not view.dice and view.axis is None
    assert view.controls["volume"].value == max(
        slices.volumes.index, key=lambda name: view._volumes[name].voxel_mm3 * np.any(
            list(_masks(slices, name, truth=True).values()), axis=0).sum()), "most is marked there"
    artists = [*view.figure.axes, *view.canvas.moving]
    before = view.picture()
    for name, value in (("volume", "sub-003_T2w"), ("slice", 2), ("combine", "STAPLE"), ("threshold", 0.2)):
        view.controls[name].value = value
        view.picture()
    assert artists == [*view.figure.axes, *view.canvas.moving] and not np.array_equal(before, view.picture())
    assert re.search(r'<img alt="sub-003_T2w, slice[^"]*drawn by 4 raters', view.still().data)


def test_what_moves_looks_as_if_all_were_drawn_anew(slices):
    view = RaterExplorer(slices)
    for name, value in (("close", False), ("volume", "sub-002_T2star"), ("close", True), ("show 2", False)):
        view.controls[name].value = value
        quick = view.picture()
        view.figure.stale = True
        assert np.array_equal(quick, view.picture()), name


def test_two_raters_and_no_truth_and_names_that_change(slices):
    """Real data: volumes drawn by two, unnamed, and by three; STAPLE of one other alone says nothing."""
    volumes, scans = slices.volumes.copy(), dict(slices.scans)
    volumes["raters"] = [None, "ann,ben,cem,dan", "ann,ben,cem,dan", None, None, None]
    for name, keep in zip(volumes.index, (2, 3, 3, 1, 1, 1), strict=True):
        indices = {key: at for key, at in scans[name].indices.items()
                   if key == "cord" or (key[6:].isdigit() and int(key[6:]) <= keep)}
        scans[name] = replace(scans[name], indices=indices)
    view = RaterExplorer(replace(slices, volumes=volumes, scans=scans))
    assert [option[1] for option in view.controls["volume"].options] == list(volumes.index[:3])
    view.controls["volume"].value = volumes.index[1]
    assert [view.controls[f"show {k}"].description for k in (1, 2, 3)] == ["ann", "ben", "cem"]
    view.controls["volume"].value = volumes.index[0]
    assert [view.controls[f"show {k}"].description for k in (1, 2, 3)] == ["rater-1", "rater-2", "(no rater)"]
    view.controls["combine"].value = "STAPLE"
    view.controls["leave out"].value = True
    assert np.isnan(list(view.scored.values())).all() and "truth" not in view.describe()
    view.picture()


def test_refusals_and_errors_are_seen(slices, network, monkeypatch):
    alone = replace(slices, scans={name: replace(scan, indices={key: at for key, at in scan.indices.items()
                                                                if key in ("cord", "truth", "rater-1")})
                                   for name, scan in slices.scans.items()})
    for code, call in (("AGREEMENT-FEW", lambda: RaterExplorer(alone)),
                       ("VOLUME-UNKNOWN", lambda: RaterExplorer(slices, volume="sub-009_T2w")),
                       ("STYLE-UNKNOWN", lambda: RaterExplorer(slices, "film-contrast-small")),
                       ("NETWORK-UNKNOWN", lambda: RaterExplorer(slices, "film-rater-huge")),
                       ("STYLE-UNKNOWN", lambda: StyleAxis(network, {"rater-01": 0.1})),
                       ("STYLE-UNKNOWN", lambda: StyleAxis(network, dict.fromkeys(NAMES, 0.1)))):
        with pytest.raises(SettingError) as caught:
            call()
        assert caught.value.code == code
    view = RaterExplorer(slices)
    with monkeypatch.context() as patch:
        patch.setattr("msfilm.view.rater_explorer.pairwise_dice", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            view.controls["threshold"].value = 0.7
    assert view.errors and view.report.outputs[0]["ename"] == "ZeroDivisionError"
