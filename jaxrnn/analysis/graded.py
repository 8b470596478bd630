"""Products of thousands of matrices in graded form, and their singular values as logarithms.

Multiplied out, a product of T Jacobians overflows or underflows. Long before that, its small singular values
are lost in the rounding errors of its large ones. Here the product is never formed. It is stored as

    A_k … A_1 = Q · diag(e^d) · V ,

with Q orthogonal, d real (the grades) and V well conditioned. Multiplying by A on the left takes one QR
factorisation of A Q, whose columns are sorted first if they are out of order. The diagonal of the triangular
factor is added to d, and the rest, scaled row by row, is multiplied into V. This is the stable product of
determinant quantum Monte Carlo (Loh et al. 1989; Bai et al. 2011), here with logarithmic grades.

The singular values of diag(e^d) V are then found by one-sided Jacobi rotations (Demmel & Veselić 1992) of its
rows, each stored as a unit vector and a logarithm. Rotations depend on ratios only, so every singular value
is found to high *relative* accuracy, however far apart they are. The rows converge to the right singular
vectors; the same rotations applied to the columns of Q give the left ones.

A direction that lies, to rounding, in the span of the previous ones has grade −inf: the product is singular.
Rounding is measured relative to the whole factor: a factor whose condition number exceeds 1/(64 ε √S), some
10⁴ in float32, counts as singular.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_TOLERATED_RISE = 6.0  # nats by which a column may outweigh an earlier one before all are sorted
_MAX_SWEEPS = 30  # cyclic Jacobi needs 5 to 10; the bound is for NaN, which never converges


class Graded(NamedTuple):
    """A square matrix Q · diag(e^d) · V in graded form.

    Attributes:
      q: orthogonal [S, S].
      grades: d, in nats [S]; −inf where the matrix is singular.
      v: well conditioned, its rows of length 1 [S, S].
    """

    q: Float[Array, "S S"]
    grades: Float[Array, "S"]
    v: Float[Array, "S S"]


def graded(matrix: Float[Array, "S S"]) -> Graded:
    """Return a matrix in graded form, by its singular value decomposition."""
    q, values, v = jnp.linalg.svd(matrix)
    return Graded(q, jnp.where(values <= _rounding(matrix), -jnp.inf, jnp.log(values)), v)


def left_multiply(matrix: Float[Array, "S S"], product: Graded) -> Graded:
    """Return matrix · product."""
    columns = jnp.where(product.grades[None, :] == -jnp.inf, 0, matrix @ product.q)
    weights = jnp.log(jnp.linalg.norm(columns, axis=0)) + product.grades
    q, r, order, rank = _independent_first(columns, _falling(weights), _rounding(matrix))
    grades, diagonal = product.grades[order], jnp.diagonal(r)
    alive = jnp.arange(len(grades)) < rank

    # Row i of R diag(e^d), divided by its diagonal entry; bounded, because the columns' weights decrease.
    pivots = jnp.where(alive, diagonal, 1)
    base = jnp.where(alive, grades, 0)
    unit_rows = r / pivots[:, None]
    steps_down = jnp.where(alive[:, None], grades[None, :] - base[:, None], -jnp.inf)
    scaled = jnp.triu(unit_rows * jnp.exp(steps_down), k=1) + jnp.eye(len(grades), dtype=r.dtype)
    grades = jnp.where(alive, grades + jnp.log(jnp.abs(pivots)), -jnp.inf)
    v, grades = _normalised(scaled @ product.v[order], grades)
    return Graded(q=q * jnp.sign(pivots)[None, :], grades=grades, v=v)


def _falling(weights):
    """Return an order of the columns in which their weights decrease, up to a few nats.

    Columns are not reordered at every crossing. Columns of similar weight would alternate in the first place,
    none would converge to the leading direction, and V would absorb it until V is singular.
    """
    rise = jnp.where(weights == -jnp.inf, 0, weights - jax.lax.cummin(weights)).max()
    return jnp.where(rise > _TOLERATED_RISE, jnp.argsort(-weights), jnp.arange(len(weights)))


def _rounding(matrix):
    """Return the length up to which a vector times `matrix` may be only rounding.

    It is relative to the whole matrix, not to a column: a vector of the null space gets about this length.
    """
    return 64 * jnp.finfo(matrix.dtype).eps * jnp.linalg.norm(matrix)


def _independent_first(columns, order, rounding):
    """Return q, r, order, rank of a QR factorisation in which each column is independent of those before it.

    A column in the span of its predecessors gets an arbitrary direction from the factorisation, and the
    components of later columns along it would be lost. Such columns therefore move to the end, and the rest
    is factorised again until there are none left. Most steps have none.
    """
    places = jnp.arange(len(order))

    def factorise(state):
        order, _, _, _, _ = state
        q, r = jnp.linalg.qr(columns[:, order])
        rank = jnp.argmax(jnp.append(jnp.abs(jnp.diagonal(r)) <= rounding, True))
        beyond = jnp.linalg.norm(jnp.where(places[:, None] >= rank, r, 0), axis=0)
        spent = (places >= rank) & (beyond <= rounding)
        settled = jnp.all(spent | (places < rank))
        following = jnp.where(settled, order, order[jnp.argsort(spent)])
        return following, q, r, rank, settled

    start = (order, columns, columns, jnp.zeros((), places.dtype), jnp.asarray(False))
    order, q, r, rank, _ = jax.lax.while_loop(lambda state: ~state[-1], factorise, start)
    return q, r, order, rank


def log_singular_values(product: Graded) -> Float[Array, "S"]:
    """Return the logarithms of the singular values, in decreasing order, [S]; −inf where singular."""
    _, logs, _ = _orthogonal_rows(product.v, product.grades, product.v[:, :0])
    return -jnp.sort(-logs)


def singular_vectors(
    product: Graded,
) -> tuple[Float[Array, "S"], Float[Array, "S S"], Float[Array, "S S"]]:
    """Return the logarithms of the singular values, and the left and right singular vectors as columns.

    A pair of vectors is determined up to a common sign. If the product is singular, the remaining vectors
    complete the others to an orthonormal basis.
    """
    rows, logs, columns = _orthogonal_rows(product.v, product.grades, product.q.T)
    order = jnp.argsort(-logs)
    # Rows of grade −inf come last and were not rotated. The others are orthogonal, so QR keeps them.
    right, r = jnp.linalg.qr(rows[order].T)
    signs = jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(r.dtype)
    return logs[order], columns[order].T, right * signs[None, :]


def _orthogonal_rows(rows, logs, columns):
    """Rotate the rows of diag(e^logs) · rows until they are orthogonal.

    Return the unit rows, their logarithms, and `columns`, an array with one entry a row, rotated in the same
    way. If `columns` holds the columns of Q, the product Q · diag(e^logs) · rows does not change.
    """
    size = len(logs)
    rows, logs = _normalised(rows, logs)
    if size % 2:  # rotations act on pairs: pad with a row of grade −inf, which is never rotated
        rows, columns = (jnp.pad(a, ((0, 1), (0, 0))) for a in (rows, columns))
        logs = jnp.append(logs, -jnp.inf)
    tolerance = size * jnp.finfo(rows.dtype).eps

    def unfinished(state):
        _, overlap, sweeps = state
        return (overlap > tolerance) & (sweeps < _MAX_SWEEPS)

    def sweep(state):
        turned, _, sweeps = state
        start = (*turned, jnp.zeros((), rows.dtype))
        rounds = len(logs) - 1  # after which every row is back in its place
        *turned, overlap = jax.lax.fori_loop(0, rounds, lambda _, s: _rotate_all(*s), start)
        return tuple(turned), overlap, sweeps + 1

    start = ((rows, logs, columns), jnp.asarray(jnp.inf, rows.dtype), jnp.zeros((), jnp.int32))
    turned, _, _ = jax.lax.while_loop(unfinished, sweep, start)
    return tuple(a[:size] for a in turned)


def _rotate_all(rows, logs, columns, worst):
    """Make the rows i and i + S/2 orthogonal, for all i at once, then move to the next pairing."""
    half = len(logs) // 2
    swap = logs[:half] < logs[half:]
    log_long, log_short = _exchanged(logs, swap)
    long, short = _exchanged(rows, swap[:, None])
    first, second = _exchanged(columns, swap[:, None])

    ratio = jnp.where(log_short > -jnp.inf, jnp.exp(log_short - log_long), 0)
    overlap = jnp.sum(long * short, axis=-1)
    gap = (1 - ratio) * (1 + ratio)
    width = gap + jnp.sqrt(gap**2 + (2 * ratio * overlap) ** 2)
    tilt = jnp.where(
        overlap == 0, 0, -2 * overlap / jnp.where(overlap == 0, 1, width)
    )  # tan θ / ratio
    cosine = 1 / jnp.sqrt(1 + (tilt * ratio) ** 2)
    cos, tan, tilt, ratio = (a[:, None] for a in (cosine, tilt * ratio, tilt, ratio))

    # In units of each row's own length, where the rotation by θ does not look like one.
    rows = _put_back(cos * (long - tan * ratio * short), cos * (short + tilt * long), swap)
    columns = _put_back(cos * (first - tan * second), cos * (second + tan * first), swap)
    rows, logs = _normalised(
        rows, jnp.concatenate(_exchanged(jnp.concatenate([log_long, log_short]), swap))
    )
    seen = jnp.where(log_short > -jnp.inf, jnp.abs(overlap), 0)
    turn = _round_robin(len(logs))
    return rows[turn], logs[turn], columns[turn], jnp.maximum(worst, seen.max())


def _put_back(long, short, swap):
    """Join the two halves with each row in its original place, which the round robin requires."""
    return jnp.concatenate(_exchanged(jnp.concatenate([long, short]), swap[:, None]))


def _exchanged(values, swap):
    """Return the two halves, with entries exchanged where `swap` is true."""
    half = len(values) // 2
    first, second = values[:half], values[half:]
    return jnp.where(swap, second, first), jnp.where(swap, first, second)


def _round_robin(size: int):
    """Return the permutation from one pairing (i, i + size/2) to the next.

    This is the circle method of tournaments: one player stays and the others move on by one seat; after
    size − 1 rounds every player has met every other.
    """
    half = size // 2
    seats = [*range(half), *range(size - 1, half - 1, -1)]  # the circle, as places in the two rows
    moved = [seats[0], seats[-1], *seats[1:-1]]
    turn = [0] * size
    for place, player in zip(seats, moved, strict=True):
        turn[place] = player
    return jnp.array(turn)


def _normalised(rows, logs):
    """Normalise each row and add the logarithm of its length to `logs`."""
    lengths = jnp.linalg.norm(rows, axis=-1)
    safe = jnp.where(lengths == 0, 1, lengths)
    return rows / safe[:, None], jnp.where(lengths == 0, -jnp.inf, logs + jnp.log(safe))
