"""FilmExplorer: what it shows is what the network gives, for every code and every change of gamma and beta."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.backend_bases import MouseEvent

from msfilm.errors import InputError, SettingError
from msfilm.evaluate.metrics import dice
from msfilm.evaluate.predict import predict_images
from msfilm.model.encode import CategoryEncoder, make_encoder
from msfilm.model.unet import UNet, UNetConfig
from msfilm.model.weights import Network, load_network, save_network
from msfilm.phantom import make_slices
from msfilm.phantom.roster import CohortPlan
from msfilm.view.film_codes import Codes
from msfilm.view.film_explorer import FilmExplorer
from msfilm.view.film_parts import CHANGES, change_parameters, film_forward


@pytest.fixture(scope="module")
def slices():
    return make_slices(2, CohortPlan(1000, stations=1), workers=1, progress=False)


@pytest.fixture
def view(slices):
    return FilmExplorer("film-contrast-small", slices)


def random_network(encoder, *, seed=0, **settings):
    """A network whose gamma and beta depend on z."""
    config = UNetConfig(**{"depth": 2, "filters": 4, "prior": 0.4, **settings})
    model, generator = UNet(replace(config, n_codes=encoder.n_codes), seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in model.generator.heads.parameters():
            part.normal_(std=0.4, generator=generator)
    return Network(model.eval(), encoder)


def fresh(view, z, network=None):
    """Probability (H, W) of the view's slice under code z, and its Dice with the truth, computed anew."""
    index = view.picker.index
    image = view.slices.images[index: index + 1].astype(np.float32)
    z = torch.as_tensor(np.asarray(z, np.float32))[None]
    probability = predict_images(network or view.network, image, z)[0, 0]
    return probability, dice(view.slices.masks["truth"][index, 0], probability >= 0.5)


def test_probability_and_dice_are_those_of_a_fresh_prediction_for_any_code(view):
    assert view.controls["reference"].value == "truth"
    for contrast in ("T2w", "T2star"):
        view.controls["scan"].value = f"sub-001_{contrast}"
        own = [0.0, 1.0] if contrast == "T2w" else [1.0, 0.0]
        for code, z in (("right", own), ("wrong", own[::-1])):
            view.controls["code"].value = code
            np.testing.assert_array_equal(view.z, z)
            probability, score = fresh(view, z)
            np.testing.assert_allclose(view.probability, probability, atol=1e-5)
            assert view.dice == score and f"Dice {score:.3f}" in view.drawn.map.title.get_text()
            assert f"Dice {score:.3f} against truth" in view.describe()
    for value, z in ((0.35, [0.35, 0.65]), (-0.5, [-0.5, 1.5]), (1.5, [1.5, -0.5])):
        view.controls["z"].value = value
        assert view.controls["code"].value == "slider"
        np.testing.assert_allclose(view.z, z, atol=1e-6)
        assert view.dice == fresh(view, z)[1]
    index = view.picker.index
    assert view.right_dice == fresh(view, view.network.code(view.slices.described())[index])[1]
    assert fresh(view, [1.0, 0.0])[1] != fresh(view, [0.0, 1.0])[1]


def test_it_starts_at_the_slice_with_most_lesion_told_the_right_code(view, slices):
    assert view.picker.index == int(slices.masks["truth"].sum((1, 2, 3), dtype=int).argmax())
    assert view.controls["code"].value == "right" and view.dice == view.right_dice
    view.controls["patient"].value = "sub-002"
    own = (slices.table["patient"] == "sub-002").to_numpy()
    area = np.where(own, slices.masks["truth"].sum((1, 2, 3), dtype=int), -1)
    assert view.picker.index == int(area.argmax())
    np.testing.assert_array_equal(view.drawn.slice.image.get_array(), slices.images[area.argmax(), 0])


