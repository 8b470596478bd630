"""Polyphonic music: which notes sound next, of 88 keys, given all chords so far."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.tasks.base import Task
from jaxrnn.tasks.examples import bucketed
from jaxrnn.tasks.files import find_files
from jaxrnn.tasks.mat_files import read_cell_arrays
from jaxrnn.tasks.objectives import LOSSES, nll
from jaxrnn.tasks.sources import Source

_KEYS = 88
_PARTS = ("traindata", "validdata", "testdata")
_RAREST = 1e-4  # probability that chance gives to what training never showed


@checked
def jsb_chorales(folder: str | os.PathLike[str] | None = None) -> Task:
    """Foretell Bach's chorales, chord by chord.

    229 pieces to train, 76 to validate, 77 to test. The score is −log p of the next chord, in nats a step,
    its notes taken as independent given the past; the first chord is predicted from silence. Chance knows how
    often each key sounds (Boulanger-Lewandowski et al. 2012; with about 20,000 parameters Chung et al. 2014
    report 9.10 for tanh, 8.67 for LSTM, 8.54 for GRU).

    Args:
      folder: where ``JSB_Chorales.mat`` lies; by default ``$JAXRNN_DATA/jsb``.

    Raises:
      InputError: the file is not there, or is not what it should be.
    """
    what = f"a MATLAB file with {', '.join(_PARTS)}, pieces of {_KEYS} keys a step"
    (path,) = find_files("jsb", folder, {what: "JSB_Chorales.mat"}).values()
    found = read_cell_arrays(path, _PARTS, what)
    pieces = {part: _checked(path, part, found[part], what) for part in _PARTS}
    train, valid, test = (_predicting(pieces[part]) for part in _PARTS)
    often = np.concatenate(pieces["traindata"]).mean(axis=0)
    often = often.clip(_RAREST, 1 - _RAREST)
    asked = np.concatenate(pieces["testdata"])
    logits = np.broadcast_to(np.log(often / (1 - often)), asked.shape).astype(np.float32)
    return Task(
        name="jsb-chorales",
        source="Boulanger-Lewandowski, Bengio & Vincent 2012",
        train=train,
        valid=valid,
        test=test,
        answers="step",
        outputs=_KEYS,
        in_features=_KEYS,
        loss="bernoulli",
        metric=nll,
        chance=float(np.mean(LOSSES["bernoulli"](logits, asked))),
        solved=None,
        forecast=True,
    )


def _predicting(pieces: list[np.ndarray]) -> Source:
    shown = [np.concatenate([np.zeros_like(piece[:1]), piece[:-1]]) for piece in pieces]
    return bucketed(shown, pieces, groups=4)


def _checked(path: Path, part: str, found: list[np.ndarray], expected: str) -> list[np.ndarray]:
    """Refuse what is no piano roll, and return the others as float32."""
    if not found:
        checks.refuse(str(path), f"no pieces in {part}", expected)
    for number, piece in enumerate(found):
        if piece.ndim != 2 or piece.shape[1] != _KEYS or not len(piece):
            checks.refuse(str(path), f"{part}[{number}] of {checks.describe(piece)}", expected)
        if not np.isin(piece, (0, 1)).all():  # complex numbers among them
            checks.refuse(str(path), f"{part}[{number}] with values beside 0 and 1", expected)
    return [np.asarray(np.real(piece), np.float32) for piece in found]
