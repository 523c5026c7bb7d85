"""Small HTML tables of errors by lesion size, level, contrast and centre, for below the error browser."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd

__all__ = ["error_tables_html"]


def error_tables_html(volumes: pd.DataFrame, lesions: pd.DataFrame, slices: pd.DataFrame, caption: str) -> str:
    """Four tables side by side. No colours: those of the page's theme hold.

    Args:
        volumes, lesions, slices: as :class:`ErrorVoxels` gives them, for the volumes of which the tables speak; lesions
            with a column size.
        caption: above the tables.
    """
    names, (n, found) = _sums(lesions["size"], np.ones(len(lesions)), lesions["hit"])
    parts = [_table("lesion size", ["lesions", "found", "missed"], names, (n, found, n - found))]
    if slices["level"].notna().any():
        names, areas = _sums(slices["level"], *(slices[f"{kind}_mm2"] for kind in ("reference", "false", "missed")))
        held = np.sum(areas, axis=0) > 0
        parts.append(_table("level", ["drawn mm\u00b2", "false", "missed"],
                            [name for name, some in zip(names, held, strict=True) if some],
                            [area[held] for area in areas]))
    for key in ("contrast", "centre"):
        names, (n, scored, dice, false, missed) = _sums(
            volumes[key], np.ones(len(volumes)), volumes["dice"].notna(), volumes["dice"].fillna(0),
            volumes["false_mm3"], volumes["missed_mm3"])
        mean = [f"{total / count:.2f}" if count else "\u2013" for total, count in zip(dice, scored, strict=True)]
        parts.append(_table(key, ["volumes", "mean Dice", "false mm\u00b3", "missed mm\u00b3"], names,
                            (n, mean, false, missed)))
    flow = "display:flex;flex-flow:row wrap;gap:.6em 1.6em;align-items:flex-start"
    return f'<p style="margin:.3em 0">{html.escape(caption)}</p><div style="{flow}">{"".join(parts)}</div>'


def _sums(groups: pd.Series, *values) -> tuple[list[str], list[np.ndarray]]:
    """Names of the groups that occur (all, in their order, where they are sizes) and the sum of each column in them."""
    kinds = groups if isinstance(groups.dtype, pd.CategoricalDtype) else groups.astype("category")
    names = [str(name) for name in kinds.cat.categories]
    codes = kinds.cat.codes.to_numpy()
    known = codes >= 0
    return names, [np.bincount(codes[known], weights=np.asarray(value, float)[known], minlength=len(names))
                   for value in values]


def _table(first: str, heads: list[str], names: list[str], columns) -> str:
    side = 'style="padding:.1em .5em;text-align:right"'
    left = 'style="padding:.1em .5em;text-align:left;white-space:nowrap;font-weight:normal"'
    head = f'<th scope="col" {left}>{first}</th>' + "".join(f'<th scope="col" {side}>{name}</th>' for name in heads)
    body = "".join(
        f'<tr><th scope="row" {left}>{html.escape(name)}</th>'
        + "".join(f"<td {side}>{value if isinstance(value, str) else format(value, '.0f')}</td>" for value in row)
        + "</tr>" for name, *row in zip(names, *columns, strict=True))
    style = "line-height:1.25;border-collapse:collapse"
    return f'<table style="{style}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
