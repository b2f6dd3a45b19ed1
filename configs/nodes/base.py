"""What a node's dataclass checks its own fields with."""

from __future__ import annotations

from typing import Any

from configs.rules import MAX_WHOLE, Choice, Number, Place, Rule, Several, Text, Whole

# Weights that no loss has use for.
MAX_WEIGHT = 1e9
# The largest factor of a colour, and what a turn of hues by half of their circle is.
_MAX_FACTOR = 10.0
_HALF_CIRCLE = 0.5


class FieldChecks:
    """Checks one field of a node at a time and names it `NODE.KEY` in every error.

    To be used in `__post_init__`; every check raises ValueError in one line.
    """

    def __init__(self, config: Any) -> None:
        """Args: the dataclass; its `node` is the node's name."""
        self._config = config

    def check(self, name: str, rule: Rule) -> None:
        """Hold a field against one of the rules of `configs.rules`."""
        if not rule.accepts(getattr(self._config, name)):
            raise self.refusal(name, rule.expected)

    def integer(self, name: str, *, at_least: int, at_most: int = MAX_WHOLE) -> None:
        """Check a whole number; both limits are allowed."""
        self.check(name, Whole(at_least, at_most))

    def number(
        self, name: str, *, at_least: float = 0.0, at_most: float, above: float | None = None
    ) -> None:
        """Check a finite number and store it as float, so that 1 and 1.0 are one setting."""
        self.check(name, Number(at_least=at_least, at_most=at_most, above=above))
        object.__setattr__(self._config, name, float(getattr(self._config, name)))

    def choice(self, name: str, allowed: tuple[str, ...]) -> None:
        """Check for one of some texts."""
        self.check(name, Choice(allowed))

    def text(self, name: str) -> None:
        """Check for text, which may be empty."""
        self.check(name, Text())

    def names(self, name: str, *, at_least: int = 0) -> None:
        """Check names, several or none, and store them as a tuple."""
        self.check(name, Several(item=Text(needed=True), at_least=at_least))
        object.__setattr__(self._config, name, tuple(getattr(self._config, name)))

    def several(self, name: str, rule: Several, *, empty: bool) -> None:
        """Check several values and store them as a tuple; `empty`: there may be none."""
        if not (empty and getattr(self._config, name) in ((), [])):
            expected = f"() or {rule.expected}" if empty else rule.expected
            if not rule.accepts(getattr(self._config, name)):
                raise self.refusal(name, expected)
        object.__setattr__(self._config, name, tuple(getattr(self._config, name)))

    def span(self, name: str, item: Number) -> None:
        """Check the two ends of a range, the lower one first, and store them as floats."""
        self.several(name, Several(item=item, at_least=2, at_most=2), empty=False)
        low, high = (float(one) for one in getattr(self._config, name))
        if low > high:
            raise self.refusal(name, "the lower end of the range first")
        object.__setattr__(self._config, name, (low, high))

    def colours(self) -> None:
        """Check the ranges of the changes of colours."""
        for name in ("brightness", "contrast", "saturation"):
            self.span(name, Number(at_most=_MAX_FACTOR))
        self.span("hue", Number(at_least=-_HALF_CIRCLE, at_most=_HALF_CIRCLE))

    def weight(self, name: str) -> None:
        """Check the weight of a loss; 0: without it."""
        self.number(name, at_most=MAX_WEIGHT)

    def place(self, name: str, schemes: tuple[str, ...] = ()) -> None:
        """Check a path or URL; credentials in a URL would end up in logs and saved configs."""
        self.text(name)
        # The value is not repeated: it holds the secret.
        if Place.holds_credentials(getattr(self._config, name)):
            raise ValueError(
                f"{self._key(name)}: the URL holds credentials; take them out and give "
                "them through the environment of the storage client"
            )
        self.check(name, Place(schemes))

    def refusal(self, name: str, expected: str) -> ValueError:
        """The error to raise of a field, with its value; `expected` is what it should be."""
        value = getattr(self._config, name)
        return ValueError(f"{self._key(name)}: expected {expected}, got {value!r}")

    def _key(self, name: str) -> str:
        return f"{self._config.node}.{name.upper()}"