def test_code_and_slider_follow_each_other_and_the_scan(view):
    z, code = view.controls["z"], view.controls["code"]
    view.controls["scan"].value = "sub-001_T2w"
    assert (z.value, code.value) == (0.0, "right")
    view.controls["scan"].value = "sub-001_T2star"
    assert (z.value, code.value) == (1.0, "right")
    code.value = "wrong"
    assert z.value == 0.0
    view.controls["scan"].value = "sub-001_T2w"
    assert (z.value, code.value) == (1.0, "wrong")
    z.value = 0.5
    view.controls["scan"].value = "sub-001_T2star"
    assert (z.value, code.value) == (0.5, "slider")


def test_gamma_and_beta_shown_are_the_networks_changed_as_asked(view):
    view.controls["z"].value = 0.3
    made = {name: [half[0].detach().numpy() for half in pair] for name, pair in
            view.network.model.film_parameters(torch.tensor([[0.3, 0.7]])).items()}
    for name, pair in made.items():
        np.testing.assert_allclose(view.params[name], pair, atol=1e-6)
    view.controls["layer"].value, view.controls["channel"].value = "down2", 5
    before = view.dice
    assert view.controls["deal"].disabled
    view.controls["change"].value = "channel to identity"
    gamma, beta = view.params["down2"]
    assert (gamma[5], beta[5]) == (1, 0)
    np.testing.assert_allclose(np.delete(gamma, 5), np.delete(made["down2"][0], 5), atol=1e-6)
    view.controls["change"].value = "layer to identity"
    assert (view.params["down2"][0] == 1).all() and (view.params["down2"][1] == 0).all()
    np.testing.assert_allclose(view.params["up1"], made["up1"], atol=1e-6)
    view.controls["change"].value = "all to identity"
    assert all((gamma == 1).all() and (beta == 0).all() for gamma, beta in view.params.values())
    assert view.dice != before
    view.controls["change"].value = "all permuted"
    assert not view.controls["deal"].disabled
    first = view.params["up2"]
    in_order = [np.array(sorted(zip(*pair, strict=True))) for pair in (first, made["up2"])]   # pairs stay pairs
    np.testing.assert_allclose(*in_order, atol=1e-6)
    assert not np.allclose(first, made["up2"])
    view.controls["deal"].value = 3
    assert not np.allclose(first, view.params["up2"])
    view.controls["change"].value = "nothing"
    assert view.dice == before


def test_changes_by_a_formula():
    generator = torch.Generator().manual_seed(0)
    params = {name: tuple(torch.randn(3, c, generator=generator) for _ in range(2)) for name, c in (("a", 5), ("b", 1))}
    middle = {name: tuple(torch.randn(1, half.shape[1], generator=generator) for half in pair)
              for name, pair in params.items()}
    kept = {name: tuple(half.clone() for half in pair) for name, pair in params.items()}
    for how in CHANGES:
        changed = change_parameters(params, how, layer="a", channel=2, seed=7, middle=middle)
        assert list(changed) == ["a", "b"]
        again = change_parameters(params, how, layer="a", channel=2, seed=7, middle=middle)
        assert all(torch.equal(x, y) for name in params for x, y in zip(changed[name], again[name], strict=True))
        if how.endswith("permuted"):
            deal = np.random.default_rng([7, 0]).permutation(5)
            for i in (0, 1):
                part = middle["a"][i] if how.startswith("code") else torch.zeros(1, 5)
                torch.testing.assert_close(changed["a"][i], part + (params["a"][i] - part)[:, deal])
        assert torch.allclose(changed["b"][0], params["b"][0]) == (how != "all to identity")
    assert all(torch.equal(x, y) for name in params for x, y in zip(params[name], kept[name], strict=True))
    for wrong in ({"how": "layers permuted"}, {"how": "layer permuted", "layer": "c"},
                  {"how": "channel to identity", "layer": "b", "channel": 1}, {"how": "code's part permuted"}):
        with pytest.raises(SettingError, match="FILM-CHANGE"):
            change_parameters(params, **wrong)


