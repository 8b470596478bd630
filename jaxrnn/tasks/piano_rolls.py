"""Polyphonic music: which notes sound next, of 88 keys, given all chords so far."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

from jaxrnn import checks
from jaxrnn.annotations import checked
from jaxrnn.tasks.base import Task
from jaxrnn.tasks.examples import bucketed
from jaxrnn.tasks.files import find_files
from jaxrnn.tasks.objectives import LOSSES, nll
from jaxrnn.tasks.sources import Source

_KEYS = 88
_PARTS = ("traindata", "validdata", "testdata")


@checked
def jsb_chorales(folder: str | os.PathLike[str] | None = None) -> Task:
    """Foretell Bach's chorales, chord by chord.

    229 pieces to train, 76 to validate, 77 to test. The score is −log p of the next chord, in nats a step,
    its notes taken as independent given the past; the first chord is foretold from silence. Chance knows how
    often each key sounds (Boulanger-Lewandowski et al. 2012; with about 20,000 parameters Chung et al. 2014
    report 9.10 for tanh, 8.67 for LSTM, 8.54 for GRU).

    Args:
      folder: where ``JSB_Chorales.mat`` lies; by default ``$JAXRNN_DATA/jsb``.

    Raises:
      InputError: the file is not there, or is not what it should be.
    """
    what = f"a MATLAB file with {', '.join(_PARTS)}, pieces of {_KEYS} keys a step"
    (path,) = find_files("jsb", folder, {what: "JSB_Chorales.mat"}).values()
    pieces = {part: _pieces(path, part, what) for part in _PARTS}
    train, valid, test = (_foretelling(pieces[part]) for part in _PARTS)
    often = np.concatenate(pieces["traindata"]).mean(axis=0).clip(1e-4)
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


def _foretelling(pieces: list[np.ndarray]) -> Source:
    shown = [np.concatenate([np.zeros_like(piece[:1]), piece[:-1]]) for piece in pieces]
    return bucketed(shown, pieces, groups=4)


def _pieces(path: Path, part: str, expected: str) -> list[np.ndarray]:
    try:
        content: Any = scipy.io.loadmat(path)
    except Exception as error:  # a damaged file can raise anything
        checks.refuse(str(path), f"a file that cannot be read ({error})", expected)
    if part not in content:
        checks.refuse(str(path), f"no {part}", expected)
    pieces = [np.asarray(piece, np.float32) for piece in content[part].reshape(-1)]
    for number, piece in enumerate(pieces):
        if piece.ndim != 2 or piece.shape[1] != _KEYS or not len(piece):
            checks.refuse(str(path), f"{part}[{number}] of {checks.describe(piece)}", expected)
        if not np.isin(piece, (0, 1)).all():
            checks.refuse(str(path), f"{part}[{number}] with values beside 0 and 1", expected)
    return pieces
