"""A fetched data set, whatever its own file names, as a BIDS data set that ``prepare`` and ``check`` understand."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

from msfilm import __version__
from msfilm.data.bids import find_volumes
from msfilm.data.fetch import fetch
from msfilm.data.manifests import Manifest, find_manifest
from msfilm.errors import FetchError
from msfilm.files import atomic_folder, write_json

__all__ = ["lay_out_bids"]

_MADE_BY = [{"Name": "msfilm", "Version": __version__}]
_COLUMNS = {
    "participant_id": "Name of the patient in this layout",
    "centre": "Where the patient was scanned; n/a: not known",
    "group": "control: healthy; ms: multiple sclerosis; altered: a scan into which something was pasted",
    "source": "The folder or file of the set that the scans are from",
}


def lay_out_bids(
    name: str, out: str | Path, *, progress: bool = True, manifests: str | Path | None = None
) -> Path:
    """Fetch a data set and copy it to ``out`` under BIDS names, with what BIDS asks for round it.

    Which file becomes which stands in the manifest (``bids``). Files are copied, so that work on them leaves the cache
    or mirror as it was. Licence and attribution go along: README, dataset_description.json, and the set's own licence
    and readme in ``sourcedata``.

    Args:
        name: the data set, for example ``'sct_testing_data'``.
        out: the folder of the BIDS data set; it must not exist, or be empty.
        progress: show a bar while fetching.
        manifests: another folder of manifests than msfilm's own.

    Returns:
        ``out``.

    Raises:
        FetchError: ``FETCH-BIDS`` (``out`` is not empty, or the set has no BIDS layout), ``FETCH-DISK``, and as
            ``fetch``.
    """
    out = Path(out)
    manifest = find_manifest(name, manifests)
    entries = [entry for entry in manifest.files if entry.bids]
    if not entries:
        raise FetchError("FETCH-BIDS", "its manifest has no BIDS layout", where=name, mend="fetch it without --bids")
    try:
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise FetchError("FETCH-BIDS", "is not empty", where=out, mend="name a new folder, or empty this one")
        source = fetch(name, files=[entry.path for entry in entries], progress=progress, manifests=manifests)
        with atomic_folder(out) as folder:
            for entry in entries:
                for place in entry.bids:
                    target = folder / place
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source / entry.path, target)
            _surround(folder, manifest)
            _sidecars(folder)
    except OSError as error:
        reason = f"cannot be written: {error.strerror or error}"
        raise FetchError("FETCH-DISK", reason, where=out, mend="free some space, or name another folder") from error
    return out


def _surround(folder: Path, manifest: Manifest) -> None:
    """The files at the root of the data set and of its labels; those of the set itself stay as they are."""
    address = f"https://github.com/{manifest.repository}"
    own = {
        "Name": manifest.title,
        "BIDSVersion": "1.9.0",
        "License": manifest.licence,
        "HowToAcknowledge": f"Cite: {manifest.citation}",
        "ReferencesAndLinks": [f"{address}/tree/{manifest.commit}"],
        "SourceDatasets": [{"URL": address, "Version": manifest.commit}],
        "GeneratedBy": _MADE_BY,
    }
    labels = {**own, "Name": f"{manifest.title}: masks", "DatasetType": "derivative", "DatasetLinks": {"raw": "../.."}}
    places = [(folder, {**own, "DatasetType": "raw"})]
    if (folder / "derivatives" / "labels").is_dir():
        places.append((folder / "derivatives" / "labels", labels))
    for place, content in places:
        if not (place / "dataset_description.json").exists():
            write_json(place / "dataset_description.json", content)
    if not (folder / "participants.tsv").exists():
        _participants(folder, manifest)
    rows = [f"{place}  <-  {entry.path}" for entry in manifest.files for place in entry.bids]
    text = (
        f"{manifest.attribution}\n\nLaid out as BIDS by msfilm {__version__} (msfilm fetch {manifest.name} --bids). "
        "The files' contents are unchanged.\nThe licence asks to keep this notice with the data. "
        "For research and teaching, not for diagnosis.\n\n" + "\n".join(sorted(rows)) + "\n"
    )
    (folder / "README").write_text(text, encoding="utf-8")


def _sidecars(folder: Path) -> None:
    """What the names alone tell: whose mask it is, and whether the MT pulse was on. Nothing is invented."""
    root = folder.absolute()
    for _, row in find_volumes(root).iterrows():
        if not isinstance(row["image"], Path):
            continue
        said = [(row["image"], {"MTState": row["contrast"] == "MTon"})] if row["contrast"] in ("MTon", "MToff") else []
        reference = f"bids:raw:{row['image'].relative_to(root).as_posix()}"
        masks = [value for value in row if isinstance(value, Path) and "derivatives" in value.parts[len(root.parts) :]]
        for path, content in said + [(mask, {"SpatialReference": reference}) for mask in masks]:
            sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
            if not sidecar.exists():
                write_json(sidecar, content)


def _participants(folder: Path, manifest: Manifest) -> None:
    people = manifest.participants or {}
    patients = sorted(path.name for path in folder.glob("sub-*") if path.is_dir())
    columns = [*dict.fromkeys([*list(_COLUMNS)[1:], *(key for row in people.values() for key in row)])]
    with open(folder / "participants.tsv", "w", encoding="utf-8", newline="") as handle:
        table = csv.writer(handle, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
        table.writerow(["participant_id", *columns])
        for patient in patients:
            table.writerow([patient, *(people.get(patient, {}).get(column, "n/a") for column in columns)])
    write_json(
        folder / "participants.json",
        {column: {"Description": _COLUMNS.get(column, "From the manifest")} for column in columns},
    )