def test_the_curve_is_the_dice_at_each_code_with_and_without_the_change(view):
    view.controls["scan"].value = "sub-001_T2star"
    grid, scores = view.curve
    assert 0 in grid and 1 in grid and grid[0] == -0.5 and grid[-1] == 1.5
    assert list(scores) == [fresh(view, [at, 1 - at])[1] for at in grid]
    np.testing.assert_array_equal(view.drawn.curve.line.get_ydata(), scores)
    assert list(view.drawn.curve.now.get_xdata()) == [1] and list(view.drawn.curve.right.get_xdata()) == [1]
    assert len(view.drawn.curve.unchanged.get_xdata()) == 0
    view.controls["layer"].value, view.controls["change"].value = "up1", "layer permuted"
    np.testing.assert_array_equal(view.drawn.curve.unchanged.get_ydata(), scores)
    assert view.curve[1][np.flatnonzero(view.curve[0] == 1)[0]] == view.dice != view.right_dice
    view.controls["reference"].value = "rater-1"
    assert view.dice == dice(view.picker.mask("rater-1"), view.probability >= 0.5)


def test_feature_maps_before_and_after_have_one_window_that_the_code_does_not_move(view):
    view.controls["scan"].value = "sub-001_T2star"
    for layer, channel in (("down2", 7), ("up1", 3), ("logits", 0)):
        view.controls["layer"].value, view.controls["channel"].value = layer, channel
        panels = view.drawn.before, view.drawn.after
        windows = [panel.image.get_clim() for panel in panels]
        view.controls["code"].value = "wrong"
        assert windows == [panel.image.get_clim() for panel in panels] and windows[0] == windows[1]
        before, after = view.feature_maps
        gamma, beta = (half[channel] for half in view.params[layer])
        np.testing.assert_allclose(after, gamma * before + beta, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(panels[1].image.get_array(), after)
        assert f"{abs(beta):.2f}" in view.drawn.after.title.get_text()
        view.controls["code"].value = "right"
    np.testing.assert_allclose(1 / (1 + np.exp(-view.feature_maps[1])), view.probability, atol=1e-5)


def test_a_click_on_the_heat_map_chooses_layer_and_channel(view):
    view.picture()
    heat = view.drawn.halves["β"].heat
    for x, y, found in ((20.2, 2.4, ("bottleneck", 20)), (31.4, 0.5, ("bottleneck", 20)), (0.2, 5.5, ("logits", 0))):
        at = heat.transData.transform((x, y))
        view.canvas.callbacks.process("button_press_event", MouseEvent("button_press_event", view.canvas, *at, 1))
        assert (view.controls["layer"].value, view.controls["channel"].value) == found
        for half in view.drawn.halves.values():
            assert half.mark.get_xy() == (found[1] - 0.5, list(view.params).index(found[0]))
    assert view.controls["channel"].disabled  # the logits have one


def test_distances_and_the_heat_maps_rows(view):
    pairs = view.network.model.film_parameters(torch.eye(2))
    for name, (gamma, beta) in pairs.items():
        wanted = [np.sqrt(np.mean((half[0] - half[1]).detach().numpy() ** 2)) for half in (gamma, beta)]
        np.testing.assert_allclose(view.distances[name], wanted, rtol=1e-5)
    widths = [bar.get_width() for bar in view.drawn.halves["γ"].lengths]
    np.testing.assert_allclose(widths, [distance[0] for distance in view.distances.values()])
    rows = view.drawn.halves["γ"].picture.get_array()
    assert rows.shape == (6 * 16, 32, 4) and (rows[5, 16:] == rows[5, -1]).all()   # down1 has 16 channels
    view.controls["scan"].value = "sub-001_T2w"
    at_first = view.drawn.halves["γ"].picture.get_array().copy()
    np.testing.assert_array_equal(at_first[0:5], at_first[5:10])       # now is the code of the upper row
    view.controls["code"].value = "wrong"
    now = view.drawn.halves["γ"].picture.get_array()
    np.testing.assert_array_equal(now[5:10], now[10:15])
    np.testing.assert_array_equal(now[0:5], at_first[0:5])
    view.controls["show"].value = "minus mean code"
    middle = view.network.model.film_parameters(torch.tensor([[0.5, 0.5]]))["down1"][0][0].detach().numpy()
    largest = float(view.drawn.halves["γ"].scale[2].get_text())
    shown = view.drawn.halves["γ"].points["last"].get_xdata()[:16] * largest
    np.testing.assert_allclose(shown, pairs["down1"][0][0].detach().numpy() - middle, rtol=0.1, atol=1e-3)


def test_another_networks_weights_change_the_dice_to_what_they_give(view):
    view.controls["z"].value = 0.5
    before, other = view.dice, random_network(view.network.encoder, filters=16)
    view.replace(other)
    assert view.network is other and view.dice == fresh(view, [0.5, 0.5], other)[1] != before
    assert view.curve[1][8] == view.dice
    with torch.no_grad():
        for p in other.model.parameters():
            p.zero_()
    view.network = other       # the same object, its weights changed in place
    assert (view.probability == 0.5).all()
    for wrong in ("film-rater-small", random_network(view.network.encoder, filters=8)):
        with pytest.raises(SettingError, match="FILM-OTHER"):
            view.replace(wrong)


def test_nothing_is_made_anew_and_all_controls_are_answered(view):
    view.picture()
    artists = list(map(id, view.figure.findobj()))
    for name, value in (("reference", "rater-1"), ("z", 1.3), ("patient", "sub-002"), ("slice", 2), ("layer", "down1"),
                        ("channel", 3), ("change", "layer permuted"), ("deal", 8), ("code", "right")):
        before = view.picture()
        view.controls[name].value = value
        assert (view.picture() != before).any(), name
    assert list(map(id, view.figure.findobj())) == artists and not view.errors
    still = view.still().data
    assert "<img" in still and f"Dice {view.dice:.3f} against rater-1" in still


def test_acquisition_parameters_have_a_slider_each_in_their_units(slices):
    encoder = make_encoder("contrast+acquisition", slices.described())
    view = FilmExplorer(random_network(encoder), slices)
    assert [name for name in view.controls if name in (*encoder.columns, "z")] == list(encoder.columns)
    own = view.slices.described().iloc[view.picker.index]
    np.testing.assert_allclose(view.z, encoder.encode(own.to_frame().T)[0], atol=1e-6)
    assert view.controls["echo_time_s"].value == pytest.approx(1000 * own["echo_time_s"])
    view.controls["echo_time_s"].value = 40.0
    given = own.to_dict() | {"echo_time_s": 0.04}
    np.testing.assert_allclose(view.z, encoder.encode({key: [given[key]] for key in encoder.columns})[0], atol=1e-5)
    assert "TE" in view.drawn.curve.title.get_text() and view.dice == fresh(view, view.z)[1]
    view.controls["contrast"].value = 0.5
    assert view.z[:2] == pytest.approx([0.5, 0.5])
    view.controls["code"].value = "wrong"      # the other contrast, and the acquisition farthest away
    assert view.z[:2].tolist() == [1 - z for z in encoder.encode(own.to_frame().T)[0, :2].tolist()]
    distance = (view.codes.own[:, 2:] - view.codes.own[view.picker.index, 2:]).square().sum(1)
    assert np.square(view.z[2:] - view.codes.own[view.picker.index, 2:].numpy()).sum() == pytest.approx(distance.max())
    view.picture()


def test_raters_have_a_mark_each_and_their_own_masks_dice():
    view = FilmExplorer("film-rater-small")
    raters = view.network.encoder.categories
    grid = view.curve[0]
    assert len(raters) == 4 and all(at in grid for at in range(4))
    assert [text.get_text() for text in view.drawn.curve.ax.get_xticklabels()] == list(raters)
    people = view.slices.volumes.loc[view.controls["scan"].value, "raters"].split(",")
    assert view.controls["z"].value == raters.index(people[0])
    for k, rater in enumerate(raters):
        probability, _ = fresh(view, np.eye(4)[k])
        mask = view.slices.masks[f"rater-{people.index(rater) + 1}"][view.picker.index, 0]
        assert view.own_dice[rater] == dice(mask, probability >= 0.5)
    assert list(view.drawn.curve.own.get_ydata()) == list(view.own_dice.values())
    view.controls["z"].value = 1.25
    np.testing.assert_allclose(view.z, [0, 0.75, 0.25, 0])
    view.controls["way-rater"].value = ("rater-01", "rater-04")
    view.controls["z"].value = 1.5
    np.testing.assert_allclose(view.z, [-0.5, 0, 0, 1.5])
    assert view.controls["z"].max == 1.5 and view.dice == fresh(view, view.z)[1] and not view.errors


def test_a_rater_whom_the_network_never_met_has_the_mean_code(slices):
    encoder = CategoryEncoder("rater", ("rater-50", "rater-51", "rater-52"))
    view = FilmExplorer(random_network(encoder), slices)
    np.testing.assert_allclose(view.z, [1 / 3] * 3)
    assert len(view.drawn.curve.now.get_xdata()) == 0 and view.own_dice == {}    # the slider is not there
    view.controls["code"].value = "wrong"
    np.testing.assert_allclose(view.z, [1, 0, 0])
    view.controls["z"].value = 2.0
    np.testing.assert_allclose(view.z, [0, 0, 1])


def test_a_single_code_can_be_left_out_and_slices_without_masks_have_no_dice(slices):
    only = slices.select((slices.table["contrast"] == "T2w").to_numpy())
    bare = type(only)(only.images, {}, only.table, only.volumes, only.scans, only.meta)
    view = FilmExplorer(random_network(CategoryEncoder("contrast", ("T2w",))), bare)
    assert np.isnan(view.dice) and "no reference" in view.describe()
    view.controls["z"].value = 0.25
    np.testing.assert_allclose(view.z, [0.75])
    view.picture()


def test_a_run_folder_and_odd_places_of_film_do(slices, tmp_path):
    network = random_network(make_encoder("contrast", slices.table), film=("up2", "down1"), film_place="before-relu",
                             depth=3)
    folder = save_network(tmp_path / "run é", network)
    view = FilmExplorer(folder, slices)
    assert list(view.params) == ["down1", "up2"] and view.controls["layer"].value == "up2"
    assert view.dice == fresh(view, view.z, load_network(folder))[1]
    lowest = []
    for channel in range(len(view.params["up2"][0])):
        view.controls["channel"].value = channel
        before, after = view.feature_maps   # kept as FiLM gave them, though the ReLU that follows works in place
        gamma, beta = (half[channel] for half in view.params["up2"])
        np.testing.assert_allclose(after, gamma * before + beta, atol=1e-5)
        lowest.append(after.min())
    assert min(lowest) < 0


def test_what_cannot_be_shown_is_refused(slices):
    with pytest.raises(SettingError, match="FILM-NONE"):
        FilmExplorer("unet-small", slices)
    concat = Network(UNet(UNetConfig(depth=2, filters=4, n_codes=2, modulation="concat")),
                     CategoryEncoder("contrast", ("T2star", "T2w")))
    with pytest.raises(SettingError, match="FILM-NONE"):
        FilmExplorer(concat, slices)
    with pytest.raises(SettingError, match="CONTRAST-UNKNOWN"):
        FilmExplorer(random_network(CategoryEncoder("contrast", ("T2w", "T1w"))), slices)
    with pytest.raises(InputError, match="SLICES-EMPTY"):
        FilmExplorer("film-contrast-small", slices.select([]))
    with pytest.raises(SettingError, match="NETWORK-UNKNOWN"):
        FilmExplorer("film-contrast-smal", slices)


def test_predictions_from_given_parameters_are_the_models(slices):
    network, some = load_network("film-contrast-small"), slices.select(np.arange(40))
    z = network.code(some.described())
    params = {name: tuple(half.detach() for half in pair) for name, pair in network.model.film_parameters(z).items()}
    found, _ = film_forward(network, some.images, params, batch_size=7)
    np.testing.assert_allclose(found, predict_images(network, some.images, z)[:, 0], atol=1e-5)
    codes = Codes(network, some.described())
    np.testing.assert_allclose(codes.encode({"contrast": 0.0}, "contrast", [0, 1]), [[0, 1], [1, 0]])
