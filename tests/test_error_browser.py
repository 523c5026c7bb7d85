"""ErrorBrowser as a reader uses it: points, filters, list, slices, threshold, mouse; and its static charts."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from evaluate_cohort import Brighter, cohort, known
from matplotlib.backend_bases import MouseEvent

from msfilm.errors import SettingError
from msfilm.evaluate.errors_by import boundary_shares, errors_by, size_class
from msfilm.evaluate.metrics import dice, lesion_scores
from msfilm.evaluate.predict import predict_slices, predict_volumes
from msfilm.model.weights import load_network
from msfilm.view import ErrorBrowser
from msfilm.view.error_charts import disagreement_figure, error_groups
from msfilm.view.error_picture import ErrorPicture


@pytest.fixture(scope="module")
def made():
    return ErrorBrowser.example()


@pytest.fixture
def view(made):
    """The example, all controls as they were at first."""
    with made.hold():
        for name, value in (("reference", "rater-1"), ("threshold", 0.5), ("colour_by", "contrast"),
                            ("contrast", "all"), ("centre", "all"), ("size", "all"), ("sort", "lowest Dice"),
                            ("order", "most error")):
            made.controls[name].value = value
        made.controls["volumes"].value = made.shown[:1]
    assert not made.errors
    return made


@pytest.fixture(scope="module")
def fresh(made):
    """Probabilities computed anew."""
    network = load_network("film-contrast-small")
    return dict(predict_volumes(network, made.data, device="cpu")), predict_slices(network, made.data, device="cpu")


def _table(view, heading):
    """Rows of one of the HTML tables: name -> numbers as text."""
    tables = re.findall(r"<table.*?</table>", view.tables.value, re.DOTALL)
    [table] = [one for one in tables if f">{heading}</th>" in one]
    rows = re.findall(r"<tr>(.*?)</tr>", table.split("<tbody>")[1], re.DOTALL)
    return {re.search(r"<th[^>]*>(.*?)</th>", row)[1]: re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows}


@pytest.mark.parametrize(("reference", "threshold"), [("rater-1", 0.5), ("truth", 0.5), ("rater-1", 0.2)])
def test_scores_are_those_of_a_fresh_prediction(view, fresh, reference, threshold):
    view.controls["reference"].value, view.controls["threshold"].value = reference, threshold
    probability, _ = fresh
    for name, row in view.scores.iterrows():
        drawn, marked = view.data.scans[name].dense(reference), probability[name] >= threshold
        assert row["dice"] == pytest.approx(dice(drawn, marked), nan_ok=True)
        lesions = lesion_scores(drawn, marked)
        assert row["missed_lesions"] == lesions.reference_lesions - lesions.found
    [chosen] = view.selected
    score = view.scores.loc[chosen, "dice"]
    assert ("no Dice" if np.isnan(score) else f"Dice {score:.3f}") in view.describe() and chosen in view.describe()
    assert view.describe() in view.words.value.replace("&quot;", '"')


def test_points_stand_where_volume_and_dice_are(view):
    places = view.seen.places(view.scores)
    with_lesion = view.scores["reference_mm3"] > 0
    np.testing.assert_allclose(10 ** places["x"][with_lesion], view.scores["reference_mm3"][with_lesion])
    edge = np.log10(view.scores["reference_mm3"][with_lesion].min())
    assert (places["x"][~with_lesion] < edge).all() and (~with_lesion).any(), "without lesions: apart, at the left"
    assert places["y"][with_lesion].between(0, 1).all()
    assert (places["y"][view.scores["dice"].isna()] > 1.05).all(), "both empty: above, where no Dice is"
    for by, column in (("contrast", "contrast"), ("centre", "centre")):
        view.controls["colour_by"].value = by
        shown = [len(points.get_xdata()) for points in view.seen._points if len(points.get_xdata())]
        assert sorted(shown) == sorted(view.scores[column].value_counts())
        named = [text.get_text() for _, text in view.seen._names if text.get_text()]
        assert len(named) == view.scores[column].nunique()
    looks = {(points.get_color(), points.get_marker()) for points in view.seen._points}
    assert len(looks) == len(view.seen._points), "colour and marker tell groups apart"


def test_filters_narrow_points_list_and_tables(view):
    view.controls["contrast"].value = "T2w"
    wanted = view.scores[view.scores["contrast"] == "T2w"]
    assert set(view.shown) == set(wanted.index) and view.selected == view.shown[:1]
    assert len(view.seen._pale.get_xdata()) == len(view.scores) - len(wanted)
    assert set(_table(view, "contrast")) == {"T2w"}
    assert [name for _, name in view.controls["volumes"].options] == list(view.shown)
    view.controls["size"].value = "under 50 mm\u00b3"
    lesions = view.errors_found.lesions("rater-1", 0.5, marked=False)
    small = set(lesions.loc[size_class(lesions["mm3"]) == "under 50 mm\u00b3", "volume"])
    assert set(view.shown) == small & set(wanted.index)
    view.controls["size"].value = "no lesion"
    assert (view.scores.loc[list(view.shown), "reference_mm3"] == 0).all() and view.shown
    view.controls["size"].value, view.controls["centre"].value = "all", view.scores["centre"].iloc[0]
    assert set(view.scores.loc[list(view.shown), "centre"]) == {view.scores["centre"].iloc[0]}


def test_where_nothing_passes_nothing_is_shown(view):
    sizes = view.errors_found.lesions("rater-1", 0.5, marked=False).assign(
        size=lambda part: size_class(part["mm3"])).groupby("centre")["size"].agg(set)
    centre, size = next((centre, size) for centre in view.scores["centre"].unique()
                        for size in view.controls["size"].options[2:] if size not in sizes.get(centre, set()))
    view.controls["centre"].value, view.controls["size"].value = centre, size
    assert view.shown == () and view.selected == () and view.slices_shown == []
    assert "none to show" in view.describe()
    assert not any(part.get_visible() for parts in view.seen._parts for part in parts)
    view.controls["size"].value = "all"
    assert view.selected and view.slices_shown


@pytest.mark.parametrize(("sort", "column", "sign"), [("lowest Dice", "dice", 1),
                                                      ("most false mm\u00b3", "false_mm3", -1),
                                                      ("most missed mm\u00b3", "missed_mm3", -1)])
def test_the_list_stands_in_order_of_worst(view, sort, column, sign):
    view.controls["sort"].value = sort
    values = view.scores.loc[list(view.shown), column].to_numpy(float) * sign
    known_first = values[~np.isnan(values)]
    assert (np.diff(known_first) >= 0).all() and np.isnan(values[len(known_first):]).all()
    assert view.selected == view.shown[:1]


def test_slices_show_what_was_found_false_and_missed(view, fresh):
    worst = view.scores["false_mm3"].idxmax()
    view.controls["volumes"].value = (worst,)
    _, crops = fresh
    error = view.errors_found.slices("rater-1", 0.5).set_index(["volume", "z"])
    amount = error["false_mm2"] + error["missed_mm2"]
    assert len(view.slices_shown) == ErrorPicture.SLICES and {volume for volume, _ in view.slices_shown} == {worst}
    shown = [amount[at] for at in view.slices_shown]
    assert shown == sorted(amount[worst], reverse=True)[:6]
    volume, z = view.slices_shown[0]
    row = np.flatnonzero((view.data.table["volume"] == volume) & (view.data.table["z"] == z))[0]
    middle = slice(view._margin, 48 - view._margin)
    drawn, marked = view.data.masks["rater-1"][row, 0] == 1, crops[row, 0] >= 0.5
    fill = view.seen._panels[0]._fill.get_array()
    np.testing.assert_array_equal(fill[..., 3] > 0, (drawn | marked)[middle, middle])
    assert (drawn | marked).sum() == (drawn | marked)[middle, middle].sum(), "nothing is cut off"
    colours = [{tuple(colour) for colour in fill[mask[middle, middle]]}
               for mask in (drawn & marked, marked & ~drawn, drawn & ~marked)]
    assert all(len(one) <= 1 for one in colours) and len(set.union(*colours)) == sum(map(len, colours)) >= 2
    assert f"z {z}" in view.seen._panels[0].title.get_text()

    view.controls["page"].value = 2
    assert [amount[at] for at in view.slices_shown] == sorted(amount[worst], reverse=True)[6:12]
    view.controls["order"].value = "place, from the top"
    assert view.controls["page"].value == 1
    assert [z for _, z in view.slices_shown] == sorted(amount[worst].index, reverse=True)[:6]


def test_tables_speak_of_the_chosen_or_of_all_that_pass(view):
    lesions = view.errors_found.lesions("rater-1", 0.5, marked=False)
    assert sum(int(row[0]) for row in _table(view, "lesion size").values()) == len(lesions)
    assert sum(int(row[2]) for row in _table(view, "lesion size").values()) == (~lesions["hit"]).sum()
    two = view.shown[-2:]
    view.controls["volumes"].value = two
    assert "2 volumes that are chosen" in view.tables.value
    mine = lesions[lesions["volume"].isin(two)]
    assert sum(int(row[0]) for row in _table(view, "lesion size").values()) == len(mine)
    scores = view.scores.loc[list(two)]
    for name, part in scores.groupby("contrast"):
        n, mean, false, missed = _table(view, "contrast")[name]
        assert (int(n), float(false), float(missed)) == (len(part), round(part["false_mm3"].sum()),
                                                         round(part["missed_mm3"].sum()))
        assert mean == (f"{part['dice'].mean():.2f}" if part["dice"].notna().any() else "\u2013")
    view.controls["volumes"].value = (view.scores["reference_mm3"].idxmax(), two[0])
    levels = view.errors_found.slices("rater-1", 0.5)
    levels = levels[levels["volume"].isin(view.selected)].groupby("level", observed=True)["reference_mm2"].sum()
    for name, row in _table(view, "level").items():
        assert float(row[0]) == round(levels[name])


def test_threshold_and_reference_keep_who_was_chosen(view):
    chosen = (view.scores["missed_mm3"].idxmax(), view.shown[-1])
    view.controls["volumes"].value = chosen
    before = view.scores.loc[chosen[0], "missed_mm3"]
    view.controls["threshold"].value = 0.9
    assert set(view.selected) == set(chosen) and view.scores.loc[chosen[0], "missed_mm3"] > before
    view.controls["page"].value = 2
    view.controls["threshold"].value = 0.8
    assert view.controls["page"].value == 2 and set(view.selected) == set(chosen)
    view.controls["reference"].value = "truth"
    assert set(view.selected) == set(chosen)


def test_a_slider_walks_down_the_list(view):
    for rank in (1, 3, len(view.shown)):
        view.controls["rank"].value = rank
        assert view.selected == (view.shown[rank - 1],)
    view.controls["volumes"].value = view.shown[1:3]
    assert view.controls["rank"].value == 2 and view.selected == view.shown[1:3]
    view.controls["contrast"].value = "T2w"
    assert view.controls["rank"].max == len(view.shown) and view.controls["rank"].value == 1
    assert view.selected == view.shown[:1]


def _mouse(view, *events):
    for name, x, y, key in events:
        view.canvas.callbacks.process(name, MouseEvent(name, view.canvas, x, y, button=1, key=key))


def _click(view, x, y, key=None):
    _mouse(view, ("button_press_event", x, y, key), ("button_release_event", x, y, key))


def test_a_click_chooses_a_point_and_shift_adds_one(view):
    at = view.seen.ax.transData.transform(view.seen.places(view.scores).to_numpy())
    scores = view.scores.reset_index()
    apart = [i for i in range(len(at)) if np.sort(np.hypot(*(at - at[i]).T))[1] > 12][:2]
    first, second = (scores["volume"][i] for i in apart)
    _click(view, *(at[apart[0]] + 3))
    assert view.selected == (first,)
    _click(view, *at[apart[1]], key="shift")
    assert set(view.selected) == {first, second}
    assert len(view.seen._rings.get_xdata()) == 2
    _click(view, *(view.seen.ax.transAxes.transform((0.5, 0.97))))
    assert set(view.selected) == {first, second}, "a click on nothing changes nothing"


def test_a_box_chooses_those_within(view):
    places = view.seen.places(view.scores)
    at = view.seen.ax.transData.transform(places.to_numpy())
    low, high = at.min(0) - 4, np.array([at[:, 0].max() + 4, view.seen.ax.transData.transform((0, 0.7))[1]])
    low = np.maximum(low, view.seen.ax.bbox.min + 1)
    _mouse(view, ("button_press_event", *low, None), ("motion_notify_event", *high, None))
    assert len(view.seen._frame.get_xdata()) == 5
    _mouse(view, ("button_release_event", *high, None))
    assert len(view.seen._frame.get_xdata()) == 0
    assert set(view.selected) == set(places.index[places["y"] < 0.7]) and len(view.selected) > 1
    view.controls["contrast"].value = "T2w"
    _mouse(view, ("button_press_event", *low, None), ("button_release_event", *high, None))
    assert set(view.scores.loc[list(view.selected), "contrast"]) == {"T2w"}, "only what passes the filters"


def test_artists_are_moved_and_never_made_anew(view):
    axes, artists = list(view.figure.axes), [id(one) for one in view.canvas.moving]
    children = [len(ax.get_children()) for ax in axes]
    for name, value in (("threshold", 0.3), ("colour_by", "centre"), ("contrast", "T2star"), ("reference", "truth"),
                        ("order", "place, from the top")):
        before = view.picture()
        view.controls[name].value = value
        assert (view.picture() != before).any(), name
    assert view.figure.axes == axes and [id(one) for one in view.canvas.moving] == artists
    assert [len(ax.get_children()) for ax in axes] == children


def test_the_still_says_what_it_shows(view):
    html = view.still().data
    assert f'alt="{view.describe()}"' in html and "base64," in html


def test_other_networks_other_pictures():
    slices = cohort(3, free=(2,))
    network = known(Brighter())
    views = [ErrorBrowser(slices, network), ErrorBrowser(slices, predict_slices(network, slices))]
    assert views[0].scores.equals(views[1].scores) and (views[0].picture() == views[1].picture()).all()
    assert (views[0].scores["dice"].dropna() == 1).all()
    other = ErrorBrowser(slices, known(Brighter(1.7)))
    assert other.scores["missed_mm3"].sum() > 0 and (other.picture() != views[0].picture()).any()
    assert "level" not in other.tables.value


def test_wrong_settings_are_refused():
    slices = cohort(1)
    flat = np.zeros(slices.images.shape, np.float32)
    with pytest.raises(SettingError, match=r"BROWSER-COLOUR.*centre"):
        ErrorBrowser(slices, flat, colour_by="center")
    with pytest.raises(SettingError, match="THRESHOLD"):
        ErrorBrowser(slices, flat, threshold=0.01)
    with pytest.raises(SettingError, match="REFERENCE-UNKNOWN"):
        ErrorBrowser(slices, flat, references=["rater-7"])
    with pytest.raises(SettingError, match="SCORE-SHAPE"):
        ErrorBrowser(slices, flat[:2])
    bare = {name: replace(scan, indices={"cord": scan.indices["cord"]}) for name, scan in slices.scans.items()}
    with pytest.raises(SettingError, match="REFERENCE-UNKNOWN"):
        ErrorBrowser(replace(slices, scans=bare), flat)


def test_charts_show_every_group_and_its_interval(made):
    volumes = made.errors_found.volumes("truth")
    by = {name: errors_by(volumes, name, "dice", n=50) for name in ("contrast", "centre")}
    figure = error_groups(by, xlabel="Dice")
    for ax, table in zip(figure.axes, by.values(), strict=True):
        marks = [line for line in ax.lines if line.get_marker() == "o"]
        np.testing.assert_allclose([line.get_xdata()[0] for line in marks], table["value"])
        assert [label.get_text() for label in ax.get_yticklabels()] == [
            f"{name} ({rows})" for name, rows in zip(table.index, table["rows"], strict=True)]
        hollow = [line.get_markerfacecolor() == "white" for line in marks]
        assert hollow == table["low"].isna().tolist(), "hollow: one patient, no interval"
    shares = boundary_shares(made.errors_found.boundary("truth"), n=50)
    [ax] = error_groups({"outline": shares.assign(value=shares["share"])}, xlabel="share").axes
    diamonds = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "D"]
    np.testing.assert_allclose(diamonds, shares["chance"])
    with pytest.raises(SettingError, match="PLOT-SHAPE"):
        error_groups({}, xlabel="nothing")


def test_a_disagreement_map_counts_raters(made):
    rows = np.argsort(-(made.data.masks["truth"] == 1).sum((1, 2, 3)))[:2]
    raters = {"rater-1": made.data.masks["rater-1"][rows], "rater-2": made.data.masks["truth"][rows]}
    figure = disagreement_figure(made.data.images[rows].astype(np.float32), raters, made.errors_found.crops[rows],
                                 ["one", "two"])
    counts = [ax.images[0].get_array() for ax in figure.axes if ax.images][1]
    np.testing.assert_array_equal(counts, sum((mask[0, 0] == 1).astype(int) for mask in raters.values()))
    for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")):
        assert not text.get_text() or text.get_fontsize() >= 9
    with pytest.raises(SettingError, match="PLOT-SHAPE"):
        disagreement_figure(made.data.images[rows], raters, made.errors_found.crops[:1])
