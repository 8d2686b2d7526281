"""Which middle blocks layer-drop keeps, in exact rational arithmetic."""

from fractions import Fraction


def half_to_even(value: Fraction) -> int:
    """Rounds to the nearest integer, halves to the even one."""
    below = value.numerator // value.denominator
    rest = value - below
    if rest == Fraction(1, 2):
        return below if below % 2 == 0 else below + 1
    return below + (rest > Fraction(1, 2))


def kept_positions(num_middle: int, num_kept: int) -> list[int]:
    """Returns round(i (L_mid - 1) / (n - 1)) for i = 0..n-1; the middle one for n = 1."""
    if num_kept == 1:
        return [num_middle // 2]
    step = Fraction(num_middle - 1, num_kept - 1)
    return [half_to_even(i * step) for i in range(num_kept)]
